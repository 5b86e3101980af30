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
    """Decode groups of parameters; differentiable once, in everything but the factors.

    Inputs are the groups; hidden states (rows, h) with one row for each tap of each parameter; a factor for each row
    (rows, 1); and the layer's weight (max out, max in, h) and bias (max out, max in, 1). Outputs are the parameters of all
    groups, each with its shape.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, groups: Sequence[Group], hidden: Tensor, factors: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.groups = groups
        ctx.save_for_backward(hidden, factors, weight, bias)
        ctx.set_materialize_grads(False)
        parameters: list[Tensor] = []
        for group, _, rows, layer in _cut(groups, hidden, factors, weight, bias):
            values = rows @ layer.t() if group.by_row else layer @ rows.t()
            whole = all(shape[:2] == group.channels for shape in group.shapes)  # then views of the matrix waste nothing
            for piece, shape in zip(_pieces(values, group), group.shapes, strict=True):
                in_order = whole and piece.shape == shape and piece.is_contiguous()
                parameters.append(piece if in_order else _tiled(piece, shape))
        return tuple(parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, factors, weight, bias = ctx.saved_tensors
        d_hidden, d_weight, d_bias = torch.empty_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
        each = iter(gradients)
        for group, span, rows, layer in _cut(ctx.groups, hidden, factors, weight, bias):
            d_values = rows.new_empty((len(rows), len(layer)) if group.by_row else (len(layer), len(rows)))
            for piece in _pieces(d_values, group):
                _collect(next(each), piece)
            by_row, by_column = (d_values, d_values.t()) if group.by_row else (d_values.t(), d_values)
            out, fan_in = group.channels
            d_layer = (by_column @ rows).view(out, fan_in, -1)
            d_weight[:out, :fan_in] += d_layer[:, :, :-1]
            d_bias[:out, :fan_in] += d_layer[:, :, -1:]
            torch.mul((by_row @ layer)[:, :-1], factors[span], out=d_hidden[span])
        return None, d_hidden, None, d_weight, d_bias


def _cut(
    groups: Sequence[Group], hidden: Tensor, factors: Tensor, weight: Tensor, bias: Tensor
) -> Iterator[tuple[Group, slice, Tensor, Tensor]]:
    """Yield each group, where its rows are, these rows times their factors, and its part of the layer (out * in, h + 1).

    The bias is the layer's last column; the factors themselves are its input.
    """
    layer, channels, start = weight, None, 0
    for group in groups:
        if group.channels != channels:  # groups with as many channels follow each other
            channels = group.channels
            out, fan_in = channels
            layer = torch.cat([weight[:out, :fan_in], bias[:out, :fan_in]], dim=2).flatten(0, 1)
        span = slice(start, start + sum(group.rows))
        start = span.stop
        yield group, span, torch.cat([hidden[span] * factors[span], factors[span]], dim=1), layer


def _pieces(values: Tensor, group: Group) -> Iterator[Tensor]:
    """Yield views (out, in, kh, kw) of the matrix that holds a group's pieces."""
    parts = values.unbind(0) if group.by_row else values.split(group.rows, dim=1)
    for part, kernel in zip(parts, group.kernels, strict=True):
        yield part.view(*group.channels, *kernel)


def _tiled(piece: Tensor, shape: Shape) -> Tensor:
    """Repeat a piece to a shape, in memory of its own."""
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
    if whole.shape == piece.shape:
        yield whole, piece
        return
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
