"""A small Kubernetes API server on loopback: it stores Jobs and Services, and plays the pods' part as it is told."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse


@dataclass
class Cluster:
    """What the server knows; a test changes ``outcome`` and ``log``."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    outcome: str | None = None
    exit_code: int = 1
    log: list[str] = field(default_factory=list)

    def status(self, job: dict[str, Any]) -> dict[str, Any]:
        count = job["spec"]["completions"]
        if self.outcome is None:
            return {"active": count}
        done = {"Complete": {"succeeded": count}, "Failed": {"failed": 1}}[self.outcome]
        now = datetime.now(UTC).isoformat()
        condition = {"type": self.outcome, "status": "True", "lastTransitionTime": now}
        return {**done, "conditions": [condition]}


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def _answer(self, status: int, content: Any) -> None:
        text = isinstance(content, str)
        body = content.encode() if text else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _missing(self) -> None:
        self._answer(404, {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})

    def _find(self) -> tuple[dict[str, dict[str, Any]] | None, str]:
        kind, _, name = urlparse(self.path).path.partition("/namespaces/research/")[2].partition("/")
        return {"jobs": self.cluster.jobs, "services": self.cluster.services}.get(kind), name

    def do_POST(self) -> None:
        store, _ = self._find()
        manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = manifest["metadata"]["name"]
        if store is None:
            return self._missing()
        if name in store:
            return self._answer(409, {"kind": "Status", "reason": "AlreadyExists", "code": 409})
        store[name] = manifest
        self.cluster.created.append(f"{manifest['kind']}/{name}")
        return self._answer(201, manifest)

    def do_GET(self) -> None:
        place = urlparse(self.path)
        if place.path.endswith("/log"):
            if "tailLines" in parse_qs(place.query):
                return self._answer(200, "\n".join(self.cluster.log[-int(parse_qs(place.query)["tailLines"][0]) :]))
            assert parse_qs(place.query)["timestamps"] == ["true"]
            lines = [f"2026-11-26T00:00:{i:02d}Z {line}" for i, line in enumerate(self.cluster.log)]
            return self._answer(200, "\n".join(lines) + "\n")
        if place.path.endswith("/pods"):
            selector = parse_qs(place.query)["labelSelector"][0].removeprefix("ghn-job=")
            known = self.cluster.jobs.get(selector)
            count = known["spec"]["completions"] if known else 0
            ended = {"exitCode": self.cluster.exit_code, "finishedAt": "2026-11-26T00:00:09Z"}
            state = {"terminated": ended} if self.cluster.outcome == "Failed" else {"running": {}}
            container = {"name": "ghn", "image": "ghn-train", "imageID": "", "ready": False, "restartCount": 0}
            pods = [
                {
                    "status": {"containerStatuses": [{**container, "state": state}]},
                    "metadata": {
                        "name": f"{selector}-{i}",
                        "creationTimestamp": "2026-11-26T00:00:00Z",
                        "annotations": {"batch.kubernetes.io/job-completion-index": str(i)},
                    },
                }
                for i in range(count)
            ]
            return self._answer(200, {"kind": "PodList", "apiVersion": "v1", "items": pods})
        store, name = self._find()
        if store is None or name not in store:
            return self._missing()
        return self._answer(200, {**store[name], "status": self.cluster.status(store[name])})

    def do_DELETE(self) -> None:
        store, name = self._find()
        if store is None or name not in store:
            return self._missing()
        gone = store.pop(name)
        self.cluster.deleted.append(f"{gone['kind']}/{name}")
        return self._answer(200, gone if gone["kind"] == "Service" else {"kind": "Status", "status": "Success"})

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def kubernetes_server(folder: Path) -> Iterator[tuple[Cluster, Path]]:
    """Run the server; gives what it knows and a kubeconfig file."""
    cluster = Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": address}}],
        "users": [{"name": "test", "user": {"token": "test"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config))
    try:
        yield cluster, file
    finally:
        server.shutdown()
        server.server_close()
