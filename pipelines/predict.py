"""Predict the parameters of one network and write them as safetensors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ghn import Architecture, ArchitectureGraph, adjust_for_small_images, coverage, load_checkpoint, trace
from ghn import predict as predict_parameters
from ghn.architecture import spec_from_json
from ghn.draw import draw_graph
from ghn.errors import InputError
from pipelines.models import load_model
from pipelines.storage import LocalStore


def predict(
    checkpoint: Path,
    out: Path,
    *,
    spec: Path | None = None,
    model: str | None = None,
    num_classes: int = 10,
    image_size: int = 32,
    small_input: bool = False,
    allow_default: Sequence[str] = (),
    draw: Path | None = None,
) -> str:
    """Write the predicted parameters of a specified architecture or a named model; return a report.

    Args:
        checkpoint: folder or official file.
        out: safetensors file.
        spec: JSON file with an architecture specification.
        model: see :func:`pipelines.models.load_model`; exactly one of ``spec`` and ``model`` is given.
        num_classes: of a named model.
        image_size: in pixels, of a named model.
        small_input: keep the resolution in the first layers of a named torchvision model.
        allow_default: patterns of parameters that may stay unpredicted (they are not written).
        draw: SVG file for a drawing of the graph.

    """
    if (spec is None) == (model is None):
        raise InputError("give either an architecture specification (--spec) or a model (--model)")
    hypernet = load_checkpoint(checkpoint)
    if spec is not None:
        if not spec.is_file():
            raise InputError(
                f"no architecture specification at {spec}; give a JSON file such as runs/demo/architecture.json"
            )
        graph, title = Architecture(spec=spec_from_json(spec.read_text())).graph, spec.name
    else:
        graph, title = _trace_model(str(model), num_classes, image_size, small_input), str(model)
    started = time.monotonic()
    with torch.no_grad():
        parameters = predict_parameters(hypernet, graph, allow_default=allow_default)
    seconds = time.monotonic() - started
    content = save({name: tensor.contiguous().clone() for name, tensor in parameters.items()})
    LocalStore(str(out.parent)).write(out.name, content)
    count = sum(tensor.numel() for tensor in parameters.values())
    lines = [
        f"{out}: {count:,} parameters in {len(parameters)} tensors, predicted in {seconds:.3f} s",
        str(coverage(graph)),
    ]
    if draw is not None:
        LocalStore(str(draw.parent)).write(draw.name, draw_graph(graph, title).encode())
        lines.append(f"{draw}: the graph, {len(graph)} nodes")
    return "\n".join(lines)


def _trace_model(name: str, num_classes: int, image_size: int, small_input: bool) -> ArchitectureGraph:
    module: Any = load_model(name, num_classes=num_classes).eval()
    if small_input:
        module = adjust_for_small_images(module)
    return trace(module, torch.empty(1, 3, image_size, image_size, device="meta"))
