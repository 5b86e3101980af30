"""What all of matplotlib's pictures have in common: fonts, the two colours, and SVG that is the same for the same figure."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.figure import Figure

matplotlib.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "svg.hashsalt": "ghn"})

PREDICTED_COLOUR, BASELINE_COLOUR = "#2563eb", "#9ca3af"


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG text, the same for the same figure."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
