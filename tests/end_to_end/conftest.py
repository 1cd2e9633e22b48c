"""One zygote for all tests, one host for each."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.hosts import Host, Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.close()


@pytest.fixture
def host(tmp_path: Path, zygote: Zygote) -> Iterator[Host]:
    """A host whose senders ask for a barrier each 2 s, as they do."""
    with closing(Host(tmp_path, zygote)) as made:
        yield made


@pytest.fixture
def quick(zygote: Zygote) -> Iterator[Host]:
    """A host whose disks lie in memory, for thousands of runs."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        closing(Host(Path(folder), zygote, often=True)) as made,
    ):
        yield made


@pytest.fixture
def eager(tmp_path: Path, zygote: Zygote) -> Iterator[Host]:
    """A host whose senders ask for a barrier after each frame."""
    with closing(Host(tmp_path, zygote, often=True)) as made:
        yield made
