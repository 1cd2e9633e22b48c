"""What a session wants done. Whoever runs the session does it and reports back.

Effects of one list are executed in order. Production executes them on devices and descriptors,
the simulation on models of these; the rules are the same objects.
"""

from dataclasses import dataclass

from blockstream_protocol._extents import Extent
from blockstream_protocol._frames import Frame
from blockstream_protocol._messages import Committed, Message
from blockstream_protocol._plan import Plan
from blockstream_protocol._target import TargetState


@dataclass(frozen=True, slots=True)
class Send:
    """Give the message to the peer; dropped where there is no way back."""

    message: Message


@dataclass(frozen=True, slots=True)
class CheckBase:
    """Tell whether somebody wrote to the target since its commit; report with `base_checked`.

    Attributes:
        samples: Digest that its samples had then, hex.
    """

    samples: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make ready for the first write of `plan`; report with `prepared`.

    Whatever can be refused while nothing is changed, such as a full state directory, is refused
    here. With undo, the first pre-images are made durable here.
    """

    plan: Plan
    resumed: bool


@dataclass(frozen=True, slots=True)
class Record:
    """Make the state durable in the journal; report with `recorded`."""

    state: TargetState


@dataclass(frozen=True, slots=True)
class Verify:
    """Unpack the frame, check its digest, parse its table; report with `verified`, in order."""

    seq: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class Write:
    """Write the frame's extents to the target; report with `written`, in any order."""

    seq: int
    extents: list[Extent]


@dataclass(frozen=True, slots=True)
class Flush:
    """Make every write reported so far durable; report with `flushed`. Never repeat it."""


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Read frames `first` to `last` (exclusive) from the medium and compare; then `read_back`.

    What to compare with is kept until the frames are recorded: after a failure they are read again.
    """

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class TakeSamples:
    """Sample the target as it is now; report with `samples_taken`."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Sender: produce frames from `frames` on.

    The first `frames` frames are produced as well, but only to prove that they still digest to
    `chain`: report each with `replayed`, or call `trusted` where the source cannot change.
    """

    frames: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Validate:
    """Sender: check that the source is still what it was; report with `validated`."""


@dataclass(frozen=True, slots=True)
class RecordIntent:
    """Sender: note durably what COMMITTED must say; report with `intent_recorded`."""

    expected: Committed


@dataclass(frozen=True, slots=True)
class Finish:
    """The session is over.

    Attributes:
        code: 0, or a `Code`.
        text: For a failure, what happened.
        committed: What was committed; for a one-way sender, what must be.
        written: Whether this session changed the target; False when it held the goal already.
    """

    code: int
    text: str = ""
    committed: Committed | None = None
    written: bool = True


Effect = (
    Send
    | CheckBase
    | Prepare
    | Record
    | Verify
    | Write
    | Flush
    | ReadBack
    | TakeSamples
    | Stream
    | Validate
    | RecordIntent
    | Finish
)
