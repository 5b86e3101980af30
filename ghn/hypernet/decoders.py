"""Decoders from node states to parameter tensors (paper, section 2.2 and appendix B).

Only what a target tensor uses is computed: the first ``kh x kw`` taps and the first ``out x in`` channels of the
largest shape. Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int, int]


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

    def forward(self, states_Nd: Tensor, pieces: Sequence[tuple[Sequence[int], Shape]]) -> list[Tensor]:
        """Decode many pieces at once.

        The first layer runs once for each kernel size, the second once for all, the third once for each number of
        channels: each run slices the weights, which costs more than the products themselves.

        Args:
            states_Nd: node states.
            pieces: (node numbers, shape (out, in, kh, kw), at most the largest one in every dimension).

        Returns:
            For each piece (its number of nodes, out, in, kh, kw).
        """
        hidden = self._expand(states_Nd, pieces)
        by_channels: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (_, (out, fan_in, _, _)) in enumerate(pieces):
            by_channels[out, fan_in].append(i)
        last = cast(nn.Conv2d, self.conv[2])
        weight, bias = last.weight.view(self.out, self.fan_in, -1), cast(Tensor, last.bias).view(self.out, self.fan_in)
        decoded: dict[int, Tensor] = {}
        for (out, fan_in), members in by_channels.items():
            rows, row_bias = weight[:out, :fan_in].flatten(0, 1), bias[:out, :fan_in].flatten()
            values = F.linear(torch.cat([hidden[i] for i in members]), rows, row_bias)
            for i, part in zip(members, values.split([len(hidden[i]) for i in members]), strict=True):
                nodes, (_, _, kh, kw) = pieces[i]
                decoded[i] = part.view(len(nodes), kh, kw, out, fan_in).permute(0, 3, 4, 1, 2)
        return [decoded[i] for i in range(len(pieces))]

    def _expand(self, states_Nd: Tensor, pieces: Sequence[tuple[Sequence[int], Shape]]) -> list[Tensor]:
        """The first two layers; returns for each piece (nodes x taps, 8d)."""
        by_kernel: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (_, (_, _, kh, kw)) in enumerate(pieces):
            by_kernel[kh, kw].append(i)
        fc, conv = cast(nn.Linear, self.fc[0]), cast(nn.Conv2d, self.conv[0])
        hid = states_Nd.shape[1]
        weight, bias = fc.weight.view(-1, self.kernel, self.kernel, hid), fc.bias.view(-1, self.kernel, self.kernel)
        expanded, order, sizes = [], [], []
        for (kh, kw), members in by_kernel.items():
            nodes = [node for i in members for node in pieces[i][0]]
            taps = weight[:, :kh, :kw].permute(1, 2, 0, 3).flatten(0, 2)
            x = F.relu(F.linear(states_Nd[nodes], taps, bias[:, :kh, :kw].permute(1, 2, 0).flatten()))
            expanded.append(x.view(len(nodes) * kh * kw, -1))
            order += members
            sizes += [len(pieces[i][0]) * kh * kw for i in members]
        y = F.relu(F.linear(torch.cat(expanded), conv.weight.flatten(1), conv.bias))
        parts = dict(zip(order, y.split(sizes), strict=True))
        return [parts[i] for i in range(len(pieces))]

    def class_weight(self, decoded_NOI11: Tensor) -> Tensor:
        """Turn a 1x1 piece with all outputs (N, out, in, 1, 1) into a classifier's weight (N, num_classes, in, 1, 1)."""
        return self.class_layer_predictor(decoded_NOI11[..., 0]).unsqueeze(-1)


class VectorDecoder(nn.Module):
    """Norm weights (row 0) and all biases (row 1)."""

    def __init__(self, hid: int, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(hid, 2 * hid), nn.ReLU(), nn.Linear(2 * hid, 2 * width))

    def forward(self, states_Nd: Tensor) -> Tensor:
        """Return (N, 2, width)."""
        return self.fc(states_Nd).view(len(states_Nd), 2, -1)


def tile(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Slice or repeat a tensor along each dimension until it has the given shape, in one copy where sizes divide."""
    if tuple(tensor.shape) == shape:
        return tensor
    tensor = tensor[tuple(slice(size) for size in shape)]
    sizes = tuple(tensor.shape)
    repeats = [-(-size // have) for size, have in zip(shape, sizes, strict=True)]
    if max(repeats) > 1:
        apart = tensor.reshape([x for size in sizes for x in (1, size)])
        spread = apart.expand([x for pair in zip(repeats, sizes, strict=True) for x in pair])
        whole = spread.reshape([count * size for count, size in zip(repeats, sizes, strict=True)])
        tensor = whole[tuple(slice(size) for size in shape)]
    return tensor
