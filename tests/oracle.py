"""A plain, slow transcription of GHN-2's equations, to compare the fast code with: its results and its speed.

It works as the published code does. All graphs of a meta-batch advance one node position at a time; messages are computed
for each edge; parameters are decoded together if they have one kernel size, with all channels, and then sliced, tiled and
normalized one by one. It shares nothing with the package but the weights and the graphs.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ghn import GHN, ArchitectureGraph
from ghn.graph import PRIMITIVES, Parameter


def _mlp(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = torch.relu(x @ weights[f"{name}.fc.0.weight"].T + weights[f"{name}.fc.0.bias"])
    return torch.relu(x @ weights[f"{name}.fc.2.weight"].T + weights[f"{name}.fc.2.bias"])


def _gru(weights: dict[str, Tensor], x: Tensor, h: Tensor) -> Tensor:
    gi = x @ weights["gnn.gru.weight_ih"].T + weights["gnn.gru.bias_ih"]
    gh = h @ weights["gnn.gru.weight_hh"].T + weights["gnn.gru.bias_hh"]
    i_r, i_z, i_n = gi.chunk(3, dim=-1)
    h_r, h_z, h_n = gh.chunk(3, dim=-1)
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


def embeddings(hypernet: GHN, graphs: Sequence[ArchitectureGraph]) -> Tensor:
    """Initial node states (N, d) of all graphs."""
    weights = dict(hypernet.named_parameters())
    return torch.stack([_embed(hypernet, weights, graph, i) for graph in graphs for i in range(len(graph))])


def edges(graphs: Sequence[ArchitectureGraph], most: int = 50) -> Tensor:
    """(source, target, distance, graph) of all pairs of nodes that are up to ``most`` steps apart, (E, 4)."""
    rows = []
    for g, graph in enumerate(graphs):
        paths = torch.tensor(_shortest_paths(graph))
        pairs = ((paths >= 1) & (paths <= most)).nonzero()
        rows.append(torch.cat([pairs, paths[pairs[:, 0], pairs[:, 1]][:, None], torch.full((len(pairs), 1), g)], dim=1))
    return torch.cat(rows)


def message_passing(hypernet: GHN, states_Nd: Tensor, edges_E4: Tensor, sizes: Sequence[int]) -> Tensor:
    """Both sweeps of the gated graph network over graphs of the given sizes; returns the new states (N, d)."""
    weights, config = dict(hypernet.named_parameters()), hypernet.config
    offsets = torch.tensor([0, *itertools.accumulate(sizes)])
    graph_of = edges_E4[:, 3]
    h = states_Nd.clone()
    for forward in (True, False):
        source, target = (edges_E4[:, 0], edges_E4[:, 1]) if forward else (edges_E4[:, 1], edges_E4[:, 0])
        # Edges by the position at which they end, so that finding them costs the loop nothing.
        by_position = torch.argsort(target, stable=True).split(torch.bincount(target, minlength=max(sizes)).tolist())
        for position in range(max(sizes)) if forward else range(max(sizes) - 1, -1, -1):
            here = (position < offsets.diff()).nonzero()[:, 0]
            m = states_Nd.new_zeros(len(sizes), config.hid)
            ending = by_position[position]
            if len(ending):
                sources = h[source[ending] + offsets[graph_of[ending]]]
                near = edges_E4[ending, 2] == 1
                m = m.index_add(0, graph_of[ending[near]], _mlp(weights, "gnn.mlp", sources[near]))
                if config.ve:
                    far = _mlp(weights, "gnn.mlp_ve", sources) / edges_E4[ending, 2:3]
                    m = m.index_add(0, graph_of[ending], far)
            nodes = offsets[here] + position
            h[nodes] = _gru(weights, m[here], h[nodes])
    return h


def states(hypernet: GHN, graphs: Sequence[ArchitectureGraph], edges_E4: Tensor | None = None) -> Tensor:
    """Node states (N, d) behind the graph network; edges are found anew unless they are given."""
    weights, config = dict(hypernet.named_parameters()), hypernet.config
    h = embeddings(hypernet, graphs)
    if config.hypernet == "mlp":
        h = _mlp(weights, "gnn", h)
    else:
        edges_E4 = edges(graphs) if edges_E4 is None else edges_E4
        h = message_passing(hypernet, h, edges_E4, [len(graph) for graph in graphs])
    if config.layernorm:
        h = F.layer_norm(h, (config.hid,), weights["ln.weight"], weights["ln.bias"])
    return h


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
        have = tensor.shape[dim]
        if size > have:
            tensor = tensor.repeat([-(-size // have) if d == dim else 1 for d in range(tensor.ndim)])
        tensor = tensor.narrow(dim, 0, size)
    return tensor


def predict(
    hypernet: GHN, graphs: Sequence[ArchitectureGraph], edges_E4: Tensor | None = None
) -> list[dict[str, Tensor]]:
    """All parameters of the networks of a meta-batch."""
    return decode(hypernet, graphs, states(hypernet, graphs, edges_E4))


def decode(hypernet: GHN, graphs: Sequence[ArchitectureGraph], h: Tensor) -> list[dict[str, Tensor]]:
    """All parameters, from the node states (N, d)."""
    weights, config = dict(hypernet.named_parameters()), hypernet.config
    big_out, big_in, k, _ = config.max_shape
    d = config.hid
    nodes = [(g, node) for g, graph in enumerate(graphs) for node in graph.nodes]
    slots = [(i, g, p) for i, (g, node) in enumerate(nodes) for p in node.parameters]
    kinds: dict[tuple[object, ...], list[tuple[int, int, Parameter]]] = defaultdict(list)
    for slot in slots:
        shape, role = (*slot[2].shape, 1, 1)[:4], slot[2].role
        vector = role in ("bias", "norm_weight", "class_bias")
        kinds[("vector",) if vector else (role == "class_weight", min(shape[2], k), min(shape[3], k))].append(slot)
    result: list[dict[str, Tensor]] = [{} for _ in graphs]
    for kind, members in kinds.items():
        x = h[[i for i, _, _ in members]]
        if kind == ("vector",):
            y = torch.relu(x @ weights["decoder_1d.fc.0.weight"].T + weights["decoder_1d.fc.0.bias"])
            decoded = y @ weights["decoder_1d.fc.2.weight"].T + weights["decoder_1d.fc.2.bias"]
            decoded = decoded.view(len(members), 2, max(big_out, big_in))
        else:
            is_class, kh, kw = kind
            x = torch.relu(x @ weights["decoder.fc.0.weight"].T + weights["decoder.fc.0.bias"])
            x = x.view(-1, 4 * d, k, k)[:, :, :kh, :kw]
            x = torch.relu(F.conv2d(x, weights["decoder.conv.0.weight"], weights["decoder.conv.0.bias"]))
            x = F.conv2d(x, weights["decoder.conv.2.weight"], weights["decoder.conv.2.bias"])
            decoded = x.view(-1, big_out, big_in, kh, kw)
            if is_class:
                predictor = weights["decoder.class_layer_predictor.1.weight"]
                bias = weights["decoder.class_layer_predictor.1.bias"]
                decoded = F.conv2d(torch.relu(decoded[:, :, :, 0, :1]), predictor, bias).unsqueeze(-1)
        for full, (_, g, parameter) in zip(decoded, members, strict=True):
            shape, role = parameter.shape, parameter.role
            if role == "class_bias":
                tensor = torch.relu(full[1]) @ weights["bias_class.1.weight"].T + weights["bias_class.1.bias"]
            elif role in ("bias", "norm_weight"):
                tensor = _repeat(full[1 if role == "bias" else 0], shape)
            else:
                tensor = _repeat(full, (*shape, 1, 1)[:4]).reshape(shape)
            result[g][parameter.name] = _normalize(tensor, role) if config.weight_norm else tensor
    return [{p.name: result[g][p.name] for p in graph.parameters} for g, graph in enumerate(graphs)]


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
