"""`blockstream`, and `python -m blockstream`."""

import os
import sys

# Before numpy: its linear algebra would start threads that we never use.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from blockstream.cli.main import run


def main() -> None:
    """Run the command line and leave with its exit status."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
