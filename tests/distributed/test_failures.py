"""`pipelines.training.worker` and `launch` when something goes wrong on one rank.

It is left out and named where it can be; where it can not, there is an error that names the rank.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.ports import free_port
from pipelines.recipe import load_recipe
from pipelines.training.run_folder import RECIPE_NAME, read_metrics
from tests.distributed.jobs import command, curve, read_state, same_weights, train

pytestmark = pytest.mark.integration


def run_ranks(shards: Path, run: Path, kind: str, *more: str, rank: int = 1, step: int = 3, count: int = 2):
    """Run all ranks by themselves, one of which goes wrong; return (exit code, errors) of each."""
    overrides = [f"images.url={shards / 'images'}", f"architectures.url={shards / 'nets'}", "training.steps=6", *more]
    run.mkdir(parents=True, exist_ok=True)
    (run / RECIPE_NAME).write_text(load_recipe("smoke", overrides).to_toml())
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "FAIL_KIND": kind,
        "FAIL_RANK": str(rank),
        "FAIL_STEP": str(step),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.failing_rank", str(run)],
            env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(count)
    ]
    found = {}
    deadline = time.monotonic() + 120
    try:
        for r, process in enumerate(ranks):
            if kind.startswith("hang") and r == rank:
                continue
            found[r] = (process.wait(max(1, deadline - time.monotonic())), process.stderr.read())
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    return found


BUSY_WATCH = """
import sys, time
import torch.distributed as dist
from pipelines.training.ranks import Ranks
rank, port = map(int, sys.argv[1:])
store = dist.TCPStore("127.0.0.1", port, 2, rank == 0)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
with Ranks(store, 0.002):  # tells the store twice in a millisecond that it lives
    time.sleep(0.3)
dist.destroy_process_group()
"""


def test_ranks_that_are_done_end_in_order() -> None:
    """A thread that is inside of torch's store when the interpreter ends would abort it."""
    for _ in range(3):
        port = str(free_port())
        ranks = [subprocess.Popen([sys.executable, "-c", BUSY_WATCH, str(rank), port]) for rank in range(2)]
        try:
            assert [rank.wait(120) for rank in ranks] == [0, 0]
        finally:
            for rank in ranks:
                rank.kill()


@pytest.mark.parametrize(("kind", "reason"), [("memory", "out of memory"), ("error", "ValueError: this network")])
def test_networks_that_fail_on_one_rank_are_left_out_by_all(
    shards: Path, tmp_path: Path, kind: str, reason: str
) -> None:
    found = run_ranks(shards, tmp_path, kind)
    assert [code for code, _ in found.values()] == [0, 0], found
    row = read_metrics(tmp_path)[2]
    assert row["step"] == 3 and row["skipped"] == len(row["skipped_networks"]) > 0
    assert all(network["reason"].startswith(reason) for network in row["skipped_networks"])
    assert {"architecture", "index", "seed"} <= set(row["skipped_networks"][0])
    assert json.dumps(row["skipped_networks"]) in found[0][1]
    assert [row["skipped"] for row in read_metrics(tmp_path)] == [0, 0, row["skipped"], 0, 0, 0]
    assert read_state(tmp_path).skipped == row["skipped"]


def test_an_error_that_is_no_networks_stops_all_and_names_the_rank(shards: Path, tmp_path: Path) -> None:
    found = run_ranks(shards, tmp_path, "data")
    assert [code for code, _ in found.values()] == [6, 5]
    assert "rank 1 failed" in found[0][1] and "images-train-000000.tar is damaged" in found[0][1]
    assert "Traceback" not in found[0][1] + found[1][1]


@pytest.mark.parametrize(("kind", "rank"), [("hang", 1), ("hang-in-update", 0)])
def test_a_rank_that_does_not_answer_is_named(shards: Path, tmp_path: Path, kind: str, rank: int) -> None:
    found = run_ranks(shards, tmp_path, kind, "training.timeout_s=8", rank=rank)
    code, errors = found[1 - rank]
    assert code == 6 and "step 3" in errors and f"rank {rank} did not answer for 8 seconds" in errors, errors
    assert "Traceback" not in errors


def test_a_rank_that_is_gone_ends_the_others(shards: Path, tmp_path: Path, undisturbed: Path) -> None:
    found = run_ranks(shards, tmp_path / "run", "kill")
    assert found[1][0] == -signal.SIGKILL and found[0][0] == 6
    assert "lost another rank" in found[0][1] and "Traceback" not in found[0][1]
    assert train(shards, tmp_path / "run").returncode == 0
    assert curve(tmp_path / "run") == curve(undisturbed) and same_weights(tmp_path / "run", undisturbed)


