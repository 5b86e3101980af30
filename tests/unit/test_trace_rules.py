"""`ghn.tracing.rules`: every rule of the table, on the smallest module that uses it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ghn import GHN, GHNConfig, predict, trace
from ghn.tracing.rules import RULES
from ghn.tracing.shapes import result_without_arithmetic

IMAGE = torch.empty(2, 3, 16, 16)
SIGNAL = torch.empty(2, 3, 16)
VOLUME = torch.empty(2, 3, 8, 8, 8)
TOKENS = torch.empty(2, 5, 16)
VECTOR = torch.empty(2, 12)


class Body(nn.Module):
    """Something in front of a linear head: a function of its own layers and parameters."""

    def __init__(
        self, features: int, forward: Callable[[Body, Tensor], Tensor], **parts: nn.Module | nn.Parameter
    ) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = forward
        self.head = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, x).flatten(1))


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


def attend(m: Body, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, dim=-1)
    scores = q @ k.transpose(-2, -1) + m.bias_table[torch.zeros(5, 5, dtype=torch.long)]
    return scores.softmax(dim=-1) @ v


POOLED = ((1, 24, SIGNAL), (2, 192, IMAGE), (3, 192, VOLUME))  # dimensions, features behind the pool, input


def pooled(function: str, size: int, features: int) -> Callable[[], nn.Module]:
    return lambda: Body(features, lambda m, x: getattr(F, function)(x, size))


# name of the rule -> (module, input, primitives between the input and the head)
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, list[str]]] = {
    "bilinear": (lambda: Body(8, lambda m, x: m.f(x, x), f=nn.Bilinear(12, 12, 8)), VECTOR, ["conv", "bias"]),
    "linear": (lambda: Body(8, lambda m, x: m.f(x), f=nn.Linear(12, 8)), VECTOR, ["conv", "bias"]),
    "conv1d": (lambda: Body(8 * 14, lambda m, x: m.f(x), f=nn.Conv1d(3, 8, 3)), SIGNAL, ["conv", "bias"]),
    "conv2d": (lambda: Body(6, lambda m, x: m.f(x), f=nn.Conv2d(3, 6, 16, groups=3)), IMAGE, ["sep_conv", "bias"]),
    "conv2d dilated": (
        lambda: Body(6 * 4, lambda m, x: m.f(x), f=nn.Conv2d(3, 6, 3, dilation=7, groups=3, bias=False)),
        IMAGE,
        ["dil_conv"],
    ),
    "conv3d": (lambda: Body(4 * 216, lambda m, x: m.f(x), f=nn.Conv3d(3, 4, 3)), VOLUME, ["conv", "bias"]),
    "conv_transpose1d": (
        lambda: Body(72, lambda m, x: m.f(x), f=nn.ConvTranspose1d(3, 4, 3)),
        SIGNAL,
        ["conv", "bias"],
    ),
    "conv_transpose2d": (
        lambda: Body(6 * 18**2, lambda m, x: m.f(x), f=nn.ConvTranspose2d(3, 6, 3, groups=3)),
        IMAGE,
        ["sep_conv", "bias"],
    ),
    "conv_transpose3d": (
        lambda: Body(2000, lambda m, x: m.f(x), f=nn.ConvTranspose3d(3, 2, 3)),
        VOLUME,
        ["conv", "bias"],
    ),
    "batch_norm": (lambda: Body(768, lambda m, x: m.f(x), f=nn.BatchNorm2d(3)), IMAGE, ["bn"]),
    "instance_norm": (lambda: Body(768, lambda m, x: m.f(x), f=nn.InstanceNorm2d(3, affine=True)), IMAGE, ["bn"]),
    "group_norm": (lambda: Body(768, lambda m, x: m.f(x), f=nn.GroupNorm(3, 3)), IMAGE, ["bn"]),
    "layer_norm": (lambda: Body(768, lambda m, x: m.f(x), f=nn.LayerNorm((16, 16))), IMAGE, ["ln"]),
    "rms_norm": (lambda: Body(80, lambda m, x: m.f(x), f=nn.RMSNorm(16)), TOKENS, ["ln"]),
    **{f"max_pool{d}d": (pooled(f"max_pool{d}d", 2, n), x, ["max_pool"]) for d, n, x in POOLED},
    **{f"avg_pool{d}d": (pooled(f"avg_pool{d}d", 2, n), x, ["avg_pool"]) for d, n, x in POOLED},
    **{f"adaptive_avg_pool{d}d": (pooled(f"adaptive_avg_pool{d}d", 1, 3), x, ["glob_avg"]) for d, _, x in POOLED},
    **{f"adaptive_max_pool{d}d": (pooled(f"adaptive_max_pool{d}d", 1, 3), x, ["glob_avg"]) for d, _, x in POOLED},
    "max_pool1d_with_indices": (
        lambda: Body(24, lambda m, x: F.max_pool1d(x, 2, return_indices=True)[0]),
        SIGNAL,
        ["max_pool"],
    ),
    "max_pool2d_with_indices": (
        lambda: Body(192, lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0]),
        IMAGE,
        ["max_pool"],
    ),
    "mean": (lambda: Body(3, lambda m, x: x.mean((2, 3))), IMAGE, ["glob_avg"]),
    "mean of tokens": (lambda: Body(16, lambda m, x: x.mean(1)), TOKENS, ["glob_avg"]),
    "add": (
        lambda: Body(12, lambda m, x: m.f(x) + x, f=nn.Linear(12, 12, bias=False)),
        VECTOR,
        ["conv", "sum"],
    ),
    "add a bias": (lambda: Body(80, lambda m, x: x + m.b, b=p(1, 1, 16)), TOKENS, ["bias"]),
    "add a position embedding": (lambda: Body(80, lambda m, x: x + m.e, e=p(1, 5, 16)), TOKENS, ["pos_enc", "sum"]),
    "mul": (
        lambda: Body(12, lambda m, x: torch.sigmoid(m.f(x)) * x, f=nn.Linear(12, 12, bias=False)),
        VECTOR,
        ["conv", "cse"],
    ),
    "mul by layer scale": (lambda: Body(768, lambda m, x: x * m.s, s=p(3, 1, 1)), IMAGE, ["ln"]),
    "div by a temperature": (lambda: Body(12, lambda m, x: x / m.t, t=nn.Parameter(torch.tensor(1.0))), VECTOR, ["ln"]),
    "prelu": (lambda: Body(12, lambda m, x: m.f(x), f=nn.PReLU()), VECTOR, ["ln"]),
    "addcmul": (lambda: Body(80, lambda m, x: torch.addcmul(m.b, x, m.s), b=p(16), s=p(16)), TOKENS, ["ln", "bias"]),
    "cat": (
        lambda: Body(20, lambda m, x: torch.cat([x, m.f(x)], 1), f=nn.Linear(12, 8, bias=False)),
        VECTOR,
        ["conv", "concat"],
    ),
    "cat with a class token": (
        lambda: Body(96, lambda m, x: torch.cat([m.c.expand(len(x), -1, -1), x], 1), c=p(1, 1, 16)),
        TOKENS,
        ["pos_enc", "concat"],
    ),
    "where": (lambda: Body(80, lambda m, x: torch.where(x > 0, x, m.t), t=p(1, 1, 16)), TOKENS, ["pos_enc", "sum"]),
    "setitem": (lambda: Body(80, _write_token, t=p(16)), TOKENS, ["pos_enc", "sum"]),
    "scaled_dot_product_attention": (
        lambda: Body(
            80, lambda m, x: F.scaled_dot_product_attention(*m.f(x).chunk(3, -1)), f=nn.Linear(16, 48, bias=False)
        ),
        TOKENS,
        ["conv", "msa"],
    ),
    "matmul": (lambda: Body(8, lambda m, x: x @ m.w, w=p(12, 8)), VECTOR, ["conv"]),
    "matmul of attention": (
        lambda: Body(80, attend, qkv=nn.Linear(16, 48, bias=False), bias_table=p(9)),
        TOKENS,
        ["conv", "pos_enc", "sum", "msa"],
    ),
    "einsum": (lambda: Body(8, lambda m, x: torch.einsum("ni,oi->no", x, m.w), w=p(8, 12)), VECTOR, ["conv"]),
    "multi_head_attention_forward": (
        lambda: Body(80, lambda m, x: m.f(x, x, x)[0], f=nn.MultiheadAttention(16, 2, batch_first=True)),
        TOKENS,
        ["conv", "bias", "msa", "conv", "bias"],
    ),
    "multi_head_attention_forward with separate projections": (
        lambda: Body(
            80, lambda m, x: m.f(x, x, x)[0], f=nn.MultiheadAttention(16, 2, kdim=16, vdim=16, batch_first=True)
        ),
        TOKENS,
        ["conv", "bias", "msa", "conv", "bias"],
    ),
    "embedding": (
        lambda: Body(32, lambda m, x: m.f(x), f=nn.Embedding(50, 8)),
        torch.zeros(2, 4, dtype=torch.long),
        ["conv"],
    ),
    "getitem": (lambda: Body(32, lambda m, x: m.t[x], t=p(50, 8)), torch.zeros(2, 4, dtype=torch.long), ["conv"]),
    "lstm": (
        lambda: Body(40, lambda m, x: m.f(x)[0], f=nn.LSTM(16, 8, batch_first=True)),
        TOKENS,
        ["conv", "conv", "bias", "bias"],
    ),
    "gru": (
        lambda: Body(40, lambda m, x: m.f(x)[0], f=nn.GRU(16, 8, batch_first=True)),
        TOKENS,
        ["conv", "conv", "bias", "bias"],
    ),
}


def _write_token(m: Body, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = m.t
    return x


@pytest.mark.parametrize("case", CASES)
def test_rule(case: str) -> None:
    make, example, wanted = CASES[case]
    module = make().eval()
    graph = trace(module, example)
    assert not graph.kept
    assert [node.primitive for node in graph.nodes] == ["input", *wanted, "conv", "bias"]
    assert {q.name for q in graph.parameters} == {name for name, _ in module.named_parameters()}
    hypernet = GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    with torch.no_grad():
        predicted = predict(hypernet, graph)
    assert {n: t.shape for n, t in predicted.items()} == {n: t.shape for n, t in module.named_parameters()}
    assert all(torch.isfinite(tensor).all() for tensor in predicted.values())
    module.load_state_dict(predicted, strict=False)
    assert module(example.clone()).shape == (2, 10)


ALIASES = {
    "iadd": "add", "radd": "add", "sub": "add", "isub": "add", "rsub": "add", "add_relu": "add",
    "imul": "mul", "rmul": "mul", "multiply": "mul", "div": "mul", "truediv": "mul", "itruediv": "mul", "rtruediv": "mul",
    "concat": "cat", "concatenate": "cat", "stack": "cat",
    "masked_fill": "where", "lerp": "where", "copy": "setitem", "index_put": "setitem", "masked_scatter": "where",
    "rmatmul": "matmul", "bmm": "matmul", "mm": "matmul", "baddbmm": "matmul", "tensordot": "einsum",
    "embedding_bag": "embedding", "index_select": "getitem", "gather": "getitem",
    "rnn_tanh": "lstm", "rnn_relu": "lstm", "lstm_cell": "lstm", "gru_cell": "gru",
}  # fmt: skip
"""Functions that share a rule with one that is tested."""


def test_every_rule_is_tested() -> None:
    for name, rule in RULES.items():
        tested = ALIASES.get(name, name)
        assert tested in {case.split(" ")[0] for case in CASES}, name
        assert RULES[tested] is rule or name in ALIASES


@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    given_channels=st.sampled_from([4, 6]),
)
def test_convolutions_have_the_shapes_that_torch_gives(
    size, kernel, stride: int, padding: int, dilation: int, groups: int, given_channels: int
) -> None:
    layer = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups)
    x = torch.zeros(2, given_channels, *size)
    arguments = (x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, groups)
    found = result_without_arithmetic(F.conv2d, arguments, {})
    try:
        expected = layer(x)
    except RuntimeError:
        assert found is None
    else:
        assert found is not None and found.shape == expected.shape


def test_wrong_sizes_are_left_to_torch_to_refuse() -> None:
    x = torch.zeros(2, 3)
    assert result_without_arithmetic(F.linear, (x, torch.zeros(5, 4)), {}) is None
    assert result_without_arithmetic(torch.add, (x, torch.zeros(3)), {}) is None
    assert result_without_arithmetic(F.linear, (x, torch.zeros(5, 3)), {}).shape == (2, 5)
