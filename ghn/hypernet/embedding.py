"""Initial node states: what a node does, and the shape of what it carries (paper, section 2.2 and appendix B)."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_MOST_KNOWN = 65_536


class ShapeTable:
    """Look-up of channel counts and kernel sizes in the embedding tables.

    The last row of each table means "no shape". Unknown values take the nearest entry, the smaller one on ties.
    """

    def __init__(self, num_classes: int, max_kernel: int) -> None:
        channels = {1, 3, num_classes, *range(8, 57, 8), *range(64, 4081, 16), *range(4096, 8193, 32)}
        self.channels = sorted(channels)
        self.spatial = sorted({*range(1, max(12, max_kernel), 2), 14, 16})
        self._known: dict[tuple[int, ...] | None, tuple[int, int, int, int]] = {}

    def channel_row(self, channels: int) -> int:
        """Row of a channel count (>= 1); 4 to 7 channels count as 8."""
        return _nearest(self.channels, 8 if 4 <= channels <= 7 else channels)

    def spatial_row(self, size: int) -> int:
        """Row of a kernel or map size (>= 1); 2 counts as 3."""
        return _nearest(self.spatial, 3 if size == 2 else size)

    def rows(self, shape: tuple[int, ...] | None) -> tuple[int, int, int, int]:
        """Rows (out, in, kh, kw) of a tensor shape with up to 5 dimensions, or of no shape."""
        rows = self._known.get(shape)
        if rows is None:
            if len(self._known) >= _MOST_KNOWN:  # whoever asks a server for ever new shapes must not fill its memory
                self._known.clear()
            rows = self._known[shape] = self._look_up(shape)
        return rows

    def _look_up(self, shape: tuple[int, ...] | None) -> tuple[int, int, int, int]:
        if shape is None:
            return len(self.channels), len(self.channels), len(self.spatial), len(self.spatial)
        out, fan_in, kh, kw = canonical_shape(shape)
        return self.channel_row(out), self.channel_row(fan_in), self.spatial_row(kh), self.spatial_row(kw)


def canonical_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return (out, in, kh, kw): missing dimensions are 1; a (1, tokens, C) map becomes (1, C, s, s).

    Of a three-dimensional kernel (out, in, kt, kh, kw) the first of its sizes is left out.
    """
    if is_token_map(shape):
        side = math.isqrt(shape[1])
        return 1, shape[2], side, side
    if len(shape) == 5:
        shape = (*shape[:2], *shape[3:])
    out, fan_in, kh, kw = (*shape, 1, 1, 1, 1)[:4]
    return out, fan_in, kh, kw


def is_token_map(shape: Sequence[int]) -> bool:
    """Whether a shape is (1, tokens, C), the position embeddings of a sequence."""
    return len(shape) == 3 and shape[0] == 1 and min(shape[1:]) > 1


def is_vector(shape: Sequence[int]) -> bool:
    """Whether at most one size is not 1, in a shape of other than two or four dimensions (those are weights)."""
    return len(shape) not in (2, 4) and sum(size > 1 for size in shape) <= 1


def _nearest(table: list[int], value: int) -> int:
    position = bisect.bisect_left(table, value)
    if position == len(table):
        return position - 1
    if position == 0 or table[position] - value < value - table[position - 1]:
        return position
    return position - 1


class ShapeEncoder(nn.Module):
    """Concatenated embeddings of the four sizes, d/4 each."""

    def __init__(self, table: ShapeTable, hid: int) -> None:
        super().__init__()
        self.embed_spatial = nn.Embedding(len(table.spatial) + 1, hid // 4)
        self.embed_channel = nn.Embedding(len(table.channels) + 1, hid // 4)

    def forward(self, shapes_N4: Tensor) -> Tensor:
        channels = self.embed_channel(shapes_N4[:, :2]).flatten(1)
        spatial = self.embed_spatial(shapes_N4[:, 2:]).flatten(1)
        return torch.cat([channels, spatial], dim=1)
