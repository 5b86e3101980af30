"""A rank that goes wrong in a chosen way at a chosen moment; run in place of ``pipelines.training.worker``."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from ghn.architecture import Architecture
from ghn.errors import DataError
from pipelines.training import data, worker
from pipelines.training.engine import Engine

KIND, RANK, STEP = os.environ["FAIL_KIND"], os.environ["FAIL_RANK"], int(os.environ["FAIL_STEP"])


def limit_memory(size: int) -> None:
    """Let this process have no larger address space."""
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def install() -> None:
    """Patch one of the product's functions so that this rank fails in the wanted step."""
    if os.environ["RANK"] != RANK:
        return
    original_run, original_take, original_step = Architecture.run, data.MetaBatches.take, Engine.step
    now = {"step": -1}

    def take(self, step: int):
        now["step"] = step + 1
        if now["step"] == STEP and KIND == "data":
            raise DataError("shard images-train-000000.tar is damaged")
        if KIND == "limit":
            limit_memory(resource.RLIM_INFINITY)  # of the step before
        if now["step"] == STEP and KIND == "limit":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit_memory(pages * resource.getpagesize() + (24 << 20))
        return original_take(self, step)

    def run(self, *arguments, **options):
        if now["step"] == STEP:
            if KIND == "memory":
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
            if KIND == "error":
                raise ValueError("this network can not be run")
            if KIND == "hang":
                time.sleep(3600)
            if KIND == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if KIND == "slow":
                time.sleep(1.5)
        return original_run(self, *arguments, **options)

    def step(self, gradients, rate):
        if KIND == "limit":
            limit_memory(resource.RLIM_INFINITY)
        if now["step"] == STEP and KIND == "hang-in-update":
            os.kill(os.getpid(), signal.SIGSTOP)
        if now["step"] == STEP and KIND == "nan":
            gradients = [torch.full_like(g, float("nan")) for g in gradients]
        return original_step(self, gradients, rate)

    Architecture.run, data.MetaBatches.take, Engine.step = run, take, step  # type: ignore[method-assign]


if __name__ == "__main__":
    install()
    sys.exit(worker.main())
