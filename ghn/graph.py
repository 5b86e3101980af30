"""The computational graph of a network, as GHN-2 sees it: typed nodes, real edges, and virtual edges.

Source: paper, section 2.1 (graphs) and section 4 (virtual edges). A node carries at most one weight tensor; a norm
node carries its bias too. Nodes are in topological order, node 0 is the input and the last one is the output.
"""

from __future__ import annotations

import functools
import hashlib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ghn.errors import InputError
from ghn.paths import connected_pairs, shortest_paths

GRAPH_REVISION = 1
"""Raised whenever the same specification would give another graph; stored in shard manifests and checkpoints."""

PRIMITIVES = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)
PRIMITIVE_ID = {name: i for i, name in enumerate(PRIMITIVES)}
MAX_VIRTUAL_DISTANCE = 50
_MAX_NODES = 20_000
_MAX_SIZE = 2**31 - 1
"""Of one dimension of a shape."""

ParameterRole = Literal["weight", "bias", "norm_weight", "class_weight", "class_bias", "pos_enc"]
"""Which decoder predicts a parameter, and how it is normalized."""


class Parameter(NamedTuple):
    """A parameter of the target network: its name in ``state_dict``, its shape and its role."""

    name: str
    shape: tuple[int, ...]
    role: ParameterRole


