"""A reader of JSON that holds one value at a time.

A dictionary for every entry, as `json.loads` makes them, costs 366 MiB for a list of a million
extents (measured).
"""

import re
from collections.abc import Callable, Iterator
from json import JSONDecoder
from typing import Final, NoReturn

from blockstream.errors import ExtentListError

WINDOW_BYTES: Final = 1 << 18
VALUE_BYTES: Final = 4096  # of one entry, or one value of a header; known tools write about 100
_BLANKS: Final = " \t\r\n"
_BLANK_RUN: Final = re.compile(f"[{_BLANKS}]+")


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object; of a doubled key, two readers might take different values."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key occurs twice")
    return fields


_DECODER: Final = JSONDecoder(object_pairs_hook=_without_doubles)


class JsonCursor:
    """Walks over `data`: arrays and objects by their parts, small values whole.

    Text is taken as Latin-1, in which no byte is malformed: names and words of every known list
    are ASCII, other text is not looked at.
    """

    def __init__(self, data: bytes, refused: Callable[[str], ExtentListError]) -> None:
        """Begin at the first byte; `refused` makes the error for what is wrong there."""
        self._data = data
        self._refused = refused
        self._text = ""
        self._start = 0  # where in `data` the text begins
        self._at = 0  # where in the text we are

    def array(self) -> Iterator[object]:
        """Give the elements of the array that begins here, one by one."""
        self._expect("[")
        if self._skip("]"):
            return
        while True:
            yield self.value()
            if self._skip("]"):
                return
            self._expect(",")

    def keys(self) -> Iterator[str]:
        """Give the keys of the object that begins here; after each, its value must be taken."""
        self._expect("{")
        if self._skip("}"):
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                self._fail("a name")
            self._expect(":")
            yield key
            if self._skip("}"):
                return
            self._expect(",")

    def value(self) -> object:
        """Return the value that begins here; objects become dictionaries."""
        if not self._peek():
            self._fail("a value")
        if len(self._text) - self._at < VALUE_BYTES:
            self._refill()
        try:
            value, end = _DECODER.raw_decode(self._text, self._at)
        except (ValueError, RecursionError) as error:
            # Not the error's text: its position counts from the window.
            self._fail_value(error)
        if end - self._at > VALUE_BYTES:
            self._fail_value()  # the window may have shown all of it, but only by chance
        self._at = end
        return value

    def end(self) -> None:
        """Demand that nothing follows."""
        if self._peek():
            self._fail("the end")

    def _peek(self) -> str:
        """Return the next character that is not blank; nothing at the end."""
        while True:
            char = self._text[self._at : self._at + 1]
            if char and char not in _BLANKS:
                return char
            if run := _BLANK_RUN.match(self._text, self._at):
                self._at = run.end()
            elif not self._refill():
                return ""

    def _refill(self) -> bool:
        """Move the window to where we are, if there is more to see from there."""
        if self._start + len(self._text) >= len(self._data):
            return False
        self._start += self._at
        self._at = 0
        self._text = str(self._data[self._start : self._start + WINDOW_BYTES], "latin-1")
        return True

    def _skip(self, char: str) -> bool:
        if self._peek() != char:
            return False
        self._at += 1
        return True

    def _expect(self, char: str) -> None:
        if not self._skip(char):
            self._fail(f"'{char}'")

    def _fail(self, wanted: str) -> NoReturn:
        found = self._text[self._at : self._at + 20] if self._peek() else ""
        place = self._start + self._at
        if not found:
            raise self._refused(f"it is cut off at byte {place}, where {wanted} should be")
        raise self._refused(f"byte {place} should begin {wanted}, not {found!r}")

    def _fail_value(self, cause: BaseException | None = None) -> NoReturn:
        place, found = self._start + self._at, self._text[self._at : self._at + 20]
        raise self._refused(
            f"byte {place}, {found!r}, begins no whole value: it is cut off or malformed, has "
            f"a name twice, or more than {VALUE_BYTES} bytes"
        ) from cause
