"""A Docker Engine as the tests use it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Command lines of its client, of compose and of builds, and the names of images made for the tests."""

    docker: list[str]
    compose: list[str]
    build: list[str]
    train: str = "ghn-train:test"
    platform: str = "ghn-platform:test"

    def make_image(self, context: Path, tag: str, *options: str) -> None:
        """Build an image; all layers that did not change are those of before."""
        command = [*self.build, "-t", tag, *options, str(context)]
        if self.build[0] != "docker":  # the private engine's own command
            command = [*self.build, str(context), tag, *options]
        built = subprocess.run(command, capture_output=True, text=True, timeout=1200)
        assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]

    def run(self, *arguments: str, timeout: int = 900) -> subprocess.CompletedProcess[str]:
        """Run a command of the client."""
        return run(*self.docker, *arguments, timeout=timeout)


def run(
    *command: str, timeout: int = 900, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep its output."""
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