class Node(NamedTuple):
    """One node.

    Attributes:
        primitive: one of :data:`PRIMITIVES`.
        shape: the shape that is embedded: the weight's, ``(1, 1, k, k)`` for a pool, ``None`` where there is none.
        parameters: the parameters to predict at this node (none, one, or a norm's weight and bias).

    """

    primitive: str
    shape: tuple[int, ...] | None = None
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ArchitectureGraph:
    """A directed acyclic graph of :class:`Node` in topological order.

    Attributes:
        nodes: N nodes; 0 is the input, N - 1 the output.
        edges: the real edges (u, v), u < v, sorted by (v, u), without repetition.
        num_classes: width of the output.
        kept: trainable parameters that no node covers, with the reason.

    Examples:
        >>> import torch
        >>> from ghn import trace
        >>> graph = trace(torch.nn.Linear(4, 10), torch.zeros(1, 4))
        >>> [node.primitive for node in graph.nodes], graph.edges
        (['input', 'conv', 'bias'], ((0, 1), (1, 2)))
        >>> ArchitectureGraph.from_json(graph.to_json()) == graph
        True

    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    num_classes: int
    kept: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All parameters to predict, in node order."""
        return tuple(parameter for node in self.nodes for parameter in node.parameters)

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """Shortest path lengths (N, N) uint8, ``[u, v]`` from u to v; 0 = no path within 255 edges."""
        return shortest_paths(len(self.nodes), self.edges)

    @functools.cached_property
    def depth(self) -> np.ndarray:
        """Longest path length (N,) int64 from any source to each node."""
        depth = np.zeros(len(self.nodes), dtype=np.int64)
        for u, v in self.edges:  # sorted by v, so depth[u] is final
            depth[v] = max(depth[v], depth[u] + 1)
        return depth

    @functools.cached_property
    def height(self) -> np.ndarray:
        """Longest path length (N,) int64 from each node to any sink."""
        height = np.zeros(len(self.nodes), dtype=np.int64)
        for u, v in sorted(self.edges, reverse=True):
            height[u] = max(height[u], height[v] + 1)
        return height

    def virtual_edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (u, v, s), each (E,), of all pairs with 1 <= s_uv <= 50 (paper, eq. 4)."""
        return connected_pairs(self.distances, MAX_VIRTUAL_DISTANCE)

    def validate(self) -> None:
        """Raise :class:`InputError` if this is not a connected graph in topological order with sane parameters."""
        n = len(self.nodes)
        if not 2 <= n <= _MAX_NODES:
            raise InputError(f"graph has {n} nodes; 2 to {_MAX_NODES} are allowed")
        if self.nodes[0].primitive != "input":
            raise InputError(f"graph node 0 must be the input, not {self.nodes[0].primitive!r}")
        sinks = set(range(n)) - {u for u, _ in self.edges}
        if sinks != {n - 1}:
            raise InputError(f"graph nodes {sorted(sinks - {n - 1})[:5]} do not reach the output")
        seen: set[str] = set()
        for i, node in enumerate(self.nodes):
            if node.primitive not in PRIMITIVE_ID:
                raise InputError(f"graph node {i}: unknown primitive {node.primitive!r}")
            for parameter in node.parameters:
                if parameter.name in seen:
                    raise InputError(f"graph node {i}: parameter {parameter.name!r} appears twice")
                seen.add(parameter.name)
                if len(parameter.shape) > 5 or not all(map(_is_size, parameter.shape)):
                    raise InputError(
                        f"graph node {i}: parameter {parameter.name!r} has shape {parameter.shape}; up to five sizes "
                        f"of 1 to {_MAX_SIZE} are allowed"
                    )

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data that :meth:`from_json` reads."""
        return {
            "graph_revision": GRAPH_REVISION,
            "num_classes": self.num_classes,
            "nodes": [
                {
                    "primitive": node.primitive,
                    "shape": node.shape,
                    "parameters": [[p.name, list(p.shape), p.role] for p in node.parameters],
                }
                for node in self.nodes
            ],
            "edges": [list(edge) for edge in self.edges],
            "kept": [list(item) for item in self.kept],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArchitectureGraph:
        """Read a graph; raises :class:`InputError` if the data do not describe one."""
        fields = _object(data, "graph", {"graph_revision", "num_classes", "nodes", "edges"}, frozenset({"kept"}))
        if fields["graph_revision"] != GRAPH_REVISION:
            raise InputError(
                f"graph has graph_revision {fields['graph_revision']!r}, this version reads {GRAPH_REVISION}; "
                "export it again with this version's ghn.trace"
            )
        nodes = tuple(_node_from_json(node, i) for i, node in enumerate(_list(fields["nodes"], "graph nodes")))
        edges = [_edge(pair, len(nodes)) for pair in _list(fields["edges"], "graph edges")]
        kept = tuple(_texts(pair, "graph kept parameter", 2) for pair in _list(fields.get("kept", []), "graph kept"))
        num_classes = fields["num_classes"]
        if not _is_size(num_classes):
            raise InputError(f"graph num_classes={num_classes!r}: give a whole number from 1")
        graph = cls(nodes=nodes, edges=sort_edges(edges), num_classes=num_classes, kept=kept)
        graph.validate()
        return graph

    def fingerprint(self) -> str:
        """Return a SHA-256 of the graph that does not depend on the order of incomparable nodes.

        Each node is described by what it is and, recursively, by all paths into it and out of it. Two graphs with the same
        fingerprint have the same nodes, shapes, parameters and edges.
        """
        sources: list[list[int]] = [[] for _ in self.nodes]
        targets: list[list[int]] = [[] for _ in self.nodes]
        for u, v in self.edges:
            sources[v].append(u)
            targets[u].append(v)
        into: list[bytes] = []
        for node, before in zip(self.nodes, sources, strict=True):
            into.append(_hash(repr(node).encode(), *sorted(into[u] for u in before)))
        out = [b""] * len(self.nodes)
        for v in reversed(range(len(self.nodes))):
            out[v] = _hash(into[v], *sorted(out[w] for w in targets[v]))
        return _hash(repr((self.num_classes, self.kept)).encode(), *sorted(out)).hex()


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.digest()


def _node_from_json(data: Any, i: int) -> Node:
    where = f"graph node {i}"
    fields = _object(data, where, {"primitive", "shape", "parameters"})
    parameters = []
    for item in _list(fields["parameters"], f"{where} parameters"):
        if not isinstance(item, (list, tuple)) or len(item) != 3:
            raise InputError(f"{where}: a parameter is [name, shape, role], not {_shown(item)}")
        name, shape, role = item
        if role not in get_args(ParameterRole) or not isinstance(name, str):
            raise InputError(f"{where}: parameter {_shown(name)} has unknown role {_shown(role)}")
        parameters.append(Parameter(name=name, shape=_shape(shape, where), role=role))
    primitive, shape = fields["primitive"], fields["shape"]
    if not isinstance(primitive, str):
        raise InputError(f"{where}: primitive {_shown(primitive)} is no name")
    shape = None if shape is None else _shape(shape, where)
    return Node(primitive=primitive, shape=shape, parameters=tuple(parameters))


def _object(data: Any, what: str, required: set[str], optional: frozenset[str] = frozenset()) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InputError(f"{what} must be a JSON object, not {type(data).__name__}")
    if missing := sorted(required - set(data)):
        raise InputError(f"{what} lacks: {', '.join(missing)}")
    if unknown := sorted(set(data) - required - optional):
        raise InputError(f"{what} has unknown fields: {_shown(', '.join(unknown))}")
    return data


def _list(data: Any, what: str) -> Sequence[Any]:
    if not isinstance(data, (list, tuple)):
        raise InputError(f"{what} must be a list, not {type(data).__name__}")
    return data


def _edge(pair: Any, nodes: int) -> tuple[int, int]:
    whole = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(end) is int for end in pair)
    if not whole or not 0 <= pair[0] < pair[1] < nodes:
        raise InputError(f"graph edge {_shown(pair)} does not run forward between {nodes} nodes")
    return pair[0], pair[1]


def _texts(data: Any, what: str, count: int) -> Any:
    if not isinstance(data, (list, tuple)) or len(data) != count or not all(isinstance(text, str) for text in data):
        raise InputError(f"{what} {_shown(data)}: give {count} texts")
    return tuple(data)


def _shape(data: Any, where: str) -> tuple[int, ...]:
    if not isinstance(data, (list, tuple)) or len(data) > 5 or not all(map(_is_size, data)):
        raise InputError(f"{where} has shape {_shown(data)}; up to five sizes of 1 to {_MAX_SIZE} are allowed")
    return tuple(data)


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MAX_SIZE


def _shown(value: Any) -> str:
    """Return a value as a message may show it, however long it is."""
    return reprlib.repr(value)


def sort_edges(edges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the distinct edges sorted by target, then source."""
    return tuple(sorted(set(edges), key=lambda edge: (edge[1], edge[0])))
