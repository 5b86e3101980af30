"""Predict the parameters of one network, here or on a model server, and write them as safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ghn import Architecture, ArchitectureGraph, coverage, load_checkpoint
from ghn.draw import draw_graph
from ghn.errors import InputError
from ghn.genotype import spec_from_json
from pipelines.serving.client import ask
from pipelines.serving.parameters import predict_file
from pipelines.serving.request import PredictionRequest, trace_model
from pipelines.storage import LocalStore


def predict(
    out: Path,
    *,
    checkpoint: Path | None = None,
    server: str | None = None,
    spec: Path | None = None,
    graph: Path | None = None,
    model: str | None = None,
    num_classes: int = 10,
    image_size: int = 32,
    small_input: bool = False,
    dtype: str = "float32",
    names: Sequence[str] = (),
    allow_default: Sequence[str] = (),
    draw: Path | None = None,
) -> str:
    """Write the predicted parameters of an architecture; return a report. A server gives the same file as its checkpoint.

    Args:
        out: safetensors file.
        checkpoint: folder or official file; exactly one of ``checkpoint`` and ``server`` is given.
        server: address of a model server.
        spec: JSON file with an architecture specification.
        graph: JSON file with an exported graph (``ghn.trace(...).to_json()``).
        model: see :func:`pipelines.named_networks.load_model`; exactly one of ``spec``, ``graph`` and ``model`` is given.
        num_classes: of a named model.
        image_size: in pixels, of a named model.
        small_input: keep the resolution in the first layers of a named torchvision model.
        dtype: of the written tensors: float32, float16 or bfloat16.
        names: patterns of the parameters to write (default: all).
        allow_default: patterns of parameters that may stay unpredicted (they are not written).
        draw: SVG file for a drawing of the graph.

    """
    if (checkpoint is None) == (server is None):
        raise InputError("give either a checkpoint (--checkpoint) or a model server (--server)")
    if sum(form is not None for form in (spec, graph, model)) != 1:
        raise InputError("give an architecture specification (--spec), a graph (--graph) or a model (--model)")
    if spec is not None:
        traced, title = Architecture(spec=spec_from_json(_read(spec, "architecture specification"))).graph, spec.name
    elif graph is not None:
        traced, title = _read_graph(graph), graph.name
    else:
        traced, title = trace_model(str(model), num_classes, image_size, small_input), str(model)
    request = PredictionRequest(dtype=dtype, names=list(names) or None, allow_default=list(allow_default) or None)
    if server is not None:
        content, said = ask(server, request.model_copy(update={"graph": traced.to_json()}))
        where = f" by {server} with weights {said['weights_sha256'][:12]}"
    else:
        prediction = predict_file(load_checkpoint(str(checkpoint)), traced, request)
        content, said, where = prediction.content, prediction.counts(), ""
    LocalStore(str(out.parent)).write(out.name, content)
    lines = [
        f"{out}: {said['values']:,} parameters in {said['tensors']} tensors, predicted in {said['seconds']:.3f} s{where}",
        str(coverage(traced)),
    ]
    if draw is not None:
        LocalStore(str(draw.parent)).write(draw.name, draw_graph(traced, title).encode())
        lines.append(f"{draw}: the graph, {len(traced)} nodes")
    return "\n".join(lines)


def _read(file: Path, what: str) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"no {what} at {file} ({error}); give a JSON file such as runs/demo/architecture.json"
        ) from error


def _read_graph(file: Path) -> ArchitectureGraph:
    try:
        data = json.loads(_read(file, "graph"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    return ArchitectureGraph.from_json(data)
