"""Architecture samples for shards, made by all cores.

Architecture i of a split depends on (split, seed, i) alone, so processes can draw blocks of indices independently; records
come back in the order of their indices, whatever the number of processes.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any

from ghn.architecture import sample_architectures
from pipelines.machine import cores
from pipelines.shards.architectures import architecture_record
from pipelines.shards.writer import SampleRecord

_BLOCK = 250  # indices in a unit of work
_WORTH_PROCESSES = 2_000  # architectures; a process needs some seconds to start


def sampled_records(
    split: str, seed: int, widths: Mapping[str, Any], max_nodes: int | None, *, start: int, count: int
) -> Iterator[SampleRecord]:
    """Yield ``count`` records of a split, from index ``start`` on, passing over graphs of more than ``max_nodes`` nodes."""
    processes = cores()
    if split == "predefined" or count < _WORTH_PROCESSES or processes == 1:
        indices = range(start, start + count) if split == "predefined" else itertools.count(start)
        blocks = (_records(split, seed, index, 1, widths, max_nodes) for index in indices)
        yield from itertools.islice(itertools.chain.from_iterable(blocks), count)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare_worker) as pool:
        pending: deque[Future[list[SampleRecord]]] = deque()
        starts = itertools.count(start, _BLOCK)
        while count > 0:
            while len(pending) < 3 * processes:
                pending.append(pool.submit(_records, split, seed, next(starts), _BLOCK, dict(widths), max_nodes))
            records = pending.popleft().result()[:count]
            count -= len(records)
            yield from records
        for future in pending:
            future.cancel()


def _records(
    split: str, seed: int, start: int, count: int, widths: Mapping[str, Any], max_nodes: int | None
) -> list[SampleRecord]:
    return [
        architecture_record(architecture)
        for index in range(start, start + count)
        for architecture in sample_architectures(split, 1, seed, start=index, **widths)  # one graph at a time
        if max_nodes is None or len(architecture.graph) <= max_nodes
    ]


def _prepare_worker() -> None:
    """See to it that this process ends when the one that started it is gone, even by ``kill -9``."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        gc.disable()  # graphs have no cycles, and a process makes many thousands of them
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
