"""The last layer of the weight decoder and everything behind it in one step: slice, normalize, tile.

A parameter (out, in, kh, kw) is decoded as a *piece* no larger than the decoder's largest shape and repeated where it is
larger (paper, section 2.2). Written as separate operations, each of these steps copies all parameters of all networks, and
the gradient of each slice of the layer's weights is as large as the whole. Here the matrix product gives pieces in the
order in which parameters are stored; parameters are written once, and gradients are read once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, int, int, int]


class Group(NamedTuple):
    """Parameters that are decoded by one matrix product: with the same number of channels, and all from one tap or none.

    Attributes:
        channels: (out, in) of their pieces.
        kernels: taps (kh, kw) of their pieces.
        shapes: the parameters' shapes.

    """

    channels: tuple[int, int]
    kernels: tuple[tuple[int, int], ...]
    shapes: tuple[Shape, ...]

    @property
    def rows(self) -> list[int]:
        """Rows of hidden states for each parameter: one for each tap."""
        return [kh * kw for kh, kw in self.kernels]

    @property
    def by_row(self) -> bool:
        """Whether a piece is a row of the matrix product; else it is some columns. Both are in the order of storage."""
        return self.kernels[0] == (1, 1)


class AssembleWeights(torch.autograd.Function):
    """Decode groups of parameters; differentiable once.

    Inputs are the groups, hidden states (rows, h) with one row for each tap of each parameter, and the layer's weight
    (max out, max in, h). Outputs are the parameters of all groups, each with its shape.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, groups: Sequence[Group], hidden: Tensor, weight: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.groups = groups
        ctx.save_for_backward(hidden, weight)
        ctx.set_materialize_grads(False)
        parameters: list[Tensor] = []
        for group, rows, layer in _cut(groups, hidden, weight):
            values = rows @ layer.t() if group.by_row else layer @ rows.t()
            for piece, shape in zip(_pieces(values, group), group.shapes, strict=True):
                parameters.append(_tiled(piece, shape))
        return tuple(parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight = ctx.saved_tensors
        d_hidden, d_weight = [], torch.zeros_like(weight)
        each = iter(gradients)
        for group, rows, layer in _cut(ctx.groups, hidden, weight):
            sizes = (len(rows), len(layer)) if group.by_row else (len(layer), len(rows))
            d_values = rows.new_empty(sizes)
            for piece in _pieces(d_values, group):
                _collect(next(each), piece)
            transposed = d_values.t()
            first, second = (transposed, d_values) if group.by_row else (d_values, transposed)
            out, fan_in = group.channels
            d_weight[:out, :fan_in] += (first @ rows).view(out, fan_in, -1)
            d_hidden.append(second @ layer)
        return None, torch.cat(d_hidden), d_weight


def _cut(groups: Sequence[Group], hidden: Tensor, weight: Tensor) -> Iterator[tuple[Group, Tensor, Tensor]]:
    """Yield each group with its rows of hidden states, and its part of the layer's weight (out * in, h)."""
    layer, channels = weight, None
    for group, rows in zip(groups, hidden.split([sum(group.rows) for group in groups]), strict=True):
        if group.channels != channels:  # groups with as many channels follow each other
            channels = group.channels
            layer = weight[: channels[0], : channels[1]].flatten(0, 1)
        yield group, rows, layer


def _pieces(values: Tensor, group: Group) -> Iterator[Tensor]:
    """Yield views (out, in, kh, kw) of the matrix that holds a group's pieces."""
    parts = values.unbind(0) if group.by_row else values.split(group.rows, dim=1)
    for part, kernel in zip(parts, group.kernels, strict=True):
        yield part.view(*group.channels, *kernel)


def _tiled(piece: Tensor, shape: Shape) -> Tensor:
    """Repeat a piece to a shape; without a copy where it has that shape and is stored in order."""
    if piece.shape == shape:
        return piece.contiguous()
    parameter = piece.new_empty(shape)
    for whole, part in _repetitions(parameter, piece):
        whole.copy_(part.expand(whole.shape))
    return parameter


def _collect(gradient: Tensor | None, piece: Tensor) -> None:
    """Write the gradient of a piece: that of all its repetitions together."""
    if gradient is None:
        piece.zero_()
    elif gradient.shape == piece.shape:
        piece.copy_(gradient)
    else:
        for i, (whole, part) in enumerate(_repetitions(gradient.contiguous(), piece)):
            for dim, times in enumerate(whole.shape[::2]):  # one dimension after another is three times as fast
                whole = whole.sum(dim) if times > 1 else whole.squeeze(dim)
            target = part.view(whole.shape)
            target.copy_(whole) if i == 0 else target.add_(whole)  # the first one covers the whole piece


def _repetitions(whole: Tensor, piece: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield views of a tensor and of the piece that it repeats, with dimensions (times, size) for each dimension.

    Along each dimension there are at most two parts: whole repetitions, and a rest.
    """
    parts = []
    for size, have in zip(whole.shape, piece.shape, strict=True):
        full = size // have * have
        parts.append([(start, end) for start, end in ((0, full), (full, size)) if start < end])
    for corner in itertools.product(*parts):
        region = whole[tuple([slice(start, end) for start, end in corner])]
        sizes = [min(end - start, have) for (start, end), have in zip(corner, piece.shape, strict=True)]
        times = [size // have for size, have in zip(region.shape, sizes, strict=True)]
        cut = piece[tuple([slice(size) for size in sizes])]
        yield (
            region.view([x for pair in zip(times, sizes, strict=True) for x in pair]),
            cut[None, :, None, :, None, :, None, :],
        )
