"""An HTTP proxy in front of a real S3 server that fails as networks and stores do, when told to.

Requests are forwarded as they are (signatures stay valid: they cover the ``Host`` header, which is kept).
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = Callable[["Request"], str | None]
"""Returns what happens to a request: None (forwarded), ``503``, ``expired``, ``full``, ``cut`` (the answer breaks off half
way), ``drop`` (no answer), ``hang-before`` and ``hang-after`` (the answer never comes; with the request forwarded or not)."""

_ERRORS = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "full": (507, "InsufficientStorage", "The bucket is full."),
    "quota": (403, "QuotaExceeded", "The bucket's quota is used up."),
}


@dataclass
class Request:
    """One request that came in: its number (from 0), method, path, and headers."""

    number: int
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Proxy:
    """A running proxy."""

    endpoint: str
    fault: Fault = field(default=lambda request: None)
    requests: list[Request] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def count(self, method: str) -> int:
        return sum(request.method == method for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    """Passes a request on, or does to it what the proxy's fault says."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault_of(self.command, self.path, dict(self.headers))
        if fault == "drop":
            self.close_connection = True
        elif fault == "hang-before":
            self.hang()
        elif fault in _ERRORS:
            status, code, message = _ERRORS[fault]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self.answer(status, {"Content-Type": "application/xml"}, text)
        else:
            response, content = self.passed_on(body)
            if fault == "hang-after":
                self.hang()
                return
            unsent = ("transfer-encoding", "connection", "content-length")
            headers = {name: value for name, value in response.getheaders() if name.lower() not in unsent}
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            if fault == "cut":
                content = content[: len(content) // 2]
                self.close_connection = True
            self.answer(response.status, headers, content, length)

    def passed_on(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "expect":
                connection.putheader(name, value)
        connection.endheaders(body or None)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    def hang(self) -> None:
        self.close_connection = True
        self.server.state.hanging.set()
        self.server.state.released.wait(60)

    def answer(self, status: int, headers: dict[str, str], content: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)) if length is None else length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_request


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.state = Proxy(endpoint=f"http://127.0.0.1:{self.server_address[1]}")
        self._lock = threading.Lock()

    def fault_of(self, method: str, path: str, headers: dict[str, str]) -> str | None:
        """Note a request and return what is to happen to it."""
        with self._lock:
            request = Request(len(self.state.requests), method, path, headers)
            self.state.requests.append(request)
            return self.state.fault(request)

    def handle_error(self, *_: object) -> None:
        pass  # clients that were killed


@contextlib.contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """Run a proxy on loopback in front of an S3 server for the length of a block."""
    server = _Server(urlsplit(upstream).netloc)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.state
    finally:
        server.state.released.set()
        server.shutdown()
        server.server_close()
