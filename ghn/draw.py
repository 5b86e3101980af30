"""Draw a graph as SVG: nodes in columns by depth, coloured by primitive, with a legend."""

from __future__ import annotations

from html import escape

from ghn.graph import PRIMITIVES, ArchitectureGraph, Node

_COLOURS = {
    "max_pool": "#8c6d31",
    "avg_pool": "#bd9e39",
    "sep_conv": "#6baed6",
    "dil_conv": "#3182bd",
    "conv": "#08519c",
    "msa": "#e6550d",
    "cse": "#fd8d3c",
    "sum": "#31a354",
    "concat": "#74c476",
    "input": "#252525",
    "bias": "#bcbddc",
    "bn": "#756bb1",
    "ln": "#9e9ac8",
    "pos_enc": "#e377c2",
    "glob_avg": "#d6616b",
}
_ROW, _LANE, _RADIUS, _MARGIN, _HEADER = 26, 96, 6, 40, 64
_MAX_ROWS = 32


def draw_graph(graph: ArchitectureGraph, title: str) -> str:
    """Return an SVG picture of a graph.

    Nodes lie from top to bottom by their longest path from a source, and go on in the next column; nodes of one depth lie
    beside each other. Each has the sizes of what it carries. Real edges only.

    Args:
        graph: any number of nodes.
        title: shown above.

    """
    lanes: dict[int, list[int]] = {}
    for i, depth in enumerate(graph.depth.tolist()):
        lanes.setdefault(depth, []).append(i)
    levels = len(lanes)
    columns = -(-levels // _MAX_ROWS)
    rows = -(-levels // columns)
    width_of = [max(len(lanes[d]) for d in range(c * rows, min((c + 1) * rows, levels))) for c in range(columns)]
    left, x = [], float(_MARGIN)
    for lanes_wide in width_of:
        left.append(x)
        x += _LANE * lanes_wide + _LANE
    position: dict[int, tuple[float, float]] = {}
    for depth, members in lanes.items():
        column, row = divmod(depth, rows)
        for lane, i in enumerate(members):
            position[i] = (left[column] + _LANE * lane, _HEADER + _MARGIN + _ROW * row)
    used = [name for name in PRIMITIVES if any(node.primitive == name for node in graph.nodes)]
    width = max(x, 2 * _MARGIN + 92 * len(used), 480.0)
    height = _HEADER + 2 * _MARGIN + _ROW * rows
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        f'<text x="{_MARGIN}" y="26" font-size="16">{escape(title)}: {len(graph)} nodes, {len(graph.edges)} edges</text>',
    ]
    for k, name in enumerate(used):
        at = _MARGIN + 92 * k
        parts.append(f'<circle cx="{at}" cy="50" r="{_RADIUS}" fill="{_COLOURS[name]}"/>')
        parts.append(f'<text x="{at + 10}" y="54" font-size="12">{name}</text>')
    parts += [_edge(position[u], position[v], left) for u, v in graph.edges]
    for i, node in enumerate(graph.nodes):
        at_x, at_y = position[i]
        names = ", ".join(parameter.name for parameter in node.parameters) or node.primitive
        parts.append(
            f'<circle cx="{at_x:.0f}" cy="{at_y:.0f}" r="{_RADIUS}" fill="{_COLOURS[node.primitive]}">'
            f"<title>{i}: {escape(names)}</title></circle>"
        )
        parts.append(f'<text x="{at_x + 9:.0f}" y="{at_y + 3:.0f}" font-size="8" fill="#444">{_sizes(node)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _sizes(node: Node) -> str:
    return "x".join(str(size) for size in node.shape) if node.shape and node.parameters else ""


def _edge(start: tuple[float, float], end: tuple[float, float], left: list[float]) -> str:
    (x1, y1), (x2, y2) = start, end
    if x1 == x2 and y2 - y1 > _ROW:  # a skip bends around what it skips
        bend = x1 - min(30.0, 8 + (y2 - y1) / 10)
        path = f"M{x1:.0f},{y1:.0f} C{bend:.0f},{y1 + 10:.0f} {bend:.0f},{y2 - 10:.0f} {x2:.0f},{y2:.0f}"
    elif y2 <= y1:  # on to another column
        middle = max(edge for edge in left if edge <= x2) - _LANE / 2
        path = f"M{x1:.0f},{y1:.0f} C{middle:.0f},{y1 + 20:.0f} {middle:.0f},{y2 - 20:.0f} {x2:.0f},{y2:.0f}"
    else:
        path = f"M{x1:.0f},{y1:.0f} L{x2:.0f},{y2:.0f}"
    return f'<path d="{path}" fill="none" stroke="#999" stroke-width="1"/>'
