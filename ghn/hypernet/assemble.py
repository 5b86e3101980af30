"""The last two layers of the weight decoder and everything behind them in one step: slice, normalize, tile.

A parameter (out, in, kh, kw) is decoded as a *piece* no larger than the decoder's largest shape and repeated where it is
larger (paper, section 2.2). Written as separate operations, each of these steps copies all parameters of all networks, and
the gradient of each slice of the layer's weights is as large as the whole. Here the matrix product gives pieces in the
order in which parameters are stored; parameters are written once, and gradients are read once. Beside the parameters,
only what one group needs exists at a time, and nothing but the first layer's result is kept for the gradient.
"""

from __future__ import annotations

import functools
import itertools
import math
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
    """Decode groups of parameters; differentiable once, in everything but the factors.

    Inputs are the groups; first hidden states (rows, 4d), one row for each tap of each parameter; a factor for each row
    (rows, 1); the second layer's weight (8d, 4d) and bias (8d,); and the last layer's weight (max out, max in, 8d) and
    bias (max out, max in). Outputs are the parameters of all groups, each with its shape. The second
    hidden states are computed again for the gradient: that is little beside the last layer, and they would be large.
    """

    @staticmethod
    def forward(
        ctx: Any, groups: Sequence[Group], first: Tensor, factors: Tensor, *layers: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.groups = groups
        ctx.save_for_backward(first, factors, *layers)
        ctx.set_materialize_grads(False)
        parameters: list[Tensor] = []
        for group, span, rows in _hidden_rows(groups, first, factors, *layers[:2]):
            layer, bias = _cut(group, *layers[2:])
            if group.by_row:
                values = torch.outer(factors[span, 0], bias).addmm_(rows, layer.t())
            else:
                values = torch.outer(bias, factors[span, 0]).addmm_(layer, rows.t())
            whole = all(shape[:2] == group.channels for shape in group.shapes)  # then views of the matrix waste nothing
            for piece, shape in zip(_pieces(values, group), group.shapes, strict=True):
                in_order = whole and piece.shape == shape and piece.is_contiguous()
                parameters.append(piece if in_order else _tiled(piece, shape))
        return tuple(parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        first, factors, *layers = ctx.saved_tensors
        d_first = torch.empty_like(first)
        d_second, d_second_bias, d_last, d_last_bias = [torch.zeros_like(layer) for layer in layers]
        each = iter(gradients)
        for group, span, rows in _hidden_rows(ctx.groups, first, factors, *layers[:2]):
            layer, _ = _cut(group, *layers[2:])
            d_values = rows.new_empty((len(rows), len(layer)) if group.by_row else (len(layer), len(rows)))
            for piece in _pieces(d_values, group):
                _collect(next(each), piece)
            by_row, by_column = (d_values, d_values.t()) if group.by_row else (d_values.t(), d_values)
            out, fan_in = group.channels
            if fan_in == d_last.shape[1]:  # in place: the product would be as large as the layer
                d_last[:out].view(len(layer), -1).addmm_(by_column, rows)
            else:
                d_last[:out, :fan_in] += (by_column @ rows).view(out, fan_in, -1)
            d_last_bias[:out, :fan_in] += (by_column @ factors[span, 0]).view(out, fan_in)
            d_rows = (by_row @ layer).mul_(factors[span]).mul_(rows > 0)
            d_second.addmm_(d_rows.t(), first[span])
            d_second_bias += d_rows.sum(0)
            torch.mm(d_rows, layers[0], out=d_first[span])
        return None, d_first, None, d_second, d_second_bias, d_last, d_last_bias


def _hidden_rows(
    groups: Sequence[Group], first: Tensor, factors: Tensor, weight: Tensor, bias: Tensor
) -> Iterator[tuple[Group, slice, Tensor]]:
    """Yield each group, where its rows are, and their second hidden states times their factors (rows, 8d)."""
    start = 0
    for group in groups:
        span = slice(start, start + sum(group.rows))
        start = span.stop
        yield group, span, torch.addmm(bias, first[span], weight.t()).relu_().mul_(factors[span])


def _cut(group: Group, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return a group's part of the last layer, (out * in, 8d) and (out * in,): a copy if it has fewer inputs than that."""
    out, fan_in = group.channels
    return weight[:out, :fan_in].flatten(0, 1), bias[:out, :fan_in].flatten()


def _pieces(values: Tensor, group: Group) -> Iterator[Tensor]:
    """Yield views (out, in, kh, kw) of the matrix that holds a group's pieces."""
    parts = values.unbind(0) if group.by_row else values.split(group.rows, dim=1)
    for part, kernel in zip(parts, group.kernels, strict=True):
        yield part.view(*group.channels, *kernel)


def _tiled(piece: Tensor, shape: Shape) -> Tensor:
    """Repeat a piece to a shape, in memory of its own."""
    parameter = piece.new_empty(shape)
    if parameter.shape == piece.shape:
        return parameter.copy_(piece)
    a, b, c, d = piece.stride()
    start = piece.storage_offset()
    for sizes, strides, offset in _repetitions(shape, tuple(piece.shape)):
        part = piece.as_strided(sizes, (0, a, 0, b, 0, c, 0, d), start)
        parameter.as_strided(sizes, strides, offset).copy_(part)
    return parameter


def _collect(gradient: Tensor | None, piece: Tensor) -> None:
    """Write the gradient of a piece: that of all its repetitions together."""
    if gradient is None:
        piece.zero_()
    elif gradient.shape == piece.shape:
        piece.copy_(gradient)
    else:
        gradient = gradient.contiguous()
        start = gradient.storage_offset()
        for i, (sizes, strides, offset) in enumerate(_repetitions(tuple(gradient.shape), tuple(piece.shape))):
            whole = gradient.as_strided(sizes, strides, start + offset)
            for dim, times in enumerate(sizes[::2]):  # one dimension after another is three times as fast
                whole = whole.sum(dim) if times > 1 else whole.squeeze(dim)
            target = piece.as_strided(sizes[1::2], piece.stride(), piece.storage_offset())
            target.copy_(whole) if i == 0 else target.add_(whole)  # the first one covers the whole piece


@functools.lru_cache(16_384)
def _repetitions(whole: Shape, piece: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Return sizes, strides and offset of views of a contiguous tensor, with dimensions (times, size) for each dimension.

    Along each dimension there are at most two parts: whole repetitions of the piece, and a rest.
    """
    parts = []
    for size, have in zip(whole, piece, strict=True):
        full = size // have * have
        parts.append([(start, end) for start, end in ((0, full), (full, size)) if start < end])
    steps = [math.prod(whole[dim + 1 :]) for dim in range(4)]
    views = []
    for corner in itertools.product(*parts):
        sizes, strides, offset = list[int](), list[int](), 0
        for (start, end), have, step in zip(corner, piece, steps, strict=True):
            size = min(end - start, have)
            sizes += [(end - start) // size, size]
            strides += [size * step, step]
            offset += start * step
        views.append((tuple(sizes), tuple(strides), offset))
    return views
