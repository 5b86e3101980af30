"""`pipelines.serving`, the model server: real MLflow, real HTTP; what it answers and what it refuses."""

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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from ghn import ArchitectureGraph, load_checkpoint, predict, sample_architectures, trace
from ghn.errors import InputError
from pipelines.serving.predict import predict as predict_job
from tests.examples import run_example
from tests.serving import BIN, MODEL, Server, dense, ghn_serve, refused, resnet18, serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


# What it gives


def test_the_logged_model_is_self_contained(model_registry: str, tmp_path: Path) -> None:
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
        [sys.executable, "-c", code, model_registry, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
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
    (tmp_path / "in.json").write_text(json.dumps(dense() if form == "spec" else resnet18()))
    if form == "graph":
        options |= {"dtype": "bfloat16", "names": ["layer1.*", "fc.bias"]}
    predict_job(tmp_path / "local", checkpoint=checkpoint, **options)
    said = predict_job(tmp_path / "served", server=server.url, **options)
    assert "with weights" in said and (tmp_path / "local").read_bytes() == (tmp_path / "served").read_bytes()


def test_all_three_forms_in_one_request(server: Server, checkpoint: Path) -> None:
    named = {"model": "torchvision:resnet18", "image_size": 32, "dtype": "float16", "names": ["fc.*"]}
    status, said = server.ask({"specification": dense()}, {"graph": resnet18()}, named)
    assert status == 200, said
    hypernet = load_checkpoint(checkpoint)
    with torch.no_grad():
        whole = predict(hypernet, ArchitectureGraph.from_json(resnet18()))
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


def test_large_answers_go_to_the_store(model_registry: str, s3: str, checkpoint: Path, tmp_path: Path) -> None:
    settings = {"GHN_SERVE_STORE": f"{s3}/served", "GHN_SERVE_INLINE_MIB": "1", "MLFLOW_TRACKING_URI": model_registry}
    with serving(ghn_serve(MODEL), tmp_path, **settings) as server:
        status, said = server.ask(
            {"model": "torchvision:resnet18"}, {"specification": dense(), "names": ["classifier*"]}
        )
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
    server.ask({"specification": dense()})
    server.ask({"specification": {}})
    after = server.get("/metrics")[1]

    def value(text: str, name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    for name in ('ghn_requests_total{status="200"}', 'ghn_requests_total{status="400"}', "ghn_predict_seconds_count"):
        assert value(after, name) == value(before, name) + 1
    assert "process_resident_memory_bytes" in after and "ghn_model{weights_sha256=" in after


def test_a_signal_to_stop_lets_requests_finish(model_registry: str, tmp_path: Path) -> None:
    with serving(ghn_serve(MODEL), tmp_path, MLFLOW_TRACKING_URI=model_registry) as server:
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


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (dict, "give one of specification, graph and model"),
        (lambda: {"model": "../../evil.py:make"}, "can not be named here"),
        (lambda: {"model": "torchvision:resnet18", "num_classes": 11}, "predicts for 10"),
        (lambda: {"graph": {**resnet18(), "nodes": resnet18()["nodes"] * 100}}, "at most 2500 are allowed"),
        (lambda: {"graph": {**resnet18(), "kept": [["\ud800", "why"]]}}, "can not be the name|JSON"),
    ],
)
def test_wrong_requests_are_refused_with_a_reason(make: Callable[[], Any], reason: str, server: Server) -> None:
    """Those that arrive; test_serving_request has all others."""
    message = refused(server.send(json.dumps({"inputs": [make()]})), 400, 413)
    assert re.search(reason, message), message


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b'{"inputs": [{"model": "torchvision:resnet18", "num_classes": NaN}]}', 400),
        (b'{"inputs": [{"model": "\xff\xfe"}]}', 400),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 413),
        (b" " * (5 << 20), 413),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_bodies_are_refused_with_a_reason(body: bytes, status: int, server: Server) -> None:
    refused(server.send(body), status)


def test_wrong_headers_methods_and_paths(server: Server) -> None:
    body = json.dumps({"inputs": [{"specification": dense()}]})
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
    body = json.dumps({"inputs": [{"specification": dense(), "names": ["classifier*"]}]})
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
        head = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += "Transfer-Encoding: chunked\r\n\r\n"
        client.sendall(head.encode())
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(65):  # a little more than 4 MiB; the last chunk never comes
            client.sendall(piece)
        assert client.recv(65536).startswith(b"HTTP/1.1 413")


def test_what_one_process_is_asked_at_once_is_bounded(model_registry: str, tmp_path: Path) -> None:
    limits = {"PARALLEL": "1", "WAITING": "2", "SLOW_S": "1", "SECONDS": "20", "MODELS": "resnet* vit_b_16"}
    environment = {f"GHN_SERVE_{name}": value for name, value in limits.items()}
    with serving(ghn_serve(MODEL), tmp_path, MLFLOW_TRACKING_URI=model_registry, **environment) as server:
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


def test_work_is_cut_off_at_the_time_limit(model_registry: str, tmp_path: Path) -> None:
    with serving(ghn_serve(MODEL), tmp_path, MLFLOW_TRACKING_URI=model_registry, GHN_SERVE_SECONDS="0.02") as server:
        many = json.dumps({"inputs": [{"specification": dense()}, {"model": "torchvision:densenet201"}] * 8})
        assert "took too long" in refused(server.send(many), 413)
        assert server.get("/ready")[0] == 200


def test_bad_settings_and_models_are_named(model_registry: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": model_registry, "GHN_SERVE_NODES": "many"}
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


def test_mlflow_installs_the_models_environment_elsewhere(model_registry: str) -> None:
    """The requirements are exact, and are what this environment has."""
    from importlib.metadata import version

    import mlflow

    mlflow.set_tracking_uri(model_registry)
    listed = Path(mlflow.pyfunc.get_model_dependencies(MODEL)).read_text().split()
    assert {"torch", "mlflow-skinny", "numba"} <= {line.partition("==")[0] for line in listed}
    for line in listed:
        name, _, pinned = line.partition("==")
        assert version(name).partition("+")[0] == pinned
    assert shutil.which("mlflow", path=str(BIN))


def test_the_example_asks_with_the_standard_library_alone(server: Server, tmp_path: Path) -> None:
    architecture = sample_architectures("dense", 1, 9, image_size=16, channels=(16,))[0]
    (tmp_path / "architecture.json").write_text(json.dumps(architecture.spec.to_json()))
    arguments = ("--server", server.url, "--specification", "architecture.json")
    done = run_example("call_the_server.py", *arguments, cwd=tmp_path, python=("-I", "-S"))
    assert done.returncode == 0, done.stderr
    titles = re.findall(r"^(.+): (\d+) tensors, [\d.]+ MB, SHA-256 is right", done.stdout, re.MULTILINE)
    assert titles == [
        ("an architecture", str(len(architecture.graph.parameters))),
        ("resnet18", "62"),
        ("resnet18, only fc.*", "2"),
    ]
    assert re.search(r"^  conv1.weight +64x3x3x3 +first value [+-]\d\.\d{4}$", done.stdout, re.MULTILINE)
    again = run_example("call_the_server.py", "--server", server.url, "--model", "no_such", cwd=tmp_path)
    assert again.returncode == 1 and "the server refused with 400" in again.stderr
    assert "Traceback" not in again.stderr
