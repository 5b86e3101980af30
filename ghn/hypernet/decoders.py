"""Decoders from node states to parameter tensors (paper, section 2.2 and appendix B).

Only what a target tensor uses is computed: the first ``kh x kw`` taps and the first ``out x in`` channels of the
largest shape. Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn.hypernet.assemble import AssembleWeights, Group, Shape

_VALUES_AT_ONCE = 1 << 19


class WeightSlot(NamedTuple):
    """A parameter to decode: the node that it belongs to, the factor of its normalization, its shape."""

    node: int
    scale: float
    shape: Shape


class _Taps(NamedTuple):
    """Rows to decode: the taps of one kernel for a node, and a factor."""

    node: int
    kernel: tuple[int, int]
    scale: float


def _parts(members: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Cut a list into parts of at most so many values (or one member): what is decoded at once takes memory of its own."""
    part: list[int] = []
    left = _VALUES_AT_ONCE
    for member, size in zip(members, sizes, strict=True):
        if part and size > left:
            yield part
            part, left = [], _VALUES_AT_ONCE
        part.append(member)
        left -= size
    yield part


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

    def forward(
        self, states_Nd: Tensor, weights: Sequence[WeightSlot], classifiers: Sequence[WeightSlot]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Decode weights, and classifiers' weights, from the states of their nodes; each gets its shape.

        The first layer runs once for each kernel size, the others once for each number of channels, so that slices of
        the layers' weights are made as seldom as possible. A classifier's weight is a function of a whole piece.
        """
        if not weights and not classifiers:
            return [], []
        slots = [*weights, *(WeightSlot(slot.node, 1.0, (self.out, self.fan_in, 1, 1)) for slot in classifiers)]
        pieces = [self.piece(slot.shape) for slot in slots]
        members: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
        for i, (out, fan_in, *kernel) in enumerate(pieces):
            members[out, fan_in, kernel == [1, 1]].append(i)
        groups, order = [], []
        for key in sorted(members):
            for part in _parts(members[key], [math.prod(pieces[i]) for i in members[key]]):
                kernels, shapes = [pieces[i][2:] for i in part], [slots[i].shape for i in part]
                groups.append(Group(channels=key[:2], kernels=tuple(kernels), shapes=tuple(shapes)))
                order += part
        first, factors = self._first(states_Nd, [_Taps(slots[i].node, pieces[i][2:], slots[i].scale) for i in order])
        second, last = cast(nn.Conv2d, self.conv[0]), cast(nn.Conv2d, self.conv[2])
        decoded = AssembleWeights.apply(
            groups,
            first,
            factors,
            second.weight.flatten(1),
            second.bias,
            last.weight.view(self.out, self.fan_in, -1),
            cast(Tensor, last.bias).view(self.out, self.fan_in),
        )
        tensors = [tensor for _, tensor in sorted(zip(order, decoded, strict=True), key=lambda pair: pair[0])]
        class_weights = []
        if classifiers:
            whole = self.class_layer_predictor(torch.stack(tensors[len(weights) :]).squeeze(-1)).unsqueeze(-1)
            class_weights = [
                tile(tensor * slot.scale, slot.shape) for slot, tensor in zip(classifiers, whole, strict=True)
            ]
        return tensors[: len(weights)], class_weights

    def piece(self, shape: Shape) -> Shape:
        """Size of the piece that is decoded for a shape."""
        out, fan_in, kh, kw = shape
        return min(out, self.out), min(fan_in, self.fan_in), min(kh, self.kernel), min(kw, self.kernel)

    def _first(self, states_Nd: Tensor, slots: Sequence[_Taps]) -> tuple[Tensor, Tensor]:
        """Return the first layer's result for each tap (rows, 4d), and the factors (rows, 1)."""
        by_kernel: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, slot in enumerate(slots):
            by_kernel[slot.kernel].append(i)
        fc = cast(nn.Linear, self.fc[0])
        weight = fc.weight.view(-1, self.kernel, self.kernel, states_Nd.shape[1]).permute(1, 2, 0, 3).contiguous()
        bias = fc.bias.view(-1, self.kernel, self.kernel).permute(1, 2, 0).contiguous()
        taps = np.array([slot.kernel[0] * slot.kernel[1] for slot in slots])
        starts = np.cumsum(taps) - taps
        expanded, rows = [], []
        for (kh, kw), members in by_kernel.items():
            nodes = torch.tensor([slots[i].node for i in members], device=states_Nd.device)
            layer, offset = weight[:kh, :kw].flatten(0, 2), bias[:kh, :kw].flatten()
            expanded.append(F.linear(states_Nd[nodes], layer, offset).view(len(members) * kh * kw, -1))
            rows.append((starts[members][:, None] + np.arange(kh * kw)).ravel())
        source = torch.from_numpy(np.argsort(np.concatenate(rows))).to(states_Nd.device)
        hidden = F.relu(torch.cat(expanded)[source])
        return hidden, hidden.new_tensor(np.repeat([slot.scale for slot in slots], taps))[:, None]


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
