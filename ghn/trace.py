"""The graph of any ``nn.Module``, by running it once on meta tensors: no arithmetic, and the module is left as it is.

Every torch function that the module calls is looked up by name in one table of rules. A rule says which node the call
becomes; a function without a rule that takes no parameter dissolves (its inputs connect to its outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ghn.errors import InputError
from ghn.graph import ArchitectureGraph, GraphBuilder, Node, Parameter, ParameterRole

Value = frozenset[int]
_EMPTY: Value = frozenset()


def trace(module: nn.Module, example_input: Tensor) -> ArchitectureGraph:
    """Return the graph of a module.

    Args:
        module: any classifier whose forward takes one tensor and returns logits (N, classes); its training or
            evaluation mode is respected, its parameters and buffers are not touched.
        example_input: a tensor of the right shape and dtype (its values do not matter), e.g. (1, 3, 224, 224).

    Returns:
        A graph whose parameters carry the names of ``module.named_parameters()``. Trainable parameters that do not lie
        between input and output are listed in ``kept`` with the reason.

    Raises:
        InputError: if the module fails on the input, has no parameters, applies a parameter in an unknown way, or if
            its output does not depend on its input; the message names the class, the call and the parameter.

    """
    label = type(module).__name__
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise InputError(f"{label} has no trainable parameters: there is nothing to predict")
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    names = {id(state[name]): name for name, _ in module.named_parameters()}
    meta_input = torch.empty_like(example_input, device="meta")
    recorder = _Recorder(names, meta_input)
    try:
        with torch.no_grad(), torch.device("meta"), recorder:
            output = torch.func.functional_call(module, state, (meta_input,))
    except InputError:
        raise
    except Exception as error:
        shape = tuple(example_input.shape)
        raise InputError(
            f"{label} can not be traced on an input of shape {shape}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(output, Tensor):
        raise InputError(f"{label} returns {type(output).__name__}; trace needs one tensor of logits")
    return recorder.finish(output, label, trainable)


@dataclass(kw_only=True)
class _Record:
    """One recorded call: the node it becomes and the values that feed it."""

    node: Node
    inputs: tuple[Value, ...]


class _Recorder(TorchFunctionMode):
    """Follow which recorded nodes each tensor is made of."""

    def __init__(self, names: dict[int, str], image: Tensor) -> None:
        super().__init__()
        self.names = names
        self.records: list[_Record] = []
        self.values: dict[int, tuple[Tensor, Value]] = {}  # keeps the tensors alive, so that ids stay unique
        self.attention: set[int] = set()  # ids of tensors that are attention weights
        self.assign(image, self.record(Node(primitive="input")))

    def record(self, node: Node, *inputs: Value) -> Value:
        self.records.append(_Record(node=node, inputs=inputs))
        return frozenset([len(self.records) - 1])

    def assign(self, tensor: Tensor, value: Value) -> None:
        self.values[id(tensor)] = (tensor, value)

    def value(self, tensor: object) -> Value:
        return self.values[id(tensor)][1] if isinstance(tensor, Tensor) and id(tensor) in self.values else _EMPTY

    def name(self, tensor: object) -> str | None:
        return self.names.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def parameter(self, node: str, tensor: Tensor, role: ParameterRole, *inputs: Value) -> Value:
        """Record a node that carries one parameter."""
        shape = tuple(tensor.shape)
        parameters = (Parameter(name=self.names[id(tensor)], shape=shape, role=role),)
        return self.record(Node(primitive=node, shape=shape, parameters=parameters), *inputs)

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = _without_arithmetic(func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        if not outputs:
            return result
        name = getattr(func, "__name__", "").strip("_")
        rule = _RULES.get(name)
        value = rule(self, args, kwargs) if rule else None
        if value is None:
            inputs = list(_tensors((args, kwargs)))
            used = [self.names[id(tensor)] for tensor in inputs if id(tensor) in self.names]
            value = _EMPTY.union(*(self.value(tensor) for tensor in inputs))
            if used and name not in _READS_PARAMETER:
                raise InputError(f"no tracing rule for {name or func!r} applied to parameter {used[0]!r}")
        for output in outputs:
            if id(output) not in self.names:
                self.assign(output, value)
                if name == "softmax" or (name in _KEEPS_ATTENTION and args and id(args[0]) in self.attention):
                    self.attention.add(id(output))
        return result

    def finish(self, output: Tensor, label: str, trainable: set[str]) -> ArchitectureGraph:
        """Mark the classifier, dissolve what is no node, and build the graph."""
        out = self.value(output)
        if not self._reaches(out):
            raise InputError(f"the output of {label} does not depend on its input")
        if output.ndim != 2:
            raise InputError(
                f"{label} returns a tensor of shape {tuple(output.shape)}; trace needs logits (N, classes)"
            )
        self._mark_classifier(out)
        graph = GraphBuilder()
        values: list[Value] = []
        for i, record in enumerate(self.records):
            inputs = tuple(frozenset().union(*(values[j] for j in value)) for value in record.inputs)
            joined: Value = frozenset().union(*inputs)
            if record.node.primitive in ("sum", "concat"):
                values.append(graph.join(record.node.primitive, *inputs))
            elif record.node.primitive == "glob_avg" and self._reaches(out, without=i):
                values.append(joined)  # pooling inside a gate
            else:
                values.append(graph.add(record.node, *inputs))
        last: Value = graph.join("sum", *(values[i] for i in out))
        built = graph.finish(last, num_classes=output.shape[1])
        covered = {parameter.name for parameter in built.parameters}
        kept = tuple((name, "not between input and output") for name in sorted(trainable - covered))
        built = ArchitectureGraph(nodes=built.nodes, edges=built.edges, num_classes=built.num_classes, kept=kept)
        built.validate()
        return built

    def _reaches(self, out: Value, without: int | None = None) -> bool:
        """Whether the input (record 0) feeds ``out``, also when one record is taken away."""
        seen, stack = set(), [i for i in out if i != without]
        while stack:
            i = stack.pop()
            if i not in seen:
                seen.add(i)
                stack += [j for value in self.records[i].inputs for j in value if j != without]
        return 0 in seen

    def _mark_classifier(self, out: Value) -> None:
        """Give the last linear layer its roles."""
        for i in out:
            record = self.records[i]
            if record.node.primitive == "bias":
                record.node = _with_role(record.node, "class_bias")
                self._mark_classifier(frozenset().union(*record.inputs))
            elif record.node.primitive == "conv" and record.node.shape is not None and len(record.node.shape) == 2:
                record.node = _with_role(record.node, "class_weight")


def _with_role(node: Node, role: ParameterRole) -> Node:
    parameters = tuple(Parameter(name=p.name, shape=p.shape, role=role) for p in node.parameters)
    return Node(primitive=node.primitive, shape=node.shape, parameters=parameters)


def _without_arithmetic(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the result of a call that keeps its first input's shape, or ``None`` for other calls.

    These few are most of a network's calls, and torch takes milliseconds to work out each of their shapes.
    """
    name = getattr(func, "__name__", "")
    if name in ("batch_norm", "layer_norm", "gelu"):
        keeps = True
    elif name in ("relu", "hardswish"):
        keeps = len(args) == 1 and not kwargs.get("inplace")
    elif name == "add":
        keeps = len(args) == 2 and all(isinstance(x, Tensor) for x in args) and args[0].shape == args[1].shape
    else:
        keeps = False
    return torch.empty_like(args[0]) if keeps and args else None


