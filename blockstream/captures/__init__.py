"""A disk held still, and what changed in it: one file a kind of disk; `interface.py` is theirs."""
