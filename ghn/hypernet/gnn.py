"""Node states by message passing: the gated graph network of GHN-1 and GHN-2, and the per-node MLP baseline.

Source: paper, eq. 3 (gated graph network) and eq. 4 (virtual edges). A source's message depends on the source alone,
so each message MLP runs once per node, not once per edge.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghn.hypernet.batch import GraphBatch, Level


class MLP(nn.Module):
    """Two linear layers, each followed by ReLU (layer names ``fc.0`` and ``fc.2``)."""

    def __init__(self, hid: int, inner: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(hid, inner), nn.ReLU(), nn.Linear(inner, hid), nn.ReLU())

    def forward(self, states_Nd: Tensor) -> Tensor:
        return self.fc(states_Nd)


class NodeMLP(MLP):
    """The baseline: every node by itself, no messages."""

    def forward(self, states_Nd: Tensor, batch: GraphBatch | None = None) -> Tensor:
        return self.fc(states_Nd)


class GatedGNN(nn.Module):
    """One forward and one backward sweep with a gated recurrent update of each node (T = 1)."""

    def __init__(self, hid: int, *, virtual_edges: bool) -> None:
        super().__init__()
        inner = hid // 2 if virtual_edges else hid
        self.mlp = MLP(hid, inner)
        self.mlp_ve = MLP(hid, inner) if virtual_edges else None
        self.gru = nn.GRUCell(hid, hid)

    def forward(self, states_Nd: Tensor, batch: GraphBatch) -> Tensor:
        states_Nd = self._sweep(states_Nd, batch.forward)
        return self._sweep(states_Nd, batch.backward)

    def _sweep(self, states_Nd: Tensor, levels: tuple[Level, ...]) -> Tensor:
        n, hid = states_Nd.shape
        kinds = 1 if self.mlp_ve is None else 2
        messages = states_Nd.new_zeros(kinds * n, hid)
        updated = []
        for level in levels:
            received = states_Nd.new_zeros(len(level.nodes), hid)
            if len(level.sources):
                sent = messages.index_select(0, level.sources) * level.weights
                received = received.index_add(0, level.targets, sent)
            new = self.gru(received, states_Nd.index_select(0, level.nodes))
            updated.append(new)
            # In place: index_select keeps no copy of `messages` for its backward, so earlier levels stay valid.
            messages.index_copy_(0, level.nodes, self.mlp(new))
            if self.mlp_ve is not None:
                messages.index_copy_(0, level.nodes + n, self.mlp_ve(new))
        order = torch.cat([level.nodes for level in levels])
        return torch.cat(updated).index_select(0, torch.argsort(order))
