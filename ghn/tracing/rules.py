"""The one table of rules: which node each torch function becomes.

A rule is asked only when data reaches the call. Functions without a rule dissolve: their inputs connect to their outputs.
A parameter that such a function combines with data stays unpredicted and is reported. Primitives are the paper's fifteen
(section 2.1); what real networks have beyond the search space takes the nearest one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ghn.graph import Node
from ghn.tracing.recorder import Call, Nodes, Recorder, Rule, tensors


def _linear(recorder: Recorder, call: Call) -> Nodes:
    """A weight node, and behind it a bias node."""
    return _weighted(recorder, "conv", call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias"))


def _weighted(recorder: Recorder, primitive: str, x: object, weight: object, bias: object) -> Nodes:
    value = recorder.place(primitive, weight, "weight", recorder.nodes(x, weight, bias))
    return recorder.place("bias", bias, "bias", value) if recorder.parameters(bias) else value


def _bilinear(recorder: Recorder, call: Call) -> Nodes:
    """A product of two inputs and a weight (out, in1, in2)."""
    value = recorder.place("conv", call.get(2, "weight"), "weight", recorder.nodes(*tensors(call.args)))
    bias = call.get(3, "bias")
    return recorder.place("bias", bias, "bias", value) if recorder.parameters(bias) else value


def _convolution(dilation_at: int, groups_at: int) -> Rule:
    def rule(recorder: Recorder, call: Call) -> Nodes:
        dilation, groups = call.get(dilation_at, "dilation", 1), call.get(groups_at, "groups", 1)
        dilated = max(dilation) > 1 if isinstance(dilation, (tuple, list)) else dilation > 1
        primitive = "conv" if groups == 1 else ("dil_conv" if dilated else "sep_conv")
        return _weighted(recorder, primitive, call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias"))

    return rule


def _norm(primitive: str, weight_at: int) -> Rule:
    def rule(recorder: Recorder, call: Call) -> Nodes | None:
        weight, bias = call.get(weight_at, "weight"), call.get(weight_at + 1, "bias")
        if not recorder.parameters(weight, bias):
            return None
        return recorder.place_norm(primitive, weight, bias, recorder.nodes(call.get(0, "input")))

    return rule


def _pool(primitive: str) -> Rule:
    def rule(recorder: Recorder, call: Call) -> Nodes:
        kernel = call.get(1, "kernel_size")
        sizes = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel, kernel)
        kh, kw = (sizes * 2)[-2:]
        return recorder.record(
            Node(primitive=primitive, shape=(1, 1, int(kh), int(kw))), recorder.nodes(call.get(0, "input"))
        )

    return rule


def _global_pool(recorder: Recorder, call: Call) -> Nodes:
    return recorder.record(Node(primitive="glob_avg"), recorder.nodes(call.get(0, "input")))


def _mean(recorder: Recorder, call: Call) -> Nodes | None:
    """A mean over all positions of a map (NCHW or NHWC), of a sequence (NTC) or of a signal (NCL)."""
    x, dims = call.get(0, "input"), call.get(1, "dim", ())
    dims = {dim % x.ndim for dim in ((dims,) if isinstance(dims, int) else dims or ())}
    positions = ({2, 3}, {1, 2}) if x.ndim == 4 else (({1}, {2}) if x.ndim == 3 else ({2, 3, 4},))
    return _global_pool(recorder, call) if dims in positions else None


def _is_vector(tensor: Tensor) -> bool:
    return sum(size != 1 for size in tensor.shape) <= 1


def _operands(call: Call) -> tuple[Any, Any]:
    return call.get(0, "input"), call.get(1, "other")


def _add(recorder: Recorder, call: Call) -> Nodes:
    """A sum of activations; a bias node; or a positional map (also a bias on attention weights), which joins by a sum."""
    left, right = _operands(call)
    if recorder.parameters(left) and not recorder.parameters(right):
        left, right = right, left
    if not recorder.parameters(right):
        return recorder.record(Node(primitive="sum"), recorder.nodes(left), recorder.nodes(right))
    if _is_vector(right):
        return recorder.place("bias", right, "bias", recorder.nodes(left, right))
    return recorder.record(
        Node(primitive="sum"), recorder.nodes(left), recorder.place("pos_enc", right, "pos_enc", recorder.nodes(right))
    )


def _multiply(recorder: Recorder, call: Call) -> Nodes | None:
    """A gate (two activations of different origins), or a learned scale."""
    left, right = _operands(call)
    if recorder.parameters(left) and not recorder.parameters(right):
        left, right = right, left
    if recorder.parameters(right):
        return _scale(recorder, left, right)
    one, other = recorder.nodes(left), recorder.nodes(right)
    return recorder.record(Node(primitive="cse"), one, other) if one and other and one != other else None


def _scale(recorder: Recorder, x: object, scale: object) -> Nodes:
    """Layer scale, temperature, slopes: a factor around 1, like a norm's weight."""
    return recorder.place("ln", scale, "norm_weight", recorder.nodes(x, scale))


