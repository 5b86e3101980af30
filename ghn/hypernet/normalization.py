"""Differentiable normalization of predicted parameters (paper, section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def weight_scale(shape: Sequence[int]) -> float:
    """Return sqrt(beta / fan_in) for a weight (out, in, ...): fan_in is the size of one output's slice.

    beta is 2 (a ReLU follows), but 1 for depthwise kernels (one input channel) and for the first of two factorized
    kernels (kh < kw), behind which no ReLU comes.
    """
    fan_in = math.prod(shape[1:])
    kh, kw = shape[2:4] if len(shape) == 4 else (1, 1)
    beta = 1 if (len(shape) > 1 and shape[1] == 1) or kh < kw else 2
    return math.sqrt(beta / fan_in)


def normalize_norm_weight(weight: Tensor) -> Tensor:
    """Map a norm layer's predicted weight to (0, 2), around 1."""
    return 2 * torch.sigmoid(weight / 2)


def normalize_bias(bias: Tensor) -> Tensor:
    """Map any predicted bias to (-1, 1), around 0."""
    return torch.tanh(0.2 * bias)
