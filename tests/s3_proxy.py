"""Not a test: a proxy before an S3 server, for faults that a real one cannot be made to give."""

import contextlib
import http.client
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
    "<Message>injected</Message><RequestId>1</RequestId></Error>"
)
_NO_CONTENT = 204


class Fault(Enum):
    """What happens to a request."""

    RESET = "the connection ends before the server hears it"
    LOST_REPLY = "the server does it, and the connection ends before anybody hears that"
    SHORT_BODY = "half of the body comes, then the connection ends"
    WRONG_BYTES = "a byte of the body is another one"


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's refusal, in place of what it would say.

    Attributes:
        status: Status of HTTP.
        code: S3's name for it.
    """

    status: int
    code: str


@dataclass(frozen=True, slots=True)
class Page:
    """What something before the server says, in place of it.

    Attributes:
        status: Status of HTTP.
        body: What it shows.
    """

    status: int
    body: bytes


@dataclass(slots=True)
class Rule:
    """Which requests meet with a fault.

    Attributes:
        method: Of HTTP.
        word: What their target contains.
        fault: What happens.
        times: How often yet.
        seen: How often it happened.
    """

    method: str
    word: str
    fault: Fault | Answer | Page
    times: int = 1
    seen: int = 0


@dataclass(slots=True)
class Proxy:
    """A proxy that runs.

    Attributes:
        url: Where it listens.
        rules: What it does.
        requests: Method and target of what came.
        unknown: Headers that the server knows nothing of, each with whether it says so.
    """

    url: str
    rules: list[Rule] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    unknown: dict[str, bool] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_of(self, method: str, target: str) -> Fault | Answer | Page | None:
        """Return what is to happen to a request."""
        with self.lock:
            self.requests.append((method, target))
            for rule in self.rules:
                if rule.method == method and rule.word in target and rule.seen < rule.times:
                    rule.seen += 1
                    return rule.fault
        return None


class _Handler(BaseHTTPRequestHandler):
    """Passes requests on, or does something else."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_words: object) -> None:
        """Say nothing."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.proxy.fault_of(self.command, self.path)
        if fault is Fault.RESET:
            self.close_connection = True
            return
        if isinstance(fault, Page):
            self._answer(fault.status, fault.body, [("Content-Type", "text/html")])
            return
        for name, says_so in self.server.proxy.unknown.items():
            if name in self.headers and says_so:
                fault = Answer(501, "NotImplemented")
            del self.headers[name]
        if isinstance(fault, Answer):
            self._answer(fault.status, _ERROR.format(code=fault.code).encode())
            return
        reply, data = self._asked(body)
        if fault is Fault.LOST_REPLY:
            self.close_connection = True
            return
        if fault is Fault.WRONG_BYTES:
            data[len(data) // 2] ^= 1
        kept = {"connection", "transfer-encoding", "content-length", "date", "server"}
        more = [(k, v) for k, v in reply.getheaders() if k.lower() not in kept]
        length = reply.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(reply.status, bytes(data), more, length, short=fault is Fault.SHORT_BODY)

    def _asked(self, body: bytes) -> tuple[http.client.HTTPResponse, bytearray]:
        place = self.server.place
        line = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=60)
        with contextlib.closing(line):
            headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
            line.request(self.command, self.path, body, headers)
            reply = line.getresponse()
            return reply, bytearray(reply.read())

    def _answer(
        self,
        status: int,
        data: bytes,
        headers: Sequence[tuple[str, str]] = (),
        length: str | None = None,
        *,
        short: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != _NO_CONTENT:
            self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if short:
            data, self.close_connection = data[: len(data) // 2], True
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815  # http.server's names


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.place = urllib.parse.urlsplit(server)
        self.proxy = Proxy(f"http://127.0.0.1:{self.server_address[1]}")

    def handle_error(self, *_words: object) -> None:
        """Say nothing: connections are meant to break."""


@contextlib.contextmanager
def proxy(server: str) -> Iterator[Proxy]:
    """Run a proxy before a server, by its URL."""
    with _Server(server) as listener:
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        yield listener.proxy
        listener.shutdown()
        thread.join()
