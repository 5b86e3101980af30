"""Ask a model server for parameters."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from typing import Any

from ghn.errors import InputError, StorageError
from pipelines.serving.answer import content_of
from pipelines.serving.request import PredictionRequest

_TOKEN_VARIABLE = "GHN_SERVER_TOKEN"  # noqa: S105 - the variable's name
_TIMEOUT_S, _PATIENCE_S, _LONGEST_PAUSE_S = 120.0, 120.0, 10.0
_LATER = (429, 502, 503, 504)


def ask(server: str, request: PredictionRequest) -> tuple[bytes, dict[str, Any]]:
    """Return the safetensors file that a server predicts, checked, and what it says about it.

    A busy server is asked again for two minutes. If the variable ``GHN_SERVER_TOKEN`` is set, it is sent as a bearer token.

    Args:
        server: its address, e.g. ``http://127.0.0.1:5001``.
        request: one architecture.

    Raises:
        InputError: if the server refuses the request, or the address is none.
        StorageError: if the server can not be reached, or fails.

    """
    if not server.startswith(("http://", "https://")):
        raise InputError(f"server {server!r}: give an address such as http://127.0.0.1:5001")
    body = json.dumps({"inputs": [request.model_dump(exclude_none=True)]}).encode()
    headers = {"Content-Type": "application/json"}
    try:
        call = urllib.request.Request(f"{server.rstrip('/')}/invocations", body, headers)  # noqa: S310 - checked above
    except ValueError as error:
        raise InputError(f"server {server!r} is no address: {error}") from error
    if token := os.environ.get(_TOKEN_VARIABLE, "").strip():
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise InputError(f"{_TOKEN_VARIABLE} holds characters that no token has")
        call.add_unredirected_header("Authorization", f"Bearer {token}")  # for this server, and no other one
    deadline, pause = time.monotonic() + _PATIENCE_S, 1.0
    while True:
        try:
            with urllib.request.urlopen(call, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                said = json.load(answer)["predictions"][0]
            if missing := {"values", "tensors", "seconds", "weights_sha256"} - set(said):
                raise LookupError(f"no {', '.join(sorted(missing))}")
            return content_of(said), said
        except urllib.error.HTTPError as error:
            if error.code not in _LATER or time.monotonic() > deadline:
                raise _error(server, error) from error
        except http.client.InvalidURL as error:
            raise InputError(f"server {server!r} is no address: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise StorageError(f"no answer from the model server {server}: {error}; is it running?") from error
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{server} answers, but not as a model server of this project does: {error}") from error
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _error(server: str, error: urllib.error.HTTPError) -> Exception:
    try:
        reason = json.loads(error.read())["message"]
    except (OSError, ValueError, LookupError, TypeError):
        reason = error.reason
    if error.code == 401:
        return InputError(f"the model server {server} wants a token: set {_TOKEN_VARIABLE}")
    kind = InputError if 400 <= error.code < 500 and error.code != 429 else StorageError
    return kind(f"the model server {server} answers {error.code}: {reason}")
