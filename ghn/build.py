"""The graph of a specification, built analytically: no tensors, no forward pass.

Follows the same :class:`~ghn.layout.Layout` as the network itself; node order is the order of the forward pass.
"""

from __future__ import annotations

import itertools

from ghn.genotype import ArchitectureSpec
from ghn.graph import ArchitectureGraph, GraphBuilder, Node, Parameter, ParameterRole
from ghn.layout import CellLayout, Layout, OpLayout, layout

Value = frozenset[int]


def build_graph(spec: ArchitectureSpec) -> ArchitectureGraph:
    """Return the graph of a specification's network.

    Raises:
        InputError: if nothing connects the network's input to its output.

    """
    return _SpecGraph(layout(spec)).build()


class _SpecGraph:
    def __init__(self, net: Layout) -> None:
        self.net = net
        self.norm_on = net.spec.norm == "bnorm"
        self.graph = GraphBuilder()

    def build(self) -> ArchitectureGraph:
        image = self.graph.add(Node(primitive="input"))
        previous, current = self.stem(image)
        for cell in self.net.cells:
            previous, current = current, self.cell(cell, previous, current)
        value = current
        if self.net.spec.glob_avg:
            value = self.graph.add(Node(primitive="glob_avg"), value)
        head = self.net.head
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(head)):
            value = self.linear(f"classifier.{3 * i}", fan_in, fan_out, value, last=i == len(head) - 2)
        return self.graph.finish(value, num_classes=self.net.spec.num_classes)

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

    # Parts of the network

    def stem(self, image: Value) -> tuple[Value, Value]:
        spec, channels = self.net.spec, self.net.stem_channels
        if self.net.stem == "vit":
            patch = 16 if spec.large_images else 3
            value = self.weight("stem0", (spec.C, 3, patch, patch), image)
            size = self.net.pos_enc_size
            position = self.weight("pos_enc", (1, spec.C, size, size), frozenset(), primitive="pos_enc", role="pos_enc")
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

    def pool(self, primitive: str, value: Value) -> Value:
        return self.graph.add(Node(primitive=primitive, shape=(1, 1, 3, 3)), value)

    def cell(self, cell: CellLayout, input0: Value, input1: Value) -> Value:
        if not cell.live:
            return frozenset()
        states: dict[int, Value] = {}
        for i, value in enumerate((input0, input1)):
            if cell.preprocess[i] is not None:
                states[i] = self.preprocess(cell, i, value)
        for op in cell.ops:
            states.setdefault(2 + op.index // 2, frozenset())
        for state in sorted(state for state in states if state >= 2):
            results = [
                self.op(f"cells.{cell.index}._ops.{op.index}", op, cell.C, states[op.source])
                for op in cell.ops
                if 2 + op.index // 2 == state
            ]
            states[state] = self.graph.join("sum", *results)
        return self.graph.join("concat", *(states[state] for state in cell.concat if state not in cell.missing))

    def preprocess(self, cell: CellLayout, i: int, value: Value) -> Value:
        name, c_in = f"cells.{cell.index}.preprocess{i}", cell.in_channels[i]
        if cell.preprocess[i] == "conv":
            return self.norm(f"{name}.op.2", cell.C, self.weight(f"{name}.op.1", (cell.C, c_in, 1, 1), value))
        if cell.preprocess[i] == "factorized_reduce":
            return self.factorized_reduce(name, c_in, cell.C, value)
        return value

    def factorized_reduce(self, name: str, c_in: int, c_out: int, value: Value) -> Value:
        halves = [self.weight(f"{name}.conv_{i}", (c_out // 2, c_in, 1, 1), value) for i in (1, 2)]
        return self.norm(f"{name}.bn", c_out, self.graph.join("concat", *halves))

    def op(self, name: str, op: OpLayout, channels: int, value: Value) -> Value:
        if op.op in ("max_pool_3x3", "avg_pool_3x3"):
            return self.pool(op.op.removesuffix("_3x3"), value)
        if op.op == "skip_connect":
            return value if op.stride == 1 else self.factorized_reduce(name, channels, channels, value)
        if op.op == "msa":
            return self.msa(name, channels, value)
        if op.op == "cse":
            return self.cse(name, channels, value)
        if op.op == "conv_7x1_1x7":
            value = self.weight(f"{name}.op.1", (channels, channels, 1, 7), value)
            value = self.weight(f"{name}.op.2", (channels, channels, 7, 1), value)
            return self.norm(f"{name}.op.3", channels, value)
        kind, _, size = op.op.rpartition("_")
        kernel = int(size[0])
        if kind == "conv":
            value = self.weight(f"{name}.op.1", (channels, channels, kernel, kernel), value)
            return self.norm(f"{name}.op.2", channels, value)
        for first in (1, 5) if kind == "sep_conv" else (1,):
            value = self.weight(f"{name}.op.{first}", (channels, 1, kernel, kernel), value, primitive=kind)
            value = self.weight(f"{name}.op.{first + 1}", (channels, channels, 1, 1), value)
            value = self.norm(f"{name}.op.{first + 2}", channels, value)
        return value

    def msa(self, name: str, channels: int, value: Value) -> Value:
        inner = self.norm(f"{name}.ln1", channels, value, primitive="ln")
        inner = self.weight(f"{name}.to_qkv", (3 * channels, channels), inner)
        inner = self.graph.add(Node(primitive="msa"), inner)
        value = self.graph.join("sum", value, self.linear(f"{name}.to_out.0", channels, channels, inner))
        inner = self.norm(f"{name}.ln2", channels, value, primitive="ln")
        inner = self.linear(f"{name}.ff.net.0", channels, channels, inner)
        return self.graph.join("sum", value, self.linear(f"{name}.ff.net.3", channels, channels, inner))

    def cse(self, name: str, channels: int, value: Value) -> Value:
        gate = self.linear(f"{name}.fc1", channels, channels // 2, value)
        gate = self.linear(f"{name}.fc2", channels // 2, channels, gate)
        return self.graph.add(Node(primitive="cse"), value, gate)
