"""The model server: real MLflow, real HTTP; what it answers, what it refuses, and what it survives."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from ghn import ArchitectureGraph, load_checkpoint, predict, sample_architectures, trace
from ghn.errors import InputError
from pipelines.named_networks import load_model
from pipelines.serving.predict import predict as predict_job
from pipelines.training.register import register
from tests.serving import BIN, Server, ghn_serve, mlflow_serve, serving
from tests.strategies import architectures

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

MODEL = "models:/ghn2-digits@candidate"
EXAMPLES = int(os.environ.get("GHN_FUZZ_EXAMPLES", "1000"))  # of each kind
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="module")
def registry(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tracking address of a registry with one model."""
    folder = tmp_path_factory.mktemp("registry")
    tracking = f"sqlite:///{folder}/mlflow.db"
    register(
        undisturbed, name="ghn2-digits", tracking_uri=tracking, experiment="x", artifacts=str(folder / "artifacts")
    )
    return tracking


@pytest.fixture(scope="module")
def server(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow's own command."""
    with serving(mlflow_serve(MODEL), tmp_path_factory.mktemp("served"), MLFLOW_TRACKING_URI=registry) as running:
        yield running


@pytest.fixture(scope="module")
def checkpoint(undisturbed: Path) -> Path:
    return undisturbed / "model"


def graph_json(name: str = "resnet18") -> dict[str, Any]:
    module = load_model(f"torchvision:{name}", num_classes=10).eval()
    return trace(module, torch.empty(1, 3, 32, 32, device="meta")).to_json()


GRAPH = graph_json()
SPEC = sample_architectures("dense", 1, 9, image_size=16, channels=(16,))[0].spec.to_json()


def refused(answer: tuple[int, bytes], *statuses: int) -> str:
    """Check that an answer is a refusal for a client's fault, with a reason; return the reason."""
    status, content = answer
    assert status in (statuses or range(400, 500)), (status, content[:500])
    said = json.loads(content)
    assert set(said) == {"error_code", "message"} and 5 < len(said["message"]) <= 1100
    for inside in ("Traceback", 'File "', "site-packages", ", line "):
        assert inside not in said["message"]
    return said["message"]


# What it gives


def test_the_logged_model_is_self_contained(registry: str, tmp_path: Path) -> None:
    """All of its code comes from its own folder, and it fetches nothing."""
    code = """
import socket, sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
place = mlflow.artifacts.download_artifacts("models:/ghn2-digits@candidate", dst_path=sys.argv[2])
def refuse(*_, **__): raise OSError("nothing may be fetched")
socket.socket.connect = socket.create_connection = refuse
model = mlflow.pyfunc.load_model(place)
answer = model.predict([{"model": "torchvision:resnet18", "names": ["fc.*"]}])[0]
assert answer["tensors"] == 2, answer
for name, module in list(sys.modules.items()):
    if name.split(".")[0] in ("ghn", "pipelines"):
        assert str(module.__file__).startswith(place), (name, module.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, registry, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (listed,) = tmp_path.rglob("requirements.txt")
    assert all("==" in line for line in listed.read_text().splitlines())
    assert list(tmp_path.rglob("model.safetensors")) and not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("form", ["spec", "graph", "timm:resnet10t", "torchvision:swin_t"])
def test_the_client_writes_the_file_of_a_local_prediction(
    form: str, server: Server, checkpoint: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"model": form} if ":" in form else {form: tmp_path / "in.json"}
    (tmp_path / "in.json").write_text(json.dumps(SPEC if form == "spec" else GRAPH))
    if form == "graph":
        options |= {"dtype": "bfloat16", "names": ["layer1.*", "fc.bias"]}
    predict_job(tmp_path / "local", checkpoint=checkpoint, **options)
    said = predict_job(tmp_path / "served", server=server.url, **options)
    assert "with weights" in said and (tmp_path / "local").read_bytes() == (tmp_path / "served").read_bytes()


def test_all_three_forms_in_one_request(server: Server, checkpoint: Path) -> None:
    named = {"model": "torchvision:resnet18", "image_size": 32, "dtype": "float16", "names": ["fc.*"]}
    status, said = server.ask({"specification": SPEC}, {"graph": GRAPH}, named)
    assert status == 200, said
    hypernet = load_checkpoint(checkpoint)
    with torch.no_grad():
        whole = predict(hypernet, ArchitectureGraph.from_json(GRAPH))
    by_spec, by_graph, by_name = [load(base64.b64decode(one["parameters"])) for one in said["predictions"]]
    assert by_graph.keys() == whole.keys() and all(torch.equal(by_graph[name], whole[name]) for name in whole)
    assert set(by_name) == {"fc.weight", "fc.bias"} and by_name["fc.bias"].dtype == torch.float16
    assert torch.equal(by_name["fc.weight"], whole["fc.weight"].half())
    first = said["predictions"][0]
    assert first["tensors"] == len(by_spec) == first["coverage"]["predicted"] and first["coverage"]["kept"] == []
    assert first["values"] == sum(tensor.numel() for tensor in by_spec.values()) and first["seconds"] > 0
    content = base64.b64decode(first["parameters"])
    assert first["size"] == len(content) and first["sha256"] == hashlib.sha256(content).hexdigest()


def test_what_is_not_predicted_is_reported(server: Server) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.LazyLinear(10))
    module(torch.zeros(1, 3, 8, 8))
    module.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
    data = trace(module, torch.empty(1, 3, 8, 8, device="meta")).to_json()
    assert "'unused'" in refused(server.send(json.dumps({"inputs": [{"graph": data}]})), 400)
    status, said = server.ask({"graph": data, "allow_default": ["unused"]})
    assert status == 200 and [kept["name"] for kept in said["predictions"][0]["coverage"]["kept"]] == ["unused"]


def test_concurrent_requests_do_not_share_state(server: Server) -> None:
    nets = sample_architectures("test", 8, 3, image_size=16, channels=(8, 16), fc_dims=(32,))
    requests: list[dict[str, Any]] = [{"specification": net.spec.to_json()} for net in nets]
    named = [("mobilenet_v2", 64), ("mobilenet_v2", 96), ("shufflenet_v2_x0_5", 64), ("squeezenet1_1", 64)]
    requests += [{"model": f"torchvision:{name}", "image_size": size} for name, size in named]
    with ThreadPoolExecutor(16) as pool:  # the named ones are traced at once, too
        answers = list(pool.map(lambda i: server.ask(requests[i % 12]), range(72)))
    alone = [server.ask(request)[1]["predictions"][0]["sha256"] for request in requests]
    assert len(set(alone)) == len(requests) - 1  # the size of the image changes nothing in mobilenet_v2
    assert [said["predictions"][0]["sha256"] for _, said in answers] == [alone[i % 12] for i in range(72)]


def test_large_answers_go_to_the_store(registry: str, s3: str, checkpoint: Path, tmp_path: Path) -> None:
    settings = {"GHN_SERVE_STORE": f"{s3}/served", "GHN_SERVE_INLINE_MIB": "1", "MLFLOW_TRACKING_URI": registry}
    with serving(ghn_serve(MODEL), tmp_path, **settings) as server:
        status, said = server.ask({"model": "torchvision:resnet18"}, {"specification": SPEC, "names": ["classifier*"]})
        assert status == 200, said
        large, small = said["predictions"]
        assert large["parameters"] is None and large["uri"] == f"{s3}/served/{large['sha256']}.safetensors"
        assert small["uri"] is None and small["parameters"]
        options = {"model": "torchvision:resnet18", "image_size": 224}
        predict_job(tmp_path / "served", server=server.url, **options)
        predict_job(tmp_path / "local", checkpoint=checkpoint, **options)
        assert (tmp_path / "local").read_bytes() == (tmp_path / "served").read_bytes()
        from pipelines.storage import open_store

        store, key = open_store(f"{s3}/served"), f"{large['sha256']}.safetensors"
        assert store.list() == [key]  # the same answer is stored once
        store.write(key, store.read(key)[:-1] + b"x")  # somebody changes it: same size, other content
        with pytest.raises(InputError, match="not those that the server announced"):
            predict_job(tmp_path / "wrong", server=server.url, **options)
        assert not (tmp_path / "wrong").exists()
        assert "ghn_stored_answers_total 3.0" in server.get("/metrics")[1]


def test_health_readiness_and_metrics(server: Server) -> None:
    assert server.get("/health")[0] == server.get("/ready")[0] == server.get("/ping")[0] == 200
    before = server.get("/metrics")[1]
    server.ask({"specification": SPEC})
    server.ask({"specification": {}})
    after = server.get("/metrics")[1]

    def value(text: str, name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    for name in ('ghn_requests_total{status="200"}', 'ghn_requests_total{status="400"}', "ghn_predict_seconds_count"):
        assert value(after, name) == value(before, name) + 1
    assert "process_resident_memory_bytes" in after and "ghn_model{weights_sha256=" in after


def test_a_signal_to_stop_lets_requests_finish(registry: str, tmp_path: Path) -> None:
    with serving(ghn_serve(MODEL), tmp_path, MLFLOW_TRACKING_URI=registry) as server:
        assert server.worker == server.process.pid  # it is the server itself that gets signals
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.ask, *[{"model": "torchvision:resnet50", "dtype": "float16"}] * 2)
            deadline = time.monotonic() + 30
            while "ghn_requests_in_work 1.0" not in server.get("/metrics")[1]:
                assert time.monotonic() < deadline
            server.process.send_signal(signal.SIGTERM)
            assert asked.result()[0] == 200
        assert server.process.wait(timeout=30) in (0, -signal.SIGTERM)
    assert not [line for line in (tmp_path / "server.log").read_text().splitlines() if "Traceback" in line]


# What it refuses


def changed(**changes: Any) -> dict[str, Any]:
    return {"graph": {**GRAPH, **changes}}


def with_parameter(name: str = "w", shape: Any = (8, 8, 3, 3), role: Any = "weight") -> dict[str, Any]:
    nodes = json.loads(json.dumps(GRAPH["nodes"]))
    nodes[5]["parameters"] = [[name, shape, role]]
    return changed(nodes=nodes)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({}, "give one of specification, graph and model"),
        ({"model": "torchvision:resnet18", "graph": GRAPH}, "give one of"),
        ({"model": "torchvision:resnet18", "extra": 1}, "extra: Extra inputs are not permitted"),
        ({"model": "torchvision:resnet19"}, "did you mean resnet18"),
        ({"model": "timm:resnet18"}, "can not be named here"),
        ({"model": "/etc/passwd:main"}, "can not be named here"),
        ({"model": "../../evil.py:make"}, "can not be named here"),
        ({"specification": {"model": "evil.py:make"}}, "a specification that names a model"),
        ({"model": "torchvision:resnet18", "num_classes": "10"}, "num_classes: Input should be a valid integer"),
        ({"model": "torchvision:resnet18", "num_classes": 10**9}, "less than or equal to 100000"),
        ({"model": "torchvision:resnet18", "num_classes": 11}, "predicts for 10"),
        ({"model": "torchvision:resnet18", "image_size": 7}, "greater than or equal to 8"),
        ({"model": "torchvision:vit_b_16", "image_size": 33}, "image"),
        ({"graph": GRAPH, "image_size": 32}, "belongs to a named model"),
        ({"model": "torchvision:resnet18", "dtype": "float64"}, "dtype: String should match"),
        ({"model": "torchvision:resnet18", "names": ["nope*"]}, "fits no predicted parameter"),
        ({"model": "torchvision:resnet18", "names": ["*a" * 200]}, "longer than 200 characters"),
        ({"model": "torchvision:resnet18", "names": ["*"] * 200}, "at most 64 items"),
        (
            {"specification": {**SPEC, "genotype": {**SPEC["genotype"], "normal_concat": [2] * 1000}}},
            "names 1000 states",
        ),
        (changed(kept=[["w", "why"]] * 20_000), "names 20062 parameters"),
        ({"specification": {**SPEC, "C": 10**9}}, "C=1000000000"),
        ({"specification": {**SPEC, "C": -8}}, "C=-8"),
        ({"specification": {**SPEC, "n_cells": 1.5}}, "n_cells=1.5"),
        ({"specification": {**SPEC, "genotype": None}}, "genotype must be an object"),
        (changed(edges=[[1, 0]]), "does not run forward"),  # a cycle
        (changed(edges=GRAPH["edges"][:-1]), "do not reach the output"),  # two parts
        (changed(edges=[[0, 10**9]]), "does not run forward"),
        (changed(edges="x"), "must be a list"),
        (changed(nodes=GRAPH["nodes"] * 100), "at most 2500 are allowed"),
        (changed(num_classes=True), "num_classes=True"),
        (changed(graph_revision=99), "export it again"),
        (with_parameter(shape=[10**9, 3, 3, 3]), "more than 200,000,000 values"),
        (with_parameter(shape=[10**9], role="bias"), "more than"),
        (with_parameter(shape=[-8, 8, 3, 3]), "sizes of 1 to"),
        (with_parameter(shape=[0, 8]), "sizes of 1 to"),
        (with_parameter(shape=[1.5]), "sizes of 1 to"),
        (with_parameter(shape=[10**30]), "sizes of 1 to"),
        (with_parameter(shape=[1] * 6), "up to five sizes"),
        (with_parameter(role="root"), "unknown role"),
        (with_parameter(name="../../etc/passwd"), "can not be the name"),
        (with_parameter(name="/etc/passwd"), "can not be the name"),
        (with_parameter(name="..\\x"), "can not be the name"),
        (with_parameter(name="__metadata__"), "can not be the name"),
        (with_parameter(name="a\x00b"), "can not be the name"),
        (with_parameter(name="\ud800"), "can not be the name|JSON"),
        (with_parameter(name="x" * 5000), "can not be the name"),
        (with_parameter(name=GRAPH["nodes"][1]["parameters"][0][0]), "appears twice"),
    ],
)
def test_wrong_requests_are_refused_with_a_reason(request_: dict[str, Any], reason: str, server: Server) -> None:
    message = refused(server.send(json.dumps({"inputs": [request_]})), 400, 413)
    assert re.search(reason, message), message


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
        (b" " * (5 << 20), 413),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_bodies_are_refused_with_a_reason(body: bytes, status: int, server: Server) -> None:
    refused(server.send(body), status)


def test_wrong_headers_methods_and_paths(server: Server) -> None:
    body = json.dumps({"inputs": [{"specification": SPEC}]})
    for kind in ("text/csv", "application/vnd.apache.parquet", "application/json2", ""):
        refused(server.send(body, Content_Type=kind), 415)
    refused(server.send(b"", Content_Length="99999999999"), 413)
    assert server.send(body, "GET")[0] == 405
    assert server.send(b"", "GET", "/../../etc/passwd")[0] == server.send(b"", "GET", "/docs")[0] == 404


def test_other_pages_do_not_pass_by_the_guard(server: Server) -> None:
    deep = b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for path in ("/invocations%0A", "/invocations/", "//invocations", "/openapi.json"):
        refused(server.send(deep, path=path), 404)


def test_headers_say_the_same_thing_to_all(server: Server) -> None:
    body = json.dumps({"inputs": [{"specification": SPEC, "names": ["classifier*"]}]})
    assert server.send(body, Content_Type='Application/JSON; charset="UTF-8"')[0] == 200
    for kind in ("application/json; charset=latin-1", "application/json; v=1"):
        refused(server.send(body, Content_Type=kind), 415)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/invocations")
    for kind in ("text/csv", "application/json"):
        connection.putheader("Content-Type", kind)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body.encode())
    answer = connection.getresponse()
    refused((answer.status, answer.read()), 415)


def test_a_graph_without_weights(server: Server) -> None:
    for parameters in ([], [["scale", [8], "norm_weight"]]):
        nodes = [
            {"primitive": "input", "shape": None, "parameters": []},
            {"primitive": "bn", "shape": [8], "parameters": parameters},
        ]
        status, said = server.ask(
            {"graph": {"graph_revision": 1, "num_classes": 10, "nodes": nodes, "edges": [[0, 1]]}}
        )
        assert status == 200 and said["predictions"][0]["tensors"] == len(parameters)


def test_a_body_without_announced_length_is_not_read_beyond_the_limit(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        head = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head.encode())
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(65):  # a little more than 4 MiB; the last chunk never comes
            client.sendall(piece)
        assert client.recv(65536).startswith(b"HTTP/1.1 413")


def test_what_one_process_is_asked_at_once_is_bounded(registry: str, tmp_path: Path) -> None:
    limits = {"PARALLEL": "1", "WAITING": "2", "SLOW_S": "1", "SECONDS": "20", "MODELS": "resnet* vit_b_16"}
    environment = {f"GHN_SERVE_{name}": value for name, value in limits.items()}
    with serving(ghn_serve(MODEL), tmp_path, MLFLOW_TRACKING_URI=registry, **environment) as server:
        body = json.dumps({"inputs": [{"model": "torchvision:resnet50"}]})
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: server.send(body), range(12)))
        statuses = [status for status, _ in answers]
        assert set(statuses) == {200, 429} and statuses.count(200) >= 3
        assert all("try again" in refused(answer, 429) for answer in answers if answer[0] == 429)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            head = (
                "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            )
            slow.sendall(head.encode())
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert predict_job(tmp_path / "out", server=server.url, model="torchvision:resnet18", image_size=224)
        assert server.ask({"model": "torchvision:resnet18", "names": ["fc.bias"]})[0] == 200
        assert "resnet* vit_b_16" in refused(server.send('{"inputs": [{"model": "torchvision:swin_t"}]}'), 400)


def test_work_is_cut_off_at_the_time_limit(registry: str, tmp_path: Path) -> None:
    with serving(ghn_serve(MODEL), tmp_path, MLFLOW_TRACKING_URI=registry, GHN_SERVE_SECONDS="0.02") as server:
        many = json.dumps({"inputs": [{"specification": SPEC}, {"model": "torchvision:densenet201"}] * 8})
        assert "took too long" in refused(server.send(many), 413)
        assert server.get("/ready")[0] == 200


def test_bad_settings_and_models_are_named(registry: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry, "GHN_SERVE_NODES": "many"}
    for uri, more, message in [
        (MODEL, environment, "GHN_SERVE_NODES='many'"),
        ("models:/ghn2-digits@nope", {**environment, "GHN_SERVE_NODES": ""}, "no model models:/ghn2-digits@nope"),
        ("models:/nothing@champion", {**environment, "GHN_SERVE_NODES": ""}, "no model models:/nothing@champion"),
        (str(tmp_path), {**environment, "GHN_SERVE_NODES": ""}, "no logged model at"),
    ]:
        done = subprocess.run(
            [str(BIN / "ghn"), "serve", "--model", uri], env=more, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


# What it survives


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
    body = bytearray(json.dumps({"inputs": [{"specification": SPEC}]}).encode())
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
    before, statuses = server.ask({"graph": GRAPH})[1]["predictions"][0]["sha256"], server.get("/metrics")[1]

    @MANY
    @given(nearly_right())
    def fuzz(body: bytes) -> None:
        check(server, body)

    fuzz()
    assert server.ask({"graph": GRAPH})[1]["predictions"][0]["sha256"] == before
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


def test_mlflow_installs_the_models_environment_elsewhere(registry: str) -> None:
    """The requirements are exact, and are what this environment has."""
    from importlib.metadata import version

    import mlflow

    mlflow.set_tracking_uri(registry)
    listed = Path(mlflow.pyfunc.get_model_dependencies(MODEL)).read_text().split()
    assert {"torch", "mlflow-skinny", "numba"} <= {line.partition("==")[0] for line in listed}
    for line in listed:
        name, _, pinned = line.partition("==")
        assert version(name).partition("+")[0] == pinned
    assert shutil.which("mlflow", path=str(BIN))
