"""A meta-batch of graphs as tensors: node features, and a level-by-level schedule of message passing.

In one sweep of the gated graph network all sources of a node are updated before it (paper, eq. 3), so all nodes at the
same longest-path depth, in all graphs of the batch, can be updated together. This is exact, not an approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ghn.graph import PRIMITIVE_ID, ArchitectureGraph
from ghn.hypernet.embedding import ShapeTable


@dataclass(frozen=True, kw_only=True)
class Level:
    """Nodes that are updated together, and the edges that end in them.

    Attributes:
        nodes: (R,) node numbers.
        sources: (E,) rows of the stacked messages [real; virtual] (the virtual ones are offset by N).
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
        forward: levels of the sweep from inputs to outputs.
        backward: levels of the sweep with all edges reversed.
    """

    graphs: tuple[ArchitectureGraph, ...]
    primitives: Tensor
    shapes: Tensor
    forward: tuple[Level, ...]
    backward: tuple[Level, ...]

    @classmethod
    def collate(
        cls,
        graphs: Sequence[ArchitectureGraph],
        table: ShapeTable,
        *,
        virtual_edges: bool,
        message_passing: bool = True,
        device: torch.device | None = None,
    ) -> GraphBatch:
        """Number the nodes of all graphs consecutively and schedule them on ``device``."""
        nodes = [node for graph in graphs for node in graph.nodes]
        forward: tuple[Level, ...] = ()
        backward: tuple[Level, ...] = ()
        if message_passing:
            u, v, weight, offset = _edges(graphs, virtual_edges)
            depth = np.concatenate([graph.depth for graph in graphs])
            height = np.concatenate([graph.height for graph in graphs])
            forward = _levels(depth, u + offset, v, weight, device)
            backward = _levels(height, v + offset, u, weight, device)
        return cls(
            graphs=tuple(graphs),
            primitives=torch.tensor([PRIMITIVE_ID[node.primitive] for node in nodes], device=device),
            shapes=torch.tensor([table.rows(node.shape) for node in nodes], device=device),
            forward=forward,
            backward=backward,
        )


def _edges(
    graphs: Sequence[ArchitectureGraph], virtual_edges: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (u, v, weight, message row offset) of all edges, real ones first, in the batch's numbering."""
    total = sum(len(graph) for graph in graphs)
    us, vs, weights, offsets = [], [], [], []
    start = 0
    for graph in graphs:
        real = np.array(graph.edges, dtype=np.int64).reshape(-1, 2)
        us.append(real[:, 0] + start)
        vs.append(real[:, 1] + start)
        weights.append(np.ones(len(real), dtype=np.float32))
        offsets.append(np.zeros(len(real), dtype=np.int64))
        if virtual_edges:
            u, v, distance = graph.virtual_edges()
            us.append(u + start)
            vs.append(v + start)
            weights.append(1.0 / distance.astype(np.float32))
            offsets.append(np.full(len(u), total, dtype=np.int64))
        start += len(graph)
    return np.concatenate(us), np.concatenate(vs), np.concatenate(weights), np.concatenate(offsets)


def _levels(
    level: np.ndarray, sources: np.ndarray, targets: np.ndarray, weights: np.ndarray, device: torch.device | None
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

    all_nodes = tensor(node_order)
    all_sources = tensor(sources[edge_order])
    all_targets = tensor(position[targets[edge_order]])
    all_weights = tensor(weights[edge_order, None])
    return tuple(
        Level(
            nodes=all_nodes[node_bounds[i] : node_bounds[i + 1]],
            sources=all_sources[edge_bounds[i] : edge_bounds[i + 1]],
            targets=all_targets[edge_bounds[i] : edge_bounds[i + 1]],
            weights=all_weights[edge_bounds[i] : edge_bounds[i + 1]],
        )
        for i in range(count)
    )
