"""Write architectures in the official DeepNets-1M format, to read them back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from ghn import Architecture
from ghn.graph import Node


def write_official(path: Path, splits: Mapping[str, Sequence[Architecture]], *, published: bool = False) -> Path:
    """Write ``path`` and the JSON beside it; ``published`` leaves out the parts of names that the published files lack."""
    content: dict[str, dict] = {}
    with h5py.File(path, "w") as file:
        for split, architectures in splits.items():
            primitives: dict[str, int] = {}
            names: dict[str, int] = {}
            nets = []
            for index, architecture in enumerate(architectures):
                graph, spec = architecture.graph, architecture.spec
                rows = []
                for node in graph.nodes:
                    cell, name = _cell_and_name(node, spec.n_cells)
                    primitive = _extended(node) if published else node.primitive
                    name = _shortened(name) if published else name
                    rows.append(
                        (primitives.setdefault(primitive, len(primitives)), cell, names.setdefault(name, len(names)))
                    )
                distances = np.where(graph.distances <= 250, graph.distances, 0).astype(np.uint8)
                compression = None if published else "gzip"
                file.create_dataset(f"{split}/{index}/adj", data=distances, compression=compression)
                file.create_dataset(f"{split}/{index}/nodes", data=np.array(rows, dtype=np.uint16))
                net = {**spec.to_json(), "num_nodes": len(graph), "num_params": {"cifar10": 0, "imagenet": 0}}
                del net["num_classes"], net["image_size"]
                if split == "wide":
                    net["C"] //= 4
                nets.append(net)
            meta = {
                "primitives_ext": {i: name for name, i in primitives.items()},
                "unique_op_names": {i: name for name, i in names.items()},
            }
            content[split] = {"nets": nets, "meta": meta}
    path.with_name(f"{path.stem}_meta.json").write_text(json.dumps(content))
    return path


def _cell_and_name(node: Node, n_cells: int) -> tuple[int, str]:
    if not node.parameters:
        return 0, node.primitive
    name = node.parameters[0].name
    if match := re.fullmatch(r"cells\.(\d+)\.(.*)", name):
        return int(match[1]), match[2]
    return (n_cells - 1 if name.startswith("classifier") else 0), name


def _extended(node: Node) -> str:
    if node.primitive == "bias":
        return "fc-b"
    if node.shape is None or not node.primitive.endswith(("conv", "pool")):
        return node.primitive
    kh, kw = (*node.shape, 1, 1)[2:4]
    return f"{node.primitive}_{kh}x{kw}"


def _shortened(name: str) -> str:
    if name == "input":
        return ""
    name = re.sub(r"to_out\.0\.weight$", "to_out.0.", name)
    return re.sub(r"^(_ops\.\d+)\.op\.(\d)", r"\1.\2", name)
