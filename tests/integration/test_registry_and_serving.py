"""Register, evaluate and serve: real MLflow, real S3 protocol, a real scoring server."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from ghn import Architecture, load_checkpoint, predict, sample_architectures
from pipelines.evaluation.job import evaluate
from pipelines.register import register
from pipelines.shards.jobs import shard_deepnets, shard_images
from tests.distributed.jobs import train

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture
def trained(s3: str, tmp_path: Path) -> Path:
    shard_images("digits", f"{s3}/images", seed=0, shard_samples=60, image_size=16, limit=200)
    widths = {"image_size": 16, "channels": (8,), "fc_dims": (32,)}
    for split in ("train", "test", "predefined"):
        shard_deepnets([split], f"{s3}/nets", count=8, seed=0, shard_samples=5, max_nodes=None, **widths)
    urls = (f"images.url={s3}/images", f"architectures.url={s3}/nets")
    done = train(tmp_path, tmp_path / "run", *urls, steps=2)
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def request(url: str, content: object) -> tuple[int, dict]:
    data = json.dumps(content).encode()
    call = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(call, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_from_a_run_to_a_served_prediction(trained: Path, s3: str, tmp_path: Path) -> None:
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    options = {"name": "ghn2-digits", "tracking_uri": tracking, "experiment": "ghn", "artifacts": "s3://ghn/mlflow"}
    first, second = register(trained, **options), register(trained, **options)
    assert first == second and first["version"] == 1  # the same weights are registered once

    import mlflow

    client = mlflow.MlflowClient()
    assert client.get_model_version_by_alias("ghn2-digits", "candidate").version in (1, "1")
    run = client.get_run(first["run_id"])
    assert run.data.params["training.steps"] == "2" and "loss" in run.data.metrics
    assert run.info.artifact_uri.startswith("s3://ghn/mlflow/")

    out = tmp_path / "evaluation.json"
    arguments = {"images": f"{s3}/images", "deepnets": f"{s3}/nets", "splits": ("test",), "tracking_uri": tracking}
    evaluation = evaluate(first["model_uri"], out=out, networks=2, **arguments)
    assert json.loads(out.read_text()) == evaluation
    assert evaluation["model"]["version"] == 1 and evaluation["splits"]["test"]["networks"] == 2
    evaluate(
        first["model_uri"], out=tmp_path / "less.json", networks=1, **arguments
    )  # takes the place of no larger one
    stored = mlflow.artifacts.load_dict(f"runs:/{first['run_id']}/evaluations/ghn2-digits-1.json")
    assert stored["networks"] == evaluation["networks"]
    again = evaluate(str(trained / "model"), out=tmp_path / "again.json", networks=2, **arguments)
    assert again["networks"] == evaluation["networks"]  # the registered weights are those of the run
    assert [item.path for item in client.list_artifacts(first["run_id"], "evaluations")] == [
        "evaluations/ghn2-digits-1.json"
    ]
    assert (
        client.get_run(first["run_id"]).data.metrics["eval.test.predicted.top1.mean"]
        == (evaluation["splits"]["test"]["scores"]["predicted"]["top1"]["mean"])
    )

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mlflow_command = str(Path(sys.executable).with_name("mlflow"))
    arguments = ["models", "serve", "-m", first["model_uri"], "--env-manager", "local", "--port", str(port)]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    server = subprocess.Popen([mlflow_command, *arguments], env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        architecture = sample_architectures("dense", 1, 9, image_size=16, channels=(16,))[0]
        specification = json.dumps(architecture.spec.to_json())
        url = f"http://127.0.0.1:{port}/invocations"
        status, answer = request(url, {"dataframe_records": [{"specification": specification}]})
        assert status == 200, answer
        served = load(base64.decodebytes(answer["predictions"][0]["parameters"].encode()))
        with torch.no_grad():
            local = predict(load_checkpoint(trained / "model"), Architecture(spec=architecture.spec).graph)
        assert set(served) == set(local)
        for name in local:  # the server may use another number of threads, hence another order of sums
            torch.testing.assert_close(served[name], local[name], rtol=1e-4, atol=1e-6)
        status, answer = request(url, {"dataframe_records": [{"specification": '{"n_cells": 3}'}]})
        assert status == 400 and "lacks" in json.dumps(answer)
        assert request(url, {"dataframe_records": [{"specification": specification}]})[0] == 200  # it lives on
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
