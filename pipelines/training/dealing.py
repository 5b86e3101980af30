"""Who computes which networks of a meta-batch, and how large a network may be."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch

from pipelines.machine import memory_bytes
from pipelines.training.launcher import Launcher

_SHARE_OF_MEMORY = 0.8


def by_cost(costs: Sequence[float]) -> list[int]:
    """Return positions, the most expensive first; the first one first among equals."""
    return sorted(range(len(costs)), key=lambda i: (-costs[i], i))


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Deal networks over ranks so that they finish together: the most expensive first, each to the least loaded rank.

    The result is a function of the costs alone. No rank's load is more than 4/3 of the best possible one's (Graham, 1969).

    Args:
        costs: of each network, in any unit.
        ranks: how many (>= 1).

    Returns:
        The positions that each rank takes, in ascending order.

    """
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]
    for position in by_cost(costs):
        load, rank = heapq.heappop(loads)
        hands[rank].append(position)
        heapq.heappush(loads, (load + costs[position], rank))
    return [sorted(hand) for hand in hands]


def memory_limit(gib: float | None, device: torch.device) -> float:
    """Return the most bytes that a network may need by estimate.

    Args:
        gib: as given; ``None`` for four fifths of a rank's part of this machine's (or container's) memory. On a GPU, where
            running out of memory can be caught and does not end the process, there is no limit then.
        device: where networks run.

    """
    if gib is not None:
        return gib * 2**30
    if device.type == "cuda":
        return float("inf")
    return _SHARE_OF_MEMORY * memory_bytes() / Launcher.from_environment().local_world_size
