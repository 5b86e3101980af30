"""How many parameters a laid-out network has, counted without building it (the cap of the search space)."""

from __future__ import annotations

import itertools

from ghn.genotype import PARAMETER_FREE_OPS
from ghn.layout import CellLayout, Layout


def count_parameters(net: Layout) -> int:
    """Return the number of parameters of a laid-out network, without building it."""
    spec = net.spec
    norm = 2 if spec.norm == "bnorm" else 0  # per channel
    if net.stem == "vit":
        patch = 16 if spec.large_images else 3
        total = spec.C * 3 * patch**2 + spec.C * net.pos_enc_size**2
    elif net.stem == "double":
        half = spec.C // 2
        total = half * 3 * spec.ks**2 + norm * half + spec.C * half * 9 + norm * spec.C
        if net.stem_second_live:
            total += spec.C * spec.C * 9 + norm * spec.C
    else:
        total = net.stem_channels * 3 * spec.ks**2 + norm * net.stem_channels
    of_kind: dict[int, int] = {}
    for cell in net.cells:  # equal cells of a layout are one object
        if id(cell) not in of_kind:
            of_kind[id(cell)] = _cell_parameters(cell, norm)
        total += of_kind[id(cell)]
    return total + sum((fan_in + 1) * fan_out for fan_in, fan_out in itertools.pairwise(net.head))


def _cell_parameters(cell: CellLayout, norm: int) -> int:
    total = sum(_op_parameters(op.op, op.stride, cell.C, norm) for op in cell.ops)
    for kind, c_in in zip(cell.preprocess, cell.in_channels, strict=True):
        if kind in ("conv", "factorized_reduce"):
            total += c_in * cell.C + norm * cell.C
    return total


def _op_parameters(op: str, stride: int, C: int, norm: int) -> int:
    if op in PARAMETER_FREE_OPS:
        return C * C + norm * C if op == "skip_connect" and stride == 2 else 0
    if op == "msa":  # qkv; output projection; two layer norms; two feed-forward layers
        return 3 * C * C + (C * C + C) + 4 * C + 2 * (C * C + C)
    if op == "cse":
        return C * (C // 2) + C // 2 + (C // 2) * C + C
    if op == "conv_7x1_1x7":
        return 2 * 7 * C * C + norm * C
    kind, _, size = op.rpartition("_")
    taps = int(size[0]) ** 2
    if kind == "conv":
        return taps * C * C + norm * C
    return (2 if kind == "sep_conv" else 1) * (taps * C + C * C + norm * C)
