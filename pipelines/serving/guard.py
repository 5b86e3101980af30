"""What stands in front of MLflow's scoring server: limits, turns, reasons instead of tracebacks, health and metrics.

MLflow's own server reads bodies of any size, repeats them in its messages, and answers some malformed requests with a
traceback. :func:`install` puts this guard around it where the model is loaded, so that ``mlflow models serve`` has it, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ghn.errors import InputError
from pipelines.serving.limits import LimitError, Limits
from pipelines.serving.metrics import Metrics
from pipelines.serving.request import read_requests

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

_MIB = 1 << 20
_CHUNK = 1 << 20
_LONGEST_REASON = 1000
_LONGEST_WORK_S = 600.0
_PAGES = (
    "/invocations",
    "/health",
    "/ping",
    "/version",
)  # that MLflow answers, the first one with 405 for other methods
_JSON = re.compile(rb'application/json(; *charset="?utf-8"?)?')
_LOG = logging.getLogger("uvicorn.error")
_NAMES = {400: "INVALID_PARAMETER_VALUE", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL_ERROR"}


@dataclass
class Ticket:
    """A request on its way through the server; the model leaves here what should not go through MLflow's hands.

    Attributes:
        deadline: when the request must be done, by ``time.monotonic()``.
        served: whether a guard waits for what is left here.
        refusal: the deliberate error, if there was one.
        parts: long texts, each with the mark that stands for it in the answer.
        working: set when the model begins.
        done: set when the model has finished, whoever still waits for it.

    """

    deadline: float = float("inf")
    served: bool = False
    refusal: InputError | None = None
    parts: dict[str, bytes] = field(default_factory=dict)
    working: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def leave(self, text: bytes) -> str:
        """Return what to answer in place of a long ASCII text: a mark where a guard puts the text back, else the text.

        MLflow's conversion to JSON copies each text some five times, which took longer than everything else.
        """
        if not self.served:
            return text.decode("ascii")
        mark = secrets.token_hex(16)
        self.parts[mark] = text
        return mark

    def put_back(self, content: bytes) -> list[bytes]:
        """Return the pieces of an answer with the texts in the places of their marks, in order."""
        pieces = []
        for mark, text in self.parts.items():
            before, _, content = content.partition(mark.encode())
            pieces += [before, text]
        return [*pieces, content]

    def check(self) -> None:
        """Raise :class:`LimitError` if the request's time is over."""
        if time.monotonic() > self.deadline:
            raise LimitError("the request took too long; ask for fewer or smaller architectures at once")


TICKET: ContextVar[Ticket] = ContextVar("ghn_ticket")


