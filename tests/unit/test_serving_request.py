"""`pipelines.serving.request`: what clients may ask the model server for, and the reason when they may not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from ghn import GHN
from ghn.errors import InputError
from pipelines.serving.limits import LimitError, Limits
from pipelines.serving.parameters import predict_file
from pipelines.serving.request import count_values, graph_of, read_requests
from tests.serving import dense, resnet18


def answer(body: bytes, hypernet: GHN) -> list[int]:
    """Do what the server does with a request's body; return how many tensors each architecture gets."""
    limits, tensors = Limits(), []
    for request in read_requests(body, limits):
        graph = graph_of(request, hypernet.config.num_classes, limits)
        count_values(graph, limits)
        tensors.append(predict_file(hypernet, graph, request).tensors)
    return tensors


def test_all_three_forms_are_answered(small_hypernet: GHN) -> None:
    forms = [{"specification": dense()}, {"graph": resnet18()}, {"model": "torchvision:resnet18", "names": ["fc.*"]}]
    assert answer(json.dumps({"inputs": forms}).encode(), small_hypernet)[1:] == [62, 2]


def changed(**changes: Any) -> dict[str, Any]:
    return {"graph": {**resnet18(), **changes}}


def with_parameter(name: str = "w", shape: Any = (8, 8, 3, 3), role: Any = "weight") -> dict[str, Any]:
    nodes = json.loads(json.dumps(resnet18()["nodes"]))
    nodes[5]["parameters"] = [[name, shape, role]]
    return changed(nodes=nodes)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (dict, "give one of specification, graph and model"),
        (lambda: {"model": "torchvision:resnet18", "graph": resnet18()}, "give one of"),
        (lambda: {"model": "torchvision:resnet18", "extra": 1}, "extra: Extra inputs are not permitted"),
        (lambda: {"model": "torchvision:resnet19"}, "did you mean resnet18"),
        (lambda: {"model": "timm:resnet18"}, "can not be named here"),
        (lambda: {"model": "/etc/passwd:main"}, "can not be named here"),
        (lambda: {"model": "../../evil.py:make"}, "can not be named here"),
        (lambda: {"specification": {"model": "evil.py:make"}}, "a specification that names a model"),
        (
            lambda: {"model": "torchvision:resnet18", "num_classes": "10"},
            "num_classes: Input should be a valid integer",
        ),
        (lambda: {"model": "torchvision:resnet18", "num_classes": 10**9}, "less than or equal to 100000"),
        (lambda: {"model": "torchvision:resnet18", "num_classes": 11}, "predicts for 10"),
        (lambda: {"model": "torchvision:resnet18", "image_size": 7}, "greater than or equal to 8"),
        (lambda: {"model": "torchvision:vit_b_16", "image_size": 33}, "image"),
        (lambda: {"graph": resnet18(), "image_size": 32}, "belongs to a named model"),
        (lambda: {"model": "torchvision:resnet18", "dtype": "float64"}, "dtype: String should match"),
        (lambda: {"model": "torchvision:resnet18", "names": ["nope*"]}, "fits no predicted parameter"),
        (lambda: {"model": "torchvision:resnet18", "names": ["*a" * 200]}, "longer than 200 characters"),
        (lambda: {"model": "torchvision:resnet18", "names": ["*"] * 200}, "at most 64 items"),
        (
            lambda: {"specification": {**dense(), "genotype": {**dense()["genotype"], "normal_concat": [2] * 1000}}},
            "names 1000 states",
        ),
        (lambda: changed(kept=[["w", "why"]] * 20_000), "names 20062 parameters"),
        (lambda: {"specification": {**dense(), "C": 10**9}}, "C=1000000000"),
        (lambda: {"specification": {**dense(), "C": -8}}, "C=-8"),
        (lambda: {"specification": {**dense(), "n_cells": 1.5}}, "n_cells=1.5"),
        (lambda: {"specification": {**dense(), "genotype": None}}, "genotype must be an object"),
        (lambda: changed(edges=[[1, 0]]), "does not run forward"),  # a cycle
        (lambda: changed(edges=resnet18()["edges"][:-1]), "do not reach the output"),  # two parts
        (lambda: changed(edges=[[0, 10**9]]), "does not run forward"),
        (lambda: changed(edges="x"), "must be a list"),
        (lambda: changed(nodes=resnet18()["nodes"] * 100), "at most 2500 are allowed"),
        (lambda: changed(num_classes=True), "num_classes=True"),
        (lambda: changed(graph_revision=99), "export it again"),
        (lambda: with_parameter(shape=[10**9, 3, 3, 3]), "more than 200,000,000 values"),
        (lambda: with_parameter(shape=[10**9], role="bias"), "more than"),
        (lambda: with_parameter(shape=[-8, 8, 3, 3]), "sizes of 1 to"),
        (lambda: with_parameter(shape=[0, 8]), "sizes of 1 to"),
        (lambda: with_parameter(shape=[1.5]), "sizes of 1 to"),
        (lambda: with_parameter(shape=[10**30]), "sizes of 1 to"),
        (lambda: with_parameter(shape=[1] * 6), "up to five sizes"),
        (lambda: with_parameter(role="root"), "unknown role"),
        (lambda: with_parameter(name="../../etc/passwd"), "can not be the name"),
        (lambda: with_parameter(name="/etc/passwd"), "can not be the name"),
        (lambda: with_parameter(name="..\\x"), "can not be the name"),
        (lambda: with_parameter(name="__metadata__"), "can not be the name"),
        (lambda: with_parameter(name="a\x00b"), "can not be the name"),
        (lambda: with_parameter(name="\ud800"), "can not be the name|JSON"),
        (lambda: with_parameter(name="x" * 5000), "can not be the name"),
        (lambda: with_parameter(name=resnet18()["nodes"][1]["parameters"][0][0]), "appears twice"),
    ],
)
def test_wrong_requests_are_refused_with_a_reason(
    make: Callable[[], dict[str, Any]], reason: str, small_hypernet: GHN
) -> None:
    with pytest.raises(InputError) as refusal:
        answer(json.dumps({"inputs": [make()]}).encode(), small_hypernet)
    assert re.search(reason, str(refusal.value)), refusal.value
    assert "Traceback" not in str(refusal.value)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"nope", 400),
        (b"[]", 400),
        (b'{"inputs": []}', 413),
        (b'{"inputs": [1]}', 400),
        (b'{"inputs": [{}], "params": {}}', 400),
        (b'{"inputs": [{"model": "torchvision:resnet18", "num_classes": NaN}]}', 400),
        (b'{"inputs": [{"model": "torchvision:resnet18", "num_classes": Infinity}]}', 400),
        (b'{"inputs": [{"num_classes": ' + b"9" * 10_000 + b"}]}", 400),
        (b'{"inputs": [{"model": "\xff\xfe"}]}', 400),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 413),
        (b'{"inputs": [{"graph": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}]}", 413),
        (b'{"inputs": [' + b'{"model": "torchvision:resnet18"},' * 16 + b'{"model": "torchvision:resnet18"}]}', 413),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_bodies_are_refused_with_a_reason(body: bytes, status: int, small_hypernet: GHN) -> None:
    with pytest.raises(InputError) as refusal:
        answer(body, small_hypernet)
    assert len(str(refusal.value)) > 5
    assert isinstance(refusal.value, LimitError) is (status == 413)
