"""`migrate`: a guest moves to another host; it stands still for the last small delta only.

migrate    the order of things, and what is done when one of them fails
rounds     whether another round makes the last pass shorter
volume     one volume on its way: each round from a new snapshot
landing    where it comes to lie: what is asked of the other host
note       how far it is, for whoever comes after a run that died
guests     whoever uses the volumes, by commands; `domain` by libvirt, `live` by QEMU
"""