def _prelu(recorder: Recorder, call: Call) -> Nodes:
    return _scale(recorder, call.get(0, "input"), call.get(1, "weight"))


def _add_product(recorder: Recorder, call: Call) -> Nodes:
    """``addcmul``: a learned scale and a learned bias in one call, or a gate and a sum."""
    value = recorder.nodes(*tensors(call.args))
    for factor in call.args[1:3]:
        if recorder.parameters(factor):
            value = recorder.place("ln", factor, "norm_weight", value)
    if recorder.parameters(call.args[0]):
        value = recorder.place("bias", call.args[0], "bias", value)
    return value


def _concat(recorder: Recorder, call: Call) -> Nodes:
    """Activations side by side; class tokens are sources like positional maps."""
    parts = list(tensors(call.get(0, "tensors")))
    values = [_source(recorder, part) if recorder.parameters(part) else recorder.nodes(part) for part in parts]
    return recorder.record(Node(primitive="concat"), *values)


def _source(recorder: Recorder, tensor: object) -> Nodes:
    return recorder.place("pos_enc", tensor, "pos_enc", recorder.nodes(tensor))


def _mix(recorder: Recorder, call: Call) -> Nodes | None:
    """Activations and a learned token that replaces parts of them (masks)."""
    inputs = list(tensors((call.args, call.kwargs)))
    if not recorder.parameters(*inputs):
        return None
    tokens = [_source(recorder, tensor) for tensor in inputs if recorder.parameters(tensor)]
    return recorder.record(Node(primitive="sum"), recorder.nodes(*inputs), *tokens)


def _attention(recorder: Recorder, call: Call) -> Nodes:
    """The attention product; a learned bias on its weights is a source."""
    inputs = list(tensors((call.args, call.kwargs)))
    biases = [_source(recorder, tensor) for tensor in inputs if recorder.parameters(tensor)]
    return recorder.record(Node(primitive="msa"), recorder.nodes(*inputs), *biases)


def _product(recorder: Recorder, call: Call) -> Nodes | None:
    """Attention weights times values is the attention node; a learned factor is a linear layer; others dissolve."""
    inputs = list(tensors((call.args, call.kwargs)))
    if learned := [tensor for tensor in inputs if recorder.parameters(tensor)]:
        value = recorder.nodes(*inputs)
        for tensor in learned:
            value = recorder.place("conv", tensor, "weight", value)
        return value
    if not any(id(tensor) in recorder.attention for tensor in inputs):
        return None
    return recorder.record(Node(primitive="msa"), recorder.nodes(*inputs))