class _RefusedError(Exception):
    """The request gets this status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Guard:
    """An ASGI application around MLflow's.

    Args:
        app: MLflow's.
        limits: of the server.
        metrics: of this process.

    """

    def __init__(self, app: _App, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self._turns = asyncio.Semaphore(limits.parallel)
        self._reading = self._admitted = self._unsent = 0  # requests, requests, bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        path = scope.get("path")
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif path == "/invocations" and scope["method"] == "POST":
            await self._invocation(scope, receive, send)
        elif path == "/metrics":
            await _answer(send, 200, [self.metrics.text()], "text/plain; version=0.0.4")
        elif path == "/ready":
            ready = self._admitted < self._most
            await _answer(send, 200 if ready else 503, [b"ready\n" if ready else b"busy\n"], "text/plain")
        elif path in _PAGES:  # no others: whatever MLflow's router takes for /invocations would pass by all of this
            await self.app(scope, receive, send)
        else:
            await _answer(send, 404, [_reason(404, "there is no such page")], "application/json")

    @property
    def _most(self) -> int:
        return self.limits.parallel + self.limits.waiting

    async def _invocation(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        started = time.monotonic()
        try:
            body = await self._read(scope, receive)
            started = time.monotonic()
            status, pieces = 200, await self._in_turn(scope, body, receive)
        except _RefusedError as refused:
            status, pieces = refused.status, [_reason(refused.status, refused.reason)]
        self.metrics.requests.labels(str(status)).inc()
        self.metrics.seconds.observe(time.monotonic() - started)
        size = sum(map(len, pieces))
        self._unsent += size
        try:
            async with asyncio.timeout(self.limits.slow_s):
                await _answer(send, status, pieces, "application/json")
        except TimeoutError:
            _LOG.warning("a client did not fetch its answer in %g s", self.limits.slow_s)
            raise
        finally:
            self._unsent -= size

    async def _read(self, scope: MutableMapping[str, Any], receive: _Receive) -> bytes:
        """Return the body of a request that may be read at all."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        kinds = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
        if len(kinds) != 1 or _JSON.fullmatch(kinds[0].strip().lower()) is None:
            raise _RefusedError(415, "send JSON in UTF-8, with one header Content-Type: application/json")
        if self._reading >= 2 * self._most or self._unsent > self.limits.unsent_mib * _MIB:
            raise _RefusedError(429, "too many requests arrive, or answers wait to be fetched; try again in a second")
        most = int(self.limits.body_mib * _MIB)
        too_large = _RefusedError(413, f"the request is larger than {self.limits.body_mib:g} MiB")
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or len(announced) > 15 or int(announced) > most:
            raise too_large
        body = bytearray()
        self._reading += 1
        try:
            async with asyncio.timeout(self.limits.slow_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _RefusedError(400, "the connection was closed")
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise _RefusedError(408, f"the request did not arrive within {self.limits.slow_s:g} s") from None
        finally:
            self._reading -= 1

    async def _in_turn(self, scope: MutableMapping[str, Any], body: bytes, receive: _Receive) -> list[bytes]:
        """Wait for a turn and pass the request on; return the pieces of the answer."""
        if self._admitted >= self._most:
            raise _RefusedError(429, f"{self.limits.waiting} requests are waiting already; try again in a second")
        ticket = Ticket(deadline=time.monotonic() + self.limits.seconds, served=True)
        self._admitted += 1
        try:
            with self.metrics.waiting.track_inprogress():
                await self._turn(receive)
            try:
                with self.metrics.busy.track_inprogress():
                    return await self._in_work(scope, body, ticket)
            finally:
                self._turns.release()
        finally:
            self._admitted -= 1

    async def _turn(self, receive: _Receive) -> None:
        """Acquire a turn, unless the client goes away or the time is over before."""
        turn, gone = asyncio.ensure_future(self._turns.acquire()), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((turn, gone), timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                if gone.done():
                    raise _RefusedError(400, "the connection was closed")
                raise _RefusedError(429, f"no turn within {self.limits.seconds:g} s; try again later")
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._turns.release()
            raise
        finally:
            turn.cancel()
            gone.cancel()

    async def _in_work(self, scope: MutableMapping[str, Any], body: bytes, ticket: Ticket) -> list[bytes]:
        try:
            await asyncio.to_thread(read_requests, body, self.limits)
        except InputError as error:
            raise _refusal(error) from error
        TICKET.set(ticket)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        status, content = await _call(self.app, {**scope, "headers": headers}, body)
        if status == 504 and ticket.working.is_set():
            # MLflow waits no longer; the turn is free when the work has ended
            await asyncio.to_thread(ticket.done.wait, _LONGEST_WORK_S)
            raise _RefusedError(413, "the request took too long; ask for fewer or smaller architectures at once")
        if ticket.refusal is not None:
            raise _refusal(ticket.refusal)
        if status >= 400:
            _LOG.error(
                "unexpected answer %d of the scoring server: %s", status, content[:10_000].decode(errors="replace")
            )
            raise _RefusedError(500, "the prediction failed; the server's log says why")
        return ticket.put_back(content)


async def _gone(receive: _Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(error: InputError) -> _RefusedError:
    return _RefusedError(413 if isinstance(error, LimitError) else 400, str(error))


async def _call(app: _App, scope: MutableMapping[str, Any], body: bytes) -> tuple[int, bytes]:
    """Return status and body of what an application answers to a request whose body was read already."""
    status, content = 500, bytearray()

    async def receive() -> _Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: _Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            content.extend(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception:  # whatever it is, the server lives on, and the client learns nothing of its inside
        _LOG.exception("the scoring server failed")
        return 500, b""
    return status, bytes(content)


def _reason(status: int, reason: str) -> bytes:
    text = reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + "…"
    message = text.encode("utf-8", "backslashreplace").decode()
    return json.dumps({"error_code": _NAMES.get(status, "BAD_REQUEST"), "message": message}).encode()


async def _answer(send: _Send, status: int, pieces: Sequence[bytes], kind: str) -> None:
    length = sum(map(len, pieces))
    headers = [(b"content-type", kind.encode()), (b"content-length", str(length).encode())]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for piece in pieces:
        for start in range(0, len(piece), _CHUNK):  # what the network does not take at once is copied
            await send({"type": "http.response.body", "body": piece[start : start + _CHUNK], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def install(limits: Limits, metrics: Metrics) -> None:
    """Put a guard around the application that MLflow's scoring server is about to make in this process, if it is.

    MLflow offers no place for middleware: its server loads the model, and then makes a ``FastAPI``. The model's requirements
    name MLflow's exact version, for which tests show that this works.
    """
    if "mlflow.pyfunc.scoring_server.app" not in sys.modules:
        return
    import fastapi

    # not before the guard's own limit, which gives a reason; MLflow reads this when it makes its application
    os.environ["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = str(int(limits.seconds) + 30)

    class GuardedFastAPI(fastapi.FastAPI):
        def __init__(self, **options: Any) -> None:
            super().__init__(openapi_url=None, **options)

        def build_middleware_stack(self) -> Any:
            return Guard(super().build_middleware_stack(), limits, metrics)

    fastapi.FastAPI = GuardedFastAPI  # type: ignore[misc]
