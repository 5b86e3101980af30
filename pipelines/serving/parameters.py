"""From a request to the parameters as a file's content: the same bytes on a server and on one's own machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save

from ghn import GHN, ArchitectureGraph, coverage, predict
from ghn.prediction import Coverage
from pipelines.serving.request import PredictionRequest


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted parameters.

    Attributes:
        content: of a safetensors file.
        tensors: in it.
        values: in all these tensors.
        nodes: of the graph.
        coverage: which parameters the graph covers.
        seconds: that the prediction took.

    """

    content: bytes
    tensors: int
    values: int
    nodes: int
    coverage: Coverage
    seconds: float

    def counts(self) -> dict[str, Any]:
        """Return everything but the content as JSON-ready data."""
        return {
            "tensors": self.tensors,
            "values": self.values,
            "nodes": self.nodes,
            "seconds": round(self.seconds, 4),
            "coverage": {
                "predicted": len(self.coverage.predicted),
                "kept": [{"name": name, "reason": reason} for name, reason in self.coverage.kept],
            },
        }


def predict_file(hypernet: GHN, graph: ArchitectureGraph, request: PredictionRequest) -> Prediction:
    """Predict what a request wants of a graph's parameters.

    One thread computes it: how a matrix product is split among threads decides the order of its sums, hence the last bits.

    Raises:
        InputError: if parameters would stay unpredicted, the number of classes differs, or a pattern of names fits none.

    """
    wanted = request.wanted(graph)
    torch.set_num_threads(1)  # of this thread and those that it starts; cheap
    started = time.perf_counter()
    with torch.no_grad():
        parameters = predict(hypernet, graph, allow_default=request.allow_default or ())
    seconds = time.perf_counter() - started
    dtype = getattr(torch, request.dtype or "float32")
    tensors = {name: parameters[name].to(dtype).contiguous() for name in wanted}
    return Prediction(
        content=save(tensors),
        tensors=len(tensors),
        values=sum(tensor.numel() for tensor in tensors.values()),
        nodes=len(graph),
        coverage=coverage(graph),
        seconds=seconds,
    )
