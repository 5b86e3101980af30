"""Training jobs as users start them, and what they leave."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch

from ghn import load_checkpoint
from pipelines.storage import LocalStore
from pipelines.training.checkpoints import TrainingState, read_checkpoint
from pipelines.training.run_folder import read_metrics
from tests.command_line import GHN_COMMAND


def command(shards: Path, run: Path, *more: str, steps: int = 6) -> list[str]:
    settings = (
        f"images.url={shards / 'images'}",
        f"architectures.url={shards / 'nets'}",
        f"training.steps={steps}",
        *more,
    )
    return [GHN_COMMAND, "train", "--recipe", "smoke", "--run", str(run), *(p for s in settings for p in ("--set", s))]


def train(shards: Path, run: Path, *more: str, arguments: tuple[str, ...] = (), steps: int = 6):
    return subprocess.run(
        [*command(shards, run, *more, steps=steps), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # so that two and four ranks have as many threads as one
        capture_output=True,
        text=True,
        timeout=240,
    )


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_checkpoint(run / "model").state_dict() for run in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


def read_state(run: Path) -> TrainingState | None:
    found = read_checkpoint(LocalStore(str(run)))
    return None if found is None else found[0]


def curve(run: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_metrics(run)]
