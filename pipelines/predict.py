"""Predict the parameters of one specified architecture and write them as safetensors."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import save

from ghn import Architecture, load_checkpoint
from ghn import predict as predict_parameters
from ghn.architecture import spec_from_json
from ghn.errors import InputError
from pipelines.storage import LocalStore


def predict(checkpoint: Path, spec: Path, out: Path) -> str:
    """Write the predicted parameters of the architecture that ``spec`` holds as JSON; return one line about them."""
    if not spec.is_file():
        raise InputError(
            f"no architecture specification at {spec}; give a JSON file such as runs/demo/architecture.json"
        )
    architecture = Architecture(spec=spec_from_json(spec.read_text()))
    hypernet = load_checkpoint(checkpoint)
    graph = architecture.graph
    started = time.monotonic()
    with torch.no_grad():
        parameters = predict_parameters(hypernet, graph)
    seconds = time.monotonic() - started
    content = save({name: tensor.contiguous().clone() for name, tensor in parameters.items()})
    LocalStore(str(out.parent)).write(out.name, content)
    count = sum(tensor.numel() for tensor in parameters.values())
    return f"{out}: {count:,} parameters in {len(parameters)} tensors, predicted in {seconds:.3f} s"
