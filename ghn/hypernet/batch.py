"""A meta-batch of graphs as tensors: node features, and in which order messages pass.

In one sweep of the gated graph network all sources of a node are updated before it (paper, eq. 3). A node may thus be
updated as soon as its sources are: one after another in topological order (:class:`Schedule`), or together with all
nodes at the same longest-path depth in all graphs of the batch (:class:`Level`). Both are exact.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghn.compiled import compiled
from ghn.graph import MAX_VIRTUAL_DISTANCE, PRIMITIVE_ID, ArchitectureGraph
from ghn.hypernet.embedding import ShapeTable


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One sweep, node by node.

    Attributes:
        order: (N,) node numbers, sources first.
        starts: (N + 1,) where each node's edges begin in the next two.
        sources: (E,) rows of the stacked messages [real; virtual]; the virtual ones are offset by N.
        lengths: (E,) how many edges s a message passes at once; its factor is 1/s.

    """

    order: np.ndarray
    starts: np.ndarray
    sources: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Level:
    """Nodes that are updated together, and the edges that end in them.

    Attributes:
        nodes: (R,) node numbers.
        sources: (E,) rows of the stacked messages, as in :class:`Schedule`.
        targets: (E,) positions in ``nodes``.
        weights: (E, 1) factors: 1 for real edges, 1/s for virtual ones.

    """

    nodes: Tensor
    sources: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class GraphBatch:
    """B graphs with N nodes in all.

    Attributes:
        graphs: the graphs themselves; their nodes are numbered consecutively.
        primitives: (N,) primitive ids.
        shapes: (N, 4) rows of the shape tables: out, in, kh, kw.
        virtual_edges: whether messages also pass along virtual edges.

    """

    graphs: tuple[ArchitectureGraph, ...]
    primitives: Tensor
    shapes: Tensor
    virtual_edges: bool

    @classmethod
    def collate(
        cls,
        graphs: Sequence[ArchitectureGraph],
        table: ShapeTable,
        *,
        virtual_edges: bool,
        device: torch.device | None = None,
    ) -> GraphBatch:
        """Number the nodes of all graphs consecutively, on ``device``."""
        nodes = [node for graph in graphs for node in graph.nodes]
        return cls(
            graphs=tuple(graphs),
            primitives=torch.tensor([PRIMITIVE_ID[node.primitive] for node in nodes], device=device),
            shapes=torch.tensor([table.rows(node.shape) for node in nodes], device=device),
            virtual_edges=virtual_edges,
        )

    def schedule(self, *, reverse: bool) -> Schedule:
        """Return the sweep from inputs to outputs, or with all edges reversed (compiled: it takes as long as the sweep)."""
        total, most = len(self.primitives), MAX_VIRTUAL_DISTANCE if self.virtual_edges else 0
        matrices = [graph.distances if reverse else np.ascontiguousarray(graph.distances.T) for graph in self.graphs]
        count = sum(_count_edges(matrix, most) for matrix in matrices)
        starts = np.zeros(total + 1, dtype=np.int64)
        sources, lengths = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.uint8)  # there are many edges
        first = 0
        for matrix in matrices:
            _fill_schedule(matrix, most, first, total, starts, sources, lengths)
            first += len(matrix)
        nodes = np.arange(total)
        return Schedule(order=nodes[::-1].copy() if reverse else nodes, starts=starts, sources=sources, lengths=lengths)

    def levels(self, *, reverse: bool) -> tuple[Level, ...]:
        """Return the same sweep level by level, on the device of the node features."""
        u, v, weights, offsets = self._edges
        sources, targets = (v, u) if reverse else (u, v)
        level = np.concatenate([graph.height if reverse else graph.depth for graph in self.graphs])
        return _levels(level, sources + offsets, targets, weights, self.primitives.device)

    @functools.cached_property
    def _edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(u, v, weight, message row offset) of all edges, each graph's real ones first, in the batch's numbering."""
        total = len(self.primitives)
        us, vs, weights, offsets = [], [], [], []
        start = 0
        for graph in self.graphs:
            real = np.array(graph.edges, dtype=np.int64).reshape(-1, 2)
            us.append(real[:, 0] + start)
            vs.append(real[:, 1] + start)
            weights.append(np.ones(len(real)))
            offsets.append(np.zeros(len(real), dtype=np.int64))
            if self.virtual_edges:
                u, v, distance = graph.virtual_edges()
                us.append(u + start)
                vs.append(v + start)
                weights.append(1.0 / distance)
                offsets.append(np.full(len(u), total, dtype=np.int64))
            start += len(graph)
        return np.concatenate(us), np.concatenate(vs), np.concatenate(weights), np.concatenate(offsets)


@compiled
def _count_edges(distances: Any, most: int) -> int:
    """Count the messages along real and virtual edges in a matrix of distances (targets, sources)."""
    count = 0
    for target in range(len(distances)):
        for source in range(len(distances)):
            count += (distances[target, source] == 1) + (1 <= distances[target, source] <= most)
    return count


@compiled
def _fill_schedule(distances: Any, most: int, first: int, total: int, starts: Any, sources: Any, lengths: Any) -> None:
    """Write the edges of one graph, whose nodes are numbered from ``first``, behind those of the graphs before it."""
    end = starts[first]
    for target in range(len(distances)):
        for source in range(len(distances)):
            if distances[target, source] == 1:
                sources[end], lengths[end] = first + source, 1
                end += 1
        for source in range(len(distances)):
            if 1 <= distances[target, source] <= most:
                sources[end], lengths[end] = total + first + source, distances[target, source]
                end += 1
        starts[first + target + 1] = end


def _levels(
    level: np.ndarray, sources: np.ndarray, targets: np.ndarray, weights: np.ndarray, device: torch.device
) -> tuple[Level, ...]:
    """Group nodes and edges by the target's level."""
    node_order = np.argsort(level, kind="stable")
    edge_level = level[targets]
    edge_order = np.argsort(edge_level, kind="stable")
    count = int(level.max()) + 1
    node_bounds = np.searchsorted(level[node_order], np.arange(count + 1))
    edge_bounds = np.searchsorted(edge_level[edge_order], np.arange(count + 1))
    position = np.empty(len(level), dtype=np.int64)
    position[node_order] = np.arange(len(level)) - node_bounds[level[node_order]]

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    all_nodes, all_sources = tensor(node_order), tensor(sources[edge_order])
    all_targets, all_weights = tensor(position[targets[edge_order]]), tensor(weights[edge_order, None])
    return tuple(
        Level(
            nodes=all_nodes[node_bounds[i] : node_bounds[i + 1]],
            sources=all_sources[edge_bounds[i] : edge_bounds[i + 1]],
            targets=all_targets[edge_bounds[i] : edge_bounds[i + 1]],
            weights=all_weights[edge_bounds[i] : edge_bounds[i + 1]],
        )
        for i in range(count)
    )
