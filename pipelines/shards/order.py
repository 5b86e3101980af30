"""The order in which an epoch is read: a function of (seed, epoch), never of who reads.

Shards are permuted and dealt over *lanes*; in each lane, the samples of ``window`` consecutive shards are shuffled together;
lanes take turns, sample by sample. Rank r of R takes every R-th sample. Where the number of ranks divides the number of
lanes, a rank therefore needs only its own lanes' shards, while the order stays the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def epoch_order(counts: Sequence[int], *, seed: int, epoch: int, window: int, lanes: int = 1) -> np.ndarray:
    """Return the order (n,) int64 of the samples, by their numbers in stored order.

    Args:
        counts: samples of each shard.
        seed: >= 0.
        epoch: >= 0.
        window: shards that are shuffled together (>= 1); so many of each lane are in memory at once.
        lanes: at most so many; see above.

    """
    rng = np.random.default_rng([seed, epoch])
    sizes = np.asarray(counts, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    shards = rng.permutation(len(sizes))
    lanes = min(lanes, len(sizes))
    sequences = []
    for lane in range(lanes):
        mine = shards[lane::lanes]
        for first in range(0, len(mine), window):
            samples = [np.arange(starts[i], starts[i] + sizes[i]) for i in mine[first : first + window]]
            sequences.append((lane, rng.permutation(np.concatenate(samples))))
    if lanes == 1:
        return np.concatenate([sequence for _, sequence in sequences])
    by_lane = [np.concatenate([sequence for at, sequence in sequences if at == lane]) for lane in range(lanes)]
    turn = np.concatenate([np.arange(len(sequence)) for sequence in by_lane])
    lane_of = np.repeat(np.arange(lanes), [len(sequence) for sequence in by_lane])
    return np.concatenate(by_lane)[np.lexsort((lane_of, turn))]


class ShuffleQuality(NamedTuple):
    """How far samples travel, as shares of the set; after a perfect shuffle both are near a third.

    ``travel`` is the mean distance of a sample's turn from its place in storage; ``neighbours`` the mean distance of the
    turns of two samples that are stored side by side.
    """

    travel: float
    neighbours: float


def shuffle_quality(order: np.ndarray) -> ShuffleQuality:
    """Measure an order (n,) of the numbers 0 to n - 1."""
    n = len(order)
    turns = np.empty(n, dtype=np.int64)
    turns[order] = np.arange(n)
    between = np.abs(np.diff(turns)).mean() if n > 1 else 0.0
    return ShuffleQuality(float(np.abs(turns - np.arange(n)).mean() / n), float(between / n))
