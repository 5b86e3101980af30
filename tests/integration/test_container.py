"""The container image, really built and run. Needs a Docker Engine; skips with a reason where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.jobs import curve, same_weights

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINE = Path(os.environ.get("GHN_DOCKER_ENGINE", REPOSITORY.parent / "shared" / "tools" / "docker-engine"))
TAG = "ghn-train:test"


def run(*command: str, timeout: int = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def docker() -> Iterator[list[str]]:
    """Command line of a docker client with a built image: the machine's own engine, or a private one (as root)."""
    if shutil.which("docker") and run("docker", "info").returncode == 0:
        client, build = ["docker"], ["docker", "build", "-t", TAG, str(REPOSITORY)]
        private = False
    elif ENGINE.is_file() and os.geteuid() == 0:
        started = run(str(ENGINE), "up")
        if started.returncode:
            pytest.skip(f"the private Docker Engine did not start: {started.stdout[-300:]}{started.stderr[-300:]}")
        client, build = [str(ENGINE), "docker"], [str(ENGINE), "build", str(REPOSITORY), TAG]
        private = True
    else:
        pytest.skip("no Docker Engine: start one, or name a private one with GHN_DOCKER_ENGINE (as root)")
    built = run(*build)
    assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]
    yield client
    if private:
        run(str(ENGINE), "down")


def test_default_run_trains_the_embedded_default_without_network(docker: list[str]) -> None:
    limits = ("--rm", "--network", "none", "-e", "GHN_STEPS=4", "-e", "GHN_ARCHITECTURES=16")
    done = run(*docker, "run", *limits, TAG)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert '"job": "train", "done": 4, "total": 4' in output
    assert "ninja" not in output  # nothing was compiled


def test_arguments_are_those_of_train(docker: list[str]) -> None:
    shown = run(*docker, "run", "--rm", TAG, "--help")
    assert shown.returncode == 0 and "ghn train" in shown.stdout
    refused = run(*docker, "run", "--rm", TAG, "--recipe", "cifar10", "--set", "training.stepz=1")
    assert refused.returncode == 2 and "did you mean steps?" in refused.stderr and "Traceback" not in refused.stderr


def test_it_does_not_run_as_root(docker: list[str]) -> None:
    assert run(*docker, "run", "--rm", "--entrypoint", "id", TAG, "-u").stdout.strip() == "1000"


def test_two_containers_train_as_one_host_does(
    docker: list[str], shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(shards, work / "shards")
    for path in (work, *work.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    settings = ("images.url=/mnt/ghn/shards/images", "architectures.url=/mnt/ghn/shards/nets", "training.steps=6")
    done = subprocess.run(
        [
            *(str(REPOSITORY / "infra" / "hosts" / "two-containers"), "--image", TAG, "--mount", str(work), "--"),
            *("--recipe", "smoke", "--run", "/mnt/ghn/run", *(part for s in settings for part in ("--set", s))),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "DOCKER": " ".join(docker), "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert curve(work / "run") == curve(undisturbed) and same_weights(work / "run", undisturbed)
