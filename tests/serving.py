"""A model server of a registered model, and requests to it."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ghn import sample_architectures, trace
from pipelines.named_networks import load_model
from pipelines.ports import free_port

BIN = Path(sys.executable).parent
MODEL = "models:/ghn2-digits@candidate"


@functools.cache
def resnet18() -> dict[str, Any]:
    """Return a graph as clients send it."""
    module = load_model("torchvision:resnet18", num_classes=10).eval()
    return trace(module, torch.empty(1, 3, 32, 32, device="meta")).to_json()


@functools.cache
def dense() -> dict[str, Any]:
    """Return a specification as clients send it."""
    return sample_architectures("dense", 1, 9, image_size=16, channels=(16,))[0].spec.to_json()


def refused(answer: tuple[int, bytes], *statuses: int) -> str:
    """Check that an answer is a refusal for a client's fault, with a reason; return the reason."""
    status, content = answer
    assert status in (statuses or range(400, 500)), (status, content[:500])
    said = json.loads(content)
    assert set(said) == {"error_code", "message"} and 5 < len(said["message"]) <= 1100
    for inside in ("Traceback", 'File "', "site-packages", ", line "):
        assert inside not in said["message"]
    return said["message"]


class Server:
    """A running server and one connection to it."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port, self.process, self.log = port, process, log
        self.url = f"http://127.0.0.1:{port}"

    def send(
        self, body: bytes | str, method: str = "POST", path: str = "/invocations", **headers: str
    ) -> tuple[int, bytes]:
        """Send a request on a connection of its own; return status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            names = {"Content-Type": "application/json"} | {
                name.replace("_", "-"): text for name, text in headers.items()
            }
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def ask(self, *inputs: Mapping[str, Any]) -> tuple[int, Any]:
        """Send requests for architectures; return status and the decoded answer."""
        status, content = self.send(json.dumps({"inputs": inputs}))
        return status, json.loads(content)

    def get(self, path: str) -> tuple[int, str]:
        """Return status and text of a page."""
        status, content = self.send(b"", "GET", path)
        return status, content.decode()

    @property
    def worker(self) -> int:
        """Process id of the server itself: MLflow starts it as a child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else self.process.pid

    @property
    def resident_mib(self) -> float:
        """Memory of the server."""
        pages = int(Path(f"/proc/{self.worker}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def serving(command: Sequence[str], folder: Path, **environment: str) -> Iterator[Server]:
    """Run a server (``{port}`` in its command is a free port) outside the repository until it is left."""
    port, log = free_port(), folder / "server.log"
    path = f"{BIN}:{os.environ['PATH']}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(BIN / command[0]), *(part.format(port=port) for part in command[1:])],
            env={**os.environ, "PATH": path, **environment},
            cwd=folder,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(port, process, log)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(OSError):
                if server.get("/health")[0] == 200:
                    break
            time.sleep(0.2)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def mlflow_serve(uri: str) -> tuple[str, ...]:
    """Return the command of MLflow's own server."""
    return "mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "--port", "{port}"


def ghn_serve(uri: str) -> tuple[str, ...]:
    """Return the command of this project's."""
    return "ghn", "serve", "--model", uri, "--port", "{port}"
