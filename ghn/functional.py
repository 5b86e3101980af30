"""Run networks with given parameters instead of their own.

A laid-out network is run without building a module: the same function as :mod:`ghn.networks`. Meta-training runs each
network once; building its modules would cost more than predicting its parameters. It is also the quicker form: a state is
rectified once for all operations that need it, and dilated depthwise convolutions, whose gradients are slow on CPUs, are
computed as plain ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn.layout import CellLayout, Layout, OpLayout, Preprocess
from ghn.networks import DROPOUT, MSA_HEADS

_SMALL_MAP = 8  # pixels; below, taking a map apart costs more than it saves


def run_layout(net: Layout, parameters: Mapping[str, Tensor], images_NCHW: Tensor, *, training: bool) -> Tensor:
    """Return the logits (N, classes) of a network.

    Args:
        net: the network.
        parameters: every parameter under its name in :class:`~ghn.networks.Network`.
        images_NCHW: images (N, 3, S, S); those in ``channels_last`` format are much quicker on CPUs.
        training: whether dropout applies. Batch normalization uses batch statistics in any case.

    """
    return _Run(net, parameters, training)(images_NCHW)


def run_network(network: nn.Module, parameters: Mapping[str, Tensor], images_NCHW: Tensor) -> Tensor:
    """Return the logits (N, classes) of a network run with the given parameters instead of its own.

    The network may be built on the meta device; its own parameters are not changed.
    """
    logits: Tensor = torch.func.functional_call(network, dict(parameters), (images_NCHW,))
    return logits


class _State:
    """The output of a stem, a cell or a step, rectified when that is first asked for."""

    def __init__(self, x_NCHW: Tensor) -> None:
        self.x = x_NCHW
        self._rectified: Tensor | None = None

    @property
    def rectified(self) -> Tensor:
        if self._rectified is None:
            self._rectified = F.relu(self.x)
        return self._rectified


class _Run:
    def __init__(self, net: Layout, parameters: Mapping[str, Tensor], training: bool) -> None:
        self.net, self.parameters, self.training = net, parameters, training
        self.norm_on = net.spec.norm == "bnorm"

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        previous: _State | None
        current: _State | None
        previous, current = self.stem(images_NCHW)
        for i, cell in enumerate(self.net.cells):
            previous, current = current, self.cell(f"cells.{i}.", cell, previous, current)
        if current is None:
            raise RuntimeError("a valid layout always ends in a live cell")
        x = current.x.mean(dim=(2, 3)) if self.net.spec.glob_avg else current.x.flatten(1)
        x = self.linear("classifier.0", x)
        if self.net.spec.fc_layers == 2:
            x = self.linear("classifier.3", F.dropout(F.relu(x), DROPOUT, self.training))
        return x

    # Layers

    def conv(self, name: str, x_NCHW: Tensor, stride: int | tuple[int, int] = 1, padding: int | None = None) -> Tensor:
        """A convolution without bias; it keeps the size of the map at stride 1."""
        weight = self.parameters[f"{name}.weight"]
        kh, kw = weight.shape[2:]
        groups = x_NCHW.shape[1] if weight.shape[1] == 1 else 1
        return F.conv2d(x_NCHW, weight, None, stride, (kh // 2, kw // 2) if padding is None else padding, groups=groups)

    def dilated(self, name: str, x_NCHW: Tensor, stride: int) -> Tensor:
        """A depthwise convolution with dilation 2.

        An output pixel sees input pixels of its own row and column parity alone, so each of the four parities (of which
        stride 2 needs one) is a map of its own, with a plain convolution.
        """
        weight = self.parameters[f"{name}.weight"]
        groups, kernel = weight.shape[0], weight.shape[2]
        if x_NCHW.device.type != "cpu" or min(x_NCHW.shape[2:]) < _SMALL_MAP:
            return F.conv2d(x_NCHW, weight, None, stride, kernel - 1, 2, groups)
        if stride == 2:
            return F.conv2d(x_NCHW[:, :, ::2, ::2], weight, None, 1, kernel // 2, groups=groups)
        n, c, h, w = x_NCHW.shape
        half_h, half_w = (h + 1) // 2, (w + 1) // 2
        x_NHWC = F.pad(x_NCHW, (0, w % 2, 0, h % 2)).permute(0, 2, 3, 1)
        parts = x_NHWC.reshape(n, half_h, 2, half_w, 2, c).permute(2, 4, 0, 1, 3, 5).reshape(4 * n, half_h, half_w, c)
        y = F.conv2d(parts.permute(0, 3, 1, 2), weight, None, 1, kernel // 2, groups=groups).permute(0, 2, 3, 1)
        y = y.reshape(2, 2, n, half_h, half_w, c).permute(2, 3, 0, 4, 1, 5).reshape(n, 2 * half_h, 2 * half_w, c)
        return y[:, :h, :w].permute(0, 3, 1, 2)

    def norm(self, name: str, x_NCHW: Tensor) -> Tensor:
        if not self.norm_on:
            return x_NCHW
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        return F.batch_norm(x_NCHW, None, None, weight, bias, training=True)

    def normed_relu(self, name: str, x_NCHW: Tensor) -> Tensor:
        """The normalized values are nobody else's, so they are rectified where they are."""
        return F.relu_(self.norm(name, x_NCHW)) if self.norm_on else F.relu(x_NCHW)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias"))

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])

    # Parts of the network

    def stem(self, images_NCHW: Tensor) -> tuple[_State, _State | None]:
        spec = self.net.spec
        if self.net.stem == "vit":
            patch, padding = (16, 0) if spec.large_images else (3, 1)
            state = _State(self.conv("stem0", images_NCHW, patch, padding) + self.parameters["pos_enc.weight"])
            return state, state
        if self.net.stem == "double":
            stride = 2 if spec.large_images else 1
            x = self.normed_relu("stem0.1", self.conv("stem0.0", images_NCHW, stride))
            first = _State(self.norm("stem0.4", self.conv("stem0.3", x, stride)))
            if not self.net.stem_second_live:
                return first, None
            return first, _State(self.norm("stem1.2", self.conv("stem1.1", first.rectified, 2)))
        x = self.norm("stem.1", self.conv("stem.0", images_NCHW, 4 if spec.large_images else 1))
        state = _State(F.max_pool2d(x, 3, 2, 1) if spec.stem_pool else x)
        return state, state

    def cell(self, name: str, cell: CellLayout, input0: _State | None, input1: _State | None) -> _State | None:
        if not cell.live:
            return None
        states: dict[int, _State] = {}
        for i, (kind, state) in enumerate(zip(cell.preprocess, (input0, input1), strict=True)):
            if kind is not None and state is not None:
                states[i] = self.preprocess(f"{name}preprocess{i}", kind, state)
        for op in cell.ops:
            result = self.op(f"{name}_ops.{op.number}", op, states[op.source])
            target = 2 + op.number // 2
            states[target] = _State(states[target].x + result.x) if target in states else result
        present = [state for state in cell.concat if state in states]
        if len(present) == len(cell.concat) == 1:
            return states[present[0]]
        zeros = None if len(present) == len(cell.concat) else torch.zeros_like(states[present[0]].x)
        parts = [states[state].x if state in states else zeros for state in cell.concat]
        return _State(torch.cat([part for part in parts if part is not None], dim=1))

    def preprocess(self, name: str, kind: Preprocess, state: _State) -> _State:
        if kind == "conv":
            return _State(self.norm(f"{name}.op.2", self.conv(f"{name}.op.1", state.rectified)))
        if kind == "factorized_reduce":
            return _State(self.factorized_reduce(name, state))
        return _State(state.x[:, :, ::2, ::2]) if kind == "slice" else state

    def factorized_reduce(self, name: str, state: _State) -> Tensor:
        """Every other pixel through one 1x1 convolution, those one further down and right through another.

        Done as one convolution with 2x2 kernels that are zero but for one corner: less is copied, above all for the gradient.
        (A pixel that is not finite spoils the result also where neither convolution would have read it.)
        """
        x_NCHW = state.rectified
        height, width = x_NCHW.shape[2:]
        if height % 2 or width % 2:
            x_NCHW = F.pad(x_NCHW, (0, width % 2, 0, height % 2))
        first, second = (self.parameters[f"{name}.conv_{i}.weight"] for i in (1, 2))
        weight = torch.cat([F.pad(first, (0, 1, 0, 1)), F.pad(second, (1, 0, 1, 0))])
        return self.norm(f"{name}.bn", F.conv2d(x_NCHW, weight, stride=2))

    def op(self, name: str, op: OpLayout, state: _State) -> _State:
        stride = op.stride
        if op.op == "skip_connect":
            return state if stride == 1 else _State(self.factorized_reduce(name, state))
        return _State(self.transform(name, op.op, stride, state))

    def transform(self, name: str, op: str, stride: int, state: _State) -> Tensor:
        if op == "max_pool_3x3":
            return F.max_pool2d(state.x, 3, stride, 1)
        if op == "avg_pool_3x3":
            return F.avg_pool2d(state.x, 3, stride, 1, count_include_pad=False)
        if op == "msa":
            return self.msa(name, state.x)
        if op == "cse":
            gate_NC = self.linear(f"{name}.fc1", state.x.mean(dim=(2, 3)))
            gate_NC = F.hardswish(self.linear(f"{name}.fc2", F.relu(gate_NC)))
            return state.x[:, :, ::stride, ::stride] * gate_NC[:, :, None, None]
        if op == "conv_7x1_1x7":
            x = self.conv(f"{name}.op.1", state.rectified, (1, stride))
            return self.norm(f"{name}.op.3", self.conv(f"{name}.op.2", x, (stride, 1)))
        if op.startswith("conv"):
            return self.norm(f"{name}.op.2", self.conv(f"{name}.op.1", state.rectified, stride))
        if op.startswith("dil_conv"):
            x = self.dilated(f"{name}.op.1", state.rectified, stride)
            return self.norm(f"{name}.op.3", self.conv(f"{name}.op.2", x))
        x = self.conv(f"{name}.op.2", self.conv(f"{name}.op.1", state.rectified, stride))
        x = self.conv(f"{name}.op.5", self.normed_relu(f"{name}.op.3", x))
        return self.norm(f"{name}.op.7", self.conv(f"{name}.op.6", x))

    def msa(self, name: str, x_NCHW: Tensor) -> Tensor:
        n, c, h, w = x_NCHW.shape
        x_NTC = x_NCHW.flatten(2).transpose(1, 2)
        qkv = self.linear(f"{name}.to_qkv", self.layer_norm(f"{name}.ln1", x_NTC))
        q, k, v = qkv.view(n, h * w, 3, MSA_HEADS, c // MSA_HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
        x_NTC = x_NTC + self.linear(f"{name}.to_out.0", attended)
        hidden = F.gelu(self.linear(f"{name}.ff.net.0", self.layer_norm(f"{name}.ln2", x_NTC)))
        x_NTC = x_NTC + self.linear(f"{name}.ff.net.3", hidden)
        return x_NTC.transpose(1, 2).reshape(n, c, h, w)
