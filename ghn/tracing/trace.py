"""Run a module on meta tensors and make a graph of what was recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ghn.errors import InputError
from ghn.graph import ArchitectureGraph, Node, ParameterRole
from ghn.graph_builder import GraphBuilder, Value, union
from ghn.tracing.recorder import NOTHING, Nodes, Origin, Recorder, tensors, to_meta
from ghn.tracing.rules import IGNORES, RULES

_WEIGHTS = ("conv", "sep_conv", "dil_conv")


def trace(module: nn.Module, example_input: Any) -> ArchitectureGraph:
    """Return the graph of a module, without running its arithmetic and without changing it.

    Args:
        module: any module; its training or evaluation mode is followed (auxiliary heads often exist in training only).
        example_input: a tensor of the right shape and dtype (its values do not matter), e.g. (1, 3, 224, 224); or a tuple
            of arguments, or a dictionary of named ones.

    Returns:
        A graph whose parameters carry the names of ``module.named_parameters()`` (shared ones the first). The last linear
        layers or convolutions on the paths to the outputs are the classifiers. Trainable parameters that no node carries
        are listed in ``kept`` with the reason.

    Raises:
        InputError: if the module fails on the input, has no trainable parameters, or if its output holds no tensor or
            does not depend on its input; the message names the class and its module.

    Examples:
        >>> graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.zeros(1, 3, 32, 32))
        >>> [(node.primitive, node.shape) for node in graph.nodes[1:]]
        [('conv', (8, 3, 3, 3)), ('bias', (8,)), ('bn', (8,))]

    """
    label = f"{type(module).__module__}.{type(module).__qualname__}"
    named = dict(module.named_parameters())
    if lazy := next((name for name, parameter in named.items() if nn.parameter.is_lazy(parameter)), None):
        raise InputError(f"{label}: parameter {lazy!r} has no shape yet; run the module once before tracing it")
    trainable = {name for name, parameter in named.items() if parameter.requires_grad}
    predictable = {name for name in trainable if named[name].is_floating_point() and named[name].numel()}
    if not trainable:
        raise InputError(f"{label} has no trainable parameters: there is nothing to predict")
    args, kwargs = _meta_arguments(example_input)
    stand_ins = {
        id(t): torch.empty(t.shape, dtype=t.dtype, device="meta") for t in [*named.values(), *module.buffers()]
    }
    recorder = Recorder({name: stand_ins[id(named[name])] for name in named if name in predictable}, RULES, IGNORES)
    image = recorder.record(Node(primitive="input"))
    for tensor in tensors((args, kwargs)):
        recorder.assign(tensor, Origin(image))
    try:
        with torch.no_grad(), torch.device("meta"), _replaced(module, stand_ins), recorder:
            output = module(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors((args, kwargs))) or "no tensors"
        raise InputError(
            f"{label} can not be traced on an input of shape {shapes}: {type(error).__name__}"
            f"{_where(module, error)}: {error}; give an example input that the module takes"
        ) from error
    outputs = list(tensors(output))
    if not outputs:
        raise InputError(f"{label} returns {type(output).__name__} without a tensor; trace needs tensors")
    return _Finish(recorder, outputs, label).graph(trainable)


def _meta_arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_input, dict):
        return (), to_meta(example_input)
    if isinstance(example_input, (tuple, list)):
        return to_meta(tuple(example_input)), {}
    return (to_meta(example_input),), {}


def _where(module: nn.Module, error: Exception) -> str:
    """Return `` in PATH`` for the innermost part of a module that an error passed through."""
    names = {id(part): name for name, part in module.named_modules() if name}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = names.get(id(frame.f_locals.get("self")), found)
    return f" in {found}" if found else ""


@contextlib.contextmanager
def _replaced(module: nn.Module, stand_ins: Mapping[int, Tensor]) -> Iterator[None]:
    """Put stand-ins in the place of all parameters and buffers, and put those back.

    ``torch.func.functional_call`` leaves stand-ins behind in a module that is registered under two names.
    """
    undo: list[tuple[Any, Any]] = []
    try:
        for part in module.modules():  # each once
            for table in (part._parameters, part._buffers):
                undo.append((table, dict(table)))
                table.update({name: stand_ins[id(t)] for name, t in table.items() if t is not None})  # type: ignore[misc]
            if isinstance(part, nn.RNNBase):  # keeps its parameters in a list, too
                undo.append((part, part._flat_weights))
                part._flat_weights = [stand_ins.get(id(t), t) for t in part._flat_weights]
        yield
    finally:
        for place, content in undo:
            if isinstance(place, nn.RNNBase):
                place._flat_weights = content
            else:
                place.update(content)


class _Finish:
    """Mark the classifiers, dissolve what is no node, and build the graph."""

    def __init__(self, recorder: Recorder, outputs: list[Tensor], label: str) -> None:
        self.records = recorder.records
        self.unknown = recorder.unknown
        self.predictable = recorder.shapes.keys()
        self.values = [recorder.nodes(output) for output in outputs]
        self.out: Nodes = NOTHING.union(*self.values)
        if not self.reaches_input(self.out):
            raise InputError(f"the output of {label} does not depend on its input")
        if outputs[0].ndim == 0:
            raise InputError(
                f"the output of {label} is a single number; trace needs a dimension of classes or channels"
            )
        self.num_classes = int(outputs[0].shape[1] if outputs[0].ndim in (2, 4) else outputs[0].shape[-1])

    def graph(self, trainable: set[str]) -> ArchitectureGraph:
        self.mark_classifiers()
        graph = GraphBuilder()
        made: list[Value] = []
        for i, record in enumerate(self.records):
            inputs = tuple(union([made[j] for j in value]) for value in record.inputs)
            primitive = record.node.primitive
            if primitive in ("sum", "concat"):
                made.append(graph.join(primitive, *inputs))
            elif primitive == "glob_avg" and self.reaches_input(self.out, without=i):
                made.append(union(inputs))  # pooling inside a gate
            else:
                made.append(graph.add(record.node, *inputs))
        values = [union([made[i] for i in value]) for value in self.values]
        last = graph.join("concat" if len(values) > 1 else "sum", *values)
        built = graph.finish(last, num_classes=self.num_classes)
        covered = {parameter.name for parameter in built.parameters}
        kept = tuple((name, self.reason(name)) for name in sorted(trainable - covered))
        result = dataclasses.replace(built, kept=kept)
        result.validate()
        return result

    def reason(self, name: str) -> str:
        if name in self.unknown:
            return f"{self.unknown[name]} combines it with data, which has no rule"
        if name not in self.predictable:
            return "it holds no real numbers"
        return "not between input and output"

    def reaches_input(self, start: Nodes, without: int | None = None) -> bool:
        """Whether the input (record 0) feeds ``start``, also when one record is taken away."""
        seen: set[int] = set()
        stack = [i for i in start if i != without]
        while stack:
            i = stack.pop()
            if i == 0:
                return True
            if i not in seen:
                seen.add(i)
                stack += [j for value in self.records[i].inputs for j in value if j != without]
        return False

    def mark_classifiers(self) -> None:
        """Give the last layer on each path to an output its roles, if it is as wide as the output."""
        seen: set[int] = set()
        stack = list(self.out)
        while stack:
            i = stack.pop()
            if i in seen:
                continue
            seen.add(i)
            record = self.records[i]
            primitive, shape = record.node.primitive, record.node.shape
            if primitive in _WEIGHTS:
                if shape is not None and shape[0] == self.num_classes:
                    record.node = _with_role(record.node, "class_weight")
                continue
            if primitive == "bias" and shape == (self.num_classes,):
                record.node = _with_role(record.node, "class_bias")
            stack += [j for value in record.inputs for j in value]


def _with_role(node: Node, role: ParameterRole) -> Node:
    return node._replace(parameters=tuple(parameter._replace(role=role) for parameter in node.parameters))
