"""The hypernetwork: a meta-batch of graphs in, all parameters of all networks out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ghn.errors import InputError
from ghn.graph import ArchitectureGraph, Parameter
from ghn.hypernet.batch import GraphBatch
from ghn.hypernet.config import GHNConfig
from ghn.hypernet.decoders import ConvDecoder, Shape, VectorDecoder, tile
from ghn.hypernet.embedding import (
    ShapeEncoder,
    ShapeTable,
    canonical_shape,
    is_token_map,
    is_vector,
    primitive_embedding,
)
from ghn.hypernet.gnn import MLP, GatedGNN
from ghn.hypernet.normalization import normalize_bias, normalize_norm_weight, weight_scale

Prediction = dict[str, Tensor]
_VECTOR_ROLES = ("norm_weight", "bias", "class_bias")
_Slot = tuple[int, int, Parameter]  # graph, node in the batch's numbering, parameter


class GHN(nn.Module):
    """GHN-2, GHN-1 or the MLP baseline, as the configuration says.

    Args:
        config: see :class:`~ghn.hypernet.config.GHNConfig`; the default is GHN-2 for CIFAR-10.

    Calling it with graphs returns one ``{parameter name: tensor}`` per graph, differentiable with respect to the
    hypernetwork's own weights.

    """

    def __init__(self, config: GHNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GHNConfig()
        self.table = ShapeTable(config.num_classes, config.max_shape[2])
        self.embed = primitive_embedding(config.hid)
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
        states_Nd = self.embed(batch.primitives) + self.shape_enc(batch.shapes)
        states_Nd = self.ln(self.gnn(states_Nd, batch))
        return self._decode(states_Nd, batch.graphs)

    def _decode(self, states_Nd: Tensor, graphs: Sequence[ArchitectureGraph]) -> list[Prediction]:
        vectors: list[_Slot] = []
        weights: dict[tuple[str, Shape], list[_Slot]] = defaultdict(list)
        start = 0
        for g, graph in enumerate(graphs):
            for i, node in enumerate(graph.nodes):
                for parameter in node.parameters:
                    slot = (g, start + i, parameter)
                    if parameter.role in _VECTOR_ROLES or is_vector(parameter.shape):
                        vectors.append(slot)
                    else:
                        weights[self._piece(parameter)].append(slot)
            start += len(graph)
        found: dict[tuple[int, str], Tensor] = {}
        pieces = [([node for _, node, _ in slots], piece) for (_, piece), slots in weights.items()]
        decoded = self.decoder(states_Nd, pieces) if pieces else []
        for (role, _), slots, values in zip(weights, weights.values(), decoded, strict=True):
            for slot, tensor in zip(slots, self._finish_weights(values, role, slots), strict=True):
                found[slot[0], slot[2].name] = tensor
        if vectors:
            for slot, tensor in zip(vectors, self._decode_vectors(states_Nd, vectors), strict=True):
                found[slot[0], slot[2].name] = tensor
        return [{p.name: found[g, p.name] for p in graph.parameters} for g, graph in enumerate(graphs)]

    def _piece(self, parameter: Parameter) -> tuple[str, Shape]:
        """Role and the shape that is decoded for it: the target's, cut to the largest shape."""
        out, fan_in, kh, kw = (
            min(size, most) for size, most in zip(canonical_shape(parameter.shape), self.config.max_shape, strict=True)
        )
        if parameter.role == "class_weight":
            out, kh, kw = self.config.max_shape[0], 1, 1
        return parameter.role, (out, fan_in, kh, kw)

    def _finish_weights(self, decoded: Tensor, role: str, slots: list[_Slot]) -> list[Tensor]:
        """Normalize (N, out, in, kh, kw) and tile each tensor to its parameter's shape."""
        if role == "class_weight":
            decoded = self.decoder.class_weight(decoded)
        if self.config.weight_norm and role != "pos_enc":
            scales = [weight_scale(parameter.shape) for _, _, parameter in slots]
            decoded = decoded * decoded.new_tensor(scales).view(-1, 1, 1, 1, 1)
        return [_fill(tensor, parameter.shape) for tensor, (_, _, parameter) in zip(decoded, slots, strict=True)]

    def _decode_vectors(self, states_Nd: Tensor, slots: list[_Slot]) -> list[Tensor]:
        nodes = [node for _, node, _ in slots]
        unique = sorted(set(nodes))
        row = {node: i for i, node in enumerate(unique)}
        decoded = self.decoder_1d(states_Nd[unique])
        both, norm_weights, biases = decoded.flatten(1), decoded[:, 0], decoded[:, 1]
        class_rows = [row[node] for _, node, parameter in slots if parameter.role == "class_bias"]
        class_biases = self.bias_class(biases[class_rows])
        if self.config.weight_norm:
            norm_weights = normalize_norm_weight(norm_weights)
            biases, class_biases = normalize_bias(biases), normalize_bias(class_biases)
        class_row = iter(class_biases)
        sources = {"norm_weight": norm_weights, "bias": biases}
        tensors = []
        for _, node, parameter in slots:
            if parameter.role == "class_bias":
                tensors.append(next(class_row).view(parameter.shape))
            else:  # (C, 1, 1) scales and (1, 1, C) tokens take both rows
                vector = sources.get(parameter.role, both)[row[node]]
                tensors.append(tile(vector, (math.prod(parameter.shape),)).view(parameter.shape))
        return tensors


def _fill(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Tile a decoded piece (out, in, kh, kw) to a parameter's shape."""
    whole = tile(tensor, canonical_shape(shape))
    if is_token_map(shape):  # (1, C, s, s) -> (1, tokens, C); a token beyond the map repeats the first ones
        return tile(whole.flatten(2).transpose(1, 2), shape)
    if len(shape) == 5:
        return whole.unsqueeze(2).expand(shape)
    return whole.reshape(shape)
