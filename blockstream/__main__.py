"""`blockstream`, and `python -m blockstream`."""

# Built in: `signal` around it is Python, whose import Ctrl-C would interrupt.
import _signal as signal  # type: ignore[import-not-found]
import os
import sys

# Until the command line minds it: Ctrl-C during the imports would be a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
# Before numpy: its linear algebra would start threads that we never use.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from blockstream.cli.foreground import leave
from blockstream.cli.main import run


def main() -> None:
    """Run the command line and leave with its exit status."""
    leave(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
