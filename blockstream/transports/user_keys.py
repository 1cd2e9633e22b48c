"""Which keys are offered to a host, in the order of the system's ssh.

First what the agent has of the configured files, then what else it has, then the files
(ssh's pubkey_prepare). A server counts each offer, and hangs up after a few.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from blockstream.transports.ssh_config import SshConfig


@dataclass(slots=True)
class Offers:
    """Keys that are offered, one after the other.

    Attributes:
        pairs: The keys.
        unusable: Files that are there and cannot be used, and why, for people.
    """

    pairs: list[asyncssh.SSHKeyPair] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def offers(config: SshConfig) -> AsyncIterator[Offers]:
    """Collect the keys for a host; the agent is held as long as they are needed."""
    found = Offers()
    if not config.keys_allowed:
        yield found
        return
    certificates = _certificates(config, found)
    own: list[asyncssh.SSHKeyPair] = []
    wanted: set[bytes] = set()
    for path in config.identities:
        wanted |= _public_parts(path)
        own += _pairs(path, certificates, found)
    async with contextlib.AsyncExitStack() as stack:
        held: list[asyncssh.SSHKeyPair] = []
        if config.agent:
            # Without an agent, or with one that does not answer, ssh goes on as well.
            with contextlib.suppress(OSError, ValueError, asyncssh.Error):
                agent = await stack.enter_async_context(asyncssh.connect_agent(config.agent))
                held = list(await agent.get_keys())
        ours = [pair for pair in held if pair.public_data in wanted]
        others = [] if config.identities_only else [p for p in held if p not in ours]
        in_agent = {pair.public_data for pair in ours}
        files = [pair for pair in own if pair.public_data not in in_agent]
        found.pairs = [*ours, *others, *files]
        yield found


def _certificates(config: SshConfig, found: Offers) -> list[asyncssh.SSHCertificate]:
    read: list[asyncssh.SSHCertificate] = []
    for path in config.certificates:
        try:
            read += asyncssh.load_certificates(str(path))
        except (OSError, ValueError) as error:
            found.unusable.append(f"{path}: {type(error).__name__}")
    return read


def _public_parts(path: Path) -> set[bytes]:
    """Return the public keys, and certificates, by which an agent knows a file's key."""
    parts = set()
    for each in (path, Path(f"{path}.pub")):
        with contextlib.suppress(OSError, ValueError):
            parts.add(asyncssh.read_public_key(each).public_data)
    with contextlib.suppress(OSError, ValueError):
        parts.add(asyncssh.read_certificate(f"{path}-cert.pub").public_data)
    with contextlib.suppress(OSError, ValueError):
        parts.add(asyncssh.read_private_key(path).public_data)
    return parts


def _pairs(
    path: Path, certificates: list[asyncssh.SSHCertificate], found: Offers
) -> list[asyncssh.SSHKeyPair]:
    """Load one file; what is not there is nothing, what cannot be used is noted."""
    try:
        if b"PRIVATE KEY" not in path.read_bytes():
            return []  # a public one, of which the agent has the other half
        return list(asyncssh.load_keypairs([str(path)], certlist=certificates))
    except FileNotFoundError:
        return []
    except asyncssh.KeyImportError as error:
        needs = "a passphrase: `ssh-add` it" if str(error).startswith("Passphrase") else "mending"
        found.unusable.append(f"{path} needs {needs}")
    except (OSError, ValueError) as error:  # the text of an error with keys is not for showing
        found.unusable.append(f"{path}: {type(error).__name__}")
    return []
