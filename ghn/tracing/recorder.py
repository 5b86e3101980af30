"""Follow every torch call of a running module: which recorded nodes, and which parameters, each tensor is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ghn.graph import Node, Parameter, ParameterRole
from ghn.tracing.shapes import result_without_arithmetic

Nodes = frozenset[int]
NOTHING: Nodes = frozenset()


@dataclass(frozen=True)
class Origin:
    """What a tensor is made of: recorded nodes, or (before it meets any data) parameters alone."""

    nodes: Nodes = NOTHING
    parameters: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Record:
    """One node, and the values that feed it."""

    node: Node
    inputs: tuple[Nodes, ...]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One torch call: function name without underscores around it, positional and named arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


Rule = Callable[["Recorder", Call], Nodes | None]


class Recorder(TorchFunctionMode):
    """Record nodes while a module runs.

    Args:
        parameters: trainable parameters' names and their stand-ins.
        rules: what each function becomes; a rule that returns ``None`` leaves its call to dissolve.
        ignores: functions whose results hold nothing of their arguments but shapes and types.

    """

    def __init__(self, parameters: Mapping[str, Tensor], rules: Mapping[str, Rule], ignores: frozenset[str]) -> None:
        super().__init__()
        self.rules = rules
        self.ignores = ignores
        self.shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        self.records: list[Record] = []
        self.placed: set[str] = set()
        self.unknown: dict[str, str] = {}  # parameter -> function that uses it in a way without a rule
        self.attention: set[int] = set()  # ids of tensors that are attention weights
        # The tensors are kept alive, so that ids stay unique.
        self._origins: dict[int, tuple[Tensor, Origin]] = {
            id(tensor): (tensor, Origin(parameters=(name,))) for name, tensor in parameters.items()
        }
        self._parameter_ids = frozenset(self._origins)

    # What rules work with

    def origin(self, tensor: object) -> Origin:
        """Return what a tensor is made of (nothing, for anything else)."""
        known = self._origins.get(id(tensor)) if isinstance(tensor, Tensor) else None
        return known[1] if known else Origin()

    def nodes(self, *tensors: object) -> Nodes:
        """Return all nodes that tensors are made of."""
        return NOTHING.union(*(self.origin(tensor).nodes for tensor in tensors))

    def parameters(self, *tensors: object) -> tuple[str, ...]:
        """Return the parameters that tensors are made of, each once, in order."""
        return tuple(dict.fromkeys(name for tensor in tensors for name in self.origin(tensor).parameters))

    def record(self, node: Node, *inputs: Nodes) -> Nodes:
        """Add a node fed by values; return its value."""
        self.records.append(Record(node=node, inputs=inputs))
        return frozenset([len(self.records) - 1])

    def place(self, primitive: str, tensor: object, role: ParameterRole, *inputs: Nodes) -> Nodes:
        """Add a node for each parameter that ``tensor`` is made of; without any (a constant), one that predicts nothing."""
        names = self.parameters(tensor)
        if not names:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else None
            return self.record(Node(primitive=primitive, shape=shape), *inputs)
        return NOTHING.union(*(self.record(self._node(primitive, name, role), *inputs) for name in names))

    def place_norm(self, primitive: str, weight: object, bias: object, *inputs: Nodes) -> Nodes:
        """Add a norm's node with its weight and bias (either may be missing)."""
        parameters: list[Parameter] = []
        for tensor, role in ((weight, "norm_weight"), (bias, "bias")):
            for name in self.parameters(tensor):
                parameters += self._node(primitive, name, role).parameters  # type: ignore[arg-type]
        shaped = next((tensor for tensor in (weight, bias) if isinstance(tensor, Tensor)), None)
        shape = None if shaped is None else tuple(shaped.shape)
        return self.record(Node(primitive=primitive, shape=shape, parameters=tuple(parameters)), *inputs)

    def _node(self, primitive: str, name: str, role: ParameterRole) -> Node:
        """Make a node that carries a parameter, unless another node does (tied weights, a module used twice)."""
        shape = self.shapes[name]
        parameters = () if name in self.placed else (Parameter(name=name, shape=shape, role=role),)
        self.placed.add(name)
        return Node(primitive=primitive, shape=shape, parameters=parameters)

    # What happens at each call

    def assign(self, tensor: Tensor, origin: Origin) -> None:
        """Remember what a tensor is made of."""
        self._origins[id(tensor)] = (tensor, origin)

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors((args, kwargs)))
        if not all(tensor.is_meta for tensor in inputs):  # constants that are no buffers
            args, kwargs = to_meta(args), to_meta(kwargs)
        result = result_without_arithmetic(func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        call = Call(name=getattr(func, "__name__", "").strip("_"), args=args, kwargs=kwargs)
        # Assigning to a part of a tensor changes what the whole is made of.
        outputs = [args[0]] if call.name == "setitem" else list(tensors(result))
        if outputs and call.name not in self.ignores:
            origin = self._follow(call, inputs)
            of_attention = id(call.get(0, "input")) in self.attention
            weights = call.name == "softmax" or (of_attention and call.name not in _ENDS_ATTENTION)
            for output in outputs:
                if id(output) not in self._parameter_ids:
                    self.assign(output, origin)
                    if weights:
                        self.attention.add(id(output))
        return result

    def _follow(self, call: Call, inputs: list[Tensor]) -> Origin:
        nodes, parameters = self.nodes(*inputs), self.parameters(*inputs)
        if not nodes:
            return Origin(parameters=parameters)  # made of parameters alone (or of nothing): no data yet
        rule = self.rules.get(call.name)
        value = rule(self, call) if rule else None
        if value is not None:
            return Origin(value)
        for name in parameters:
            self.unknown.setdefault(name, call.name)
        return Origin(nodes)


_ENDS_ATTENTION = frozenset({"matmul", "bmm", "einsum", "mul", "sum"})


def to_meta(data: Any) -> Any:
    """Return nested lists, tuples and dictionaries with all tensors on the meta device."""
    if isinstance(data, Tensor):
        return data if data.is_meta else torch.empty_like(data, device="meta")
    if type(data) in (list, tuple):
        return type(data)(to_meta(item) for item in data)
    return {key: to_meta(item) for key, item in data.items()} if type(data) is dict else data


def tensors(data: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested lists, tuples and dictionaries."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, Mapping):
        for item in data.values():
            yield from tensors(item)
    elif isinstance(data, (list, tuple)):
        for item in data:
            yield from tensors(item)
