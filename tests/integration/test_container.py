"""`infra/docker`: the image, really built and run. Needs a Docker Engine; skips with a reason where there is none."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from pipelines.training.run_folder import read_metrics
from tests.airflow_client import until
from tests.containers import Engine, run
from tests.distributed.jobs import curve, same_weights

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

REPOSITORY = Path(__file__).resolve().parents[2]
TAG = "ghn-train:test"


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


def test_the_image_is_small_labelled_and_without_a_compiler(engine: Engine) -> None:
    (image,) = json.loads(engine.run("image", "inspect", TAG).stdout)
    assert image["Size"] < 2.2e9
    labels = image["Config"]["Labels"]
    for name in ("title", "description", "licenses", "version", "revision", "created", "documentation"):
        assert f"org.opencontainers.image.{name}" in labels
    assert image["Config"]["Healthcheck"]["Test"] == ["CMD", "/opt/ghn/libexec/healthy"]
    looked = engine.run(
        "run",
        "--rm",
        "--network=none",
        "--entrypoint",
        "sh",
        TAG,
        "-c",
        "for p in gcc cc g++ c++ clang make nvcc pip; do command -v $p; done",
    )
    assert looked.stdout == "", looked.stdout
    pins = (REPOSITORY / "infra" / "lock" / "train.txt").read_text()
    script = "from importlib.metadata import distributions as d; print(*(f'{x.name}=={x.version}' for x in d()))"
    inside = (
        engine.run("run", "--rm", "--entrypoint", "python", TAG, "-c", script).stdout.lower().replace("_", "-").split()
    )
    for name in ("numpy", "deepspeed", "mlflow-skinny", "safetensors"):
        (found,) = [one for one in inside if one.startswith(f"{name}==")]
        assert f"{found} " in pins


def test_commands_and_the_real_recipe_with_images_on_s3(engine: Engine) -> None:
    shown = engine.run("run", "--rm", TAG, "evaluate", "--help")
    assert shown.returncode == 0 and "ghn evaluate" in shown.stdout
    command = ("--recipe", "cifar10", "--images", "s3://nowhere/images", "--deepnets", "s3://nowhere/deepnets")
    done = engine.run(
        "run",
        "--rm",
        "--network=none",
        "-e",
        "AWS_ENDPOINT_URL=http://127.0.0.1:9",
        "-e",
        "AWS_ACCESS_KEY_ID=x",
        "-e",
        "AWS_SECRET_ACCESS_KEY=x",
        TAG,
        *command,
    )
    assert 'url = "s3://nowhere/images"' in done.stdout and done.returncode == 4, done.stdout + done.stderr
    assert "s3://nowhere" in done.stderr and "Traceback" not in done.stderr


def test_a_signal_to_stop_leaves_a_checkpoint_and_the_same_volume_goes_on(engine: Engine) -> None:
    name = "ghn-test-stop"
    options = ("--network=none", "--volume", f"{name}:/data", "-e", "GHN_ARCHITECTURES=16", "-e", "GHN_STEPS=24", TAG)
    look = ("run", "--rm", "--volume", f"{name}:/data", "--entrypoint", "sh", TAG, "-c")
    try:
        assert engine.run("run", "--detach", "--name", name, *options).returncode == 0
        until(lambda: re.search('"job": "train", "done": [1-9]', engine.run("logs", name).stderr), 240, "steps")
        assert engine.run("exec", name, "/opt/ghn/libexec/healthy").returncode == 0
        assert engine.run("stop", "--time", "60", name).returncode == 0
        (ended,) = json.loads(engine.run("container", "inspect", name).stdout)
        assert ended["State"]["ExitCode"] == 143, engine.run("logs", "--tail", "20", name)
        assert 1 <= int(engine.run(*look, "wc -l </data/train/metrics.jsonl").stdout) < 24
        done = engine.run("run", "--rm", *options)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        rows = [json.loads(line) for line in engine.run(*look, "cat /data/train/metrics.jsonl").stdout.splitlines()]
        assert [row["step"] for row in rows] == list(range(1, 25)) and rows[-1]["session"] >= 2
    finally:
        engine.run("rm", "--force", name)
        engine.run("volume", "rm", name)


def test_a_silent_job_is_unhealthy(engine: Engine) -> None:
    """The check looks at when the job reported last."""
    check = "/opt/ghn/libexec/healthy; echo $?"
    script = f"touch -d '20 minutes ago' /tmp/ghn-events.jsonl; {check}; touch /tmp/ghn-events.jsonl; {check}"
    assert engine.run("run", "--rm", "--entrypoint", "sh", TAG, "-c", script).stdout.split() == ["1", "0"]


def test_the_bill_of_materials_of_the_image(engine: Engine, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.supply.sbom", "--image", TAG, "--out", str(tmp_path / "sbom.json")]
    environment = {**os.environ, "DOCKER": " ".join(engine.docker)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    parts = {
        part["purl"].split("@")[0]
        for part in json.loads((tmp_path / "sbom.json").read_text())["components"]
        if "purl" in part
    }
    assert {"pkg:pypi/torch", "pkg:pypi/deepspeed", "pkg:deb/debian/libc6", "pkg:generic/python"} <= parts


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


@pytest.fixture
def mounted(shards: Path, tmp_path: Path) -> Path:
    """A folder with the shards that the image's user may write to."""
    work = tmp_path / "work"
    shutil.copytree(shards, work / "shards")
    (work / "runs").mkdir()
    for path in (work, *work.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    return work


def site(docker: list[str], work: Path) -> dict[str, str]:
    """Return the environment of Airflow's workers."""
    return {
        **os.environ,
        "GHN_DOCKER": " ".join(docker),
        "GHN_IMAGE": TAG,
        "GHN_CONTAINER_VOLUMES": f"{work}:/mnt/ghn",
        "GHN_HOME": "/mnt/ghn/runs",
        "GHN_RECIPE": "smoke",
        "MLFLOW_TRACKING_URI": "sqlite:////mnt/ghn/runs/mlflow.db",
        "GHN_ARTIFACTS": "/mnt/ghn/runs/artifacts",
        "OMP_NUM_THREADS": "1",
    }


def containers(docker: list[str]) -> list[str]:
    return run(*docker, "ps", "--all", "--format", "{{.Names}}").stdout.split()


def test_the_dag_plans_trains_and_registers_in_containers(
    docker: list[str], mounted: Path, undisturbed: Path, tmp_path: Path
) -> None:
    environment = site(docker, mounted) | {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    airflow = str(Path(sys.executable).with_name("airflow"))
    conf = {
        "backend": "container",
        "nodes": 2,
        "images": "/mnt/ghn/shards/images",
        "deepnets": "/mnt/ghn/shards/nets",
        "overrides": ["training.steps=6"],
    }
    for command in (
        ("db", "migrate"),
        ("pools", "set", "ghn_training", "1", "one training at a time"),
        ("dags", "test", "meta_train", "--conf", json.dumps(conf)),
    ):
        done = subprocess.run([airflow, *command], env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    (made,) = (mounted / "runs" / "meta_train").iterdir()
    assert curve(made / "train") == curve(undisturbed) and same_weights(made / "train", undisturbed)
    assert {row["slowest_rank"] for row in read_metrics(made / "train")} <= {0, 1}
    client = mlflow.MlflowClient(f"sqlite:///{mounted}/runs/mlflow.db")
    (version,) = client.search_model_versions("name='ghn2-cifar10'")
    assert version.tags["ghn.image_digest"].startswith("sha256:") and int(version.version) == 1
    assert not [name for name in containers(docker) if name.startswith("ghn-meta-train")]


RUN_BACKEND = """
import sys; sys.path.insert(0, sys.argv[1])
from ghn_airflow.backends import Job, choose
choose("container").run(Job(name="ghn-test-again", arguments=tuple(sys.argv[2:]), nodes=2), lambda line: print(line, flush=True))
"""


def test_a_new_try_takes_the_place_of_containers_that_a_killed_task_left(
    docker: list[str], mounted: Path, tmp_path: Path
) -> None:
    settings = ("images.url=/mnt/ghn/shards/images", "architectures.url=/mnt/ghn/shards/nets", "training.steps=120")
    settings += ("training.checkpoint_every=5",)
    arguments = ["train", "--recipe=smoke", "--run=/mnt/ghn/runs/again", *(f"--set={item}" for item in settings)]
    command = [sys.executable, "-c", RUN_BACKEND, str(REPOSITORY / "dags"), *arguments]
    folder, environment = mounted / "runs" / "again", site(docker, mounted)
    del environment["MLFLOW_TRACKING_URI"]
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    until(lambda: folder.is_dir() and any(row["step"] > 6 for row in read_metrics(folder)), 120, "the first steps")
    first.kill()
    first.wait()
    assert {"ghn-test-again-0", "ghn-test-again-1"} <= set(containers(docker))  # nothing of ours could stop them
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[node 1]" in done.stdout and "[node 0]" in done.stdout
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, 121)) and rows[-1]["session"] >= 2
    assert not [name for name in containers(docker) if name.startswith("ghn-test-again")]
