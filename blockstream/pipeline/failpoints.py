"""Named places where tests kill, stop or fail a real process.

Off unless BLOCKSTREAM_TESTING=1; then BLOCKSTREAM_FAILPOINT=NAME:HIT:ACTION chooses one. HIT counts
from 1; ACTION is `kill` (SIGKILL to ourselves), `stop` (SIGSTOP) or `leave` (exit at once, which
cuts the pipe).
"""

import os
import signal
import time
from collections import Counter

NAMES = (
    "send.hello",
    "send.open",
    "send.first_data",
    "send.mid_frame",
    "send.checkpoint",
    "send.before_intent",
    "send.after_intent",
    "send.after_end",
    "recv.ready",
    "recv.plan_written",
    "recv.journal_unsynced",
    "recv.after_record",
    "recv.before_write",
    "recv.mid_write",
    "recv.after_write",
    "recv.before_flush",
    "recv.after_flush",
    "recv.before_clean",
    "recv.after_clean",
    "recv.spool_complete",
    "recv.undo_saved",
)

_LEAVE_STATUS = 99
_NAP_SECONDS = 0.1
_hits: Counter[str] = Counter()


def _hit(name: str) -> None:
    wanted, hit, action = os.environ.get("BLOCKSTREAM_FAILPOINT", "::").split(":")
    _hits[name] += 1
    if wanted != name or _hits[name] != int(hit):
        return
    if action == "leave":
        os._exit(_LEAVE_STATUS)
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
    # A signal to a process of many threads may reach another one first; we must not go on.
    time.sleep(_NAP_SECONDS)


def _pass(name: str) -> None:
    """Do nothing, as in every run that is not a test."""


failpoint = _hit if os.environ.get("BLOCKSTREAM_TESTING") == "1" else _pass
