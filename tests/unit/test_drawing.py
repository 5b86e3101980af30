"""`pipelines.drawing`: pictures say what they should, whatever the numbers."""

from __future__ import annotations

import re

from pipelines.evaluation.drawing import draw_curve


def rows(losses: list[float]) -> list[dict[str, float]]:
    return [{"step": i + 1, "loss": loss, "accuracy": 0.3, "session": 1} for i, loss in enumerate(losses)]


def test_one_huge_loss_does_not_flatten_the_curve() -> None:
    svg = draw_curve(rows([*(2.3 - 0.01 * i for i in range(40)), 2700.0, *(1.9 - 0.01 * i for i in range(40))]))
    labels = [float(text.replace("\N{MINUS SIGN}", "-")) for text in re.findall(r">([\N{MINUS SIGN}\d.]+)</text>", svg)]
    assert labels and max(labels) <= 100  # steps and percent; the loss's axis would reach thousands


def test_a_curve_may_have_gaps_or_a_single_point() -> None:
    assert draw_curve(rows([float("nan")])).startswith("<svg")
    assert draw_curve(rows([2.0, float("nan"), 1.9])).startswith("<svg")
