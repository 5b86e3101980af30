"""How evenly 8 to 512 ranks are busy: networks of measured costs, taken in the order of their estimates, beside random dealing.

Efficiency is the mean load of a rank over the largest one: the share of time in which ranks do not wait. A network can not be
cut, so it is bounded by min(1, mean load / cost of the largest network).
"""

from __future__ import annotations

from pipelines.process import tune_process

tune_process()  # before torch is imported, as the command line does

import heapq

import numpy as np
import torch

from benchmarks.measure import THREADS, Report
from ghn.cost import CostModel
from pipelines.training.calibrate import Measured, fit, measure_networks
from pipelines.training.dealing import by_cost, deal

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
    report.row("balance", 100 * at_64["taken_of_bound"], "% of the bound, 64 ranks", at_least=95)


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
            mine, expected = costs[chosen], estimates[chosen].tolist()
            bound = min(1.0, mine.sum() / ranks / mine.max())
            taken = efficiency(loads_in_turn(mine, by_cost(expected), ranks))
            dealt = efficiency([mine[hand].sum() for hand in deal(expected, ranks)])
            at_random = efficiency([hand.sum() for hand in np.split(rng.permutation(mine), ranks)])
            found.append([bound, taken, taken / bound, dealt / bound, at_random / bound])
        names = ("bound", "taken_in_turn", "taken_of_bound", "dealt_beforehand_of_bound", "at_random_of_bound")
        rows.append({"ranks": ranks, **dict(zip(names, np.mean(found, axis=0).round(3).tolist(), strict=True))})
    return rows


def loads_in_turn(costs: np.ndarray, order: list[int], ranks: int) -> list[float]:
    """Return what each rank has done if whoever is free takes the next network."""
    loads = [0.0] * ranks
    for position in order:
        heapq.heapreplace(loads, loads[0] + costs[position])
    return loads


def efficiency(loads: list[float]) -> float:
    """Return the mean load over the largest one."""
    return float(np.mean(loads) / np.max(loads))
