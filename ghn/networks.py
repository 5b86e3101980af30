"""The target networks: an ``nn.Module`` for each specification, with the published parameter names.

Batch normalization always uses batch statistics (``track_running_stats=False``), so ``.eval()`` needs no running
statistics (as published). All convolutions are bias-free; all linear layers but qkv have a bias.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ghn.layout import CellLayout, Layout, OpLayout

MSA_HEADS = 8
DROPOUT = 0.5


class NoInitialization(TorchFunctionMode):
    """Skip random initialization, which costs much and does nothing on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _conv(
    c_in: int,
    c_out: int,
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """Return a bias-free convolution that keeps the size of a map at stride 1."""
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (kh - kh % 2, kw - kw % 2) if dilation == 2 else (kh // 2, kw // 2)
    return nn.Conv2d(c_in, c_out, (kh, kw), stride, padding, dilation, groups, bias=False)


def _norm(channels: int, norm: str | None) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False) if norm == "bnorm" else nn.Identity()


class _Op(nn.Module):
    """Layers in a row under the name ``op``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.op(x_NCHW)


class _FactorizedReduce(nn.Module):
    """Halve the map with two interleaved 1x1 convolutions; an odd map is padded with one row and column of zeros."""

    def __init__(self, c_in: int, c_out: int, norm: str | None) -> None:
        super().__init__()
        self.conv_1 = _conv(c_in, c_out // 2, 1, stride=2)
        self.conv_2 = _conv(c_in, c_out // 2, 1, stride=2)
        self.bn = _norm(c_out, norm)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.relu(x_NCHW)
        height, width = x_NCHW.shape[2:]
        shifted = F.pad(x_NCHW, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x_NCHW
        return self.bn(torch.cat([self.conv_1(x_NCHW), self.conv_2(shifted[:, :, 1:, 1:])], dim=1))


class _Slice(nn.Module):
    """Keep every second pixel."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW[:, :, ::2, ::2]


class _FeedForward(nn.Module):
    """Two linear layers with an exact GELU between (names ``net.0`` and ``net.3``)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(channels, channels), nn.GELU(), nn.Identity(), nn.Linear(channels, channels), nn.Identity()
        )

    def forward(self, x_NTC: Tensor) -> Tensor:
        return self.net(x_NTC)


class _MultiHeadSelfAttention(nn.Module):
    """A transformer block on the flattened map: pre-norm attention with 8 heads, then a feed-forward layer.

    Networks with attention never reduce the map, so it has no stride.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())
        self.ln1 = nn.LayerNorm(channels)
        self.ln2 = nn.LayerNorm(channels)
        self.ff = _FeedForward(channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        n, c, h, w = x_NCHW.shape
        x_NTC = x_NCHW.flatten(2).transpose(1, 2)
        qkv = self.to_qkv(self.ln1(x_NTC)).view(n, h * w, 3, MSA_HEADS, c // MSA_HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x_NTC = x_NTC + self.to_out(attended.transpose(1, 2).reshape(n, h * w, c))
        x_NTC = x_NTC + self.ff(self.ln2(x_NTC))
        return x_NTC.transpose(1, 2).reshape(n, c, h, w)


class ChannelSqueezeExcitation(nn.Module):
    """Scale each channel by a hard-swish gate computed from the means over the whole map, then keep every stride-th pixel."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.fc1 = nn.Linear(channels, channels // 2)
        self.fc2 = nn.Linear(channels // 2, channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        gate_NC = F.hardswish(self.fc2(F.relu(self.fc1(x_NCHW.mean(dim=(2, 3))))))
        return x_NCHW[:, :, :: self.stride, :: self.stride] * gate_NC[:, :, None, None]


def _build_op(op: OpLayout, channels: int, norm: str | None) -> nn.Module:
    """Build one operation of a cell (all of them map C channels to C channels)."""
    stride = op.stride
    if op.op == "max_pool_3x3":
        return nn.MaxPool2d(3, stride=stride, padding=1)
    if op.op == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)
    if op.op == "skip_connect":
        return nn.Identity() if stride == 1 else _FactorizedReduce(channels, channels, norm)
    if op.op == "msa":
        return _MultiHeadSelfAttention(channels)
    if op.op == "cse":
        return ChannelSqueezeExcitation(channels, stride)
    if op.op == "conv_7x1_1x7":
        return _Op(
            nn.ReLU(),
            _conv(channels, channels, (1, 7), stride=(1, stride)),
            _conv(channels, channels, (7, 1), stride=(stride, 1)),
            _norm(channels, norm),
        )
    kind, _, size = op.op.rpartition("_")
    kernel = int(size[0])
    if kind == "conv":
        return _Op(nn.ReLU(), _conv(channels, channels, kernel, stride=stride), _norm(channels, norm))
    if kind == "dil_conv":
        depthwise = _conv(channels, channels, kernel, stride=stride, dilation=2, groups=channels)
        return _Op(nn.ReLU(), depthwise, _conv(channels, channels, 1), _norm(channels, norm))

    def separable(stride: int) -> list[nn.Module]:
        depthwise = _conv(channels, channels, kernel, stride=stride, groups=channels)
        return [nn.ReLU(), depthwise, _conv(channels, channels, 1), _norm(channels, norm)]

    return _Op(*separable(stride), *separable(1))


class Cell(nn.Module):
    """One cell: preprocess the two inputs, sum pairs of operations into states, concatenate some of them."""

    def __init__(self, cell: CellLayout, norm: str | None) -> None:
        super().__init__()
        self.layout = cell
        for name, kind, c_in in zip(("preprocess0", "preprocess1"), cell.preprocess, cell.in_channels, strict=True):
            if kind == "conv":
                self.add_module(name, _Op(nn.ReLU(), _conv(c_in, cell.C, 1), _norm(cell.C, norm)))
            elif kind == "factorized_reduce":
                self.add_module(name, _FactorizedReduce(c_in, cell.C, norm))
            elif kind is not None:
                self.add_module(name, _Slice() if kind == "slice" else nn.Identity())
        self._ops = nn.ModuleDict({str(op.number): _build_op(op, cell.C, norm) for op in cell.ops})

    def forward(self, input0: Tensor | None, input1: Tensor | None) -> Tensor | None:
        if not self.layout.live:
            return None
        states: dict[int, Tensor] = {}
        for state, value in enumerate((input0, input1)):
            if self.layout.preprocess[state] is not None and value is not None:
                states[state] = self.get_submodule(f"preprocess{state}")(value)
        for op in self.layout.ops:
            result = self._ops[str(op.number)](states[op.source])
            target = 2 + op.number // 2
            states[target] = states[target] + result if target in states else result
        present = [state for state in self.layout.concat if state in states]
        if len(present) == len(self.layout.concat) == 1:
            return states[present[0]]
        zeros = None if len(present) == len(self.layout.concat) else torch.zeros_like(states[present[0]])
        parts = [states.get(state, zeros) for state in self.layout.concat]
        return torch.cat([part for part in parts if part is not None], dim=1)


class _PositionalEncoding(nn.Module):
    """A learned map that is added to the stem's output."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, size, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize with a truncated normal of standard deviation 0.02, as is usual for position embeddings."""
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW + self.weight


class Network(nn.Module):
    """The network of one :class:`~ghn.layout.Layout`; maps images (N, 3, S, S) to logits (N, num_classes)."""

    def __init__(self, net: Layout) -> None:
        super().__init__()
        spec, channels = net.spec, net.stem_channels
        self.layout = net
        if net.stem == "vit":
            patch, padding = (16, 0) if spec.large_images else (3, 1)
            self.stem0: nn.Module = nn.Conv2d(3, spec.C, patch, stride=patch, padding=padding, bias=False)
            self.pos_enc = _PositionalEncoding(spec.C, net.pos_enc_size)
        elif net.stem == "double":
            stride = 2 if spec.large_images else 1
            self.stem0 = nn.Sequential(
                _conv(3, spec.C // 2, spec.ks, stride=stride),
                _norm(spec.C // 2, spec.norm),
                nn.ReLU(),
                _conv(spec.C // 2, spec.C, 3, stride=stride),
                _norm(spec.C, spec.norm),
            )
            if net.stem_second_live:
                self.stem1 = nn.Sequential(nn.ReLU(), _conv(spec.C, spec.C, 3, stride=2), _norm(spec.C, spec.norm))
        else:
            pool = [nn.MaxPool2d(3, stride=2, padding=1)] if spec.stem_pool else []
            stem_conv = _conv(3, channels, spec.ks, stride=4 if spec.large_images else 1)
            self.stem = nn.Sequential(stem_conv, _norm(channels, spec.norm), *pool)
        self.cells = nn.ModuleList(Cell(cell, spec.norm) for cell in net.cells)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(net.head):
            layers += [nn.ReLU(), nn.Dropout(DROPOUT)] if layers else []
            layers.append(nn.Linear(fan_in, fan_out))
        self.classifier = nn.Sequential(*layers)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        previous, current = self._stem(images_NCHW)
        for cell in self.cells:
            previous, current = current, cell(previous, current)
        if current is None:
            raise RuntimeError("a valid layout always ends in a live cell")
        return self.classifier(current.mean(dim=(2, 3)) if self.layout.spec.glob_avg else current.flatten(1))

    def _stem(self, images_NCHW: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.layout.stem == "vit":
            out = self.pos_enc(self.stem0(images_NCHW))
            return out, out
        if self.layout.stem == "double":
            first = self.stem0(images_NCHW)
            return first, self.stem1(first) if self.layout.stem_second_live else None
        out = self.stem(images_NCHW)
        return out, out
