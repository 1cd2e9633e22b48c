"""An encrypted store is opened by those whom it was encrypted to, and tells others nothing."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.hosts import Ended, Host
from tests.s3_servers import S3Server

WORDS = b"nobody else reads this " * 200
LINES = 4096


@pytest.fixture
def identity(host: Host, tmp_path: Path) -> tuple[Path, str]:
    return made(host, tmp_path / "identity")


def made(host: Host, path: Path) -> tuple[Path, str]:
    return path, ok(host.run("store", "key", "new", path)).out.decode().strip()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(WORDS[:LINES] + random.Random(1).randbytes(1 << 20))  # noqa: S311
    return path


def ok(ended: Ended) -> Ended:
    assert ended.status == 0, ended.err
    return ended


def ssh_key(path: Path) -> str:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "admin@example", "-f", str(path)]
    subprocess.run(words, check=True)  # noqa: S603  # as written here
    return path.with_suffix(".pub").read_text().strip()


def test_what_lies_there_tells_nothing(
    host: Host, identity: tuple[Path, str], disk: Path, tmp_path: Path
) -> None:
    place, key = f"dir:{tmp_path}/store", ("--identity", identity[0])
    ok(host.run("store", "init", place, "--encrypt-to", identity[1]))
    words = ("--goal", "a-state-of-the-disk", "--compress", "none", *key)
    ok(host.run("send", disk, f"{place}/vm", *words))
    lying = b"".join(
        path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()
    )
    assert len(lying) > disk.stat().st_size
    assert WORDS[:16] not in lying
    assert b"a-state-of-the-disk" not in lying  # nor do manifests
    assert "a-state-of-the-disk" in ok(host.run("points", f"{place}/vm", *key)).out.decode()
    ok(host.run("restore", f"{place}/vm", tmp_path / "copy", "--create", *key))
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()


def test_who_has_no_identity_is_told_so_and_nothing_is_done(
    host: Host, identity: tuple[Path, str], disk: Path, tmp_path: Path
) -> None:
    place = f"dir:{tmp_path}/store"
    other = made(host, tmp_path / "other")
    ok(host.run("store", "init", place, "--encrypt-to", identity[1]))
    for words in (
        ("send", disk, f"{place}/vm"),
        ("points", f"{place}/vm"),
        ("points", place),
        ("restore", f"{place}/vm", tmp_path / "copy"),
        ("store", "verify", place),
        ("store", "key", "add", place, other[1]),
    ):
        without = host.run(*words)
        assert without.status == 16, words
        assert f"no identity was given for {identity[1]}" in without.err
        wrong = host.run(*words, "--identity", other[0])
        assert wrong.status == 16, words
        assert f"the identity given is not that of {identity[1]}" in wrong.err
        assert "nothing was done" in wrong.err
    assert not (tmp_path / "store" / "bs1" / "disk").exists()


def test_others_are_given_the_key_and_it_is_taken_away(
    host: Host, identity: tuple[Path, str], disk: Path, tmp_path: Path
) -> None:
    place, key = f"dir:{tmp_path}/store", ("--identity", identity[0])
    ok(host.run("store", "init", place, "--encrypt-to", identity[1]))
    ok(host.run("send", disk, f"{place}/vm", *key))
    public = ssh_key(tmp_path / "id")
    ok(host.run("store", "key", "add", place, public, *key))
    again = host.run("store", "key", "add", place, public, *key)
    assert (again.status, "can open it already" in again.err) == (10, True)
    listed = ok(host.run("store", "key", "list", place)).out.decode()
    assert identity[1] in listed
    assert public.rsplit(" ", 1)[0] in listed
    with_ssh = ("--identity", tmp_path / "id")
    ok(host.run("restore", f"{place}/vm", tmp_path / "copy", "--create", *with_ssh))
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()
    ok(host.run("store", "key", "remove", place, identity[1]))
    assert host.run("points", f"{place}/vm", *key).status == 16
    (left,) = ok(host.run("store", "key", "list", place, "--json")).results
    recipient = str(left["recipient"])
    last = host.run("store", "key", "remove", place, recipient)
    assert (last.status, "add another one first" in last.err) == (10, True)
    ok(host.run("points", f"{place}/vm", *with_ssh))


def test_a_store_that_lies_open_is_not_taken_for_an_encrypted_one(
    host: Host, identity: tuple[Path, str], disk: Path, tmp_path: Path
) -> None:
    """Somebody may have put it in the place of the one that was meant."""
    place = f"dir:{tmp_path}/store"
    ok(host.run("store", "init", place))
    refused = host.run("send", disk, f"{place}/vm", "--identity", identity[0])
    assert refused.status == 10
    assert "is not encrypted, although an identity was given; nothing was done" in refused.err
    assert host.run("store", "key", "list", place).status == 10


def test_another_store_in_its_place_is_refused_until_it_is_trusted(
    host: Host, identity: tuple[Path, str], disk: Path, tmp_path: Path
) -> None:
    """Also one that is not encrypted, where nobody gives an identity, as with a key of KMS."""
    place, key = f"dir:{tmp_path}/store", ("--identity", identity[0])
    folder = tmp_path / "store"
    ok(host.run("store", "init", place, "--encrypt-to", identity[1]))
    ok(host.run("send", disk, f"{place}/vm", *key))
    folder.rename(tmp_path / "ours")
    ok(host.run("store", "init", place, "--anew", "--encrypt-to", identity[1]))
    for words in (
        ("send", disk, f"{place}/vm", *key),
        ("send", "-n", disk, f"{place}/vm", *key),
        ("points", f"{place}/vm", *key),
        ("restore", f"{place}/vm", tmp_path / "copy", *key),
        ("store", "prune", place, "--keep", "last=1", *key),
    ):
        refused = host.run(*words)
        assert refused.status == 16, words
        assert "is not the store that was used here before: it has another key" in refused.err
        assert f"`blockstream store trust {place}`" in refused.err
    assert not (folder / "bs1" / "disk").exists()
    shutil.rmtree(folder)
    ok(host.run("store", "init", place, "--anew"))
    bare = host.run("send", disk, f"{place}/vm")
    assert (bare.status, "before: it is not encrypted" in bare.err) == (16, True), bare.err
    ok(host.run("store", "trust", place))
    ok(host.run("send", disk, f"{place}/vm"))
    folder.rename(tmp_path / "other")
    (tmp_path / "ours").rename(folder)
    ok(host.run("points", f"{place}/vm", *key))  # as with disks that take turns
    said = ok(host.run("store", "trust", place, *key)).err
    assert len(said.split("its fingerprint is ")[1].strip()) == 32


def test_a_damaged_store_is_repaired_from_its_copy(
    host: Host, identity: tuple[Path, str], disk: Path, tmp_path: Path
) -> None:
    place, key = f"dir:{tmp_path}/store", ("--identity", identity[0])
    ok(host.run("store", "init", place, "--encrypt-to", identity[1]))
    ok(host.run("send", disk, f"{place}/vm", *key))
    shutil.copytree(tmp_path / "store", tmp_path / "twin")
    (pack,) = (tmp_path / "store").rglob("*.pack")
    pack.write_bytes(pack.read_bytes()[:-1])
    assert host.run("store", "verify", place, *key).status == 12
    ok(host.run("store", "repair", place, "--from", f"dir:{tmp_path}/twin", *key))
    ok(host.run("store", "verify", place, *key))


def test_a_key_of_somebody_else_that_is_damaged_is_in_nobodys_way(
    host: Host, identity: tuple[Path, str], disk: Path, tmp_path: Path
) -> None:
    place, other = f"dir:{tmp_path}/store", made(host, tmp_path / "other")
    ok(host.run("store", "init", place, "--encrypt-to", identity[1], "--encrypt-to", other[1]))
    for path in (tmp_path / "store" / "bs1" / "key").rglob("*.json"):
        if other[1] in path.read_text():
            path.write_text("{}")
    ok(host.run("send", disk, f"{place}/vm", "--identity", identity[0]))
    assert host.run("points", f"{place}/vm", "--identity", other[0]).status == 16
    assert host.run("store", "key", "list", place).status == 12


@pytest.mark.parametrize("word", ["age1nothing", "ssh-rsa AAAA", "somebody", ""])
def test_what_is_no_recipient_is_refused(host: Host, tmp_path: Path, word: str) -> None:
    place = f"dir:{tmp_path}/store"
    refused = host.run("store", "init", place, "--encrypt-to", word)
    assert refused.status == 2, refused.err
    assert "is no recipient" in refused.err
    assert not (tmp_path / "store" / "bs1" / "store.json").exists()


def test_what_is_no_identity_is_refused(
    host: Host, identity: tuple[Path, str], tmp_path: Path
) -> None:
    place = f"dir:{tmp_path}/store"
    ok(host.run("store", "init", place, "--encrypt-to", identity[1]))
    (tmp_path / "empty").write_text("# nothing\n")
    (tmp_path / "bad").write_text("AGE-SECRET-KEY-1NONE\n")
    for name, what in (("empty", "holds no"), ("bad", "holds no"), ("none", "cannot be read")):
        refused = host.run("store", "verify", place, "--identity", tmp_path / name)
        assert (refused.status, what in refused.err) == (2, True), refused.err
    taken = host.run("store", "key", "new", identity[0])
    assert (taken.status, "File exists" in taken.err) == (2, True)


@pytest.mark.slow
def test_a_key_of_kms_opens_it(
    host: Host, localstack: S3Server, disk: Path, tmp_path: Path
) -> None:
    host.environment |= localstack.environment
    place, arn = f"dir:{tmp_path}/store", localstack.make_key()
    ok(host.run("store", "init", place, "--encrypt-to", f"kms:{arn}"))
    ok(host.run("send", disk, f"{place}/vm"))
    ok(host.run("restore", f"{place}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()
    # What is wrapped says for which store: in another one it opens nothing.
    header = tmp_path / "store" / "bs1" / "store.json"
    values = json.loads(header.read_text())
    del values["digest"]  # an early one had none
    (folder,) = (tmp_path / "store" / "bs1" / "key").iterdir()
    folder.rename(folder.with_name("0" * 32))
    header.write_text(json.dumps(values | {"id": "0" * 32}, sort_keys=True))
    refused = host.run("points", f"{place}/vm")
    assert (refused.status, "InvalidCiphertextException" in refused.err) == (16, True), refused.err
    unknown = host.run("store", "init", f"dir:{tmp_path}/b", "--encrypt-to", "kms:alias/none")
    assert (unknown.status, "NotFoundException" in unknown.err) == (16, True), unknown.err
