"""How evenly networks are dealt over 8 to 512 ranks: measured costs, dealt by their estimates, beside random dealing.

Efficiency is the mean load of a rank over the largest one: the share of time in which ranks do not wait. A network can not be
cut, so it is bounded by min(1, mean load / cost of the largest network).
"""

from __future__ import annotations

from pipelines.process import tune_process

tune_process()  # before torch is imported, as the command line does

import numpy as np
import torch

from benchmarks.measure import THREADS, Report
from ghn.cost import CostModel
from pipelines.training.calibrate import Measured, fit, measure_networks
from pipelines.training.dealing import deal

_NETWORKS = 240
_IMAGES = 16
_PER_RANK = 8
_RANKS = (8, 16, 32, 64, 128, 256, 512)
_META_BATCHES = 20


def measure(report: Report) -> None:
    torch.set_num_threads(THREADS)
    measured = measure_networks(_NETWORKS, _IMAGES, 32, 1, torch.device("cpu"), progress=False)
    half = len(measured) // 2
    model = fit(measured[:half], _IMAGES, "")
    rows = simulate(model, measured[half:])
    for row in rows:
        report.grow("dealing, by ranks", **row)
    at_64 = next(row for row in rows if row["ranks"] == 64)
    report.row("balance", at_64["percent_of_bound"], "% of the bound, 64 ranks", at_least=95)


def simulate(model: CostModel, measured: list[Measured]) -> list[dict[str, float]]:
    """Deal meta-batches drawn from measured networks (which the model was not fitted to) over ranks."""
    rng = np.random.default_rng(0)
    costs = np.array([m.seconds for m in measured])
    estimates = np.array([model.estimate(m.spec, _IMAGES).seconds for m in measured])
    rows = []
    for ranks in _RANKS:
        found = []
        for _ in range(_META_BATCHES):
            chosen = rng.integers(len(measured), size=ranks * _PER_RANK)
            mine = costs[chosen]
            bound = min(1.0, mine.sum() / ranks / mine.max())
            dealt = deal(estimates[chosen].tolist(), ranks)
            best = deal(mine.tolist(), ranks)
            shuffled = np.split(rng.permutation(len(chosen)), ranks)
            found.append([bound, *(efficiency(mine, hands) for hands in (dealt, best, shuffled))])
        bound, by_estimate, by_cost, at_random = np.mean(found, axis=0)
        rows.append(
            {
                "ranks": ranks,
                "bound": round(float(bound), 3),
                "by_estimate": round(float(by_estimate), 3),
                "by_true_cost": round(float(by_cost), 3),
                "at_random": round(float(at_random), 3),
                "percent_of_bound": round(100 * float(by_estimate / bound), 1),
            }
        )
    return rows


def efficiency(costs: np.ndarray, hands: list[list[int]] | list[np.ndarray]) -> float:
    """Return the mean load over the largest one."""
    loads = [costs[hand].sum() for hand in hands]
    return float(np.mean(loads) / np.max(loads))
