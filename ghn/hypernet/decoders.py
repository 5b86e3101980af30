"""Decoders from node states to parameter tensors (paper, section 2.2 and appendix B).

Only what a target tensor uses is computed: the first ``kh x kw`` taps and the first ``out x in`` channels of the
largest shape. Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvDecoder(nn.Module):
    """Weights with two to four dimensions."""

    def __init__(self, hid: int, max_shape: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.out, self.fan_in, self.kernel, _ = max_shape
        self.fc = nn.Sequential(nn.Linear(hid, 4 * hid * self.kernel**2), nn.ReLU())
        self.conv = nn.Sequential(
            nn.Conv2d(4 * hid, 8 * hid, 1), nn.ReLU(), nn.Conv2d(8 * hid, self.out * self.fan_in, 1)
        )
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Conv2d(self.out, num_classes, 1))

    def forward(self, states_Nd: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """Return (N, out, in, kh, kw) for a shape that is at most the largest one in every dimension."""
        out, fan_in, kh, kw = shape
        n, hid = states_Nd.shape
        fc, first, second = cast(nn.Linear, self.fc[0]), cast(nn.Conv2d, self.conv[0]), cast(nn.Conv2d, self.conv[2])
        row_bias, first_bias = cast(Tensor, second.bias), cast(Tensor, first.bias)
        taps = fc.weight.view(4 * hid, self.kernel, self.kernel, hid)[:, :kh, :kw].reshape(-1, hid)
        tap_bias = fc.bias.view(4 * hid, self.kernel, self.kernel)[:, :kh, :kw].reshape(-1)
        x = F.relu(F.linear(states_Nd, taps, tap_bias)).view(n, 4 * hid, kh * kw)
        x = x.transpose(1, 2).reshape(n * kh * kw, 4 * hid)
        x = F.relu(F.linear(x, first.weight.flatten(1), first_bias))
        rows = second.weight.view(self.out, self.fan_in, -1)[:out, :fan_in].reshape(out * fan_in, -1)
        row_bias = row_bias.view(self.out, self.fan_in)[:out, :fan_in].reshape(-1)
        x = F.linear(x, rows, row_bias)
        return x.view(n, kh, kw, out, fan_in).permute(0, 3, 4, 1, 2)

    def class_weight(self, states_Nd: Tensor, fan_in: int) -> Tensor:
        """Return (N, num_classes, fan_in), the weight of a classifier with ``fan_in`` <= the largest input."""
        x = self(states_Nd, (self.out, fan_in, 1, 1))[..., 0]  # (N, out, fan_in, 1)
        return self.class_layer_predictor(x).squeeze(-1)


class VectorDecoder(nn.Module):
    """Norm weights (row 0) and all biases (row 1)."""

    def __init__(self, hid: int, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(hid, 2 * hid), nn.ReLU(), nn.Linear(2 * hid, 2 * width))

    def forward(self, states_Nd: Tensor) -> Tensor:
        """Return (N, 2, width)."""
        return self.fc(states_Nd).view(len(states_Nd), 2, -1)


def tile(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Slice or repeat a tensor along each dimension until it has the given shape."""
    if tuple(tensor.shape) == shape:
        return tensor
    tensor = tensor[tuple(slice(size) for size in shape)]
    for dim, size in enumerate(shape):
        have = tensor.shape[dim]
        if have < size:
            repeats = -(-size // have)
            tensor = torch.cat([tensor] * repeats, dim=dim).narrow(dim, 0, size)
    return tensor
