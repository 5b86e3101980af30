"""What a client gets for an architecture: the file itself as base64, or, above a limit, where it lies."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from ghn.errors import InputError
from pipelines.serving.limits import LimitError, Limits
from pipelines.serving.parameters import Prediction
from pipelines.storage import open_store

_SUFFIX = ".safetensors"


def answer(prediction: Prediction, limits: Limits, inline_bytes: float) -> dict[str, Any]:
    """Return ``parameters`` (base64, as bytes) or ``uri``, with ``size``, ``sha256`` and counts; all but bytes JSON-ready.

    Objects are named by their content, so the same answer is stored once.

    Args:
        prediction: what was asked for.
        limits: of the server.
        inline_bytes: how large the file may be to be in the answer itself.

    Raises:
        LimitError: if the file is too large and the server has no store.
        StorageError: if it can not be stored.

    """
    digest = hashlib.sha256(prediction.content).hexdigest()
    said = {
        "parameters": None,
        "uri": None,
        "size": len(prediction.content),
        "sha256": digest,
        **prediction.counts(),
    }
    if len(prediction.content) <= inline_bytes:
        return said | {"parameters": base64.b64encode(prediction.content)}
    if limits.store is None:
        raise LimitError(
            f"the parameters are {len(prediction.content):,} bytes; above {limits.inline_mib:g} MiB in one answer they go to "
            "an object store, but this server has none (GHN_SERVE_STORE); ask for float16, some names, or one architecture"
        )
    store, key = open_store(limits.store), f"{digest}{_SUFFIX}"
    if store.size(key) != len(prediction.content):
        store.write(key, prediction.content, digest)
    return said | {"uri": store.url(key)}


def content_of(said: Any) -> bytes:
    """Return the file of an answer, read from where it lies, and checked.

    Raises:
        InputError: if this is no answer, or not the file that it describes.
        StorageError: if it can not be read.

    """
    try:
        if said["parameters"] is not None:
            content = base64.b64decode(said["parameters"], validate=True)
        else:
            root, _, key = said["uri"].rpartition("/")
            content = open_store(root).read(key)
        whole = len(content) == said["size"] and hashlib.sha256(content).hexdigest() == said["sha256"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the server's answer is not understood ({type(error).__name__}: {error})") from error
    except FileNotFoundError as error:
        raise InputError(f"the answer at {said['uri']} is gone; ask again") from error
    if not whole:
        raise InputError("the parameters that came are not those that the server announced (size or sha256); ask again")
    return content