def _multi_head_attention(recorder: Recorder, call: Call) -> Nodes:
    """``nn.MultiheadAttention``: input projections, attention, output projection."""
    query, key, value = call.get(0, "query"), call.get(1, "key"), call.get(2, "value")
    in_weight, in_bias = call.get(5, "in_proj_weight"), call.get(6, "in_proj_bias")
    projected = recorder.nodes(query, key, value)
    separate = [(query, "q_proj_weight"), (key, "k_proj_weight"), (value, "v_proj_weight")]
    if in_weight is not None:
        projected = recorder.place("conv", in_weight, "weight", projected)
    else:
        parts = [recorder.place("conv", call.kwargs.get(name), "weight", recorder.nodes(x)) for x, name in separate]
        projected = projected.union(*parts) - recorder.nodes(query, key, value)
    if recorder.parameters(in_bias):
        projected = recorder.place("bias", in_bias, "bias", projected)
    tokens = [call.get(7, "bias_k"), call.get(8, "bias_v"), call.get(16, "attn_mask")]
    learned = [_source(recorder, token) for token in tokens if recorder.parameters(token)]
    attended = recorder.record(Node(primitive="msa"), projected, *learned)
    out_weight, out_bias = call.get(11, "out_proj_weight"), call.get(12, "out_proj_bias")
    value_out = recorder.place("conv", out_weight, "weight", attended)
    return recorder.place("bias", out_bias, "bias", value_out) if recorder.parameters(out_bias) else value_out


def _embedding(recorder: Recorder, call: Call) -> Nodes:
    """A table of tokens is a linear layer on one-hot rows."""
    weight = next(tensor for tensor in call.args[:2] if not recorder.nodes(tensor) or recorder.parameters(tensor))
    return recorder.place("conv", weight, "weight", recorder.nodes(*tensors(call.args)))


def _recurrent(recorder: Recorder, call: Call) -> Nodes:
    """Recurrent layers: their weights in the order of the call, each behind the one before."""
    value = recorder.nodes(*tensors(call.args))
    for weight in tensors(call.args):
        if recorder.parameters(weight):
            matrix = weight.ndim > 1
            value = recorder.place("conv" if matrix else "bias", weight, "weight" if matrix else "bias", value)
    return value


def _select(recorder: Recorder, call: Call) -> Nodes | None:
    """A learned table indexed by data (relative positions computed on the fly)."""
    return _embedding(recorder, call) if recorder.parameters(call.get(0, "input")) else None


RULES: dict[str, Rule] = {
    "linear": _linear,
    "bilinear": _bilinear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution(5, 6)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution(7, 6)),
    "batch_norm": _norm("bn", 3),
    "instance_norm": _norm("bn", 3),
    "group_norm": _norm("bn", 2),
    "layer_norm": _norm("ln", 2),
    "rms_norm": _norm("ln", 2),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _pool("max_pool")),
    **dict.fromkeys(("max_pool1d_with_indices", "max_pool2d_with_indices"), _pool("max_pool")),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool("avg_pool")),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), _global_pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"), _global_pool),
    "mean": _mean,
    **dict.fromkeys(("add", "iadd", "radd", "sub", "isub", "rsub", "add_relu"), _add),
    **dict.fromkeys(("mul", "imul", "rmul", "multiply", "div", "truediv", "itruediv", "rtruediv"), _multiply),
    "prelu": _prelu,
    "addcmul": _add_product,
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _concat),
    **dict.fromkeys(("where", "masked_fill", "lerp", "setitem", "copy", "index_put", "masked_scatter"), _mix),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("matmul", "rmatmul", "bmm", "einsum", "mm", "baddbmm", "tensordot"), _product),
    "multi_head_attention_forward": _multi_head_attention,
    **dict.fromkeys(("embedding", "embedding_bag"), _embedding),
    **dict.fromkeys(("getitem", "index_select", "gather"), _select),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"), _recurrent),
}

IGNORES = frozenset(
    {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones"}
    | {"new_empty", "new_full", "new_tensor"}
)
"""Functions that take only shape and type from their arguments."""
