"""A plain, slow transcription of GHN-2's equations, to compare the fast code with.

One node after another, one edge after another; full-size decoding, then slicing and tiling. It shares nothing with the
package but the weights and the graph.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ghn import GHN, ArchitectureGraph
from ghn.graph import PRIMITIVES


def _mlp(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = torch.relu(x @ weights[f"{name}.fc.0.weight"].T + weights[f"{name}.fc.0.bias"])
    return torch.relu(x @ weights[f"{name}.fc.2.weight"].T + weights[f"{name}.fc.2.bias"])


def _gru(weights: dict[str, Tensor], x: Tensor, h: Tensor) -> Tensor:
    gi = x @ weights["gnn.gru.weight_ih"].T + weights["gnn.gru.bias_ih"]
    gh = h @ weights["gnn.gru.weight_hh"].T + weights["gnn.gru.bias_hh"]
    i_r, i_z, i_n = gi.chunk(3)
    h_r, h_z, h_n = gh.chunk(3)
    r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
    return (1 - z) * torch.tanh(i_n + r * h_n) + z * h


def _channel_row(size: int, num_classes: int) -> tuple[int, int]:
    table = sorted({1, 3, num_classes} | set(range(8, 57, 8)) | set(range(64, 4081, 16)) | set(range(4096, 8193, 32)))
    if size in (4, 5, 6, 7):
        size = 8
    return min(range(len(table)), key=lambda i: (abs(table[i] - size), i)), len(table)


def _spatial_row(size: int, kmax: int) -> tuple[int, int]:
    table = sorted(set(range(1, max(12, kmax), 2)) | {14, 16})
    size = 3 if size == 2 else size
    return min(range(len(table)), key=lambda i: (abs(table[i] - size), i)), len(table)


def _embed(hypernet: GHN, weights: dict[str, Tensor], graph: ArchitectureGraph, i: int) -> Tensor:
    node, config = graph.nodes[i], hypernet.config
    sizes = (*(node.shape or (1,)), 1, 1, 1)[:4]
    parts = []
    for position, size in enumerate(sizes):
        if position < 2:
            row, none = _channel_row(size, config.num_classes)
            table = weights["shape_enc.embed_channel.weight"]
        else:
            row, none = _spatial_row(size, config.max_shape[2])
            table = weights["shape_enc.embed_spatial.weight"]
        parts.append(table[row if node.shape is not None else none])
    return weights["embed.weight"][PRIMITIVES.index(node.primitive)] + torch.cat(parts)


def states(hypernet: GHN, graph: ArchitectureGraph) -> Tensor:
    """Node states (N, d) behind the graph network."""
    weights, config = dict(hypernet.named_parameters()), hypernet.config
    n = len(graph)
    h = [_embed(hypernet, weights, graph, i) for i in range(n)]
    if config.hypernet == "mlp":
        h = [_mlp(weights, "gnn", x) for x in h]
    else:
        paths = _shortest_paths(graph)
        for order in (range(n), range(n - 1, -1, -1)):
            forward = order.step == 1
            for v in order:
                m = torch.zeros_like(h[v])
                for u in range(n):
                    s = paths[u][v] if forward else paths[v][u]
                    if s == 1:
                        m = m + _mlp(weights, "gnn.mlp", h[u])
                    if config.ve and 1 <= s <= 50:
                        m = m + _mlp(weights, "gnn.mlp_ve", h[u]) / s
                h[v] = _gru(weights, m, h[v])
    stacked = torch.stack(h)
    if config.layernorm:
        stacked = F.layer_norm(stacked, (config.hid,), weights["ln.weight"], weights["ln.bias"])
    return stacked


def _shortest_paths(graph: ArchitectureGraph) -> list[list[int]]:
    """Breadth-first search from every node; 0 = no path."""
    followers: list[list[int]] = [[] for _ in graph.nodes]
    for u, v in graph.edges:
        followers[u].append(v)
    table = []
    for start in range(len(graph)):
        row, frontier, steps = [0] * len(graph), [start], 0
        while frontier:
            steps += 1
            frontier = sorted({v for u in frontier for v in followers[u] if not row[v]})
            for v in frontier:
                row[v] = steps
        table.append(row)
    return table


def _repeat(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    for dim, size in enumerate(shape):
        index = torch.arange(size) % tensor.shape[dim]
        tensor = tensor.index_select(dim, index)
    return tensor


def predict(hypernet: GHN, graph: ArchitectureGraph) -> dict[str, Tensor]:
    """All parameters of one network."""
    weights, config = dict(hypernet.named_parameters()), hypernet.config
    big_out, big_in, k, _ = config.max_shape
    width = max(big_out, big_in)
    d, h = config.hid, states(hypernet, graph)
    result = {}
    for i, node in enumerate(graph.nodes):
        if not node.parameters:
            continue
        x = torch.relu(h[i] @ weights["decoder.fc.0.weight"].T + weights["decoder.fc.0.bias"]).view(1, 4 * d, k, k)
        x = torch.relu(F.conv2d(x, weights["decoder.conv.0.weight"], weights["decoder.conv.0.bias"]))
        x = F.conv2d(x, weights["decoder.conv.2.weight"], weights["decoder.conv.2.bias"])
        full = x.view(big_out, big_in, k, k)
        y = torch.relu(h[i] @ weights["decoder_1d.fc.0.weight"].T + weights["decoder_1d.fc.0.bias"])
        rows = (y @ weights["decoder_1d.fc.2.weight"].T + weights["decoder_1d.fc.2.bias"]).view(2, width)
        for parameter in node.parameters:
            shape, role = parameter.shape, parameter.role
            if role == "class_weight":
                predictor = weights["decoder.class_layer_predictor.1.weight"]
                head = F.conv2d(
                    torch.relu(full[None, :, :, 0, :1]), predictor, weights["decoder.class_layer_predictor.1.bias"]
                )
                tensor = _repeat(head[0, :, :, 0], shape)
            elif role == "class_bias":
                tensor = torch.relu(rows[1]) @ weights["bias_class.1.weight"].T + weights["bias_class.1.bias"]
            elif role in ("bias", "norm_weight"):
                tensor = _repeat(rows[1 if role == "bias" else 0], shape)
            else:
                tensor = _repeat(full, (*shape, 1, 1)[:4]).reshape(shape)
            if config.weight_norm:
                tensor = _normalize(tensor, role)
            result[parameter.name] = tensor
    return result


def _normalize(tensor: Tensor, role: str) -> Tensor:
    if role == "norm_weight":
        return 2 * torch.sigmoid(tensor / 2)
    if role in ("bias", "class_bias"):
        return torch.tanh(0.2 * tensor)
    if role == "pos_enc":
        return tensor
    fan_in = tensor[0].numel()
    narrow = tensor.ndim == 4 and tensor.shape[2] < tensor.shape[3]
    return tensor * math.sqrt((1 if tensor.shape[1] == 1 or narrow else 2) / fan_in)
