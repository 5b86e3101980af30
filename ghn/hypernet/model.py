"""The hypernetwork: a meta-batch of graphs in, all parameters of all networks out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ghn.errors import InputError
from ghn.graph import PRIMITIVES, ArchitectureGraph, Parameter
from ghn.hypernet.batch import GraphBatch
from ghn.hypernet.config import GHNConfig
from ghn.hypernet.decoders import ConvDecoder, VectorDecoder, WeightSlot, tile
from ghn.hypernet.embedding import (
    ShapeEncoder,
    ShapeTable,
    canonical_shape,
    is_token_map,
    is_vector,
)
from ghn.hypernet.gnn import MLP, GatedGNN
from ghn.hypernet.normalization import normalize_bias, normalize_norm_weight, weight_scale

Prediction = dict[str, Tensor]
_VECTOR_ROLES = ("norm_weight", "bias", "class_bias")


class _Slot(NamedTuple):
    """A parameter to predict, and where it belongs: the graph, and the node in the batch's numbering."""

    graph: int
    node: int
    parameter: Parameter


class GHN(nn.Module):
    """GHN-2, GHN-1 or the MLP baseline, as the configuration says.

    Args:
        config: see :class:`~ghn.hypernet.config.GHNConfig`; the default is GHN-2 for CIFAR-10.

    Calling it with graphs returns one ``{parameter name: tensor}`` per graph, differentiable with respect to the
    hypernetwork's own weights.

    Examples:
        >>> from ghn import sample_architectures
        >>> graphs = [architecture.graph for architecture in sample_architectures("train", 2, seed=0)]
        >>> predictions = GHN(GHNConfig(hid=8, max_shape=(8, 8, 7, 7)))(graphs)
        >>> [len(prediction) == len(graph.parameters) for prediction, graph in zip(predictions, graphs)]
        [True, True]

    """

    def __init__(self, config: GHNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GHNConfig()
        self.table = ShapeTable(config.num_classes, config.max_shape[2])
        self.embed = nn.Embedding(len(PRIMITIVES), config.hid)
        self.shape_enc = ShapeEncoder(self.table, config.hid)
        if config.hypernet == "mlp":
            self.gnn: GatedGNN | MLP = MLP(config.hid, config.hid)
        else:
            self.gnn = GatedGNN(config.hid, virtual_edges=config.ve)
        self.ln = nn.LayerNorm(config.hid) if config.layernorm else nn.Identity()
        self.decoder = ConvDecoder(config.hid, config.max_shape, config.num_classes)
        width = max(config.max_shape[:2])
        self.decoder_1d = VectorDecoder(config.hid, width)
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(width, config.num_classes))

    @property
    def device(self) -> torch.device:
        """Where the hypernetwork's weights are."""
        return self.embed.weight.device

    def collate(self, graphs: Sequence[ArchitectureGraph]) -> GraphBatch:
        """Make graphs ready for :meth:`forward` (can be done ahead, in another thread)."""
        if not graphs:
            raise InputError("no graphs given: predict for at least one architecture")
        for graph in graphs:
            if graph.num_classes != self.config.num_classes:
                raise InputError(
                    f"the network has {graph.num_classes} classes but the hypernetwork predicts for "
                    f"{self.config.num_classes}; use a checkpoint with as many classes"
                )
        return GraphBatch.collate(graphs, self.table, virtual_edges=self.config.ve, device=self.device)

    def forward(self, graphs: Sequence[ArchitectureGraph] | GraphBatch) -> list[Prediction]:
        """Predict all parameters of each graph; tensors have the shapes that the graphs say."""
        batch = graphs if isinstance(graphs, GraphBatch) else self.collate(graphs)
        with torch.autocast(self.device.type, enabled=False):  # the target networks may run in bf16, not this
            return self._predict(batch)

    def _predict(self, batch: GraphBatch) -> list[Prediction]:
        states_Nd = self.embed(batch.primitives) + self.shape_enc(batch.shapes)
        states_Nd = self.ln(self.gnn(states_Nd, batch))
        return self._decode(states_Nd, batch.graphs)

    def _decode(self, states_Nd: Tensor, graphs: Sequence[ArchitectureGraph]) -> list[Prediction]:
        kinds: dict[str, list[_Slot]] = {"vector": [], "weight": [], "class_weight": []}
        start = 0
        for g, graph in enumerate(graphs):
            for i, node in enumerate(graph.nodes):
                for parameter in node.parameters:
                    kind = "weight" if parameter.role != "class_weight" else "class_weight"
                    if parameter.role in _VECTOR_ROLES or is_vector(parameter.shape):
                        kind = "vector"
                    kinds[kind].append(_Slot(g, start + i, parameter))
            start += len(graph)
        weights, classifiers = self.decoder(
            states_Nd,
            [self._weight_slot(slot) for slot in kinds["weight"]],
            [self._weight_slot(slot) for slot in kinds["class_weight"]],
        )
        found: dict[tuple[int, str], Tensor] = {}
        for slot, tensor in zip(kinds["weight"] + kinds["class_weight"], weights + classifiers, strict=True):
            found[slot.graph, slot.parameter.name] = _shaped(tensor, slot.parameter.shape)
        for slot, tensor in zip(kinds["vector"], self._decode_vectors(states_Nd, kinds["vector"]), strict=True):
            found[slot.graph, slot.parameter.name] = tensor
        return [{p.name: found[g, p.name] for p in graph.parameters} for g, graph in enumerate(graphs)]

    def _weight_slot(self, slot: _Slot) -> WeightSlot:
        _, node, (_, shape, role) = slot
        scale = weight_scale(shape) if self.config.weight_norm and role != "pos_enc" else 1.0
        return WeightSlot(node, scale, canonical_shape(shape))

    def _decode_vectors(self, states_Nd: Tensor, slots: Sequence[_Slot]) -> list[Tensor]:
        """Decode all vectors at once: each is a row of some table, repeated to its size."""
        if not slots:
            return []
        row = {node: i for i, node in enumerate(dict.fromkeys(slot.node for slot in slots))}
        decoded = self.decoder_1d(states_Nd[list(row)])
        both, norm_weights, biases = decoded, decoded[:, 0], decoded[:, 1]
        class_rows = [row[slot.node] for slot in slots if slot.parameter.role == "class_bias"]
        class_biases = self.bias_class(biases[class_rows])
        if self.config.weight_norm:
            norm_weights = normalize_norm_weight(norm_weights)
            biases, class_biases = normalize_bias(biases), normalize_bias(class_biases)
        tables = {"norm_weight": norm_weights, "bias": biases, "class_bias": class_biases, "weight": both}
        first, width, end = {}, {}, 0
        for name, table in tables.items():
            first[name], width[name], end = end, table[:1].numel() or 1, end + table.numel()
        class_row = itertools.count()
        starts, widths = np.empty((2, len(slots)), dtype=np.int64)
        for i, (_, node, parameter) in enumerate(slots):  # (C, 1, 1) scales and (1, 1, C) tokens take both rows
            name = parameter.role if parameter.role in tables else "weight"
            at = next(class_row) if name == "class_bias" else row[node]
            starts[i], widths[i] = first[name] + at * width[name], width[name]
        sizes = [math.prod(slot.parameter.shape) for slot in slots]
        offsets = np.arange(sum(sizes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        source = torch.from_numpy(np.repeat(starts, sizes) + offsets % np.repeat(widths, sizes)).to(states_Nd.device)
        values = torch.cat([table.flatten() for table in tables.values()]).index_select(0, source)
        shapes = [slot.parameter.shape for slot in slots]
        return [
            part if len(shape) == 1 else part.view(shape)
            for part, shape in zip(values.split(sizes), shapes, strict=True)
        ]


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give a decoded tensor its parameter's shape."""
    if tensor.shape == shape:  # a view would be one more operation to differentiate
        return tensor
    if is_token_map(shape):  # (1, C, s, s) -> (1, tokens, C); a token beyond the map repeats the first ones
        return tile(tensor.flatten(2).transpose(1, 2), shape)
    if len(shape) == 5:
        return tensor.unsqueeze(2).expand(shape)
    return tensor.view(shape)
