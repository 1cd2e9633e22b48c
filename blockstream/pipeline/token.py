"""The resume token: what a one-way sender must know to continue, as one word to paste."""

import base64
import json
from dataclasses import asdict, dataclass

from blockstream.errors import UsageError
from blockstream_protocol import Dirty, is_id

_PREFIX = "bsr1-"


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """The durable mark of an unfinished transfer.

    Attributes:
        base: State before; empty for a full copy.
        goal: State that the transfer leads to.
        transfer: Its identity, hex.
        frames: How many of its frames are durable.
        chain: The chain after those, hex.
    """

    base: str
    goal: str
    transfer: str
    frames: int
    chain: str

    @classmethod
    def of(cls, state: Dirty) -> "ResumeToken":
        """Return the token of a DIRTY target."""
        return cls(state.base, state.goal, state.transfer, state.frames, state.chain)

    def __str__(self) -> str:
        text = json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)
        return _PREFIX + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "ResumeToken":
        """Parse what `str` gave.

        Raises:
            UsageError: If it is anything else.
        """
        body = text.strip().removeprefix(_PREFIX)
        try:
            values = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            token = cls(**values)
            sound = (
                (not token.base or is_id(token.base))
                and is_id(token.goal)
                and type(token.frames) is int
                and token.frames >= 0
                and len(bytes.fromhex(token.chain)) == len(bytes.fromhex(token.transfer)) == 32
            )
        except (ValueError, TypeError, RecursionError):
            sound = False
        if not sound or not text.strip().startswith(_PREFIX):
            raise UsageError(
                "this is not a resume token; `blockstream status TARGET` on the receiving host "
                "prints it, one word that begins with bsr1-"
            )
        return token
