"""`pipelines.training.register` and `pipelines.registry`: register and evaluate with real MLflow and the real S3 protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.shards.jobs import shard_deepnets, shard_images
from pipelines.training.register import register
from tests.distributed.jobs import train
from tests.evaluations import evaluate

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


def test_from_a_run_to_an_evaluated_version(trained: Path, s3: str, tmp_path: Path) -> None:
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
