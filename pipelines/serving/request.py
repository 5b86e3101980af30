"""What clients ask for, as typed data, and the graph that it stands for. Nothing here trusts anything."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
import math
import re
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ghn import Architecture, ArchitectureGraph, adjust_for_small_images, trace
from ghn.errors import InputError
from ghn.genotype import spec_from_json
from ghn.hypernet.embedding import is_vector
from pipelines.named_networks import load_model
from pipelines.serving.limits import LimitError, Limits

_DTYPES = ("float32", "float16", "bfloat16")
_TORCHVISION = "torchvision:"
_LONGEST_NAME, _LONGEST_PATTERN, _MOST_PATTERNS = 512, 200, 64  # every pattern is compared with every name


class PredictionRequest(BaseModel):
    """One architecture, in one of three forms, and what is wanted of its parameters.

    Attributes:
        specification: of a DeepNets-1M architecture, as in shards and the official files.
        graph: from ``ghn.trace(module, example_input).to_json()``.
        model: ``torchvision:NAME``.
        num_classes: of a named model (2 to 100,000; default: the hypernetwork's).
        image_size: of a named model, in pixels (8 to 1024; default 224).
        small_input: keep the resolution in the first layers of a named model, for small images.
        dtype: of the answer: float32 (default), float16 or bfloat16.
        names: patterns of the parameters that are wanted (default: all).
        allow_default: patterns of parameters that may stay unpredicted.

    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    specification: dict[str, Any] | None = None
    graph: dict[str, Any] | None = None
    model: str | None = Field(default=None, max_length=100)
    num_classes: int | None = Field(default=None, ge=2, le=100_000)
    image_size: int | None = Field(default=None, ge=8, le=1024)
    small_input: bool | None = None
    dtype: str | None = Field(default=None, pattern=f"^({'|'.join(_DTYPES)})$")
    names: list[str] | None = Field(default=None, min_length=1, max_length=_MOST_PATTERNS)
    allow_default: list[str] | None = Field(default=None, max_length=_MOST_PATTERNS)

    @field_validator("names", "allow_default")
    @classmethod
    def _short(cls, patterns: list[str] | None) -> list[str] | None:
        if any(len(pattern) > _LONGEST_PATTERN for pattern in patterns or ()):
            raise ValueError(f"a pattern is longer than {_LONGEST_PATTERN} characters")
        return patterns

    def wanted(self, graph: ArchitectureGraph) -> list[str]:
        """Return the names of the wanted parameters, in node order; raises :class:`InputError` if a pattern fits none."""
        names = [parameter.name for parameter in graph.parameters]
        if self.names is None:
            return names
        found: set[str] = set()
        for pattern in self.names:
            matches = list(
                filter(re.compile(fnmatch.translate(pattern)).match, names)
            )  # fnmatch itself keeps 32,768 of them
            if not matches:
                raise InputError(f"names: {pattern[:100]!r} fits no predicted parameter; the first one is {names[:1]}")
            found.update(matches)
        return [name for name in names if name in found]


def read_requests(body: bytes, limits: Limits) -> list[PredictionRequest]:
    """Read the JSON of ``POST /invocations``: ``{"inputs": [request, ...]}``.

    Raises:
        LimitError: if there are too many requests, or too many levels.
        InputError: naming what is wrong, and where.

    """
    if (depth := _nesting(body, limits.nesting)) > limits.nesting:
        raise LimitError(f"the request is nested more than {limits.nesting} levels deep ({depth} at least)")
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits
        raise InputError(f"the request is not valid JSON: {error}") from error
    if not isinstance(data, dict) or set(data) != {"inputs"} or not isinstance(data["inputs"], list):
        raise InputError('the request must be {"inputs": [...]} with one object for each architecture')
    if not 1 <= len(data["inputs"]) <= limits.architectures:
        raise LimitError(f"{len(data['inputs'])} architectures; 1 to {limits.architectures} are allowed in one request")
    return [_one(item, f"inputs[{i}]") for i, item in enumerate(data["inputs"])]


def _nesting(body: bytes, enough: int) -> int:
    """Return how deep brackets are nested outside strings, at most ``enough + 1``; no parser is asked."""
    depth, deepest, inside = 0, 0, False
    # without escaped characters, every quotation mark begins or ends a string
    for part in body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"'):
        if not inside:
            for bracket in part.translate(None, _NO_BRACKETS):
                depth += 1 if bracket in b"[{" else -1
                deepest = max(deepest, depth)
                if deepest > enough:
                    return deepest
        inside = not inside
    return deepest


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _one(data: Any, where: str) -> PredictionRequest:
    try:
        request = PredictionRequest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (where, *first["loc"]))[:200]
        raise InputError(f"{place}: {first['msg']}; see docs/how-to/serving.md for the fields") from error
    if sum(form is not None for form in (request.specification, request.graph, request.model)) != 1:
        raise InputError(f"{where}: give one of specification, graph and model")
    of_models = {
        "num_classes": request.num_classes,
        "image_size": request.image_size,
        "small_input": request.small_input,
    }
    if request.model is None and (given := [name for name, value in of_models.items() if value is not None]):
        raise InputError(f"{where}: {given[0]} belongs to a named model; a specification and a graph say it themselves")
    return request