def test_stragglers_show_in_the_metrics(shards: Path, tmp_path: Path) -> None:
    run_ranks(shards, tmp_path, "slow")
    rows = read_metrics(tmp_path)
    assert rows[2]["slowest_rank"] == 1 and rows[2]["imbalance"] > 1.5 > rows[5]["imbalance"] >= 1


def test_networks_too_large_by_estimate_are_not_tried(shards: Path, tmp_path: Path) -> None:
    done = train(shards, tmp_path, "training.network_memory_gib=0.007", steps=3)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path)
    assert sum(row["skipped"] for row in rows) > 0
    reasons = [network["reason"] for row in rows for network in row.get("skipped_networks", ())]
    assert all("needs an estimated 0.0 GiB, more than 0.0 (training.network_memory_gib)" in r for r in reasons)


def test_a_limit_of_memory_costs_networks_not_the_run(shards: Path, tmp_path: Path) -> None:
    """The address space ends a little above what the rank has after two steps: networks fail for real."""
    run = tmp_path / "run"
    run.mkdir()
    overrides = [f"images.url={shards / 'images'}", f"architectures.url={shards / 'nets'}", "training.steps=6"]
    overrides += ["images.batch=256", "images.per_network=false", "training.processes=1"]
    (run / RECIPE_NAME).write_text(load_recipe("smoke", overrides).to_toml())
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_PORT": str(free_port()), "FAIL_KIND": "limit", "FAIL_RANK": "0", "FAIL_STEP": "3"}
    environment |= {
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }  # freed memory is given back
    rank = [sys.executable, "-m", "tests.distributed.failing_rank", str(run)]
    done = subprocess.run(rank, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(run)
    assert rows[2]["skipped"] > 0
    reasons = [network["reason"] for network in rows[2]["skipped_networks"]]
    known = ("out of memory: ", "RuntimeError: could not create a primitive")  # the second one is oneDNN's word for it
    assert all(reason.startswith(known) for reason in reasons), reasons
    assert len(rows) == 6 and all(math.isfinite(row["loss"]) for row in rows[3:])


def start(shards: Path, run: Path, *more: str, steps: int = 6) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(shards, run, *more, steps=steps), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(job: subprocess.Popen[str], run: Path, rows: int) -> None:
    while job.poll() is None and len(read_metrics(run)) < rows:
        time.sleep(0.02)


def alive(pids: list[str]) -> list[str]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def children_of(job: subprocess.Popen[str]) -> list[str]:
    return Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()


@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_to_stop_leaves_a_checkpoint(shards: Path, undisturbed: Path, tmp_path: Path, to_all: bool) -> None:
    run = tmp_path / "run"
    job = start(shards, run, "training.checkpoint_every=100")
    wait_for(job, run, 3)
    for pid in [*(children_of(job) if to_all else ()), str(job.pid)]:
        os.kill(int(pid), signal.SIGTERM)
    started = time.monotonic()
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 143 and time.monotonic() - started < 25
    assert "stopped by signal" in errors and "Traceback" not in errors
    assert read_state(run).step >= 3
    assert train(shards, run, "training.checkpoint_every=100").returncode == 0
    assert curve(run) == curve(undisturbed) and same_weights(run, undisturbed)


def test_kill_nine_of_the_launcher_takes_its_ranks_along(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start(shards, run)
    wait_for(job, run, 3)
    ranks = children_of(job)
    job.kill()
    job.communicate()
    done = train(shards, run)  # at once
    assert done.returncode == 0, done.stderr
    assert not alive(ranks)
    assert curve(run) == curve(undisturbed) and same_weights(run, undisturbed)


def test_one_run_folder_is_for_one_job(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start(shards, run, steps=200)
    wait_for(job, run, 1)
    second = train(shards, run, steps=200)
    assert second.returncode == 3 and f"in use by process {job.pid}" in second.stderr
    job.terminate()
    job.communicate(timeout=60)


def test_kill_nine_at_many_moments(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Ranks, or the launcher, die again and again; every start gets further, and the curve is that of a quiet run."""
    run = tmp_path / "run"
    for turn in range(40):
        job = start(shards, run, "training.checkpoint_every=1")
        wait_for(job, run, min(6, turn + 1))
        time.sleep(0.013 * (turn % 5))
        victims = [str(job.pid), *children_of(job)] if job.poll() is None else []
        for pid in victims[turn % 3 : turn % 3 + 1]:
            os.kill(int(pid), signal.SIGKILL)
        job.communicate(timeout=60)
        if job.returncode == 0:
            break
    else:
        pytest.fail("it never came to its end")
    assert curve(run) == curve(undisturbed) and same_weights(run, undisturbed)
