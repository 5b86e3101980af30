"""Draw the pictures of the explanations: `python docs/pictures/draw.py` writes the SVG files beside this one, in seconds.

The graph is that of a sampled architecture; everything drawn of it (levels, path lengths, schedules) is computed by the library.
"""

# ruff: noqa: RUF001 -- the signs of the pictures
from __future__ import annotations

import html
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import ghn  # noqa: E402

INK, PALE, LINE = "#222", "#667", "#8a8f98"
RAMP = ("#3b4cc0", "#6f92f3", "#aac7fd", "#dddcdc", "#f7b89c", "#e7745b", "#b40426")
KINDS = {"conv": "#cfe0f5", "bn": "#dcefd6", "bias": "#f5e8c4", "sum": "#eee", "concat": "#eee", "input": "#fff"}


class Picture:
    """An SVG under construction."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.parts = width, height, list[str]()

    def add(self, tag: str, text: str | None = None, **attributes: object) -> None:
        """Add an element; underscores in names of attributes are dashes."""
        given = "".join(f' {name.strip("_").replace("_", "-")}="{value}"' for name, value in attributes.items())
        self.parts.append(f"<{tag}{given}/>" if text is None else f"<{tag}{given}>{html.escape(text)}</{tag}>")

    def text(self, x: float, y: float, text: str, *, size: float = 13, anchor: str = "middle", **more: object) -> None:
        """Add one line of text."""
        self.add("text", text, x=f"{x:g}", y=f"{y:g}", font_size=size, text_anchor=anchor, **{"fill": INK, **more})

    def box(self, x: float, y: float, w: float, h: float, *lines: str, fill: str = "#eef3fb", size: float = 13) -> None:
        """Add a box with lines of text in its middle, the first one bold."""
        self.add("rect", x=x, y=y, width=w, height=h, rx=7, fill=fill, stroke=LINE)
        top = y + h / 2 - (len(lines) - 1) * (size + 3) / 2 + size * 0.35
        for i, line in enumerate(lines):
            weight = {"font_weight": "bold"} if i == 0 else {}
            self.text(x + w / 2, top + i * (size + 3), line, size=size if i == 0 else size - 1.5, **weight)

    def arrow(self, x0: float, y0: float, x1: float, y1: float, *, width: float = 1.5, color: str = "#444") -> None:
        """Add a straight arrow."""
        self.add("line", x1=x0, y1=y0, x2=x1, y2=y1, stroke=color, stroke_width=width, marker_end="url(#a)")

    def save(self, name: str) -> None:
        """Write the file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            'font-family="Helvetica, Arial, sans-serif">\n<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" '
            'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="#444"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" fill="#fff"/>\n'
        )
        (HERE / name).write_text(head + "\n".join(self.parts) + "\n</svg>\n")


