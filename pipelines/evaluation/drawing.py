"""Pictures of a report: the training curve, means and distributions by split, accuracy against size, and SGD beside them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ghn.evaluation import PREDICTED, RANDOM
from pipelines.drawing import BASELINE_COLOUR, PREDICTED_COLOUR, to_svg
from pipelines.evaluation.methods import SGD

_FAILED_COLOUR, _DARK = "#dc2626", "#1e3a8a"
_COLOURS = ("#2563eb", "#f59e0b", "#16a34a", "#a855f7", "#db2777", "#0891b2", "#6b7280")
_SIZES = {
    "parameters": "parameters",
    "depth": "depth, layers",
    "width": "width, channels",
    "nodes": "nodes of the graph",
}
_LABELS = {"top1": "top-1 accuracy, %", "top5": "top-5 accuracy, %"}

Network = Mapping[str, Any]


def draw_splits(content: Mapping[str, Any]) -> str:
    """Draw mean accuracy per split with its standard error, beside every baseline; percent."""
    metric, splits = content["metric"], content["splits"]
    names = list(next(iter(splits.values()))["scores"])
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    x = np.arange(len(splits))
    width = 0.8 / len(names)
    colours = {PREDICTED: PREDICTED_COLOUR, RANDOM: BASELINE_COLOUR}
    labels = {PREDICTED: "predicted parameters", RANDOM: "random initialization"}
    for i, name in enumerate(names):
        rows = [row["scores"][name][metric] for row in splits.values()]
        at = x + (i - (len(names) - 1) / 2) * width
        means, errors = [row["mean"] for row in rows], [row["stderr"] for row in rows]
        colour = colours.get(name, _COLOURS[i % len(_COLOURS)])
        axes.bar(at, means, width, yerr=errors, capsize=3, color=colour, label=labels.get(name, name))
        if name == PREDICTED:
            best = [row["best"] for row in rows]
            axes.scatter(at, best, marker="_", s=160, color=_DARK, label="best network")
    axes.axhline(
        content["chance"], color="#111827", linewidth=0.8, linestyle=":", label=f"chance ({content['chance']:g}%)"
    )
    axes.set_xticks(x, [f"{name}\n({row['networks']})" for name, row in splits.items()])
    axes.set_ylabel(_LABELS[metric])
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return to_svg(figure)


def draw_distribution(networks: Sequence[Network], metric: str, chance: float) -> str:
    """Draw the accuracies of all networks by split, with quartiles; failed networks are crosses at 0."""
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    splits = list(dict.fromkeys(network["split"] for network in networks))
    rng = np.random.default_rng(0)
    for x, split in enumerate(splits):
        members = [network["scores"][PREDICTED] for network in networks if network["split"] == split]
        values = np.array([score[metric] for score in members])
        failed = np.array([bool(score["failure"]) for score in members])
        places = x + rng.uniform(-0.25, 0.25, len(values))
        axes.scatter(places[~failed], values[~failed], s=9, alpha=0.5, color=_COLOURS[x % len(_COLOURS)], linewidths=0)
        axes.scatter(places[failed], values[failed], s=30, marker="x", color=_FAILED_COLOUR)
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        axes.plot([x, x], [low, high], color="#111827", linewidth=2.2)
        axes.plot([x - 0.18, x + 0.18], [middle, middle], color="#111827", linewidth=2.2)
    axes.axhline(chance, color="#111827", linewidth=0.8, linestyle=":")
    counts = {s: sum(bool(n["scores"][PREDICTED]["failure"]) for n in networks if n["split"] == s) for s in splits}
    axes.set_xticks(range(len(splits)), [f"{s}\n{counts[s]} failed" if counts[s] else s for s in splits])
    axes.set_ylabel(_LABELS[metric])
    axes.spines[["top", "right"]].set_visible(False)
    return to_svg(figure)


def draw_sizes(networks: Sequence[Network], metric: str) -> str:
    """Draw accuracy against parameters, depth, width and nodes of every network, coloured by split; crosses failed."""
    figure = Figure(figsize=(9, 5.6))
    splits = list(dict.fromkeys(network["split"] for network in networks))
    for axes, (fact, label) in zip(figure.subplots(2, 2, sharey=True).flat, _SIZES.items(), strict=True):
        for i, split in enumerate(splits):
            members = [network for network in networks if network["split"] == split]
            x = np.array([network["facts"][fact] for network in members])
            y = np.array([network["scores"][PREDICTED][metric] for network in members])
            failed = np.array([bool(network["scores"][PREDICTED]["failure"]) for network in members])
            axes.scatter(
                x[~failed], y[~failed], s=11, alpha=0.6, color=_COLOURS[i % len(_COLOURS)], label=split, linewidths=0
            )
            axes.scatter(x[failed], y[failed], s=28, marker="x", color=_FAILED_COLOUR)
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        if fact != "parameters":  # a decade or two: more marks, as plain numbers
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    for row in (0, 2):
        figure.axes[row].set_ylabel(_LABELS[metric])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="upper center", fontsize=8)
    figure.subplots_adjust(hspace=0.35, wspace=0.08)
    return to_svg(figure)


def draw_sgd(splits: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """Draw the mean accuracy of trained networks over SGD steps; a dot shows what the prediction is worth."""
    figure = Figure(figsize=(8, 3.0))
    axes = figure.subplots()
    for i, (name, row) in enumerate(splits.items()):
        if SGD not in row:
            continue
        sgd, colour = row[SGD], _COLOURS[i % len(_COLOURS)]
        axes.plot(
            np.array(sgd["steps"]), sgd[metric], color=colour, label=name, marker=".", markersize=3, linewidth=1.2
        )
        worth = sgd["steps_worth"]
        at = sgd["steps"][-1] if worth is None else worth
        axes.scatter([at], [sgd["predicted"]], color=colour, s=36, marker=">" if worth is None else "o", zorder=3)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("SGD steps")
    axes.set_ylabel(_LABELS[metric])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return to_svg(figure)


def draw_curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw meta-training loss and accuracy over steps, smoothed, with a line at each resume."""
    figure = Figure(figsize=(8, 2.8))
    left = figure.subplots()
    right = left.twinx()
    steps = np.array([row["step"] for row in rows])
    for axes, key, factor, colour, label in (
        (left, "loss", 1.0, "#b91c1c", "loss (cross-entropy)"),
        (right, "accuracy", 100.0, PREDICTED_COLOUR, "training accuracy, %"),
    ):
        values = factor * np.array([row[key] for row in rows], dtype=float)
        smooth = _smooth(values)
        axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(steps, smooth, color=colour, linewidth=1.6)
        if not np.isnan(smooth).all():
            low, high = np.nanmin(smooth), np.nanmax(smooth)
            margin = 0.5 * (high - low) + 0.01 * abs(high) + 1e-3
            axes.set_ylim(low - margin, high + margin)
        axes.set_ylabel(label, color=colour)
        axes.spines[["top"]].set_visible(False)
    for before, after in itertools.pairwise(rows):
        if before["session"] != after["session"]:
            left.axvline(after["step"], color="#111827", linestyle="--", linewidth=0.8)
            left.annotate("resumed", (after["step"], left.get_ylim()[1]), fontsize=8, ha="left", va="top")
    left.set_xlabel("meta-training step")
    return to_svg(figure)


def _smooth(values: np.ndarray, window: int = 25) -> np.ndarray:
    """Centred running median that leaves gaps out: one network's loss may be a thousand times the others'."""
    half = min(window, len(values)) // 2
    padded = np.pad(values, half, constant_values=np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of windows with nothing but gaps
        return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)
