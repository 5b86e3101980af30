"""`ghn train` over two hosts: network namespaces with an address and a host name each, and containers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.training.run_folder import read_metrics
from tests.distributed.jobs import curve, same_weights, train

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
HOSTS = Path(__file__).parents[2] / "infra" / "hosts"


def run_on_two_hosts(launcher: str, run: Path, shards: Path, *more: str) -> subprocess.CompletedProcess[str]:
    settings = (f"images.url={shards / 'images'}", f"architectures.url={shards / 'nets'}", "training.steps=6", *more)
    ghn = str(Path(sys.executable).with_name("ghn"))
    command = [
        str(HOSTS / "two-hosts"),
        "--launcher",
        launcher,
        "--",
        ghn,
        "train",
        "--recipe",
        "smoke",
        "--run",
        str(run),
    ]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "environment"])
def test_two_hosts_train_as_one_does(launcher: str, shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    run, before = tmp_path / "run", namespaces()
    if launcher == "environment":  # the second session goes on over other hosts
        assert train(shards, run, arguments=("--stop-after", "3")).returncode == 0
    done = run_on_two_hosts(launcher, run, shards)
    assert done.returncode == 0, done.stderr
    assert curve(run) == curve(undisturbed) and same_weights(run, undisturbed)
    assert {row["slowest_rank"] for row in read_metrics(run)} <= {0, 1}
    assert namespaces() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_an_error_on_one_host_ends_both(shards: Path, tmp_path: Path) -> None:
    done = run_on_two_hosts("environment", tmp_path / "run", shards, "model.num_classes=7")
    assert done.returncode == 2 and "10 classes but the recipe says model.num_classes=7" in done.stderr
    assert "Traceback" not in done.stderr
