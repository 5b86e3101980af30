"""What a training run would do, take and need, and whether it can start: a dry run without any process."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import torch

from ghn import GHN
from ghn.cost import CostModel
from pipelines.recipe import Recipe
from pipelines.shards.architectures import read_spec
from pipelines.training.checkpoints import check_resumable, read_checkpoint
from pipelines.training.data import MetaBatches
from pipelines.training.dealing import deal, memory_limit
from pipelines.training.launcher import Launcher
from pipelines.training.run_folder import checkpoint_store
from pipelines.training.tracking import DEFAULT_EXPERIMENT, EXPERIMENT_VARIABLE, check_tracking

_SAMPLED = 400


def plan(recipe: Recipe, run: Path, *, store: str | None = None) -> str:
    """Check shards, checkpoint store and MLflow, and return steps, samples, and estimates of time and memory as text.

    Raises:
        GHNError: for the first thing that would keep the run from starting.

    """
    settings, images = recipe.training, recipe.images
    batches = MetaBatches(recipe)
    lines = [f"images         {images.url}/train: {batches.images.manifest.samples:,} images, readable"]
    batches.images.take(1)
    sampled = [read_spec(sample) for sample in batches.deepnets.take(min(_SAMPLED, batches.deepnets.manifest.samples))]
    lines.append(f"architectures  {recipe.architectures.url}/train: {batches.deepnets.manifest.samples:,}, readable")
    lines.append(f"checkpoints    {_check_store(recipe, run, store)}")
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        check_tracking(uri)
        experiment = os.environ.get(EXPERIMENT_VARIABLE, DEFAULT_EXPERIMENT)
        lines.append(f"metrics        {uri}, reachable; experiment {experiment!r}")

    model = CostModel.read(settings.cost_model)
    ranks = Launcher.from_environment().world_size or settings.processes
    costs = [model.estimate(spec, images.batch) for spec in sampled]
    times = []
    for start in range(0, max(1, len(costs) - settings.meta_batch + 1), settings.meta_batch):
        group = [cost.seconds for cost in (costs * settings.meta_batch)[start : start + settings.meta_batch]]
        times.append(max(sum(group[i] for i in hand) for hand in deal(group, ranks)))
    step_s = sum(times) / len(times)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    limit = memory_limit(settings.network_memory_gib, device)
    refused = sum(cost.saved_bytes > limit for cost in costs)
    largest = max((cost.saved_bytes for cost in costs if cost.saved_bytes <= limit), default=0.0)
    own = sum(p.numel() * p.element_size() for p in GHN(recipe.model.config()).parameters())
    networks, seen = settings.steps * settings.meta_batch, settings.steps * images.batch
    seen *= settings.meta_batch if images.per_network else 1
    lines += [
        f"steps          {settings.steps:,} of {settings.meta_batch} networks and {images.batch} images, on {ranks} ranks",
        f"samples        {networks:,} networks ({networks / batches.deepnets.manifest.samples:.1f} epochs), "
        f"{seen:,} images ({seen / batches.images.manifest.samples:.1f} epochs)",
        f"time           about {step_s:.2f} s a step, {_duration(step_s * settings.steps)} in all "
        f"(cost model: {model.device}; calibrate it with `ghn calibrate`)",
        f"memory         about {(largest + 6 * own) / 2**30:.2f} GiB a rank for the largest of {len(costs)} networks and "
        f"the optimizer; limit {limit / 2**30:.1f} GiB, {refused} of them would be skipped",
        f"checkpoints    every {settings.checkpoint_every} steps, {3 * own / 2**20:.0f} MiB each, the last "
        f"{settings.keep_last} stay",
    ]
    return "\n".join(lines)


def _check_store(recipe: Recipe, run: Path, store: str | None) -> str:
    """Write and remove a small object where checkpoints would go, and read what is there."""
    place, made = checkpoint_store(run, store), store is None and not run.exists()
    probe = f".plan-{secrets.token_hex(6)}"
    place.write(probe, b"can this be written?")
    place.delete(probe)
    if made:
        run.rmdir()
    found = read_checkpoint(place)
    if found is None:
        return f"{place.root}: can be written; the run would start at step 0"
    check_resumable(place.root, found[0], recipe)
    return f"{place.root}: can be written; the run would go on after step {found[0].step}"


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
