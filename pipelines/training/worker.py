"""One rank of meta-training: data, this rank's share, agreement, update, checkpoint; until the recipe's steps are done.

The number of ranks decides who computes what, never what is computed, so a run can go on with another number of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ghn import GHN
from ghn.cost import CostModel
from ghn.errors import GHNError, StopRequestedError, TrainingError, TrainingStoppedError
from pipelines.process import Signals, die_with_parent, tune_process
from pipelines.progress import emit
from pipelines.recipe import Recipe, load_recipe
from pipelines.storage import Store
from pipelines.training.checkpoints import (
    BackgroundWriter,
    Retention,
    TrainingState,
    check_resumable,
    read_checkpoint,
    write_checkpoint,
)
from pipelines.training.data import MetaBatch, MetaBatches
from pipelines.training.dealing import by_cost, deal, memory_limit
from pipelines.training.engine import Engine, init_distributed, learning_rate
from pipelines.training.export import export_model, finish_run
from pipelines.training.ranks import Ranks, Turns
from pipelines.training.run_folder import RECIPE_NAME, MetricsLog, checkpoint_store
from pipelines.training.session import Shown
from pipelines.training.share import Network, Share, ShareSettings, compute_share
from pipelines.training.tracking import Tracker

_DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


def run_rank(recipe: Recipe, run: Path, *, store: str | None, stop_after: int | None) -> None:
    """Train this rank until the recipe's steps, or ``stop_after``, are done.

    Raises:
        TrainingStoppedError: if a signal asked to stop; a checkpoint was written.
        GHNError: for anything else that ended training.

    """
    device, meeting = init_distributed(recipe.training.timeout_s)
    with Ranks(meeting, recipe.training.timeout_s) as ranks:
        rank = _Rank(recipe, run, checkpoint_store(run, store), device, ranks)
        with rank.tracker, rank.signals:
            rank.train(stop_after)
    dist.destroy_process_group()


class _Rank:
    """State and loop of one rank."""

    def __init__(self, recipe: Recipe, run: Path, store: Store, device: torch.device, ranks: Ranks) -> None:
        self.recipe, self.run, self.store, self.device = recipe, run, store, device
        self.settings = settings = recipe.training
        self.ranks, self.rank = ranks, ranks.rank
        self.step, self.skipped, self.session = 0, 0, 1
        self.signals = Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last one of a lost connection
        self.batches = MetaBatches(recipe)
        self.cost_model = CostModel.read(settings.cost_model)
        self.memory_limit = memory_limit(settings.network_memory_gib, device)
        torch.manual_seed(settings.seed)
        self.hypernet = GHN(recipe.model.config()).to(device, _DTYPES[settings.precision])
        self.average: list[torch.Tensor] | None = None
        state = self._resume()
        run.mkdir(parents=True, exist_ok=True)
        self.metrics = MetricsLog(run, store)
        self.writer = BackgroundWriter(settings.max_failed_checkpoints)
        self._reported = 0
        if self.rank == 0:
            self.metrics.go_back(self.step)
        known = state.tracking_run if state else None
        self.tracker = Tracker(recipe, self.batches.manifests(), run, known, active=self.rank == 0)

    def _resume(self) -> TrainingState | None:
        """Take over the newest whole checkpoint, which rank 0 reads: nothing but the shards has to be shared by hosts."""
        found: Any = None
        if self.rank == 0:
            try:
                found = read_checkpoint(self.store)
                if found is not None:
                    check_resumable(self.store.root, found[0], self.recipe)
            except GHNError as error:
                found = error
        found = self.ranks.from_first(found, "reading the checkpoint")
        if isinstance(found, GHNError):
            raise found
        state: TrainingState | None = found[0] if found else None
        tensors: dict[str, dict[str, torch.Tensor]] = found[1] if found else {}
        if state is not None:
            self.hypernet.load_state_dict(tensors["weights"])
        self.engine = Engine(self.hypernet, self.settings)
        if state is not None:
            self.engine.restore(tensors.get("optimizer", {}), state.optimizer_step)
            self.batches.restore(state.readers)
            self.step, self.skipped, self.session = state.step, state.skipped, state.sessions + 1
        if self.settings.ema is not None and self.rank == 0:
            known = tensors.get("average") or self.hypernet.state_dict()
            self.average = [known[name].to(p.device, copy=True) for name, p in self.hypernet.named_parameters()]
        return state

    def train(self, stop_after: int | None) -> None:
        """Do the steps that are left."""
        settings = self.settings
        last = min(settings.steps, stop_after or settings.steps)
        shown = Shown(self.rank, settings.steps, self.step)
        with shown:
            while self.step < last:
                started = time.monotonic()
                row = self._one_step(started)
                if row is None:
                    self._checkpoint()
                    self.writer.close()
                    raise TrainingStoppedError(
                        f"stopped by signal {self.signals.noted or 'of another rank'} after step {self.step}; "
                        "run the same command again to go on"
                    )
                self.step += 1
                self._log(row, shown)
                if self.skipped > settings.max_skipped:
                    raise TrainingError(
                        f"{self.skipped} networks were skipped (training.max_skipped={settings.max_skipped}) by step "
                        f"{self.step}; lower training.lr, or look at the skipped ones in {self.run / 'metrics.jsonl'}"
                    )
                if self.step % settings.checkpoint_every == 0 or self.step == last:
                    self._checkpoint()
                if settings.export_every and self.step % settings.export_every == 0:
                    self._export()
        self.writer.close()
        self._report_checkpoints()
        if self.step >= settings.steps and self.rank == 0:
            finish_run(self.hypernet, self.average, self.run, self._facts())

    def _one_step(self, started: float) -> dict[str, Any] | None:
        """Do one global step; return its metrics, or ``None`` (and be where we were before) if it is time to stop."""
        settings, before = self.settings, self.batches.state()
        doing = f"step {self.step + 1}"
        batch, costs = self._estimated(doing)
        turns = self.ranks.turns(doing)
        share, error, waited = None, None, time.monotonic() - started
        try:
            share = self._share(batch, self._positions(costs, turns))
        except StopRequestedError:
            turns.end()
        except GHNError as problem:
            error = problem
            with contextlib.suppress(GHNError):
                turns.end()
        vote = {
            "stop": self.signals.noted,
            "error": str(error) if error else None,
            "busy_s": time.monotonic() - started,
            "waited_s": waited,
            "memory_mb": _peak_megabytes(self.device),
            **(_facts_of(share) if share else {}),
        }
        votes = self.ranks.gather(vote, doing)
        _raise_for([v["error"] for v in votes], error, doing)
        if share is None or any(v["stop"] for v in votes):
            self.batches.restore(before)
            return None
        if (done := sum(len(v["losses"]) + len(v["skipped"]) for v in votes)) != len(batch):
            raise RuntimeError(
                f"{doing}: {done} of {len(batch)} networks were computed; the turns of the ranks are wrong"
            )
        rate, norm = learning_rate(self.step, settings), float("nan")
        if any(v["losses"] for v in votes):
            with self.ranks.watched(doing):
                norm = self.engine.step(share.gradients, rate)
            self._update_average()
        return self._row(votes, rate, norm, time.monotonic() - started)

    def _positions(self, costs: list[float], turns: Turns) -> Iterable[int]:
        """Return which networks this rank computes: the most expensive one that is left, as soon as it has time for another.

        Only exact sums are the same whoever computes what; without them networks are dealt beforehand.
        """
        if not self.settings.exact_sums:
            return deal(costs, self.ranks.count)[self.rank]
        order = by_cost(costs)
        return (order[turn] for turn in turns.up_to(len(order)))

    def _estimated(self, doing: str) -> tuple[MetaBatch, list[float]]:
        """Read a meta-batch and estimate costs of its networks; each rank estimates a part: a look costs time, too."""
        images, size = self.recipe.images.batch, self.settings.meta_batch
        batch, error, mine = None, None, list[float]()
        try:
            batch = self.batches.take(self.step)
            positions = range(self.rank, size, self.ranks.count)
            mine = [self.cost_model.estimate(batch.spec(i), images).seconds for i in positions]
        except GHNError as problem:
            error = problem
        parts = self.ranks.gather((str(error) if error else None, mine), doing)
        _raise_for([message for message, _ in parts], error, doing)
        costs = [0.0] * size
        for rank, (_, part) in enumerate(parts):
            costs[rank :: self.ranks.count] = part
        return cast(MetaBatch, batch), costs

    def _share(self, batch: MetaBatch, positions: Iterable[int]) -> Share:
        """Compute the gradient of this rank's networks, without those that are too large for its memory."""
        settings = self.settings
        first_seed = (settings.seed * 1_000_003 + self.step) * len(batch)  # the same whoever runs a network
        dtype = _DTYPES[settings.precision]

        def images(position: int) -> tuple[torch.Tensor, torch.Tensor]:
            pixels, labels = batch.images_of(position)
            return pixels.to(self.device, dtype), labels.to(self.device)

        refused = []

        def networks() -> Iterator[Network]:
            for i in positions:
                network = Network(i, batch.architecture(i), lambda i=i: images(i), first_seed + i)  # type: ignore[misc]
                needed = self.cost_model.estimate(batch.spec(i), self.recipe.images.batch).saved_bytes
                if needed > self.memory_limit:
                    refused.append((network, needed))
                else:
                    yield network

        share = compute_share(
            self.hypernet,
            networks(),
            ShareSettings(
                weight=1 / len(batch),
                label_smoothing=settings.label_smoothing,
                network_clip=settings.network_clip,
                autocast=torch.bfloat16 if settings.precision == "bfloat16" else None,
                at_once=settings.networks_at_once,
                exact=settings.exact_sums,
            ),
            should_stop=lambda: self.signals.noted != 0,
        )
        for network, needed in refused:
            share.skip(
                network,
                f"out of memory: needs an estimated {needed / 2**30:.1f} GiB, "
                f"more than {self.memory_limit / 2**30:.1f} (training.network_memory_gib)",
            )
        return share

    def _update_average(self) -> None:
        if self.average is not None and self.settings.ema is not None:
            parameters = [p.detach() for p in self.hypernet.parameters()]
            get_ema_multi_avg_fn(self.settings.ema)(self.average, parameters, None)

    def _row(self, votes: list[dict[str, Any]], rate: float, norm: float, taken: float) -> dict[str, Any]:
        """Return the step's metrics from what all ranks said."""
        settings = self.settings
        losses = {i: x for v in votes for i, x in v["losses"].items()}
        accuracies = {i: x for v in votes for i, x in v["accuracies"].items()}
        skipped = [network for v in votes for network in v["skipped"]]
        self.skipped += len(skipped)
        busy = [v["busy_s"] for v in votes]
        count = len(losses)
        row: dict[str, Any] = {
            "step": self.step + 1,
            "lr": rate,
            "loss": sum(losses[i] for i in sorted(losses)) / count if count else float("nan"),
            "accuracy": sum(accuracies[i] for i in sorted(accuracies)) / count if count else float("nan"),
            "grad_norm": norm,
            "skipped": len(skipped),
            "session": self.session,
            "step_s": round(taken, 4),
            "architectures_per_s": round(settings.meta_batch / taken, 3),
            "images_per_s": round(count * self.recipe.images.batch / taken, 1),
            "outside_share": round(1 - sum(v["network_s"] for v in votes) / len(votes) / taken, 4),
            "data_wait_share": round(max(v["waited_s"] for v in votes) / taken, 4),
            "imbalance": round(max(busy) * len(busy) / sum(busy), 4),
            "slowest_rank": busy.index(max(busy)),
            "memory_mb": round(max(v["memory_mb"] for v in votes), 1),
            **self.batches.reading(),
        }
        return row | ({"skipped_networks": skipped} if skipped else {})

    def _log(self, row: dict[str, Any], shown: Shown) -> None:
        """Append one row of metrics; rank 0 alone writes."""
        if self.rank != 0:
            return
        if row.get("skipped_networks"):
            emit("skipped", step=row["step"], networks=row["skipped_networks"])
        self.metrics.append(row)
        self.tracker.log(row)
        shown.update(row)

    def _checkpoint(self) -> None:
        """Hand a copy of everything to the writer in the background; the ranks go on at once."""
        with self.ranks.watched(f"checkpoint at step {self.step}"):
            moments, updates = self.engine.moments()
        if self.rank != 0:
            return
        state = TrainingState(
            step=self.step,
            total_steps=self.settings.steps,
            readers=self.batches.state(),
            recipe_digest=self.recipe.digest(),
            manifests=self.batches.manifests(),
            skipped=self.skipped,
            sessions=self.session,
            optimizer_step=updates,
            tracking_run=self.tracker.run_id,
        )
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.hypernet.state_dict().items()}
        tensors = {"weights": weights, "optimizer": moments}
        if self.average is not None:
            names = [name for name, _ in self.hypernet.named_parameters()]
            tensors["average"] = {n: t.detach().cpu().clone() for n, t in zip(names, self.average, strict=True)}
        segment = self.metrics.segment(self.step)
        retention = Retention(last=self.settings.keep_last, every=self.settings.keep_every)

        def write() -> dict[str, Any]:
            started = time.monotonic()
            if segment is not None:
                self.store.write(*segment)
            written = write_checkpoint(self.store, state, tensors, retention)
            return {"step": state.step, "seconds": round(time.monotonic() - started, 3), "bytes": written}

        waited = self.writer.submit(write)
        if waited > 1:
            emit("checkpoint_wait", step=self.step, seconds=round(waited, 2))
        self._report_checkpoints()

    def _report_checkpoints(self) -> None:
        for facts in self.writer.done[self._reported :]:
            emit("checkpoint", **facts)
            self.metrics.stored(facts["step"])
            self.tracker.log(
                {"step": facts["step"], "checkpoint_s": facts["seconds"], "checkpoint_mb": facts["bytes"] / 1e6}
            )
        self._reported = len(self.writer.done)

    def _export(self) -> None:
        if self.rank == 0:
            export_model(self.hypernet, self.average, self.store, self.step, self._facts())

    def _facts(self) -> dict[str, Any]:
        return {
            "recipe_digest": self.recipe.digest(),
            "manifests": self.batches.manifests(),
            "steps": self.step,
            "recipe": self.recipe.model_dump(),
        }


def _raise_for(messages: Sequence[str | None], own: GHNError | None, doing: str) -> None:
    """Raise this rank's own error if it has one, else name the first rank that has."""
    if own is not None:
        raise own
    for rank, message in enumerate(messages):
        if message:
            raise TrainingError(f"{doing}: rank {rank} failed: {message}")


def _facts_of(share: Share) -> dict[str, Any]:
    return {
        "losses": share.losses,
        "accuracies": share.accuracies,
        "skipped": share.skipped,
        "network_s": share.network_seconds,
    }


def _peak_megabytes(device: torch.device) -> float:
    """Most memory that this process had, in MB: of the GPU if there is one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> int:
    """Run one rank with the recipe that the launcher stored in the run folder."""
    die_with_parent()
    tune_process()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--store")
    parser.add_argument("--stop-after", type=int)
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(str(arguments.run / RECIPE_NAME))
        run_rank(recipe, arguments.run, store=arguments.store, stop_after=arguments.stop_after)
    except GHNError as error:
        sys.stderr.write(f"ghn: rank {os.environ.get('RANK')}: {error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)  # without waiting for ranks that may be gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
