"""Node states by message passing: the gated graph network of GHN-1 and GHN-2, and the per-node MLP baseline.

Source: paper, eq. 3 (gated graph network) and eq. 4 (virtual edges). A source's message depends on the source alone,
so each message MLP runs once per node, not once per edge.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn.hypernet.batch import GraphBatch, Level
from ghn.hypernet.sweep import GatedSweep


class MLP(nn.Module):
    """Two linear layers, each followed by ReLU (layer names ``fc.0`` and ``fc.2``)."""

    def __init__(self, hid: int, inner: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(hid, inner), nn.ReLU(), nn.Linear(inner, hid), nn.ReLU())

    def forward(self, states_Nd: Tensor, batch: GraphBatch | None = None) -> Tensor:
        """Return new states (N, d); as the baseline without messages it takes no notice of the graphs."""
        result: Tensor = self.fc(states_Nd)
        return result


class GatedGNN(nn.Module):
    """One forward and one backward sweep with a gated recurrent update of each node (T = 1).

    Args:
        hid: size d of a node's state.
        virtual_edges: whether messages also pass along virtual edges, by an MLP of their own.

    """

    def __init__(self, hid: int, *, virtual_edges: bool) -> None:
        super().__init__()
        inner = hid // 2 if virtual_edges else hid
        self.mlp = MLP(hid, inner)
        self.mlp_ve = MLP(hid, inner) if virtual_edges else None
        self.gru = nn.GRUCell(hid, hid)

    @property
    def message_mlps(self) -> list[MLP]:
        """The MLPs for messages along real and (if any) virtual edges."""
        return [self.mlp] if self.mlp_ve is None else [self.mlp, self.mlp_ve]

    def forward(self, states_Nd: Tensor, batch: GraphBatch) -> Tensor:
        """Return the node states (N, d) after both sweeps."""
        if states_Nd.device.type == "cpu":
            return self.sweep_nodes(self.sweep_nodes(states_Nd, batch, reverse=False), batch, reverse=True)
        states_Nd = self.sweep_levels(states_Nd, batch.levels(reverse=False))
        return self.sweep_levels(states_Nd, batch.levels(reverse=True))

    def sweep_nodes(self, states_Nd: Tensor, batch: GraphBatch, *, reverse: bool) -> Tensor:
        """One sweep, node by node in compiled code (CPU only)."""
        gru, mlps = self.gru, [mlp.fc for mlp in self.message_mlps]
        stacked = [
            torch.stack([getattr(fc[layer], name) for fc in mlps]) for layer in (0, 2) for name in ("weight", "bias")
        ]
        recurrent = F.linear(states_Nd, gru.weight_hh, gru.bias_hh)
        schedule = batch.schedule(reverse=reverse)
        result: Tensor = GatedSweep.apply(schedule, states_Nd, recurrent, gru.weight_ih, gru.bias_ih, *stacked)
        return result

    def sweep_levels(self, states_Nd: Tensor, levels: tuple[Level, ...]) -> Tensor:
        """The same sweep, level by level in torch (any device)."""
        n, hid = states_Nd.shape
        messages = states_Nd.new_zeros(len(self.message_mlps) * n, hid)
        updated = []
        for level in levels:
            received = states_Nd.new_zeros(len(level.nodes), hid)
            if len(level.sources):
                sent = messages.index_select(0, level.sources) * level.weights.to(messages.dtype)
                received = received.index_add(0, level.targets, sent)
            new = self.gru(received, states_Nd.index_select(0, level.nodes))
            updated.append(new)
            # In place: index_select keeps no copy of `messages` for its backward, so earlier levels stay valid.
            for kind, mlp in enumerate(self.message_mlps):
                messages.index_copy_(0, level.nodes + kind * n, mlp(new))
        order = torch.cat([level.nodes for level in levels])
        return torch.cat(updated).index_select(0, torch.argsort(order))
