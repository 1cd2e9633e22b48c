"""Asynchronous context managers, entered by tests that are not."""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from blockstream.captures.interface import Holding

T = TypeVar("T")


async def nothing_held(_name: str) -> Holding:
    """Be a destination that holds nothing."""
    return Holding(exists=False)


@contextlib.contextmanager
def entered(manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter on a loop of its own, which runs only while it is entered and left."""
    with asyncio.Runner() as runner:
        inside = runner.run(manager.__aenter__())
        try:
            yield inside
        except BaseException as error:
            if not runner.run(manager.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            runner.run(manager.__aexit__(None, None, None))
