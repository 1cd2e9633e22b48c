"""What it takes to reach a store."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoreAccess:
    """What it takes to reach a store, and to read it.

    Attributes:
        endpoint: URL of another S3 server than AWS; empty for what botocore's settings say.
        identity: File with an identity that opens an encrypted store.
        state_dir: Where it is remembered which stores were used, and how far they were.
        allow_http: Speak to another host without TLS.
    """

    endpoint: str
    identity: Path | None
    state_dir: Path
    allow_http: bool = False
