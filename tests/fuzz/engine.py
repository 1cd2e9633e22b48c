"""What every fuzz target needs: instrumented imports where atheris is there, and a start.

A target is a module `fuzz_NAME.py` with a function `check(data)`; its first line is its invariant.
Without atheris it can still be imported, so that the corpus is an ordinary test.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def instrumented(*packages: str) -> AbstractContextManager[Any]:
    """Import inside this, so that atheris sees the branches of `packages`."""
    if "atheris" in sys.modules or not _is_a_target(sys.argv[0]) or find_spec("atheris") is None:
        return nullcontext()
    found: AbstractContextManager[Any] = import_module("atheris").instrument_imports(
        include=list(packages)
    )
    return found


def fuzz(check: Callable[[bytes], None]) -> None:
    """Run until the time of the command line is over; a crash ends the process."""
    atheris = import_module("atheris")
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


def _is_a_target(program: str) -> bool:
    return program.rpartition("/")[2].startswith("fuzz_")
