"""Architectures as samples of a shard set: what is stored of one, and how it is read again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ghn.architecture import Architecture
from ghn.errors import DataError
from ghn.genotype import Spec, spec_from_json
from pipelines.shards.reader import open_reader
from pipelines.shards.writer import SampleRecord


def architecture_record(architecture: Architecture) -> SampleRecord:
    """Return the sample of one architecture: its specification. The graph follows from it by ``graph_revision``."""
    graph = architecture.graph
    return SampleRecord(
        key=f"{architecture.index:08d}",
        fields={"json": json.dumps(architecture.spec.to_json(), sort_keys=True, separators=(",", ":")).encode()},
        position=architecture.index + 1,
        nodes=len(graph),
        parameters=sum([math.prod(parameter.shape) for node in graph.nodes for parameter in node.parameters]),
    )


def read_spec(sample: Mapping[str, Any]) -> Spec:
    """Return the specification that a sample holds."""
    return spec_from_json(sample["json"].decode())


def read_architecture(sample: Mapping[str, Any], split: str = "") -> Architecture:
    """Return the architecture that a sample holds; raises :class:`DataError` for a key that is no number."""
    if not (key := str(sample["__key__"])).isdecimal():
        raise DataError(f"key {key!r} of an architecture is no number")
    return Architecture(spec=read_spec(sample), split=split, index=int(key))


def read_architectures(root: str, split: str) -> list[Architecture]:
    """Return all architectures of one split, as stored."""
    return [read_architecture(sample, split) for sample in open_reader(root, split, "deepnets").in_order()]