def color(share: float) -> str:
    """Return a colour between blue (0) and red (1)."""
    at = min(max(share, 0), 1) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    a, b = ([int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (RAMP[low], RAMP[low + 1]))
    return "#" + "".join(f"{round(x + (y - x) * (at - low)):02x}" for x, y in zip(a, b, strict=True))


def small_graph() -> ghn.ArchitectureGraph:
    """The smallest graph with two cells side by side among 400 sampled architectures."""
    graphs = [architecture.graph for architecture in ghn.sample_architectures("val", 400, seed=0)]
    return min((g for g in graphs if len(g) / (g.depth.max() + 1) > 1.7), key=len)


def places(graph: ghn.ArchitectureGraph, x: float, y: float, dx: float, dy: float) -> list[tuple[float, float]]:
    """Place nodes by level from left to right, those of one level below each other, near what they come from."""
    levels = defaultdict(list)
    for v, depth in enumerate(graph.depth):
        levels[int(depth)].append(v)
    sources = defaultdict(list)
    for u, v in graph.edges:
        sources[v].append(u)
    at: dict[int, tuple[float, float]] = {}
    for depth in sorted(levels):
        ranked = sorted(levels[depth], key=lambda v: (np.mean([at[u][1] for u in sources[v]]) if sources[v] else 0, v))
        for i, v in enumerate(ranked):
            at[v] = (x + depth * dx, y + (i - (len(ranked) - 1) / 2) * dy)
    return [at[v] for v in range(len(graph))]


def curve(picture: Picture, a: tuple[float, float], b: tuple[float, float], bend: float, **more: object) -> None:
    """Add an arc from one point to another."""
    (x0, y0), (x1, y1) = a, b
    path = f"M{x0:.1f} {y0:.1f} Q{(x0 + x1) / 2:.1f} {(y0 + y1) / 2 + bend:.1f} {x1:.1f} {y1:.1f}"
    picture.add("path", d=path, fill="none", **more)


def draw_graph(graph: ghn.ArchitectureGraph) -> None:
    """A real graph: levels as colours, and the virtual edges that end in one node."""
    n, last = len(graph), int(graph.depth.max())
    picture = Picture(1180, 560)
    at = places(graph, 46, 118, 1088 / last, 42)
    text = f"A sampled architecture: {n} nodes, {len(graph.edges)} edges, {last + 1} levels. Colour: level."
    picture.text(24, 26, text, size=15, anchor="start")
    for u, v in graph.edges:
        jump = graph.depth[v] - graph.depth[u]
        straight = jump == 1
        bend = 0 if straight else (-1 if at[u][1] + at[v][1] <= 236 else 1) * (34 + 9 * float(jump))
        curve(picture, at[u], at[v], bend, stroke=LINE, stroke_width=1.3)
    nodes(picture, graph, at)
    target = max(v for v in range(n) if graph.nodes[v].primitive in ("sum", "concat"))
    lower = places(graph, 46, 420, 1088 / last, 36)
    u, v, s = graph.virtual_edges()
    count = f"{int((v == target).sum())} of {len(v)}"
    words = f"Messages into node {target} along virtual edges ({count}): width and darkness are the factor 1/s."
    picture.text(24, 248, words, size=15, anchor="start")
    for source, length in sorted(zip(u[v == target], s[v == target], strict=True), key=lambda pair: -int(pair[1])):
        far = lower[target][0] - lower[source][0]
        share = 1 / float(length)
        bend = (-1 if lower[source][1] <= 420 else 1) * (16 + 0.2 * far)
        tone = f"rgb({int(150 - 120 * share)},{int(160 - 110 * share)},{int(190 - 60 * share)})"
        curve(picture, lower[source], lower[target], bend, stroke=tone, stroke_width=f"{0.7 + 3.6 * share:.2f}")
    nodes(picture, graph, lower, ring=target)
    picture.save("graph.svg")


def nodes(
    picture: Picture, graph: ghn.ArchitectureGraph, at: Sequence[tuple[float, float]], ring: int | None = None
) -> None:
    """Draw all nodes in the colours of their levels, with number and primitive."""
    last = graph.depth.max()
    for v, (x, y) in enumerate(at):
        share = float(graph.depth[v] / last)
        edge = {"stroke": "#000", "stroke_width": 3} if v == ring else {"stroke": "#555", "stroke_width": 1}
        picture.add("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=11, fill=color(share), **edge)
        dark = abs(share - 0.5) > 0.27
        picture.text(x, y + 4, str(v), size=11, fill="#fff" if dark else "#000")
        picture.text(x, y + 22, graph.nodes[v].primitive, size=9.5, fill=PALE)


def draw_overview() -> None:
    """From a specification to parameters, on one page."""
    picture = Picture(1180, 300)
    boxes = [
        ("specification", "or a module: traced", "#f6f0e4"),
        ("graph", "15 primitives, shapes", "#eef3fb"),
        ("embedding", "h = E + shape, d = 32", "#eef3fb"),
        ("message passing", "gated, both directions", "#eef3fb"),
        ("decoders", "piece, slice, repeat", "#eef3fb"),
        ("normalization", "by fan-in", "#eef3fb"),
        ("parameters", "of the network", "#eef6ee"),
    ]
    width, gap = 144, 22
    for i, (name, line, fill) in enumerate(boxes):
        x = 20 + i * (width + gap)
        picture.box(x, 30, width, 58, name, line, fill=fill, size=13)
        if i:
            picture.arrow(x - gap + 2, 59, x - 3, 59)
    at = [(262, 140), (222, 190), (302, 190), (262, 240)]
    for a, b in ((0, 1), (0, 2), (1, 3), (2, 3)):
        picture.arrow(at[a][0], at[a][1] + 13, at[b][0], at[b][1] - 15, width=1.2)
    for (x, y), name in zip(at, ("conv", "bn", "conv", "sum"), strict=True):
        picture.add("circle", cx=x, cy=y, r=13, fill=KINDS[name], stroke="#555")
        picture.text(x, y + 3.5, name, size=9)
    bar(picture, 362, 132, ("primitive", "out | in | kh | kw"))
    for row, y in enumerate((205, 222, 239, 256)):
        for i in range(8):
            picture.add("rect", x=368 + i * 15, y=y, width=14, height=14, fill=color(((row * 5 + i * 3) % 8) / 7))
    at = [(590 + dx, y) for dx, y in ((0, 140), (-42, 190), (42, 190), (0, 240))]
    for a, b in ((0, 1), (0, 2), (1, 3), (2, 3)):
        picture.arrow(at[a][0], at[a][1] + 10, at[b][0], at[b][1] - 12, width=1.2)
    curve(picture, at[0], at[3], 0, stroke="#b40426", stroke_width=1.6, stroke_dasharray="5 4")
    for i, (x, y) in enumerate(at):
        picture.add("circle", cx=x, cy=y, r=11, fill=color((0, 0.5, 0.5, 1)[i]), stroke="#555")
    picture.text(590, 276, "dashed: virtual edge,", size=11.5, fill=PALE)
    picture.text(590, 291, "s = 2, factor 1/2", size=11.5, fill=PALE)
    grid(picture, 706, 130, 8, 8, 10, lambda r, c: color(((r * 3 + c * 5) % 9) / 8))
    picture.text(746, 228, "piece ≤ 64 × 64 × k × k", size=11.5, fill=PALE)
    for k in range(3):
        grid(picture, 690 + k * 40, 240, 4, 4, 9, lambda r, c: color(((r * 3 + c * 5) % 9) / 8))
    picture.text(920, 150, "w · √(β / fan-in)", size=13)
    picture.text(920, 182, "2 · sigmoid(γ / 2)", size=13)
    picture.text(920, 214, "tanh(b / 5)", size=13)
    for i, (h, w) in enumerate(((6, 10), (2, 10), (9, 5))):
        grid(
            picture,
            1032 + (0, 0, 74)[i],
            (132, 206, 132)[i],
            h,
            w if i < 2 else 5,
            7,
            lambda r, c: color(((r * 7 + c * 5) % 11) / 10),
        )
    picture.text(1086, 250, "{name: tensor}", size=12, fill=PALE)
    picture.save("ghn2.svg")


def bar(picture: Picture, x: float, y: float, lines: Sequence[str]) -> None:
    """Draw what a node's first state is the sum of."""
    picture.box(x + 4, y, 126, 24, lines[0], fill="#fff", size=11.5)
    picture.text(x + 67, y + 37, "+", size=13)
    picture.box(x + 4, y + 42, 126, 24, lines[1], fill="#fff", size=11.5)


def grid(picture: Picture, x: float, y: float, rows: int, columns: int, size: float, fill: object) -> None:
    """Draw a matrix."""
    for r in range(rows):
        for c in range(columns):
            picture.add(
                "rect",
                x=x + c * size,
                y=y + r * size,
                width=size,
                height=size,
                fill=fill(r, c),
                stroke="#fff",
                stroke_width=0.5,
            )  # type: ignore[operator]


def draw_decoder() -> None:
    """How one piece becomes tensors of any shape; sizes are an eighth of the real ones."""
    picture = Picture(1180, 392)
    side, cell = 8, 13.0

    def tone(r: int, c: int) -> str:
        return color(((r % side) * side + c % side) / (side * side - 1))

    picture.text(
        24,
        28,
        "One piece for each node: 64 out × 64 in, k × k taps (squares stand for 8 × 8 channels)",
        size=15,
        anchor="start",
    )
    picture.box(24, 52, 118, 46, "state h", "32 values", fill="#f6f0e4")
    picture.arrow(142, 75, 168, 75)
    picture.box(170, 52, 150, 46, "fc, ReLU", "32 → 128 · k · k")
    picture.arrow(320, 75, 346, 75)
    picture.box(348, 52, 178, 46, "1×1 conv, ReLU", "128 → 256, each tap")
    picture.arrow(526, 75, 552, 75)
    picture.box(554, 52, 178, 46, "1×1 conv", "256 → 64 · 64, each tap")
    picture.arrow(732, 75, 758, 75)
    picture.box(760, 52, 190, 46, "slice, repeat", "to the parameter's shape", fill="#eef6ee")
    picture.arrow(950, 75, 976, 75)
    picture.box(978, 52, 180, 46, "· √(β / fan-in)", "of the real shape", fill="#eef6ee")

    top = 166
    columns = [
        (24, "the piece", "64 × 64"),
        (206, "smaller: cut", "32 out × 16 in"),
        (388, "as wide, taller: repeat", "128 out × 64 in"),
        (588, "taller and wider", "96 out × 160 in"),
        (898, "kernels", "taps beyond kh × kw are never computed"),
    ]
    for x, name, shape in columns:
        picture.text(x, top - 28, name, size=13.5, anchor="start", font_weight="bold")
        picture.text(x, top - 11, shape, size=12, anchor="start", fill=PALE)
    grid(picture, 24, top, side, side, cell, tone)
    grid(picture, 206, top, side, side, cell, lambda r, c: tone(r, c) if r < 4 and c < 2 else "#f3f3f3")
    frame(picture, 206, top, 4, 2, cell)
    grid(picture, 388, top, 16, 8, cell, tone)
    frame(picture, 388, top, 8, 8, cell)
    frame(picture, 388, top + 8 * cell, 8, 8, cell)
    grid(picture, 588, top, 12, 20, cell, tone)
    for r, h in ((0, 8), (8, 4)):
        for c, w in ((0, 8), (8, 8), (16, 4)):
            frame(picture, 588 + c * cell, top + r * cell, h, w, cell)
    grid(
        picture,
        898,
        top,
        11,
        11,
        cell,
        lambda r, c: "#e7745b" if r < 3 and c < 3 else "#aac7fd" if r < 5 and c < 5 else "#f3f3f3",
    )
    picture.text(1054, top + 26, "3 × 3: the first", size=12, anchor="start")
    picture.text(1054, top + 42, "9 of 121 taps", size=12, anchor="start")
    picture.text(1054, top + 70, "5 × 5: the first 25", size=12, anchor="start")
    picture.text(24, top + 150, "colours: a value's place", size=12, anchor="start", fill=PALE)
    picture.text(24, top + 166, "in the piece", size=12, anchor="start", fill=PALE)
    picture.text(588, top + 178, "the last ones are cut: 160 = 64 + 64 + 32", size=12, anchor="start", fill=PALE)
    picture.text(
        588, top + 212, "Repeated values get one gradient: the sum over all repetitions.", size=13, anchor="start"
    )
    picture.text(898, top + 164, "k = 11 for CIFAR-10, 16 for ImageNet", size=12, anchor="start", fill=PALE)
    picture.save("decoder.svg")


def frame(picture: Picture, x: float, y: float, rows: int, columns: int, size: float) -> None:
    """Draw a frame around a part of a matrix."""
    picture.add(
        "rect", x=x, y=y, width=columns * size, height=rows * size, fill="none", stroke="#000", stroke_width=1.6
    )


def draw_levels(graph: ghn.ArchitectureGraph) -> None:
    """Which nodes are updated at which step: one after another, and level by level for two graphs together."""
    other = ghn.sample_architectures("val", 30, seed=0)[29].graph
    picture = Picture(1180, 470)
    n, m = len(graph), len(other)
    step = 1040 / (n + m)
    picture.text(24, 26, f"One node after another: {n} + {m} = {n + m} steps for two graphs", size=15, anchor="start")
    order = [(graph, v) for v in range(n)] + [(other, v) for v in range(m)]
    for i, (g, v) in enumerate(order):
        x = 100 + i * step
        share = float(g.depth[v] / g.depth.max())
        picture.add(
            "rect",
            x=f"{x:.1f}",
            y=46,
            width=f"{step - 1.5:.1f}",
            height=24,
            fill=color(share),
            stroke="#777",
            stroke_width=0.5,
        )
    picture.text(100, 88, "graph A", size=12, anchor="start", fill=PALE)
    picture.text(100 + n * step, 88, "graph B", size=12, anchor="start", fill=PALE)
    last = int(max(graph.depth.max(), other.depth.max()))
    picture.text(
        24,
        128,
        f"Level by level: {last + 1} steps; a step updates all nodes of a column at once",
        size=15,
        anchor="start",
    )
    dx = 1040 / (last + 1)
    for name, g, y in (("A", graph, 190), ("B", other, 268)):
        picture.text(24, y + 4, f"graph {name}", size=12, anchor="start", fill=PALE)
        at = places(g, 100 + dx / 2, y, dx, 30)
        for u, v in g.edges:
            jump = int(g.depth[v] - g.depth[u])
            bend = 0 if jump == 1 else (-1 if at[u][1] + at[v][1] <= 2 * y else 1) * (16 + 5 * jump)
            curve(picture, at[u], at[v], bend, stroke=LINE, stroke_width=1)
        for v, (x, y0) in enumerate(at):
            picture.add(
                "circle",
                cx=f"{x:.1f}",
                cy=f"{y0:.1f}",
                r=8,
                fill=color(float(g.depth[v] / g.depth.max())),
                stroke="#555",
            )
    for i in range(last + 1):
        picture.text(100 + dx * (i + 0.5), 328, str(i), size=11, fill=PALE)
    picture.text(24, 328, "level", size=12, anchor="start", fill=PALE)
    picture.text(24, 366, "Why: an edge, real or virtual, always leads to a higher level", size=15, anchor="start")
    for x, name, line, fill in (
        (100, "level ≤ 4", "final states, messages stored", "#dcefd6"),
        (480, "level 5", "no edges among these nodes", "#f5e8c4"),
        (860, "level ≥ 6", "not needed yet", "#eee"),
    ):
        picture.box(x, 390, 230, 52, name, line, fill=fill)
    picture.arrow(330, 416, 477, 416)
    picture.arrow(710, 416, 857, 416)
    picture.text(404, 406, "messages", size=12, fill=PALE)
    picture.text(784, 406, "messages", size=12, fill=PALE)
    picture.save("levels.svg")


def main() -> None:
    """Draw all pictures."""
    graph = small_graph()
    draw_overview()
    draw_graph(graph)
    draw_decoder()
    draw_levels(graph)


if __name__ == "__main__":
    main()
