"""--bwlimit: a rate, or a file that holds one and may change while we run."""

from pathlib import Path

from blockstream.cli.options import warn
from blockstream.errors import UsageError
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.progress import Progress
from blockstream.units import parse_rate


class RateFile:
    """Follows a file's content; a reporter only because that is what is called regularly."""

    interval = 0.2

    def __init__(self, path: Path, limiter: Limiter, *, as_json: bool) -> None:
        """Read the file once.

        Raises:
            UsageError: If it cannot be read or holds no rate.
        """
        self._path = path
        self._limiter = limiter
        self._as_json = as_json
        self._text = ""
        self._follow()
        if not self._text:
            raise UsageError(f"{path} is empty: write a rate into it, or none for no limit")

    def report(self, progress: Progress) -> None:  # the interface's
        """Look at the file again; a bad content changes nothing."""
        try:
            self._follow()
        except UsageError as error:
            warn(f"{error}; the limit stays as it was", as_json=self._as_json)

    def asked(self, progress: Progress) -> None:
        """Say nothing."""

    def clear(self) -> None:
        """Nothing stands in the way."""

    def _follow(self) -> None:
        try:
            text = self._path.read_text().strip()
        except OSError as error:
            raise UsageError(f"{self._path} cannot be read: {error.strerror}") from error
        # Who writes a file anew empties it first: an empty one is not an order yet.
        if text in {"", self._text}:
            return
        self._text = text
        self._limiter.rate = None if text == "none" else parse_rate(text)


def limiter_for(text: str, *, as_json: bool) -> tuple[Limiter, list[RateFile]]:
    """Return the limiter for --bwlimit, empty for none, and what must be called to follow a file.

    Raises:
        UsageError: If it is neither a rate nor a readable file.
    """
    if not text:
        return Limiter(None), []
    if not text.startswith("@"):
        return Limiter(parse_rate(text)), []
    limiter = Limiter(None)
    return limiter, [RateFile(Path(text[1:]), limiter, as_json=as_json)]