def _tensors(data: Any) -> Iterator[Tensor]:
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, dict):
        yield from _tensors(list(data.values()))
    elif isinstance(data, (list, tuple)):
        for item in data:
            yield from _tensors(item)


# The rules. Each takes the recorder and the call's arguments and returns the value of the result, or None to dissolve.

_Rule = Callable[[_Recorder, tuple[Any, ...], dict[str, Any]], Value | None]


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _weighted(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any], primitive: str) -> Value | None:
    """A weight node and, behind it, a bias node."""
    weight = _argument(args, kwargs, 1, "weight")
    if recorder.name(weight) is None:
        return None
    value = recorder.parameter(primitive, weight, "weight", recorder.value(_argument(args, kwargs, 0, "input")))
    bias = _argument(args, kwargs, 2, "bias")
    if recorder.name(bias) is not None:
        value = recorder.parameter("bias", bias, "bias", value)
    return value


def _linear(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value | None:
    return _weighted(recorder, args, kwargs, "conv")


def _convolution(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value | None:
    dilation, groups = _argument(args, kwargs, 5, "dilation", 1), _argument(args, kwargs, 6, "groups", 1)
    dilated = max(dilation) > 1 if isinstance(dilation, (tuple, list)) else dilation > 1
    primitive = "conv" if groups == 1 else ("dil_conv" if dilated else "sep_conv")
    return _weighted(recorder, args, kwargs, primitive)


def _norm(primitive: str, weight_at: int) -> _Rule:
    def rule(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value | None:
        weight = _argument(args, kwargs, weight_at, "weight")
        bias = _argument(args, kwargs, weight_at + 1, "bias")
        if recorder.name(weight) is None:
            return None
        parameters = [Parameter(name=recorder.names[id(weight)], shape=tuple(weight.shape), role="norm_weight")]
        if recorder.name(bias) is not None:
            parameters.append(Parameter(name=recorder.names[id(bias)], shape=tuple(bias.shape), role="bias"))
        node = Node(primitive=primitive, shape=tuple(weight.shape), parameters=tuple(parameters))
        return recorder.record(node, recorder.value(_argument(args, kwargs, 0, "input")))

    return rule


def _pool(primitive: str) -> _Rule:
    def rule(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        kernel = _argument(args, kwargs, 1, "kernel_size")
        kh, kw = kernel if isinstance(kernel, (tuple, list)) else (kernel, kernel)
        value = recorder.value(_argument(args, kwargs, 0, "input"))
        return recorder.record(Node(primitive=primitive, shape=(1, 1, kh, kw)), value)

    return rule


def _global_average(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    return recorder.record(Node(primitive="glob_avg"), recorder.value(args[0]))


def _mean(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value | None:
    dims = _argument(args, kwargs, 1, "dim", ())
    dims = {dim % args[0].ndim for dim in ((dims,) if isinstance(dims, int) else dims)}
    spatial = args[0].ndim == 4 and dims == {2, 3}
    return _global_average(recorder, args, kwargs) if spatial else None


def _add(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value | None:
    """A sum of two activations, or of an activation and a positional map."""
    values = []
    for operand in (args[0], _argument(args, kwargs, 1, "other")):
        if recorder.name(operand) is not None:
            values.append(recorder.parameter("pos_enc", operand, "pos_enc"))
        else:
            values.append(recorder.value(operand))
    return recorder.record(Node(primitive="sum"), *values)


def _concat(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value | None:
    parts = list(_tensors(_argument(args, kwargs, 0, "tensors")))
    if any(recorder.name(part) for part in parts):
        return None
    return recorder.record(Node(primitive="concat"), *(recorder.value(part) for part in parts))


def _multiply(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value | None:
    """A gate: two activations with different origins."""
    left, right = recorder.value(args[0]), recorder.value(_argument(args, kwargs, 1, "other"))
    return recorder.record(Node(primitive="cse"), left, right) if left and right and left != right else None


def _attention(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    return recorder.record(Node(primitive="msa"), *(recorder.value(tensor) for tensor in _tensors(args[:3])))


def _matmul(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value | None:
    """Attention weights times values is the attention node; queries times keys dissolves."""
    if id(args[0]) not in recorder.attention:
        return None
    return recorder.record(Node(primitive="msa"), recorder.value(args[0]), recorder.value(args[1]))


_RULES: dict[str, _Rule] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "batch_norm": _norm("bn", 3),
    "instance_norm": _norm("bn", 3),
    "group_norm": _norm("bn", 2),
    "layer_norm": _norm("ln", 2),
    **dict.fromkeys(("max_pool1d", "max_pool2d"), _pool("max_pool")),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), _pool("avg_pool")),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), _global_average),
    "mean": _mean,
    **dict.fromkeys(("add", "iadd", "radd"), _add),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    **dict.fromkeys(("mul", "imul", "rmul", "multiply"), _multiply),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("matmul", "bmm"), _matmul),
}
_READS_PARAMETER = {"size", "dim", "get", "getitem", "to", "type_as", "zeros_like", "ones_like", "empty_like"}
_KEEPS_ATTENTION = {"dropout", "to", "view", "reshape", "transpose", "contiguous", "type_as"}
