"""What integration tests share: a Docker Engine (without one, tests skip with a reason) and a model server."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.training.register import register
from tests.containers import Engine
from tests.serving import MODEL, Server, mlflow_serve, serving

REPOSITORY = Path(__file__).resolve().parents[2]
PRIVATE = Path(os.environ.get("GHN_DOCKER_ENGINE", REPOSITORY.parent / "shared" / "tools" / "docker-engine"))


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A running engine with the training image: the machine's own, or a private one (as root)."""
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
        found.run("image", "prune", "--force")  # what earlier builds were before; a disk fills up with them
        subprocess.run([str(PRIVATE), "down"], capture_output=True, timeout=300)


@pytest.fixture(scope="session")
def docker(engine: Engine) -> list[str]:
    """Command line of its client."""
    return engine.docker


@pytest.fixture(scope="module")
def model_registry(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tracking address of a registry with one model."""
    folder = tmp_path_factory.mktemp("registry")
    tracking = f"sqlite:///{folder}/mlflow.db"
    register(
        undisturbed, name="ghn2-digits", tracking_uri=tracking, experiment="x", artifacts=str(folder / "artifacts")
    )
    return tracking


@pytest.fixture(scope="module")
def server(model_registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow's own command."""
    with serving(mlflow_serve(MODEL), tmp_path_factory.mktemp("served"), MLFLOW_TRACKING_URI=model_registry) as running:
        yield running


@pytest.fixture(scope="module")
def checkpoint(undisturbed: Path) -> Path:
    return undisturbed / "model"
