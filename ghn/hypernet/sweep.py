"""The gated sweep, node by node, compiled with numba: the same equations as :mod:`ghn.hypernet.gnn`, for CPUs.

Everything that does not depend on the order of nodes (the recurrent half of the gates, all weight gradients) is a plain
matrix product outside; the compiled loops only walk the graph. On other devices the level-parallel
form is used instead; the tests hold the two together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghn.compiled import compiled
from ghn.hypernet.batch import Schedule
from ghn.paths import MAX_PATH


@compiled
def _forward(
    order: Any, starts: Any, sources: Any, lengths: Any, factors: Any, h0: Any, gh: Any, w_ih: Any, b_ih: Any,
    w1: Any, b1: Any, w2: Any, b2: Any, received: Any, gates: Any, h: Any, inner: Any, messages: Any,
) -> None:  # fmt: skip
    n, d = h0.shape
    kinds, width = b1.shape
    gi = np.empty(3 * d, h0.dtype)
    for step in range(n):
        v = order[step]
        m = received[v]
        for e in range(starts[v], starts[v + 1]):
            message, factor = messages[sources[e]], factors[lengths[e]]
            for j in range(d):
                m[j] += factor * message[j]
        gi[:] = b_ih
        for j in range(d):
            for i in range(3 * d):
                gi[i] += m[j] * w_ih[j, i]
        for j in range(d):
            r = 1 / (1 + np.exp(-(gi[j] + gh[v, j])))
            z = 1 / (1 + np.exp(-(gi[d + j] + gh[v, d + j])))
            c = np.tanh(gi[2 * d + j] + r * gh[v, 2 * d + j])
            gates[v, j], gates[v, d + j], gates[v, 2 * d + j] = r, z, c
            h[v, j] = c + z * (h0[v, j] - c)
        for k in range(kinds):
            a, out = inner[k, v], messages[k * n + v]
            a[:] = b1[k]
            for j in range(d):
                for i in range(width):
                    a[i] += h[v, j] * w1[k, j, i]
            out[:] = b2[k]
            for i in range(width):
                a[i] = max(a[i], 0)
                for j in range(d):
                    out[j] += a[i] * w2[k, i, j]
            for j in range(d):
                out[j] = max(out[j], 0)


@compiled
def _backward(
    order: Any, starts: Any, sources: Any, lengths: Any, factors: Any, h0: Any, gh: Any, w_ih: Any, w1: Any, w2: Any,
    gates: Any, inner: Any, messages: Any, dh: Any, dmessages: Any, dinner: Any, dgi: Any, dgh: Any, dh0: Any,
) -> None:  # fmt: skip
    n, d = h0.shape
    kinds, width = w1.shape[:2]
    dm = np.empty(d, h0.dtype)
    for step in range(n - 1, -1, -1):
        v = order[step]
        for k in range(kinds):
            out, dout, a, da = messages[k * n + v], dmessages[k * n + v], inner[k, v], dinner[k, v]
            for j in range(d):
                if out[j] <= 0:
                    dout[j] = 0
            for j in range(d):
                for i in range(width):
                    da[i] += dout[j] * w2[k, j, i]
            for i in range(width):
                if a[i] <= 0:
                    da[i] = 0
                for j in range(d):
                    dh[v, j] += da[i] * w1[k, i, j]
        for j in range(d):
            r, z, c, g = gates[v, j], gates[v, d + j], gates[v, 2 * d + j], dh[v, j]
            dc = g * (1 - z) * (1 - c * c)
            dr = dc * gh[v, 2 * d + j] * r * (1 - r)
            dz = g * (h0[v, j] - c) * z * (1 - z)
            dgi[v, j], dgi[v, d + j], dgi[v, 2 * d + j] = dr, dz, dc
            dgh[v, j], dgh[v, d + j], dgh[v, 2 * d + j] = dr, dz, dc * r
            dh0[v, j] = g * z
        dm[:] = 0
        for i in range(3 * d):
            for j in range(d):
                dm[j] += dgi[v, i] * w_ih[i, j]
        for e in range(starts[v], starts[v + 1]):
            dsource, factor = dmessages[sources[e]], factors[lengths[e]]
            for j in range(d):
                dsource[j] += factor * dm[j]


class GatedSweep(torch.autograd.Function):
    """One sweep over all nodes; differentiable once.

    Inputs are the states (N, d), their recurrent gate terms ``W_hh h + b_hh`` (N, 3d), the gates' input weights
    (3d, d) and (3d,), and the message MLPs stacked over kinds: (K, inner, d), (K, inner), (K, d, inner), (K, d).
    """

    @staticmethod
    def forward(
        ctx: Any, schedule: Schedule, h0: Tensor, gh: Tensor, w_ih: Tensor, b_ih: Tensor,
        w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    ) -> Tensor:  # fmt: skip
        n, d = h0.shape
        kinds, width = b1.shape
        received, gates, h = h0.new_zeros(n, d), h0.new_empty(n, 3 * d), h0.new_empty(n, d)
        inner, messages = h0.new_empty(kinds, n, width), h0.new_empty(kinds * n, d)
        factors = (1 / np.arange(MAX_PATH + 1).clip(1)).astype(h0.detach().numpy().dtype)  # by length, starting at 0
        plan = (schedule.order, schedule.starts, schedule.sources, schedule.lengths, factors)
        arrays = _arrays(h0, gh, w_ih.t(), b_ih, w1.transpose(1, 2), b1, w2.transpose(1, 2), b2)
        _forward(*plan, *arrays, *_arrays(received, gates, h, inner, messages))
        ctx.plan = plan
        ctx.save_for_backward(h0, gh, w_ih, w1, w2, received, gates, h, inner, messages)
        return h

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        h0, gh, w_ih, w1, w2, received, gates, h, inner, messages = ctx.saved_tensors
        kinds, n, _ = inner.shape
        dh, dmessages = grad_h.clone().contiguous(), torch.zeros_like(messages)
        dinner, dgi, dgh, dh0 = (
            torch.zeros_like(inner),
            torch.empty_like(gh),
            torch.empty_like(gh),
            torch.empty_like(h0),
        )
        saved = _arrays(h0, gh, w_ih, w1, w2, gates, inner, messages)
        _backward(*ctx.plan, *saved, *_arrays(dh, dmessages, dinner, dgi, dgh, dh0))
        dout = dmessages.view(kinds, n, -1)
        dw2, dw1 = dout.transpose(1, 2) @ inner, dinner.transpose(1, 2) @ h
        return None, dh0, dgh, dgi.t() @ received, dgi.sum(0), dw1, dinner.sum(1), dw2, dout.sum(1)


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)
