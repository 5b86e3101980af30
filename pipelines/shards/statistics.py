"""Statistics of shard sets as a table and as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.shards.inspect import SetStatistics
from pipelines.storage import LocalStore

_COLUMNS = (
    "kind",
    "split",
    "samples",
    "shards",
    "MB",
    "kB/sample",
    "nodes",
    "parameters",
    "classes",
    "travel",
    "neighbours",
)
_NAMES = 2  # of the columns


def statistics_table(measured: Sequence[SetStatistics]) -> str:
    """Return a table with one row for each set; nodes and parameters are means, travel and neighbours shares in percent."""
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for item in measured:
        manifest = item.manifest
        means = [
            f"{sum(getattr(entry, name) or 0 for entry in manifest.shards) / manifest.samples:,.0f}"
            if manifest.kind == "deepnets"
            else "-"
            for name in ("nodes", "parameters")
        ]
        rows.append(
            (
                manifest.kind,
                manifest.split,
                f"{manifest.samples:,}",
                f"{len(manifest.shards):,}",
                f"{item.bytes / 1e6:,.2f}",
                f"{item.bytes / 1e3 / manifest.samples:,.2f}",
                *means,
                str(len(manifest.classes or ())) if manifest.kind == "images" else "-",
                f"{100 * item.quality.travel:.1f}%",
                f"{100 * item.quality.neighbours:.1f}%",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(_align(row, widths)) for row in rows]
    return "\n".join(
        [*lines, "", "travel, neighbours: how far shuffled reading moves samples; a perfect shuffle gives 33.3%"]
    )


def _align(row: tuple[str, ...], widths: Sequence[int]) -> list[str]:
    """Pad cells: names to the right, numbers to the left."""
    pairs = zip(row, widths, strict=True)
    return [cell.ljust(width) if i < _NAMES else cell.rjust(width) for i, (cell, width) in enumerate(pairs)]


def draw_statistics(measured: Sequence[SetStatistics], file: Path) -> None:
    """Write an SVG: a row for each set, a histogram for each of its distributions."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, NullFormatter

    from pipelines.drawing import PREDICTED_COLOUR

    figure = Figure(figsize=(9, 2.3 * len(measured)), layout="constrained")
    rows = figure.subplots(len(measured), 2, squeeze=False)
    for axes_pair, item in zip(rows, measured, strict=True):
        for axes, (name, values) in zip(axes_pair, item.distributions.items(), strict=True):
            if name == "class":
                counts = np.bincount(values, minlength=len(item.manifest.classes or ()))
                axes.bar(np.arange(len(counts)), counts, width=1.0, color=PREDICTED_COLOUR)
            else:
                low, high = max(1, values.min()), max(2, values.max())
                wide = high > 20 * low
                bins = np.geomspace(low, high + 1, 40) if wide else np.linspace(low, high + 1, 40)
                axes.hist(values, bins=bins, color=PREDICTED_COLOUR)
                axes.set_xscale("log" if wide else "linear")
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(name)
            axes.spines[["top", "right"]].set_visible(False)
        axes_pair[0].set_ylabel("samples")
        axes_pair[0].set_title(
            f"{item.manifest.kind}, {item.manifest.split}: {item.manifest.samples:,} samples"
            f" ({len(next(iter(item.distributions.values()))):,} drawn)",
            loc="left",
            fontsize=10,
        )
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    LocalStore(str(file.parent)).write(file.name, stream.getvalue().encode())
