"""One rank of meta-training: the same meta-step as in the library, inside a DeepSpeed engine.

Only the hypernetwork is wrapped; target networks never are. Gradients are weighted by the global number of networks:
DeepSpeed averages over ranks, so each rank's loss is scaled by ``world_size / meta_batch``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ghn import GHN, save_checkpoint
from ghn.errors import GHNError, TrainingError
from ghn.meta_step import MetaStep, meta_step
from pipelines.process import tune_process
from pipelines.progress import Progress, emit
from pipelines.settings import Recipe, TrainingSettings, load_recipe
from pipelines.training.data import MetaBatches
from pipelines.training.state import (
    METRICS_NAME,
    MODEL_NAME,
    RECIPE_NAME,
    STATES,
    TrainingState,
    check_resumable,
    hash_files,
    publish_state,
    read_state,
    truncate_metrics,
)

_WINDOW = 0.9  # of the running means that the progress bar shows


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step (from 0): tenfold drops at milestones, or linear warm-up and cosine decay."""
    done = step / settings.steps
    if settings.schedule == "step":
        return settings.lr * 0.1 ** sum(done >= milestone for milestone in settings.milestones)
    if done < settings.warmup:
        return settings.lr * (step + 1) / (settings.warmup * settings.steps + 1)
    left = (done - settings.warmup) / (1 - settings.warmup)
    return settings.lr * (0.5 + 0.5 * math.cos(math.pi * left))


def deal(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal networks of the given sizes over ranks so that they finish together: the largest to the least loaded.

    Returns the positions that each rank takes, in ascending order.
    """
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for position in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = loads.index(min(loads))
        hands[least].append(position)
        loads[least] += sizes[position]
    return [sorted(hand) for hand in hands]


def run_rank(recipe: Recipe, run: Path, *, stop_after: int | None) -> None:
    """Train this rank until the recipe's steps, or ``stop_after``, are done."""
    device = _init_distributed()
    _Rank(recipe, run, device).train(stop_after)
    dist.barrier()
    dist.destroy_process_group()


def _init_distributed() -> torch.device:
    """Join the process group: NCCL on GPUs, gloo on CPUs (where DeepSpeed's compiled operator is switched off)."""
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local_rank)
    else:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would compile for minutes; gloo does without
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    return torch.device("cuda", local_rank) if cuda else torch.device("cpu")


