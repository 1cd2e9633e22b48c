#!/usr/bin/env python3
"""Print the exit statuses for the README, from the error classes; fail if one has no meaning."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "protocol")]

from blockstream import errors  # noqa: E402

_WITHOUT_CLASS = {
    errors.ExitStatus.OK: "Committed, or nothing to do.",
    errors.ExitStatus.BUG: "A bug of ours; the lines above it help to find it.",
    errors.ExitStatus.AUTHENTICATION: "Authentication failed, or a host key is not the known one.",
    errors.ExitStatus.PARTLY: "Some of several transfers failed.",
}


def main() -> int:
    """Print one row a status: the words are the docstring of its first class."""
    meanings = dict(_WITHOUT_CLASS)
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, errors.BlockstreamError):
            meanings.setdefault(cls.exit_status, (cls.__doc__ or "").split("\n")[0])
    missing = set(errors.ExitStatus) - meanings.keys()
    if missing:
        sys.stderr.write(f"no class and no words for {missing}\n")
        return 1
    print("| status | meaning |\n|---|---|")
    for status in sorted(meanings):
        print(f"| {status.value} | {meanings[status]} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
