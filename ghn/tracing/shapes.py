"""Shapes of results without torch's help, for the few functions that most of a network's calls are.

Torch works out the shapes of meta tensors in Python, which takes milliseconds for a batch normalization or a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_KEEP = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "gelu", "softmax", "sigmoid"})
_KEEP_OUT_OF_PLACE = frozenset({"relu", "relu6", "hardswish", "hardsigmoid", "silu", "dropout"})
_COMBINE = frozenset({"add", "mul", "sub", "div", "truediv"})


def result_without_arithmetic(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the result of a call that keeps its first input's shape and type, or ``None`` for all other calls."""
    name = getattr(func, "__name__", "").removeprefix("__").removesuffix("__")
    if not args or not isinstance(args[0], Tensor) or "dtype" in kwargs or "out" in kwargs:
        return None
    if name in _KEEP:
        keeps = args[0].is_floating_point() and not (name == "softmax" and len(args) > 2)
    elif name in _KEEP_OUT_OF_PLACE:
        keeps = not kwargs.get("inplace") and not any(argument is True for argument in args[1:])
    elif name in _COMBINE and len(args) == 2:
        other = args[1]
        keeps = isinstance(other, Tensor) and other.shape == args[0].shape and other.dtype == args[0].dtype
    else:
        keeps = False
    return torch.empty(args[0].shape, dtype=args[0].dtype, device=args[0].device) if keeps else None
