"""Raw images: nothing but the bytes of a disk."""

from blockstream.formats.foreign.events import Format, Image, Reading, Whole


def read(_size: int | None) -> Reading:
    """Read an image."""
    yield Whole()
    yield Image()


FORMAT = Format(
    name="raw",
    title="a raw image",
    read=read,
    ends=False,
    based=True,  # a whole disk needs none
    unchecked=("that it is whole", "its bytes"),
)
