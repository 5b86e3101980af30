"""Ask a model server for parameters, with nothing but Python's standard library.

The server knows the hypernetwork; the client says what network it has: by the specification of an architecture, or by a
name of torchvision's. Both are asked for here, the second also for its classifier alone. What comes back is a
safetensors file, which is checked and read. First start the server, in another terminal:

    make demo
    .venv/bin/ghn s3 exec runs/demo/s3 -- .venv/bin/ghn serve --model models:/ghn2-digits@candidate \
        --tracking-uri sqlite:///runs/demo/mlflow.db

and then, with any Python from 3.11 on:

    python examples/call_the_server.py

It prints the first tensors of each answer with their shapes. Server and client need a few seconds on two CPU cores.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import struct
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

START = (
    ".venv/bin/ghn s3 exec runs/demo/s3 -- .venv/bin/ghn serve "
    "--model models:/ghn2-digits@candidate --tracking-uri sqlite:///runs/demo/mlflow.db"
)

Tensors = dict[str, tuple[list[int], tuple[float, ...]]]  # shape and values by name


def ask(server: str, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request for one network and return the answer; a refusal says why."""
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("GHN_SERVER_TOKEN"):  # for a gateway in front of the server
        headers["Authorization"] = f"Bearer {token}"
    body = json.dumps({"inputs": [request]}).encode()
    try:
        post = urllib.request.Request(f"{server}/invocations", body, headers)  # noqa: S310
        with urllib.request.urlopen(post, timeout=120) as answer:  # noqa: S310
            return json.load(answer)["predictions"][0]
    except urllib.error.HTTPError as error:  # 400: a wrong request; 413: too large; 429: busy, try again later
        sys.exit(f"the server refused with {error.code}: {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"no model server at {server} ({error}). Start one first, after `make demo`:\n  {START}")


def content_of(answer: dict[str, Any]) -> bytes:
    """Return the file of an answer, after checking that it arrived whole."""
    if answer["parameters"] is None:
        sys.exit(f"the answer is too large to be sent along and lies at {answer['uri']}")
    content = base64.b64decode(answer["parameters"])
    if len(content) != answer["size"] or hashlib.sha256(content).hexdigest() != answer["sha256"]:
        sys.exit("the answer is damaged: its size or SHA-256 is not what the server says")
    return content


def read_safetensors(content: bytes) -> Tensors:
    """Read float32 tensors: the length of a JSON header (8 bytes, little-endian), the header, then all values."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors: Tensors = {}
    for name, entry in header.items():
        count, start = math.prod(entry["shape"]), 8 + length + entry["data_offsets"][0]
        tensors[name] = entry["shape"], struct.unpack_from(f"<{count}f", content, start)
    return tensors


def show(title: str, answer: dict[str, Any]) -> None:
    """Check an answer, and print what it holds."""
    tensors = read_safetensors(content_of(answer))
    size, seconds = answer["size"] / 1e6, answer["seconds"]
    print(f"{title}: {len(tensors)} tensors, {size:.1f} MB, SHA-256 is right; predicted in {seconds:.2f} s")
    for name, (shape, values) in list(tensors.items())[:4]:
        print(f"  {name:<36}{'x'.join(map(str, shape)):<14}first value {values[0]:+.4f}")


def main() -> None:
    """Ask for three predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:5001")
    parser.add_argument("--specification", type=Path, default=Path("runs/demo/architecture.json"), help="JSON file")
    parser.add_argument("--model", default="resnet18", help="a classifier of torchvision")
    parser.add_argument("--names", nargs="+", default=["fc.*"], help="patterns; each must fit a parameter")
    options = parser.parse_args()

    if options.specification.is_file():
        specification = json.loads(options.specification.read_text())
        show("an architecture", ask(options.server, {"specification": specification}))
    else:
        print(f"no specification at {options.specification}: `make demo` writes one; going on without")

    named = {"model": f"torchvision:{options.model}", "small_input": True, "image_size": 32}
    show(options.model, ask(options.server, named))
    # Most of the time goes into the bytes: ask for what you need.
    show(f"{options.model}, only {' '.join(options.names)}", ask(options.server, {**named, "names": options.names}))


if __name__ == "__main__":
    main()
