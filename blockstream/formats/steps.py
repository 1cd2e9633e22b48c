"""Parsers that ask for what they want to see, so that any reader can serve them.

A parser is a generator: it yields ranges, takes their bytes, and returns what it found.
"""

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Ranges = list[tuple[int, int]]
Steps = Generator[Ranges, bytes, T]


def read_with(steps: Steps[T], read: Callable[[Ranges], bytes]) -> T:
    """Run the steps; `read` gives the bytes of ranges, read in their order."""
    try:
        ranges = next(steps)
        while True:
            ranges = steps.send(read(ranges))
    except StopIteration as stop:
        result: T = stop.value
        return result
