"""`pipelines.serving` survives thousands of wrong requests, ever new ones, and the largest that its limits allow."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ghn import sample_architectures
from tests.serving import Server, dense, refused, resnet18
from tests.strategies import architectures

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

EXAMPLES = int(os.environ.get("GHN_FUZZ_EXAMPLES", "1000"))  # of each kind
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def leaves(data: Any) -> Iterator[tuple[Callable[[Any], None], Any]]:
    """Yield (a function that replaces it, value) for every value inside JSON data."""
    for key, value in list(data.items() if isinstance(data, dict) else enumerate(data)):
        yield lambda new, key=key: data.__setitem__(key, new), value
        if isinstance(value, (dict, list)):
            yield from leaves(value)


NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([2**31, 2**63, -(2**63), 10**9, 10**40]), st.floats())
ODD = st.one_of(
    NUMBERS, st.none(), st.booleans(), st.text(max_size=8), st.just([]), st.just({}), st.lists(NUMBERS, max_size=6),
    st.sampled_from(["weight", "bias", "class_weight", "class_bias", "pos_enc", "norm_weight", "../x", "bn", "msa", "x" * 1000]),
)  # fmt: skip
SMALL_GRAPHS = architectures().map(lambda a: {"graph": a.graph.to_json()})
SPECS = architectures().map(lambda a: {"specification": a.spec.to_json()})
NAMED = st.fixed_dictionaries(
    {"model": st.sampled_from(["torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:vit_b_16"])},
    optional={
        "num_classes": st.integers(-1, 12), "image_size": st.integers(0, 300), "small_input": st.booleans(),
        "dtype": st.sampled_from(["float32", "float16", "bfloat16", "int8"]), "names": st.lists(st.text(max_size=5), max_size=3),
        "allow_default": st.lists(st.sampled_from(["*", "a*"]), max_size=2),
    },
)  # fmt: skip


@st.composite
def nearly_right(draw: st.DrawFn) -> bytes:
    """A valid request in which up to three values, anywhere, are replaced, left out or doubled."""
    request = {"names": ["*bias*"]} | json.loads(json.dumps(draw(st.one_of(SMALL_GRAPHS, SPECS, NAMED))))
    for _ in range(draw(st.integers(0, 3))):
        places = list(leaves(request))
        replace, value = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.integers(0, 3))
        if how == 0 and isinstance(value, list) and value:
            value.append(value[draw(st.integers(0, len(value) - 1))])
        elif how == 1 and isinstance(value, list) and value:
            value.pop(draw(st.integers(0, len(value) - 1)))
        elif how == 2 and isinstance(value, dict) and value:
            value.pop(draw(st.sampled_from(sorted(value))))
        else:
            replace(draw(ODD))
    return json.dumps({"inputs": [request]}).encode()


JSON = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)


@st.composite
def hardly_right(draw: st.DrawFn) -> bytes:
    """Bytes, JSON of any form, or a valid request that breaks off or has bytes changed."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.binary(max_size=200))
    if kind == 1:
        return json.dumps({"inputs": draw(st.lists(JSON, max_size=3))}).encode()
    body = bytearray(json.dumps({"inputs": [{"specification": dense()}]}).encode())
    if kind == 2:
        return bytes(body[: draw(st.integers(0, len(body)))])
    for _ in range(draw(st.integers(1, 4))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body)


def check(server: Server, body: bytes) -> None:
    status, content = server.send(body)
    if status == 200:
        (said,) = json.loads(content)["predictions"]
        assert hashlib.sha256(base64.b64decode(said["parameters"])).hexdigest() == said["sha256"]
    else:
        refused((status, content))


def test_it_survives_thousands_of_nearly_right_requests(server: Server) -> None:
    before, statuses = server.ask({"graph": resnet18()})[1]["predictions"][0]["sha256"], server.get("/metrics")[1]

    @MANY
    @given(nearly_right())
    def fuzz(body: bytes) -> None:
        check(server, body)

    fuzz()
    assert server.ask({"graph": resnet18()})[1]["predictions"][0]["sha256"] == before
    assert 'status="500"' not in server.get("/metrics")[1], statuses


def test_it_survives_thousands_of_hardly_right_requests(server: Server) -> None:
    @MANY
    @given(hardly_right())
    def fuzz(body: bytes) -> None:
        check(server, body)

    fuzz()
    assert server.get("/health")[0] == 200 and 'status="500"' not in server.get("/metrics")[1]


def test_memory_does_not_grow_with_requests(server: Server) -> None:
    """Ever new architectures, patterns, traced models and refusals."""
    nets = sample_architectures("test", 300, 5, image_size=16, channels=(8, 16), fc_dims=(32,))

    def requests(start: int, count: int) -> Iterator[dict[str, Any]]:
        for i in range(start, start + count):
            yield {
                "specification": nets[i % 300].spec.to_json(),
                "names": [f"{'*' * (i % 90)}bias*", f"*{'?' * (i % 9)}"],
            }
            yield {
                "model": "torchvision:squeezenet1_1",
                "num_classes": 11 + i,
                "names": ["*"],
            }  # refused when it is traced

    def memory_after(start: int, count: int) -> float:
        with ThreadPoolExecutor(4) as pool:
            statuses = {status for status, _ in pool.map(lambda one: server.ask(one), requests(start, count))}
        assert statuses == {200, 400}
        return server.resident_mib

    memory_after(0, 150)
    settled = memory_after(150, 150)
    assert memory_after(300, 300) < settled + 60


def test_the_largest_request_fits_its_limits(server: Server) -> None:
    """Many nodes with the largest kernels, in a dense graph: the worst that the limits allow."""
    count = 2498
    nodes = [{"primitive": "input", "shape": None, "parameters": []}]
    for i in range(count):
        shape = [64, 64, 11, 11] if i < 300 else [8, 8, 16, 16] if i < 2400 else [10, 64]
        role = "weight"
        nodes.append({"primitive": "conv", "shape": shape, "parameters": [[f"layer{i}.weight", shape, role]]})
    nodes.append({"primitive": "glob_avg", "shape": None, "parameters": []})
    edges = [[max(0, v - d), v] for v in range(1, count + 2) for d in {1, min(7, v), min(50, v)}]
    graph = {"graph_revision": 1, "num_classes": 10, "nodes": nodes, "edges": edges, "kept": []}
    started = time.monotonic()
    status, said = server.ask({"graph": graph, "names": ["layer0.weight"]})
    assert status == 200, said
    assert time.monotonic() - started < 60 and server.resident_mib < 8192
