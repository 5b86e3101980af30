"""Two hosts on one machine: network namespaces joined by a cable, and the host file that names them (needs root)."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

ADDRESSES = ("10.231.8.1", "10.231.8.2")
COMMAND = "ip netns exec {name}"


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[Path]:
    """Give a host file for `GHN_HOSTFILE`; `GHN_HOST_COMMAND` is :data:`COMMAND`."""
    tag = f"ghnt{os.getpid()}"
    names, devices = (f"{tag}a", f"{tag}b"), (f"{tag[:11]}va", f"{tag[:11]}vb")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", devices[0], "netns", names[0], "type", "veth", "peer", "name", devices[1], "netns", names[1])
        lines = []
        for name, device, address in zip(names, devices, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            lines.append(f"{name} slots=1 address={address} interface={device}\n")
        hostfile = folder / "hostfile"
        hostfile.write_text("".join(lines))
        yield hostfile
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def processes_of(name: str) -> list[int]:
    """Return the processes that run on a host."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]
