"""Whatever comes in, it is an ExtentList inside the device or an ExtentListError, nothing else."""

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream", "json"):
    from blockstream.errors import ExtentListError
    from blockstream.formats.extent_lists import parse_extent_list, written

# The device of the corpus. Not a multiple of the chunk, so that the last one is cut.
SIZE = (1 << 20) - 512


def check(data: bytes) -> None:
    """Parse; what was understood must be in order, in the device, and survive our own format."""
    try:
        result = parse_extent_list(data, SIZE)
    except ExtentListError as error:
        if len(str(error)) > 1000:
            raise AssertionError("a message that nobody can read") from error
        return
    end = 0
    for extent in result.extents:
        if extent.length <= 0 or extent.offset < end or extent.kind not in (1, 2):
            raise AssertionError(f"{extent} after {end}")
        end = extent.offset + extent.length
    if end > SIZE:
        raise AssertionError(f"{end} is past the end")
    text = "".join(written(result.extents, result.meaning))
    again = parse_extent_list(text.encode(), SIZE)
    if (again.extents, again.meaning) != (result.extents, result.meaning):
        raise AssertionError("it did not survive our own format")


if __name__ == "__main__":
    fuzz(check)
