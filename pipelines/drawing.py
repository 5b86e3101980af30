"""Pictures as self-contained SVG: the training curve, and computational graphs."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ghn.graph import PRIMITIVES, ArchitectureGraph

matplotlib.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "svg.hashsalt": "ghn"})

PREDICTED_COLOUR, BASELINE_COLOUR = "#2563eb", "#9ca3af"
_GROUPS = {
    "convolution": (("conv", "sep_conv", "dil_conv"), "#2563eb"),
    "pooling": (("max_pool", "avg_pool", "glob_avg"), "#16a34a"),
    "normalization": (("bn", "ln"), "#f59e0b"),
    "bias, position": (("bias", "pos_enc"), "#a855f7"),
    "attention, gate": (("msa", "cse"), "#dc2626"),
    "input, sum, concat": (("input", "sum", "concat"), "#6b7280"),
}
_COLOURS = {primitive: colour for names, colour in _GROUPS.values() for primitive in names}
if set(_COLOURS) != set(PRIMITIVES):
    raise RuntimeError("every primitive needs a colour")


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG text, the same for the same figure."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


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


def draw_graph(graph: ArchitectureGraph, title: str) -> str:
    """Draw a graph layer by layer from left to right; colours are groups of primitives."""
    places = _place(graph)
    columns = places[:, 0].max() + 1
    figure = Figure(figsize=(min(24.0, max(8.0, columns * 0.16)), 0.8 + 0.34 * (np.ptp(places[:, 1]) + 2)))
    axes = figure.subplots()
    segments = np.array([[places[u], places[v]] for u, v in graph.edges])
    axes.add_collection(LineCollection(list(segments), colors="#9ca3af", linewidths=0.7, zorder=1))
    for label, (names, colour) in _GROUPS.items():
        chosen = np.array([node.primitive in names for node in graph.nodes])
        if chosen.any():
            x, y = places[chosen].T
            axes.scatter(x, y, s=34, color=colour, label=label, zorder=2, edgecolors="white", linewidths=0.5)
    for i, text in ((0, "input"), (len(graph) - 1, "output")):
        axes.annotate(text, places[i], xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set_axis_off()
    axes.set_title(f"{title}: {len(graph)} nodes, {len(graph.edges)} edges", loc="left", fontsize=10)
    axes.legend(frameon=False, ncols=6, loc="upper left", bbox_to_anchor=(0, 0), fontsize=8)
    return to_svg(figure)


def _place(graph: ArchitectureGraph) -> np.ndarray:
    """Place nodes (N, 2): column = longest path from the input; rows near the mean of the predecessors' rows."""
    depth = graph.depth
    predecessors: list[list[int]] = [[] for _ in graph.nodes]
    for u, v in graph.edges:
        predecessors[v].append(u)
    rows = np.zeros(len(graph))
    for column in range(depth.max() + 1):
        members = [i for i in range(len(graph)) if depth[i] == column]
        wanted = {i: float(np.mean(rows[predecessors[i]])) if predecessors[i] else 0.0 for i in members}
        members.sort(key=lambda i: (wanted[i], i))
        middle = float(np.mean([wanted[i] for i in members]))
        for position, i in enumerate(members):
            rows[i] = 0.5 * middle + position - (len(members) - 1) / 2
    return np.column_stack([depth, rows])