class _Rank:
    """State and loop of one rank."""

    def __init__(self, recipe: Recipe, run: Path, device: torch.device) -> None:
        import deepspeed

        self.recipe, self.run, self.device = recipe, run, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.batches = MetaBatches(recipe)
        self.step, self.skipped, self.session = 0, 0, 1
        settings = recipe.training
        torch.manual_seed(settings.seed)
        self.hypernet = GHN(recipe.model.config()).to(device)
        optimizer = torch.optim.Adam(self.hypernet.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=self.hypernet,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": settings.clip,
                "zero_optimization": {"stage": settings.zero_stage},
                "steps_per_print": 10**9,
            },
        )
        self._resume()

    def _resume(self) -> None:
        state = read_state(self.run)
        if state is None:
            if self.rank == 0:
                truncate_metrics(self.run, 0)
            return
        check_resumable(self.run, state, self.recipe, self.world_size)
        self.batches.restore(state.readers)
        self.engine.load_checkpoint(str(self.run / STATES), tag=state.tag)
        self.step, self.skipped, self.session = state.step, state.skipped, state.sessions + 1
        if self.rank == 0:
            truncate_metrics(self.run, self.step)

    def train(self, stop_after: int | None) -> None:
        settings = self.recipe.training
        last = min(settings.steps, stop_after or settings.steps)
        loss = accuracy = float("nan")
        with _RankZeroProgress(self.rank, settings.steps, self.step) as progress:
            while self.step < last:
                started = time.monotonic()
                rate = learning_rate(self.step, settings)
                row = {"step": self.step + 1, "lr": rate, **self._one_step(rate), "session": self.session}
                self.step += 1
                taken = time.monotonic() - started
                row["architectures_per_s"] = round(settings.meta_batch / taken, 3)
                row["outside_share"] = round(1 - row.pop("network_seconds") / taken, 4)
                if not math.isnan(row["loss"]):
                    loss = row["loss"] if math.isnan(loss) else _WINDOW * loss + (1 - _WINDOW) * row["loss"]
                    accuracy = (
                        row["accuracy"]
                        if math.isnan(accuracy)
                        else _WINDOW * accuracy + (1 - _WINDOW) * row["accuracy"]
                    )
                self._log(row | self.batches.reading())
                progress.update(
                    loss=round(loss, 3), acc=f"{100 * accuracy:.1f}%", archs_per_s=row["architectures_per_s"]
                )
                if self.skipped > settings.max_skipped:
                    raise TrainingError(
                        f"{self.skipped} networks were skipped (training.max_skipped={settings.max_skipped}) by step "
                        f"{self.step}; lower training.lr, or look at the skipped ones in {self.run / METRICS_NAME}"
                    )
                if self.step % settings.checkpoint_every == 0 or self.step == last:
                    self._checkpoint()
        if self.step >= settings.steps and self.rank == 0:
            facts = {"recipe_digest": self.recipe.digest(), "manifests": self.batches.manifests(), "steps": self.step}
            save_checkpoint(self.hypernet, self.run / MODEL_NAME, {**facts, "recipe": self.recipe.model_dump()})

    def _one_step(self, rate: float) -> dict[str, Any]:
        """Do one global step; return its metrics, reduced over all ranks."""
        settings = self.recipe.training
        batch = self.batches.take(self.step)
        mine = deal([len(architecture.graph) for architecture in batch.architectures], self.world_size)[self.rank]
        first_seed = (settings.seed * 1_000_003 + self.step) * settings.meta_batch  # the same whoever runs a network
        outcome = MetaStep(loss=None, losses=(), accuracies=(), skipped=())
        if mine:
            outcome = meta_step(
                self.engine,
                [batch.architectures[i] for i in mine],
                [(images.to(self.device), labels.to(self.device)) for images, labels in map(batch.images_of, mine)],
                weight=self.world_size / settings.meta_batch,
                label_smoothing=settings.label_smoothing,
                network_clip=settings.network_clip,
                seeds=[first_seed + i for i in mine],
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Every rank must have a gradient for every parameter, or ZeRO's collectives do not match.
        everything = torch.stack([0.0 * parameter.sum() for parameter in self.hypernet.parameters()]).sum()
        self.engine.backward(everything if outcome.loss is None else outcome.loss + everything)
        self.engine.step()
        return self._reduce(outcome)

    def _reduce(self, outcome: MetaStep) -> dict[str, Any]:
        sums = torch.tensor(
            [
                sum(outcome.losses),
                sum(outcome.accuracies),
                len(outcome.losses),
                len(outcome.skipped),
                outcome.network_seconds,
            ],
            dtype=torch.float64,
        ).to(self.device)
        dist.all_reduce(sums)
        loss, accuracy, networks, skipped, seconds = sums.tolist()
        self.skipped += int(skipped)
        norm: float | Tensor | None = self.engine.get_global_grad_norm()
        row = {
            "loss": loss / networks if networks else float("nan"),
            "accuracy": accuracy / networks if networks else float("nan"),
            "grad_norm": float("nan") if norm is None else float(norm),
            "skipped": int(skipped),
            "network_seconds": seconds / self.world_size,
        }
        if skipped:
            named: list[Any] = [None] * self.world_size
            dist.all_gather_object(named, outcome.skipped)
            row["skipped_networks"] = [item for part in named for item in part]
        return row

    def _log(self, row: dict[str, Any]) -> None:
        """Append one row of metrics; rank 0 alone writes."""
        if self.rank == 0:
            if row.get("skipped_networks"):
                emit("skipped", step=row["step"], networks=row["skipped_networks"])
            with (self.run / METRICS_NAME).open("a") as stream:
                stream.write(json.dumps(row) + "\n")

    def _checkpoint(self) -> None:
        started = time.monotonic()
        tag = f"step-{self.step:09d}"
        self.engine.save_checkpoint(str(self.run / STATES), tag=tag, save_latest=False)
        dist.barrier()
        if self.rank == 0:
            state = TrainingState(
                step=self.step,
                total_steps=self.recipe.training.steps,
                world_size=self.world_size,
                tag=tag,
                files=hash_files(self.run / STATES / tag),
                readers=self.batches.state(),
                recipe_digest=self.recipe.digest(),
                manifests=self.batches.manifests(),
                skipped=self.skipped,
                sessions=self.session,
            )
            publish_state(self.run, state)
            emit("checkpoint", step=self.step, seconds=round(time.monotonic() - started, 2))
        dist.barrier()


class _RankZeroProgress:
    """Progress on rank 0, silence on the others."""

    def __init__(self, rank: int, total: int, initial: int) -> None:
        self._progress = Progress("train", total, initial=initial) if rank == 0 else None

    def __enter__(self) -> _RankZeroProgress:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)

    def update(self, **facts: Any) -> None:
        if self._progress is not None:
            self._progress.update(**facts)


def main() -> int:
    """Run one rank with the recipe that the launcher stored in the run folder."""
    tune_process()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stop-after", type=int)
    arguments = parser.parse_args()
    try:
        run_rank(load_recipe(str(arguments.run / RECIPE_NAME)), arguments.run, stop_after=arguments.stop_after)
    except GHNError as error:
        sys.stderr.write(f"ghn: rank {os.environ.get('RANK')}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
