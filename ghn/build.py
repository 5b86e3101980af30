"""The graph of a specification, built analytically: no tensors, no forward pass.

Follows the same :class:`~ghn.layout.Layout` as the network itself; node order is the order of the forward pass. The same
operations come again and again in the same places, so the graph of each is made once and then inserted.
"""

from __future__ import annotations

import functools
import itertools

from ghn.genotype import ArchitectureSpec
from ghn.graph import ArchitectureGraph, Node, Parameter, ParameterRole
from ghn.graph_builder import Block, GraphBuilder, Value
from ghn.layout import CellLayout, Layout, Preprocess, layout

_PLACES = 16_384  # operations and inputs of which graphs are kept, about a kilobyte each


def build_graph(spec: ArchitectureSpec) -> ArchitectureGraph:
    """Return the graph of a specification's network.

    Raises:
        InputError: if nothing connects the network's input to its output.

    """
    return _SpecGraph(layout(spec)).build()


class _Parts:
    """Adds single nodes and small groups of them to a graph."""

    def __init__(self, *, norm_on: bool) -> None:
        self.norm_on = norm_on
        self.graph = GraphBuilder()

    # Single nodes

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        value: Value,
        *,
        primitive: str = "conv",
        role: ParameterRole = "weight",
    ) -> Value:
        parameter = Parameter(name=f"{name}.weight", shape=shape, role=role)
        return self.graph.add(Node(primitive=primitive, shape=shape, parameters=(parameter,)), value)

    def bias(self, name: str, size: int, value: Value, *, role: ParameterRole = "bias") -> Value:
        parameter = Parameter(name=f"{name}.bias", shape=(size,), role=role)
        return self.graph.add(Node(primitive="bias", shape=(size,), parameters=(parameter,)), value)

    def linear(self, name: str, fan_in: int, fan_out: int, value: Value, *, last: bool = False) -> Value:
        value = self.weight(name, (fan_out, fan_in), value, role="class_weight" if last else "weight")
        return self.bias(name, fan_out, value, role="class_bias" if last else "bias")

    def norm(self, name: str, channels: int, value: Value, *, primitive: str = "bn") -> Value:
        if primitive == "bn" and not self.norm_on:
            return value
        parameters = (
            Parameter(name=f"{name}.weight", shape=(channels,), role="norm_weight"),
            Parameter(name=f"{name}.bias", shape=(channels,), role="bias"),
        )
        return self.graph.add(Node(primitive=primitive, shape=(channels,), parameters=parameters), value)

    def pool(self, primitive: str, value: Value) -> Value:
        return self.graph.add(Node(primitive=primitive, shape=(1, 1, 3, 3)), value)

    def preprocess(self, kind: Preprocess, c_in: int, c_out: int, value: Value) -> Value:
        if kind == "conv":
            return self.norm("op.2", c_out, self.weight("op.1", (c_out, c_in, 1, 1), value))
        if kind == "factorized_reduce":
            return self.factorized_reduce(c_in, c_out, value)
        return value

    def factorized_reduce(self, c_in: int, c_out: int, value: Value) -> Value:
        halves = [self.weight(f"conv_{i}", (c_out // 2, c_in, 1, 1), value) for i in (1, 2)]
        return self.norm("bn", c_out, self.graph.join("concat", *halves))

    def op(self, op: str, stride: int, channels: int, value: Value) -> Value:
        if op in ("max_pool_3x3", "avg_pool_3x3"):
            return self.pool(op.removesuffix("_3x3"), value)
        if op == "skip_connect":
            return value if stride == 1 else self.factorized_reduce(channels, channels, value)
        if op == "msa":
            return self.msa(channels, value)
        if op == "cse":
            return self.cse(channels, value)
        if op == "conv_7x1_1x7":
            value = self.weight("op.1", (channels, channels, 1, 7), value)
            value = self.weight("op.2", (channels, channels, 7, 1), value)
            return self.norm("op.3", channels, value)
        kind, _, size = op.rpartition("_")
        kernel = int(size[0])
        if kind == "conv":
            value = self.weight("op.1", (channels, channels, kernel, kernel), value)
            return self.norm("op.2", channels, value)
        for first in (1, 5) if kind == "sep_conv" else (1,):
            value = self.weight(f"op.{first}", (channels, 1, kernel, kernel), value, primitive=kind)
            value = self.weight(f"op.{first + 1}", (channels, channels, 1, 1), value)
            value = self.norm(f"op.{first + 2}", channels, value)
        return value

    def msa(self, channels: int, value: Value) -> Value:
        inner = self.norm("ln1", channels, value, primitive="ln")
        inner = self.weight("to_qkv", (3 * channels, channels), inner)
        inner = self.graph.add(Node(primitive="msa"), inner)
        value = self.graph.join("sum", value, self.linear("to_out.0", channels, channels, inner))
        inner = self.norm("ln2", channels, value, primitive="ln")
        inner = self.linear("ff.net.0", channels, channels, inner)
        return self.graph.join("sum", value, self.linear("ff.net.3", channels, channels, inner))

    def cse(self, channels: int, value: Value) -> Value:
        gate = self.linear("fc1", channels, channels // 2, value)
        gate = self.linear("fc2", channels // 2, channels, gate)
        return self.graph.add(Node(primitive="cse"), value, gate)


@functools.lru_cache(_PLACES)
def _op_graph(op: str, stride: int, channels: int, norm_on: bool) -> Block:
    """Return the graph of an operation, wherever it is."""
    parts = _Parts(norm_on=norm_on)
    return parts.graph.block(parts.op(op, stride, channels, parts.graph.add(Node(primitive="input"))))


@functools.lru_cache(_PLACES)
def _op_block(cell: int, index: int, op: str, stride: int, channels: int, norm_on: bool) -> Block:
    """Return the graph of operation ``index`` of a cell."""
    return _op_graph(op, stride, channels, norm_on).renamed(f"cells.{cell}._ops.{index}.")


@functools.lru_cache(_PLACES)
def _preprocess_block(cell: int, index: int, kind: Preprocess, c_in: int, c_out: int, norm_on: bool) -> Block:
    """Return the graph of what happens to input ``index`` of a cell."""
    parts = _Parts(norm_on=norm_on)
    block = parts.graph.block(parts.preprocess(kind, c_in, c_out, parts.graph.add(Node(primitive="input"))))
    return block.renamed(f"cells.{cell}.preprocess{index}.")


class _SpecGraph(_Parts):
    """The graph of a whole network."""

    def __init__(self, net: Layout) -> None:
        super().__init__(norm_on=net.spec.norm == "bnorm")
        self.net = net

    def build(self) -> ArchitectureGraph:
        image = self.graph.add(Node(primitive="input"))
        previous, current = self.stem(image)
        for i, cell in enumerate(self.net.cells):
            previous, current = current, self.cell(i, cell, previous, current)
        value = current
        if self.net.spec.glob_avg:
            value = self.graph.add(Node(primitive="glob_avg"), value)
        head = self.net.head
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(head)):
            value = self.linear(f"classifier.{3 * i}", fan_in, fan_out, value, last=i == len(head) - 2)
        return self.graph.finish(value, num_classes=self.net.spec.num_classes)

    def cell(self, number: int, cell: CellLayout, input0: Value, input1: Value) -> Value:
        if not cell.live:
            return ()
        states: dict[int, Value] = {}
        for i, (kind, c_in, value) in enumerate(zip(cell.preprocess, cell.in_channels, (input0, input1), strict=True)):
            if kind is not None:
                block = _preprocess_block(number, i, kind, c_in, cell.C, self.norm_on)
                states[i] = self.graph.insert(block, value)
        for state, ops in itertools.groupby(cell.ops, key=lambda op: 2 + op.number // 2):
            results = []
            for index, op, source, stride in ops:
                block = _op_block(number, index, op, stride, cell.C, self.norm_on)
                results.append(self.graph.insert(block, states[source]))
            states[state] = self.graph.join("sum", *results)
        return self.graph.join("concat", *[states[state] for state in cell.concat if state not in cell.missing])

    def stem(self, image: Value) -> tuple[Value, Value]:
        spec, channels = self.net.spec, self.net.stem_channels
        if self.net.stem == "vit":
            patch = 16 if spec.large_images else 3
            value = self.weight("stem0", (spec.C, 3, patch, patch), image)
            size = self.net.pos_enc_size
            position = self.weight("pos_enc", (1, spec.C, size, size), (), primitive="pos_enc", role="pos_enc")
            value = self.graph.join("sum", value, position)
            return value, value
        if self.net.stem == "double":
            half = spec.C // 2
            value = self.norm("stem0.1", half, self.weight("stem0.0", (half, 3, spec.ks, spec.ks), image))
            first = self.norm("stem0.4", spec.C, self.weight("stem0.3", (spec.C, half, 3, 3), value))
            second = self.norm("stem1.2", spec.C, self.weight("stem1.1", (spec.C, spec.C, 3, 3), first))
            return first, second
        value = self.norm("stem.1", channels, self.weight("stem.0", (channels, 3, spec.ks, spec.ks), image))
        if spec.stem_pool:
            value = self.pool("max_pool", value)
        return value, value