def graph_of(request: PredictionRequest, num_classes: int, limits: Limits) -> ArchitectureGraph:
    """Return the graph that a request stands for, within the limits.

    Args:
        request: a valid one.
        num_classes: of a named model that does not say it.
        limits: of the server.

    Raises:
        LimitError: if the graph or its parameters are too large.
        InputError: if there is no such architecture.

    """
    if request.model is not None:
        model = _allowed(request.model, limits)
        graph = _named(model, request.num_classes or num_classes, request.image_size or 224, bool(request.small_input))
        graph = dataclasses.replace(graph)  # what is computed from it later is kept with the copy
    elif request.graph is not None:
        nodes = request.graph.get("nodes")
        if isinstance(nodes, list) and len(nodes) > limits.nodes:
            raise LimitError(f"the graph has {len(nodes)} nodes; at most {limits.nodes} are allowed")
        graph = ArchitectureGraph.from_json(request.graph)
        _check_names(graph)
    else:
        specification = request.specification or {}
        if "model" in specification:
            raise InputError('a specification that names a model: give {"model": "torchvision:NAME"} instead')
        graph = Architecture(spec=spec_from_json(specification)).graph
    if len(graph) > limits.nodes:
        raise LimitError(f"the graph has {len(graph)} nodes; at most {limits.nodes} are allowed")
    if (names := len(graph.parameters) + len(graph.kept)) > 4 * limits.nodes:  # a node has two at most
        raise LimitError(f"the graph names {names} parameters; at most {4 * limits.nodes} are allowed")
    return graph


def count_values(graph: ArchitectureGraph, limits: Limits) -> int:
    """Return how many values a graph's parameters have; raises :class:`LimitError` if they are too many."""
    values = vectors = 0
    for parameter in graph.parameters:
        size = math.prod(parameter.shape)
        values += size
        if is_vector(parameter.shape) or parameter.role in ("bias", "norm_weight", "class_bias"):
            vectors += size
        if values > limits.values:
            raise LimitError(f"more than {limits.values:,} values up to parameter {parameter.name[:100]!r}")
        if vectors > limits.vector_values:
            raise LimitError(f"more than {limits.vector_values:,} values in vectors up to {parameter.name[:100]!r}")
    return values


def _allowed(model: str, limits: Limits) -> str:
    name = model.removeprefix(_TORCHVISION)
    if not model.startswith(_TORCHVISION) or not any(fnmatch.fnmatchcase(name, one) for one in limits.models.split()):
        raise InputError(
            f"model {model!r} can not be named here: give torchvision:NAME with one of {limits.models}; trace others "
            "where you have them, and send the graph (`ghn predict --server` does)"
        )
    return model


@functools.lru_cache(256)  # graphs of up to some 100 kB
def _named(model: str, num_classes: int, image_size: int, small_input: bool) -> ArchitectureGraph:
    return trace_model(model, num_classes, image_size, small_input)


def trace_model(model: str, num_classes: int, image_size: int, small_input: bool) -> ArchitectureGraph:
    """Return the graph of a network from a library or a file (see :func:`pipelines.named_networks.load_model`)."""
    module: Any = load_model(model, num_classes=num_classes).eval()
    if small_input:
        module = adjust_for_small_images(module)
    return trace(module, torch.empty(1, 3, image_size, image_size, device="meta"))


def _check_names(graph: ArchitectureGraph) -> None:
    """Refuse names that could mean something else than a parameter wherever they end up."""
    names = [parameter.name for parameter in graph.parameters] + [name for name, _ in graph.kept]
    for name in names:
        parts = name.replace("\\", "/").split("/")
        path = len(parts) > 1 and ("" in (parts[0], parts[-1]) or ".." in parts)
        if not name or len(name) > _LONGEST_NAME or not name.isprintable() or path or name in ("..", "__metadata__"):
            raise InputError(f"{name[:100]!a} can not be the name of a parameter")
