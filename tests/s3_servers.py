"""Independent S3 servers on loopback."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.local import embedded_s3
from pipelines.ports import free_port


@contextlib.contextmanager
def running(kind: str, folder: Path) -> Iterator[dict[str, str]]:
    """Run ``rclone`` or ``moto`` with the bucket ``ghn``; give the environment of its clients."""
    if kind == "rclone":
        with embedded_s3.running(folder) as client:
            yield client
        return
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert server.poll() is None and time.monotonic() < deadline, "moto did not start"
            time.sleep(0.1)
        client = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        import boto3

        with_endpoint = {"endpoint_url": client["AWS_ENDPOINT_URL"], "region_name": "us-east-1"}
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        boto3.client("s3", **with_endpoint, **keys).create_bucket(Bucket="ghn")
        yield client
    finally:
        server.terminate()
        server.wait()
