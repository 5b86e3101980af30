"""Put a graph together from values: nodes are added in topological order, joins of one value and dead ends dissolve."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from ghn.graph import ArchitectureGraph, Node, Parameter

Value = tuple[int, ...]
"""A value of the network: the nodes whose output it is made of, ascending (one, or several where a join was dissolved)."""


def union(values: Sequence[Value]) -> Value:
    """Return the nodes of all values, each once."""
    if len(values) == 1:
        return values[0]
    return tuple(sorted({node for value in values for node in value}))


class Block(NamedTuple):
    """A small graph with one input, to be inserted many times.

    Attributes:
        nodes: its nodes.
        inputs: for each node the numbers of those that feed it, 0 being the block's input.
        output: the nodes that its output is made of, in the same numbering.
        chain: whether each node is fed by the one before it alone, and the output is the last one.

    """

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    output: Value
    chain: bool

    def renamed(self, prefix: str) -> Block:
        """Return the block with ``prefix`` in front of the names of its parameters."""
        nodes = [
            Node(primitive, shape, tuple([Parameter(prefix + name, size, role) for name, size, role in parameters]))
            for primitive, shape, parameters in self.nodes
        ]
        return self._replace(nodes=tuple(nodes))


class GraphBuilder:
    """Collect nodes and edges in any order that respects topology, and drop what the output does not need."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._inputs: list[Value] = []

    def add(self, node: Node, *inputs: Value) -> Value:
        """Add a node fed by the given values; return its value."""
        self._nodes.append(node)
        self._inputs.append(union(inputs))
        return (len(self._nodes) - 1,)

    def join(self, primitive: str, *inputs: Value) -> Value:
        """Add a ``sum`` or ``concat`` node where two or more edges come in; otherwise pass the value on."""
        joined = union(inputs)
        return self.add(Node(primitive=primitive), joined) if len(joined) > 1 else joined

    def block(self, output: Value) -> Block:
        """Return everything behind the first node, which stands for the block's input."""
        nodes, inputs = tuple(self._nodes[1:]), tuple(self._inputs[1:])
        chain = (*inputs, output) == tuple([(i,) for i in range(len(self._nodes))])
        return Block(nodes=nodes, inputs=inputs, output=output, chain=chain)

    def insert(self, block: Block, value: Value) -> Value:
        """Add a block that is fed by ``value``; return the value of its output."""
        before = len(self._nodes) - 1
        if block.chain:  # as most blocks are
            self._nodes += block.nodes
            values = [value, *[(i,) for i in range(before + 1, len(self._nodes))]]
            self._inputs += values[:-1]
            return values[-1]

        def placed(numbers: Value) -> Value:
            if len(numbers) == 1:
                return (before + numbers[0],) if numbers[0] else value
            return union([(before + i,) if i else value for i in numbers])

        self._nodes += block.nodes
        self._inputs += [placed(numbers) for numbers in block.inputs]
        return placed(block.output)

    def finish(self, output: Value, *, num_classes: int) -> ArchitectureGraph:
        """Drop what does not reach ``output`` (a single node) and return the graph."""
        nodes, inputs = self._nodes, self._inputs
        if len({*itertools.chain(output, *inputs)}) < len(nodes):  # something is read by nothing
            nodes, inputs = self._living(output)
        return ArchitectureGraph(
            nodes=tuple(nodes),
            edges=tuple([(u, v) for v, before in enumerate(inputs) for u in before]),
            num_classes=num_classes,
        )

    def _living(self, output: Value) -> tuple[list[Node], list[Value]]:
        """Return the nodes that reach ``output``, and what feeds them."""
        alive = [False] * len(self._nodes)
        for i in output:
            alive[i] = True
        for i in reversed(range(len(alive))):
            if alive[i]:
                for u in self._inputs[i]:
                    alive[u] = True
        living = list(itertools.compress(range(len(alive)), alive))
        number = dict(zip(living, range(len(living)), strict=True))
        return [self._nodes[i] for i in living], [tuple([number[u] for u in self._inputs[i]]) for i in living]
