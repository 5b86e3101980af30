"""`pipelines.shards.inspect` and the options for storage, as users of `ghn shard verify`, `ls`, `stats` meet them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipelines.shards.inspect import verify_sets
from pipelines.shards.jobs import shard_deepnets, shard_images
from pipelines.storage import LocalStore
from tests.command_line import ghn, refused
from tests.images import make_folder
from tests.shard_sets import FACTS, SampleRecord, write_shards


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    shard_images(str(make_folder(root / "source", per_class=20)), f"{root}/sets/images", seed=0, shard_samples=8)
    options = {"image_size": 16, "channels": (8,), "fc_dims": (32,)}
    shard_deepnets(["val", "deep"], f"{root}/sets/deepnets", count=5, seed=0, shard_samples=3, **options)
    return root / "sets"


def test_whole_sets_pass_verification(sets: Path) -> None:
    for url in (sets, sets / "images", sets / "deepnets" / "val"):
        assert verify_sets(str(url)) == verify_sets(str(url), deep=True) == []
    done = ghn("shard", "verify", str(sets))
    assert done.returncode == 0 and "everything is as the manifests say" in done.stdout


def test_everything_wrong_is_listed(tmp_path: Path, sets: Path) -> None:
    shutil.copytree(sets, tmp_path / "sets")
    train = tmp_path / "sets" / "images" / "train"
    shards = sorted(train.glob("*.tar"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    (train / "images-train-000099.tar").write_bytes(b"left over")
    manifest = tmp_path / "sets" / "deepnets" / "val" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["shards"][0]["nodes"] += 1
    manifest.write_text(json.dumps(content))
    problems = "\n".join(verify_sets(str(tmp_path / "sets"), deep=True))
    for expected in (
        f"{shards[0].name} is missing",
        f"{shards[1].name} is damaged",
        "images-train-000099.tar does not belong",
        "nodes and",
    ):
        assert expected in problems
    assert len(problems.splitlines()) == 4
    refused(ghn("shard", "verify", str(tmp_path / "sets"), "--deep"), "4 problems")


def test_samples_that_make_no_sense_are_listed(tmp_path: Path) -> None:
    fields = [
        {"png": b"x", "cls": b"2"},  # of 2 classes
        {"png": b"x", "jpg": b"x", "cls": b"0"},
        {"png": b"x"},
        {"png": b"no image", "cls": b"0"},
    ]
    items = [SampleRecord(key="same", fields=each, position=i + 1) for i, each in enumerate(fields)]
    write_shards(LocalStore(str(tmp_path)), items, shard_samples=1, facts=FACTS)
    problems = verify_sets(str(tmp_path), deep=True)
    assert len(problems) == 5 and "key same occurs 4 times" in problems[-1] and "class 2 of 2" in problems[0]
    assert len(verify_sets(str(tmp_path))) == 4


def test_listing_and_statistics(sets: Path, tmp_path: Path) -> None:
    done = ghn("shard", "ls", str(sets / "deepnets"))
    assert done.returncode == 0 and "deepnets-val-000001.tar" in done.stdout
    assert "5 samples in 2 shards" in done.stdout
    picture = tmp_path / "picture.svg"
    done = ghn("shard", "stats", str(sets), "--draw", str(picture), "--sample", "10")
    assert done.returncode == 0 and picture.read_text().startswith("<?xml")
    rows = {(row.split()[0], row.split()[1]): row.split() for row in done.stdout.splitlines() if row[:1].strip()}
    assert rows["deepnets", "val"][2:4] == ["5", "2"] and int(rows["deepnets", "val"][6].replace(",", "")) > 10
    assert rows["images", "train"][2] == "43"


@pytest.mark.parametrize("command", ["verify", "ls", "stats"])
def test_an_address_without_sets_is_named(command: str, s3: str, tmp_path: Path) -> None:
    refused(ghn("shard", command, str(tmp_path)), "no shard set at")
    nowhere = ghn("shard", command, "s3://nowhere/sets")
    assert nowhere.returncode == 4
    refused(nowhere, "bucket 'nowhere' does not exist; create it first")


def test_a_bucket_is_not_made_by_a_job(s3: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    done = ghn("shard", "images", "--source", str(source), "--out", "s3://nowhere/sets", "--shard-samples", "12")
    assert done.returncode == 4
    refused(done, "bucket 'nowhere' does not exist; create it first")


def test_storage_options_reach_the_store(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    cache = tmp_path / "cache"
    options = ["--s3-endpoint", endpoint, "--s3-region", "us-east-1", "--s3-path-style", "--cache", str(cache)]
    arguments = ["deepnets", "--split", "predefined", "--count", "2", "--out", f"{s3}/x"]
    done = ghn(*options, "shard", *arguments)
    assert done.returncode == 0, done.stderr
    done = ghn(*options, "shard", "verify", f"{s3}/x")
    assert done.returncode == 0 and "as the manifests say" in done.stdout, done.stderr
