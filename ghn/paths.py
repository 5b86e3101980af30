"""Shortest paths in graphs in topological order, and the pairs of nodes that they connect (paper, section 4)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ghn.compiled import compiled

MAX_PATH = 255


def shortest_paths(n: int, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return all shortest path lengths (n, n) uint8, ``[u, v]`` from u to v; 0 = none within 255 edges.

    Args:
        n: number of nodes.
        edges: (u, v), u < v, sorted by v. One relaxation of a whole row per edge, the last edge first: what v reaches, u
            reaches in one step more.

    """
    flat = np.fromiter(itertools.chain.from_iterable(edges), np.int64, 2 * len(edges)).reshape(-1, 2)
    distances = np.full((n, n), MAX_PATH, dtype=np.uint8)  # one less than the length; the most where there is no path
    _relax(distances, flat)
    distances += np.uint8(1)  # the most becomes 0
    return distances


def connected_pairs(distances: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (u, v, s), each (E,), of all pairs with a path of s = 1 to ``most`` edges, sorted by u, then v."""
    count = _count(distances, most)
    u, v, s = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.uint8)
    _collect(distances, most, u, v, s)
    return u, v, s


@compiled
def _relax(distances: Any, edges: Any) -> None:
    for i in range(len(edges) - 1, -1, -1):
        u, v = edges[i]
        row, next_row = distances[u, v:], distances[v, v:]
        row[0] = 0
        for w in range(1, len(row)):  # bytes throughout, so that many are compared at once
            row[w] = min(row[w], np.uint8(min(next_row[w], np.uint8(MAX_PATH - 1)) + np.uint8(1)))


@compiled
def _count(distances: Any, most: int) -> int:
    count = 0
    for u in range(len(distances)):
        for v in range(u + 1, len(distances)):
            count += 1 <= distances[u, v] <= most
    return count


@compiled
def _collect(distances: Any, most: int, us: Any, vs: Any, lengths: Any) -> None:
    i = 0
    for u in range(len(distances)):
        for v in range(u + 1, len(distances)):
            if 1 <= distances[u, v] <= most:
                us[i], vs[i], lengths[i] = u, v, distances[u, v]
                i += 1
