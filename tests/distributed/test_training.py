"""`pipelines.training` on two real processes: resume, kill -9, and what may not be mixed."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from ghn import load_checkpoint
from ghn.checkpoint import read_metadata
from pipelines.training.checkpoints import FOLDER, STATE_NAME
from pipelines.training.data import MetaBatches
from pipelines.training.run_folder import read_metrics
from tests.command_line import refused
from tests.distributed.jobs import command, curve, read_state, same_weights, train


def test_a_run_leaves_a_whole_model_metrics_and_its_recipe(undisturbed: Path) -> None:
    assert [step for step, *_ in curve(undisturbed)] == [1, 2, 3, 4, 5, 6]
    facts = read_metadata(undisturbed / "model")
    assert facts["steps"] == 6 and set(facts["manifests"]) == {"images", "deepnets"}
    assert "steps = 6" in (undisturbed / "recipe.toml").read_text()
    assert read_state(undisturbed).sessions == 1
    assert [path.name for path in (undisturbed / FOLDER).iterdir()] == ["step-000000006"]


GHN1 = ("model.ve=false", "model.weight_norm=false", "model.layernorm=false")


@pytest.mark.integration
@pytest.mark.parametrize(("overrides", "message_passing"), [(GHN1, True), (("model.hypernet=mlp",), False)])
def test_the_other_two_models_train_on_two_processes(
    shards: Path, tmp_path: Path, overrides: tuple[str, ...], message_passing: bool
) -> None:
    done = train(shards, tmp_path / "run", *overrides, steps=3)
    assert done.returncode == 0, done.stderr
    hypernet = load_checkpoint(tmp_path / "run" / "model")
    assert (hypernet.config.hypernet == "gatedgnn") is message_passing
    assert hypernet.config.ve is not message_passing
    assert len(curve(tmp_path / "run")) == 3
    assert all(math.isfinite(loss) and norm > 0 for _, loss, norm in curve(tmp_path / "run"))


def test_stopping_and_resuming_is_bit_equal_to_an_undisturbed_run(
    shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(shards, run, arguments=("--stop-after", "3")).returncode == 0
    assert read_state(run).step == 3 and not (run / "model").exists()
    done = train(shards, run)
    assert done.returncode == 0 and '"event": "resume", ' in done.stderr
    assert curve(run) == curve(undisturbed) and same_weights(run, undisturbed)
    assert [row["session"] for row in read_metrics(run)] == [1, 1, 1, 2, 2, 2]
    again = train(shards, run)
    assert again.returncode == 0 and '"event": "finished"' in again.stderr


def _listening(pids: set[int]) -> set[str]:
    """Addresses at which processes wait for others."""
    rows = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    mine = [row.split() for row in rows if pids & {int(pid) for pid in re.findall(r"pid=(\d+)", row)}]
    return {fields[3].rpartition(":")[0] for fields in mine}


def _children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.mark.integration
def test_ranks_of_one_machine_meet_on_loopback_alone(shards: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(shards, tmp_path / "run", steps=1), stderr=subprocess.DEVNULL)
    found = []
    while process.poll() is None:
        found.append(_listening(_children(process.pid)))
        time.sleep(0.1)
    assert process.returncode == 0
    assert set().union(*found) == {"127.0.0.1"}


def test_kill_nine_of_a_rank_is_survived(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = subprocess.Popen(command(shards, run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while job.poll() is None and not list(run.glob(f"{FOLDER}/*/{STATE_NAME}")):
        time.sleep(0.02)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0 and "resume" in errors.splitlines()[-1]
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert train(shards, run).returncode == 0
    assert curve(run) == curve(undisturbed) and same_weights(run, undisturbed)


@pytest.mark.integration
def test_a_resume_must_fit(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(shards, run, arguments=("--stop-after", "2")).returncode == 0
    refused(train(shards, run, "training.lr=0.1"), "another recipe")
    victim = next(path for path in (run / FOLDER).rglob("optimizer.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    refused(train(shards, run), victim.name, "damaged", "no older checkpoint is left")


@pytest.mark.integration
def test_too_many_skipped_networks_stop_training(shards: Path, tmp_path: Path) -> None:
    done = train(shards, tmp_path / "run", "training.lr=1e30", "training.max_skipped=3", "training.warmup=0")
    assert done.returncode != 0
    assert "networks were skipped" in done.stderr and "lower training.lr" in done.stderr
    assert '"event": "skipped"' in done.stderr


@pytest.mark.parametrize("per_network", ["true", "false"])
def test_meta_batches_are_a_function_of_the_step(shards: Path, per_network: str) -> None:
    from pipelines.recipe import load_recipe

    urls = [f"images.url={shards / 'images'}", f"architectures.url={shards / 'nets'}"]
    recipe = load_recipe("smoke", [*urls, f"images.per_network={per_network}"])
    straight = MetaBatches(recipe)
    wanted = [straight.take(step) for step in range(8)]
    first = MetaBatches(recipe)
    for step in range(5):
        first.take(step)
    second = MetaBatches(recipe)
    second.restore(json.loads(json.dumps(first.state())))
    for step in range(5, 8):
        batch = second.take(step)
        for position in range(4):
            for found, expected in zip(batch.images_of(position), wanted[step].images_of(position), strict=True):
                assert torch.equal(found, expected)
            assert batch.spec(position) == wanted[step].spec(position)
