"""A Docker Engine with the built images: the machine's own, or a private one (as root); tests skip with a reason without."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import Engine

REPOSITORY = Path(__file__).resolve().parents[2]
PRIVATE = Path(os.environ.get("GHN_DOCKER_ENGINE", REPOSITORY.parent / "shared" / "tools" / "docker-engine"))


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A running engine with the training image."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        found = Engine(docker=["docker"], compose=["docker", "compose"], build=["docker", "build"])
        private = False
    elif PRIVATE.is_file() and os.geteuid() == 0:
        started = subprocess.run([str(PRIVATE), "up"], capture_output=True, text=True, timeout=900)
        if started.returncode:
            pytest.skip(f"the private Docker Engine did not start: {started.stdout[-300:]}{started.stderr[-300:]}")
        tool = str(PRIVATE)
        found = Engine(docker=[tool, "docker"], compose=[tool, "compose"], build=[tool, "build"])
        private = True
    else:
        pytest.skip("no Docker Engine: start one, or name a private one with GHN_DOCKER_ENGINE (as root)")
    found.make_image(REPOSITORY, found.train)
    yield found
    if private:
        subprocess.run([str(PRIVATE), "down"], capture_output=True, timeout=300)


@pytest.fixture(scope="session")
def docker(engine: Engine) -> list[str]:
    """Command line of its client."""
    return engine.docker
