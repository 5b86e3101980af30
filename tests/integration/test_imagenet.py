"""`pipelines/recipes/imagenet.toml` on full-size photographs: real steps at 224 pixels, resumed, evaluated."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.training.run_folder import read_metrics
from tests.command_line import ghn_process

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
DATA = Path(os.environ.get("GHN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def run(*arguments: str) -> str:
    done = ghn_process(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_photographs_to_top_five(tmp_path: Path) -> None:
    source = DATA / "imagenet-sample.zip"
    if not source.is_file():
        pytest.skip(f"no photographs at {source} (set GHN_DATA)")
    images, nets, folder = str(tmp_path / "images"), str(tmp_path / "nets"), str(tmp_path / "run")
    run("shard", "images", "--source", str(source), "--out", images, "--val-fraction", "0.1", "--shard-samples", "40")
    sizes = ("--num-classes", "1000", "--image-size", "224", "--out", nets, "--channels", "16", "--fc-dims", "64")
    run("shard", "deepnets", "--split", "train", "--split", "test", "--count", "3", "--max-nodes", "90", *sizes)
    settings = (
        *(f"images.url={images}", f"architectures.url={nets}", "images.batch=8", "training.meta_batch=2"),
        *("training.steps=4", "training.checkpoint_every=2", "model.max_shape=[16, 16, 7, 7]", "training.processes=1"),
    )
    train = ["train", "--recipe", "imagenet", "--run", folder, *(part for s in settings for part in ("--set", s))]
    run(*train, "--stop-after", "2")
    run(*train)
    rows = read_metrics(Path(folder))
    assert [(row["step"], row["session"]) for row in rows] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert all(5 < row["loss"] < 12 and not row["skipped"] for row in rows)  # ln 1000 is 6.9
    out = tmp_path / "evaluation.json"
    options = ("--split", "test", "--networks", "2", "--image-limit", "16", "--out", str(out))
    table = run("evaluate", "--model", f"{folder}/model", "--images", images, "--deepnets", nets, *options)
    assert "top-5" in table
    content = json.loads(out.read_text())
    assert content["images"]["size"] == 224 and content["splits"]["test"]["networks"] == 2
    assert content["metric"] == "top5" and content["chance"] == 0.5
    for network in content["networks"]:
        score = network["scores"]["predicted"]
        assert 0 <= score["top1"] <= score["top5"] <= 100 and not score["failure"]
