"""The optimizer's side of a step: DeepSpeed sums gradients over ranks, clips them and updates the weights.

Gradients are made outside (:mod:`pipelines.training.share`) and handed over once for each step, after all ranks have agreed
to go on, so a rank that fails in a network leaves no collective operation half done. The optimizer's state can be had and
set as named tensors that depend neither on the number of ranks nor on the stage of ZeRO.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ghn.errors import TrainingError
from pipelines.recipe import TrainingSettings
from pipelines.training.launcher import Launcher
from pipelines.training.share import from_whole

_MOMENTS = ("exp_avg", "exp_avg_sq")
_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def init_distributed(timeout_s: float) -> tuple[torch.device, Store]:
    """Join the process group: NCCL on GPUs, gloo on CPUs (where DeepSpeed's compiled operator is switched off).

    Args:
        timeout_s: of joint operations.

    Returns:
        This rank's device, and the store by which ranks found each other.

    """
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it
    import deepspeed

    launcher, timeout = Launcher.from_environment(), datetime.timedelta(seconds=timeout_s)
    if cuda:
        torch.cuda.set_device(launcher.local_rank)
    else:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would compile for minutes; gloo does without
    store, rank, world_size = _meet(launcher, timeout)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=PrefixStore("default", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout + datetime.timedelta(seconds=120),
    )
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    return torch.device("cuda", launcher.local_rank) if cuda else torch.device("cpu"), store


def _meet(launcher: Launcher, timeout: datetime.timedelta) -> tuple[Store, int, int]:
    """Return the store by which ranks find each other, this rank, and how many there are."""
    if launcher.rank != 0 or launcher.ghn_master_fd is None:
        store, rank, count = next(rendezvous("env://", timeout=timeout))
        return store, rank, count
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    opened = dist.TCPStore(  # type: ignore[attr-defined]  # it is public, but torch does not list it
        address, port, launcher.world_size, is_master=True, timeout=timeout, master_listen_fd=launcher.ghn_master_fd
    )
    return opened, 0, launcher.world_size or 1


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step (from 0).

    After a linear warm-up over ``warmup`` of the steps: ``step`` drops it tenfold at each of the milestones, ``cosine`` lets
    it fall to 0 in half a period.
    """
    done = step / settings.steps
    if done < settings.warmup:
        return settings.lr * (step + 1) / (settings.warmup * settings.steps + 1)
    if settings.schedule == "step":
        return settings.lr * 0.1 ** sum(done >= milestone for milestone in settings.milestones)
    left = (done - settings.warmup) / (1 - settings.warmup)
    return settings.lr * (0.5 + 0.5 * math.cos(math.pi * left))


class Engine:
    """DeepSpeed around the hypernetwork; in float64, for checks, torch's optimizer alone does the same.

    Args:
        hypernet: its weights are those of rank 0.
        settings: optimizer, stage of ZeRO, clipping.

    """

    def __init__(self, hypernet: nn.Module, settings: TrainingSettings) -> None:
        self.hypernet = hypernet
        _lay_in_a_row(hypernet.parameters())
        optimizer = _OPTIMIZERS[settings.optimizer](
            hypernet.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self._engine, self._optimizer, self._clip = None, optimizer, settings.clip
        if settings.precision == "float64":  # DeepSpeed refuses such gradients
            return
        import deepspeed

        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=hypernet,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": 0.0 if settings.exact_sums else settings.clip,
                "zero_optimization": {"stage": settings.zero_stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )

    def step(self, gradients: Sequence[Tensor], rate: float) -> float:
        """Do one update with the sum of all ranks' gradients; return the norm of that sum.

        Args:
            gradients: this rank's part, one tensor for each parameter, in the form of :mod:`pipelines.training.share`.
            rate: learning rate.

        """
        ranks = dist.get_world_size()  # over which DeepSpeed takes the mean
        exact_norm = None
        if gradients[0].dtype == torch.int64:
            gradients, ranks = self._exact_sum(gradients), 1
            exact_norm = torch.stack(
                [gradient.norm() for gradient in gradients]
            ).norm()  # all have the same: clipped here
            gradients = [gradient * (self._clip / exact_norm.clamp(min=self._clip)) for gradient in gradients]
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._engine is None:
            norm = self._plain_step([gradient * ranks for gradient in gradients])
            return norm if exact_norm is None else float(exact_norm)
        products = [
            (p * (g * ranks)).sum() for p, g in zip(self.hypernet.parameters(), gradients, strict=True)
        ]  # whose gradient is just that
        self._engine.backward(torch.stack(products).sum())
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if exact_norm is None else exact_norm
        return float("nan") if norm is None else float(norm)

    def _exact_sum(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the sum of all ranks' gradients, which were given as whole numbers."""
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(whole)
        parameters = list(self.hypernet.parameters())
        parts = whole.split([p.numel() for p in parameters])
        return [from_whole(part, p.dtype).view(p.shape) for part, p in zip(parts, parameters, strict=True)]

    def _plain_step(self, gradients: Sequence[Tensor]) -> float:
        parameters = list(self.hypernet.parameters())
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(whole)
        whole /= dist.get_world_size()
        for p, part in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view(p.shape)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._clip)
        self._optimizer.step()
        return float(norm)

    def moments(self) -> tuple[dict[str, Tensor], int]:
        """Return the optimizer's state, on the CPU, as ``{moment.parameter: tensor}``, and its number of updates.

        All ranks must call it; all get the whole.
        """
        flat = self._flat_parameter()
        whole: dict[str, Tensor] = {}
        base = self._base()
        some = base.state[flat if flat is not None else next(self.hypernet.parameters())]
        updates = int(some["step"]) if "step" in some else 0
        for moment in _MOMENTS if updates else ():
            if flat is None:
                parts = {name: base.state[p][moment] for name, p in self.hypernet.named_parameters()}
            else:
                parts = dict(self._named(_all_of(some[moment])))
            whole |= {f"{moment}.{name}": tensor.detach().cpu().clone() for name, tensor in parts.items()}
        return whole, updates

    def restore(self, moments: Mapping[str, Tensor], updates: int) -> None:
        """Take over what :meth:`moments` gave, perhaps on another number of ranks."""
        if not updates:
            return
        flat, base = self._flat_parameter(), self._base()
        if flat is None:
            for name, p in self.hypernet.named_parameters():
                base.state[p] = {m: moments[f"{m}.{name}"].to(p.device, p.dtype, copy=True) for m in _MOMENTS}
                base.state[p]["step"] = torch.tensor(float(updates))
            return
        state = {}
        for moment in _MOMENTS:
            values = torch.cat([moments[f"{moment}.{name}"].flatten() for name, _ in self.hypernet.named_parameters()])
            padded = torch.zeros(flat.numel() * dist.get_world_size())
            padded[: len(values)] = values
            state[moment] = padded.view(dist.get_world_size(), -1)[dist.get_rank()].to(flat.device, copy=True)
        base.state[flat] = {**state, "step": torch.tensor(float(updates))}

    def _base(self) -> torch.optim.Optimizer:
        """Torch's optimizer, which ZeRO wraps."""
        base: torch.optim.Optimizer = getattr(self._optimizer, "optimizer", self._optimizer)
        return base

    def _flat_parameter(self) -> Tensor | None:
        """This rank's part of all weights in a row, as ZeRO 1 and 2 keep them; ``None`` for stage 0."""
        if not hasattr(self._optimizer, "single_partition_of_fp32_groups"):
            return None
        groups = self._optimizer.single_partition_of_fp32_groups
        weights = torch.cat([p.detach().flatten() for p in self.hypernet.parameters()]) if len(groups) == 1 else None
        if weights is None or not torch.equal(_all_of(groups[0])[: len(weights)], weights):
            raise TrainingError("DeepSpeed keeps the weights in another order than expected; use training.zero_stage=0")
        part: Tensor = groups[0]
        return part

    def _named(self, values: Tensor) -> Iterator[tuple[str, Tensor]]:
        names, parameters = zip(*self.hypernet.named_parameters(), strict=True)
        ends = itertools.accumulate(p.numel() for p in parameters)
        for name, p, end in zip(names, parameters, ends, strict=True):
            yield name, values[end - p.numel() : end].view(p.shape)


def _lay_in_a_row(parameters: Iterable[Tensor]) -> None:
    """Put the weights into one piece of memory, as ZeRO 1 and 2 do.

    Matrix products round differently where tensors start at other addresses, so without this stage 0 has other bits.
    """
    parameters = list(parameters)
    row = torch.cat([p.detach().flatten() for p in parameters])
    for p, part in zip(parameters, row.split([p.numel() for p in parameters]), strict=True):
        p.data = part.view(p.shape)


def _all_of(part: Tensor) -> Tensor:
    """Return all ranks' parts in a row."""
    whole = part.new_empty(part.numel() * dist.get_world_size())
    dist.all_gather(list(whole.chunk(dist.get_world_size())), part.detach())
    return whole
