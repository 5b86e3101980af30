"""What a network costs in training, told from its specification alone: seconds of a forward and backward pass, and memory.

Networks of the search space differ a hundredfold in cost, so whoever deals them over processes, or decides whether one fits
into memory, has to know before it is built. Both are linear in the amounts of work of a few kinds (:func:`work`);
the coefficients are fitted to measurements (``ghn calibrate``), by default to those of two CPU cores.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghn.errors import InputError
from ghn.genotype import ArchitectureSpec
from ghn.layout import CellLayout, layout

KINDS = (
    "conv_1x1",
    "conv_kxk",
    "depthwise",
    "dilated",
    "linear",
    "attention",
    "norm",
    "pool",
    "gate",
    "map",
    "head",
    "operations",
    "weights",
    "network",
)
"""Kinds of work: multiplications of convolutions, of linear layers, of attention and of the classifier; values that norms,
pools and gates read; values of all maps that operations make; how many operations and weights there are; 1."""

_PER_IMAGE = KINDS.index("operations")  # kinds before this one grow with the number of images
_COEFFICIENTS = Path(__file__).with_name("cost_cpu.json")


class _Tally:
    """Adds up work; maps are given as (channels, height or width)."""

    def __init__(self, *, batch_norms: bool) -> None:
        self.batch_norms = batch_norms
        self.amounts = dict.fromkeys(KINDS, 0.0)

    def conv(self, c_in: int, c_out: int, size: int, taps: int, width: int | None = None) -> None:
        area = size * (width or size)
        self.amounts["conv_1x1" if taps == 1 else "conv_kxk"] += c_in * c_out * taps * area
        self.amounts["weights"] += c_in * c_out * taps
        self.amounts["map"] += c_out * area
        self.amounts["operations"] += 1

    def depthwise(self, kind: str, channels: int, size: int, taps: int) -> None:
        self.amounts[kind] += channels * taps * size**2
        self.amounts["weights"] += channels * taps
        self.made(channels, size)

    def layer_norm(self, channels: int, size: int) -> None:
        self.amounts["norm"] += channels * size**2
        self.made(channels, size)

    def batch_norm(self, channels: int, size: int) -> None:
        if self.batch_norms:
            self.layer_norm(channels, size)

    def made(self, channels: int, size: int) -> None:
        self.amounts["map"] += channels * size**2
        self.amounts["operations"] += 1

    def op(self, op: str, stride: int, channels: int, before: int, size: int) -> None:
        """Count an operation that takes a map of size ``before`` and makes one of ``size``."""
        if op in ("max_pool_3x3", "avg_pool_3x3"):
            self.amounts["pool"] += channels * size**2
            self.made(channels, size)
        elif op == "skip_connect":
            if stride == 2:
                self.factorized_reduce(channels, channels, size)
        elif op == "msa":
            tokens = size**2
            self.amounts["linear"] += 6 * channels**2 * tokens
            self.amounts["attention"] += 2 * channels * tokens**2
            self.amounts["weights"] += 6 * channels**2
            for _ in range(4):
                self.layer_norm(channels, size)
        elif op == "cse":
            self.amounts["gate"] += channels * size**2
            self.amounts["weights"] += channels**2
            self.made(channels, size)
        elif op == "conv_7x1_1x7":
            self.conv(channels, channels, before, 7, width=size)  # the first of the two halves the width alone
            self.conv(channels, channels, size, 7)
            self.batch_norm(channels, size)
        else:
            kind, _, kernel = op.rpartition("_")
            taps = int(kernel[0]) ** 2
            if kind == "conv":
                self.conv(channels, channels, size, taps)
                self.batch_norm(channels, size)
            else:
                for _ in range(2 if kind == "sep_conv" else 1):
                    self.depthwise("depthwise" if kind == "sep_conv" else "dilated", channels, size, taps)
                    self.conv(channels, channels, size, 1)
                    self.batch_norm(channels, size)

    def factorized_reduce(self, c_in: int, c_out: int, size: int) -> None:
        self.amounts["map"] += 4 * c_in * size**2
        self.conv(c_in, c_out // 2, size, 1)
        self.conv(c_in, c_out // 2, size, 1)
        self.made(c_out, size)
        self.batch_norm(c_out, size)

    def cell(self, cell: CellLayout, size: int, reduced: int) -> None:
        """Count a cell that takes maps of ``size`` and makes maps of size ``reduced``."""
        for kind, c_in in zip(cell.preprocess, cell.in_channels, strict=True):
            if kind == "conv":
                self.made(c_in, size)
                self.conv(c_in, cell.C, size, 1)
                self.batch_norm(cell.C, size)
            elif kind == "factorized_reduce":
                self.factorized_reduce(c_in, cell.C, size)
        for op in cell.ops:
            before = size if op.stride == 2 else reduced
            self.op(op.op, op.stride, cell.C, before, reduced)
            self.amounts["map"] += cell.C * before**2  # rectified, or added to a state
        if len(cell.concat) > 1:
            self.made(cell.out_channels, reduced)


@functools.lru_cache(65_536)
def work(spec: ArchitectureSpec) -> tuple[float, ...]:
    """Return the amounts of work of each of :data:`KINDS` for one image."""
    net, tally = layout(spec), _Tally(batch_norms=spec.norm == "bnorm")
    size = spec.image_size
    if net.stem == "vit":
        size = net.pos_enc_size
        tally.conv(3, spec.C, size, 256 if spec.large_images else 9)
    elif net.stem == "double":
        for c_in, c_out, taps, stride in (
            (3, spec.C // 2, spec.ks**2, 2 if spec.large_images else 1),
            (spec.C // 2, spec.C, 9, 2 if spec.large_images else 1),
            (spec.C, spec.C, 9, 2),
        ):
            size = -(-size // stride)
            tally.conv(c_in, c_out, size, taps)
            tally.batch_norm(c_out, size)
    else:
        size = -(-size // (4 if spec.large_images else 1))
        tally.conv(3, net.stem_channels, size, spec.ks**2)
        tally.batch_norm(net.stem_channels, size)
        if spec.stem_pool:
            size = -(-size // 2)
            tally.amounts["pool"] += net.stem_channels * size**2
    for cell in net.cells:
        reduced = -(-size // 2) if cell.reduction and net.stem != "vit" else size
        if cell.live:
            tally.cell(cell, size, reduced)
        size = reduced
    head = net.head
    products = sum(a * b for a, b in itertools.pairwise(head))
    tally.amounts["head"] += products
    tally.amounts["weights"] += products
    tally.amounts["network"] = 1.0
    return tuple(tally.amounts[kind] for kind in KINDS)


class Cost(NamedTuple):
    """Seconds, and bytes at the peak."""

    seconds: float
    saved_bytes: float


_UNKNOWN = Cost(5.0, 0.0)
"""Of a network that is none of the search space: dealt among the first, and never refused for its memory."""


def amounts_of(specs: Sequence[ArchitectureSpec], images: int) -> NDArray[np.float64]:
    """Return the amounts of work (n, kinds) of networks on so many images."""
    amounts = np.array([work(spec) for spec in specs], dtype=np.float64).reshape(len(specs), len(KINDS))
    amounts[:, :_PER_IMAGE] *= images
    return amounts


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Seconds and bytes of a network's forward and backward pass as sums over :data:`KINDS`.

    Attributes:
        seconds: of each unit of work of each kind.
        saved_bytes: that each unit keeps for the backward pass, parameters and their gradients included.
        device: what was measured, in words.

    """

    seconds: tuple[float, ...]
    saved_bytes: tuple[float, ...]
    device: str = field(default="", compare=False)

    def estimate(self, spec: object, images: int) -> Cost:
        """Return the estimated cost of a forward and backward pass of one network on so many images.

        Networks from other libraries count as :data:`_UNKNOWN`.
        """
        if not isinstance(spec, ArchitectureSpec):
            return _UNKNOWN
        amounts = amounts_of([spec], images)[0]
        return Cost(float(amounts @ np.array(self.seconds)), float(amounts @ np.array(self.saved_bytes)))

    def to_json(self) -> str:
        """Return JSON that :meth:`read` takes."""
        table = {
            kind: {"seconds": float(f"{s:.4g}"), "bytes": float(f"{b:.4g}")}
            for kind, s, b in zip(KINDS, self.seconds, self.saved_bytes, strict=True)
        }
        return json.dumps({"device": self.device, "kinds": table}, indent=1) + "\n"

    @classmethod
    def read(cls, file: str | Path | None = None) -> CostModel:
        """Read a file of ``ghn calibrate``; by default the coefficients measured on two CPU cores.

        Raises:
            InputError: if it is no such file.

        """
        path = Path(file or _COEFFICIENTS)
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            rows = [data["kinds"][kind] for kind in KINDS]
            values = [tuple(float(row[name]) for row in rows) for name in ("seconds", "bytes")]
            if not all(math.isfinite(value) and value >= 0 for part in values for value in part):
                raise ValueError("coefficients must be finite and not negative")
            return cls(seconds=values[0], saved_bytes=values[1], device=str(data["device"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no cost model: {error}; make one with `ghn calibrate`") from error
