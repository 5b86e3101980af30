"""`pipelines.training.tracking` and `checkpoints`: metrics in MLflow and states on S3, while both fail now and then."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.lineage import commit
from pipelines.shards.manifest import read_manifest
from pipelines.storage import open_store
from pipelines.training.checkpoints import read_checkpoint
from pipelines.training.register import register
from pipelines.training.run_folder import read_metrics, tracked_run
from tests.distributed.jobs import command, curve, same_weights, train
from tests.faulty_proxy import Proxy, proxy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture
def faulty(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        monkeypatch.setenv("GHN_S3_DEADLINE_S", "0.5")
        yield running


def test_a_run_on_s3_goes_on_in_an_empty_folder(s3: str, shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = ("--store", f"{s3}/runs/one")
    done = train(shards, tmp_path / "first", arguments=(*store, "--stop-after", "4"))
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "first")
    done = train(shards, tmp_path / "second", "training.export_every=3", arguments=store)
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "second") == curve(undisturbed) and same_weights(tmp_path / "second", undisturbed)
    kept = open_store(f"{s3}/runs/one")
    assert read_checkpoint(kept)[0].step == 6
    assert "models/step-000000006/model/config.json" in kept.list("models/")


def test_an_outage_of_the_store_costs_a_checkpoint_not_the_run(
    faulty: Proxy, s3: str, shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    faulty.fault = lambda request: "503" if request.method == "PUT" and "step-000000002/" in request.path else None
    done = train(shards, tmp_path / "run", arguments=("--store", f"{s3}/run"))
    assert done.returncode == 0, done.stderr
    assert '"event": "checkpoint_failed", ' in done.stderr and "SlowDown" in done.stderr
    assert curve(tmp_path / "run") == curve(undisturbed)
    faulty.fault = lambda request: "503" if request.method == "PUT" and "step-000000006/" in request.path else None
    shutil.rmtree(tmp_path / "run")
    done = train(shards, tmp_path / "run", arguments=("--store", f"{s3}/other"))
    assert done.returncode == 6 and "last checkpoint could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_checkpoint(open_store(f"{s3}/other"))[0].step == 4
    faulty.fault = lambda request: None
    assert train(shards, tmp_path / "run", arguments=("--store", f"{s3}/other")).returncode == 0
    assert curve(tmp_path / "run") == curve(undisturbed) and same_weights(tmp_path / "run", undisturbed)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_fills_up(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can not mount: {mounted.stderr.decode().strip()}")
    try:
        done = train(shards, disk / "run", "training.keep_last=3")  # of 20 MB each
        assert done.returncode == 6 and "No space left" in done.stderr and "Traceback" not in done.stderr
        assert read_checkpoint(open_store(str(disk / "run")))[0].step == 2
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert train(shards, disk / "run", "training.keep_last=3").returncode == 0
        assert curve(disk / "run") == curve(undisturbed) and same_weights(disk / "run", undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_all_sessions_and_the_registration_are_one_mlflow_run(shards: Path, tmp_path: Path) -> None:
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    artifacts = str(tmp_path / "artifacts")
    tracking = ("--tracking-uri", uri, "--experiment", "tracked", "--artifacts", artifacts)
    for more in (("--stop-after", "2"), ()):
        done = train(shards, tmp_path / "run", "training.ema=0.9", arguments=(*tracking, *more))
        assert done.returncode == 0 and "tracking_failed" not in done.stderr, done.stderr
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("tracked")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == tracked_run(tmp_path / "run") and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [
        (r["step"], r["loss"]) for r in read_metrics(tmp_path / "run")
    ]
    named = {"accuracy", "lr", "grad_norm", "architectures_per_s", "images_per_s", "data_wait_share", "imbalance"}
    assert named | {"skipped", "memory_mb", "checkpoint_s", "checkpoint_mb"} <= set(run.data.metrics)
    assert run.data.params["training.steps"] == "6"
    digests = {name: run.data.tags[f"ghn.manifest.{name}"] for name in ("images", "deepnets")}
    assert digests["images"] == read_manifest(open_store(str(shards / "images" / "train"))).digest()
    sets = {item.dataset.name: item.dataset for item in run.inputs.dataset_inputs}
    assert {name: found.digest for name, found in sets.items()} == {n: digests[n][:32] for n in digests}
    assert sets["images"].source == f"{shards / 'images'}/train"
    options = {"name": "m", "tracking_uri": uri, "artifacts": artifacts, "experiment": "tracked"}
    assert register(tmp_path / "run", **options)["run_id"] == run.info.run_id
    averaged = register(tmp_path / "run", **options, alias="averaged", average=True)
    assert averaged["version"] == 2 and averaged["run_id"] == run.info.run_id
    tags = client.get_model_version("m", "2").tags
    assert {name: tags[f"ghn.manifest.{name}"] for name in digests} == digests
    assert tags["ghn.recipe_digest"] == run.data.tags["ghn.recipe_digest"] and tags["ghn.graph_revision"] == "1"
    assert tags.get("mlflow.source.git.commit", "") == commit()
    assert len(client.search_runs([experiment.experiment_id])) == 1
    client.delete_run(run.info.run_id)
    assert register(tmp_path / "run", **{**options, "name": "again"})["run_id"] != run.info.run_id


def test_an_mlflow_that_is_away_does_not_stop_training(shards: Path, tmp_path: Path) -> None:
    done = train(shards, tmp_path / "run", arguments=("--tracking-uri", "http://127.0.0.1:9"), steps=2)
    assert done.returncode == 0 and '"event": "tracking_failed"' in done.stderr, done.stderr


def test_a_plan_checks_everything_and_starts_nothing(s3: str, shards: Path, tmp_path: Path) -> None:
    store = f"{s3}/run"
    done = train(shards, tmp_path / "run", arguments=("--plan", "--store", store))
    assert done.returncode == 0, done.stderr
    for line in ("images .* 216 images", "steps .* 6 of 4 networks", "time .* s a step", "memory .* GiB", "at step 0"):
        assert re.search(line, done.stdout), (line, done.stdout)
    assert not (tmp_path / "run").exists() and open_store(store).list() == []
    for settings, arguments, wanted in (
        (("images.url=s3://nowhere/x",), (), "bucket 'nowhere' does not exist"),
        ((f"architectures.url={tmp_path}",), (), "manifest"),
        ((), ("--store", "s3://nowhere/x"), "bucket 'nowhere' does not exist"),
        ((), ("--tracking-uri", "http://127.0.0.1:9"), "can not use MLflow"),
    ):
        done = subprocess.run(
            [*command(shards, tmp_path / "run", *settings), "--plan", *arguments], capture_output=True, text=True
        )
        assert done.returncode in (2, 3, 4, 5) and wanted in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
