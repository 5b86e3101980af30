"""Shortest paths in graphs in topological order, and the pairs of nodes that they connect (paper, section 3.2).

Each function has a compiled form and a vectorized one; which is used depends on whether numba is installed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ghn import compiled

MAX_PATH = 255
_FAR = 65_534  # one more still fits


def shortest_paths(n: int, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return all shortest path lengths (n, n) uint8, ``[u, v]`` from u to v; 0 = none within 255 edges.

    Args:
        n: number of nodes.
        edges: (u, v), u < v, sorted by v. One relaxation of a whole row per edge: what reaches u reaches v in one step more.

    """
    flat = np.fromiter(itertools.chain.from_iterable(edges), np.int64, 2 * len(edges)).reshape(-1, 2)
    reach = np.full((n, n), _FAR, dtype=np.uint16)  # reach[v, u]: from u to v
    distances = np.zeros((n, n), dtype=np.uint8)
    (_relax if compiled.AVAILABLE else _relax_rows)(reach, flat, distances)
    return distances


def connected_pairs(distances: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (u, v, s), each (E,), of all pairs with a path of s = 1 to ``most`` edges, sorted by u, then v."""
    if not compiled.AVAILABLE:
        u, v = np.nonzero((distances > 0) & (distances <= most))
        return u, v, distances[u, v]
    count = _count(distances, most)
    u, v, s = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.uint8)
    _collect(distances, most, u, v, s)
    return u, v, s


@compiled.compiled
def _relax(reach: Any, edges: Any, distances: Any) -> None:
    for v in range(len(reach)):
        reach[v, v] = 0
    for i in range(len(edges)):
        u, v = edges[i]
        for w in range(u + 1):
            reach[v, w] = min(reach[v, w], reach[u, w] + 1)
    for v in range(len(reach)):
        for u in range(v):
            if reach[v, u] <= MAX_PATH:
                distances[u, v] = reach[v, u]


def _relax_rows(reach: np.ndarray, edges: np.ndarray, distances: np.ndarray) -> None:
    np.fill_diagonal(reach, 0)
    for u, v in edges:
        np.minimum(reach[v, : u + 1], reach[u, : u + 1] + np.uint16(1), out=reach[v, : u + 1])
    distances[:] = np.where(reach <= MAX_PATH, reach, 0).T


@compiled.compiled
def _count(distances: Any, most: int) -> int:
    count = 0
    for u in range(len(distances)):
        for v in range(u + 1, len(distances)):
            count += 1 <= distances[u, v] <= most
    return count


@compiled.compiled
def _collect(distances: Any, most: int, us: Any, vs: Any, lengths: Any) -> None:
    i = 0
    for u in range(len(distances)):
        for v in range(u + 1, len(distances)):
            if 1 <= distances[u, v] <= most:
                us[i], vs[i], lengths[i] = u, v, distances[u, v]
                i += 1
