"""Configuration of a hypernetwork, with the keys of the official checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ghn.errors import InputError


@dataclass(frozen=True, kw_only=True)
class GHNConfig:
    """Which hypernetwork to build; the defaults are GHN-2 for CIFAR-10 (paper, section 4).

    Attributes:
        num_classes: classes that the decoders' last layers predict (>= 2).
        hid: hidden size d of node states; a multiple of 4.
        max_shape: largest (out, in, kh, kw) decoded in one piece; larger tensors are tiled.
        hypernet: ``gatedgnn`` (GHN-1, GHN-2) or ``mlp`` (the baseline without message passing).
        decoder: only ``conv`` exists.
        weight_norm: normalize the predicted parameters (section 4).
        ve: virtual edges (section 4).
        layernorm: layer normalization behind the graph network.

    Raises:
        InputError: naming the field that is of another type or out of range.

    Examples:
        >>> ghn1 = GHNConfig(weight_norm=False, ve=False)
        >>> GHNConfig.from_json(ghn1.to_json()) == ghn1
        True

    """

    num_classes: int = 10
    hid: int = 32
    max_shape: tuple[int, int, int, int] = (64, 64, 11, 11)
    hypernet: Literal["gatedgnn", "mlp"] = "gatedgnn"
    decoder: Literal["conv"] = "conv"
    weight_norm: bool = True
    ve: bool = True
    layernorm: bool = True

    def __post_init__(self) -> None:
        for name in ("num_classes", "hid"):
            if type(getattr(self, name)) is not int:
                raise InputError(f"{name}={getattr(self, name)!r}: give a whole number")
        for name in ("weight_norm", "ve", "layernorm"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name}={getattr(self, name)!r}: give true or false")
        if self.hid < 4 or self.hid % 4:
            raise InputError(f"hid={self.hid}: give a multiple of 4")
        if self.num_classes < 2:
            raise InputError(f"num_classes={self.num_classes}: give at least 2")
        if type(self.max_shape) is not tuple or any(type(size) is not int for size in self.max_shape):
            raise InputError(f"max_shape={self.max_shape!r}: give (out, in, k, k) with whole numbers")
        if len(self.max_shape) != 4 or min(self.max_shape) < 1 or self.max_shape[2] != self.max_shape[3]:
            raise InputError(f"max_shape={self.max_shape}: give (out, in, k, k) with positive sizes")
        if self.hypernet not in ("gatedgnn", "mlp") or self.decoder != "conv":
            raise InputError(f"hypernet={self.hypernet!r}, decoder={self.decoder!r}: gatedgnn|mlp and conv exist")

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {**dataclasses.asdict(self), "max_shape": list(self.max_shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GHNConfig:
        """Read :meth:`to_json` data or an official checkpoint's ``config``; unknown keys are an :class:`InputError`."""
        if not isinstance(data, Mapping):
            raise InputError(f"hypernetwork configuration must be a JSON object, not {type(data).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InputError(f"hypernetwork configuration has unknown keys: {', '.join(unknown)}")
        values = dict(data)
        if "max_shape" in values:
            try:
                values["max_shape"] = tuple(int(size) for size in values["max_shape"])
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"max_shape={values['max_shape']!r}: give (out, in, k, k) with positive sizes"
                ) from error
        return cls(**values)
