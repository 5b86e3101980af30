"""`pipelines.cli`: quick help with examples; bad input gives one message, no traceback, and a code that is not 0."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ghn import GHN, GHNConfig, sample_architectures, save_checkpoint
from pipelines.cli import cli
from tests.command_line import ghn, ghn_process, refused
from tests.images import make_folder


def commands(group: click.Group, *path: str) -> Iterator[str]:
    """Yield the names of all commands below a group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name))


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys, pipelines.cli; print({'torch', 'mlflow', 'deepspeed', 'boto3', 'airflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        assert ghn_process("--help").returncode == 0
        seconds.append(time.monotonic() - started)
    assert statistics.median(seconds) < 0.5


@pytest.mark.parametrize("command", commands(cli))
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = ghn(*command.split(), "--help")
    assert done.returncode == 0 and f"Example:\n    ghn {command}" in done.stdout


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_folder(root / "images", classes=10, per_class=10)
    done = ghn("shard", "images", "--source", str(root / "images"), "--out", str(root / "set"), "--image-size", "16")
    assert done.returncode == 0, done.stderr
    widths = ("--channels", "8", "--fc-dims", "32", "--image-size", "16")
    done = ghn("shard", "deepnets", "--split", "train", "--count", "4", "--out", str(root / "nets"), *widths)
    assert done.returncode == 0, done.stderr
    return root


def smoke(shards: Path, *overrides: str) -> list[str]:
    settings = (f"images.url={shards / 'set'}", f"architectures.url={shards / 'nets'}", *overrides)
    return ["train", "--recipe", "smoke", *(part for setting in settings for part in ("--set", setting))]


def test_bad_image_sources(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    nowhere = ("shard", "images", "--source", str(tmp_path / "nowhere"), *out)
    for run in (ghn, ghn_process):  # the first as all others here, the second as users do
        refused(run(*nowhere), "nowhere does not exist")
    (tmp_path / "empty").mkdir()
    refused(ghn("shard", "images", "--source", str(tmp_path / "empty"), *out), "holds no images")
    folder = make_folder(tmp_path / "images")
    broken = next(folder.rglob("*.jpg"))
    broken.write_bytes(b"?")
    refused(ghn("shard", "images", "--source", str(folder), *out), broken.name, "can not be read")
    broken.write_bytes(broken.parent.parent.joinpath("class 1 é", "1.jpg").read_bytes())
    assert ghn("shard", "images", "--source", str(folder), *out).returncode == 0  # nothing half-written is in the way


def test_bad_training_input(shards: Path, tmp_path: Path) -> None:
    run = ("--run", str(tmp_path / "run"))
    refused(ghn("train", "--recipe", "smoke", "--set", "training.stepps=3", *run), "training.stepps", "steps")
    refused(ghn("train", "--recipe", "nonsense", *run), "nonsense")
    refused(ghn(*smoke(shards, "images.url=nowhere/at/all"), *run), "nowhere/at/all/train", "ghn shard images")
    refused(ghn(*smoke(shards, "model.num_classes=7"), *run), "10 classes", "model.num_classes=7")
    refused(ghn(*smoke(shards, "images.size=32"), *run), "image_size=16", "32")
    refused(ghn(*smoke(shards, f"architectures.url={shards / 'set'}"), *run), "holds images shards")
    unreachable = smoke(shards, "images.url=s3://ghn/x")
    credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    settings = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "GHN_S3_DEADLINE_S": "1", **credentials}
    refused(ghn(*unreachable, *run, **settings), "http://127.0.0.1:9")
    assert not (tmp_path / "run").exists()


def test_bad_models_and_specifications(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    out = ("--out", str(tmp_path / "p.safetensors"))
    architecture = sample_architectures("test", 1, 0, image_size=16, channels=(8,))[0]
    spec.write_text(json.dumps(architecture.spec.to_json()))
    config = GHNConfig(hid=8, max_shape=(8, 8, 3, 3))
    model = save_checkpoint(GHN(config), tmp_path / "model")
    assert ghn("predict", "--checkpoint", str(model), "--spec", str(spec), *out).returncode == 0
    (tmp_path / "p.safetensors").unlink()
    refused(ghn("predict", "--checkpoint", str(tmp_path), "--spec", str(spec), *out), "not a GHN checkpoint")
    refused(ghn("predict", "--checkpoint", str(spec), "--spec", str(spec), *out), "official GHN checkpoint")
    refused(ghn("predict", "--checkpoint", str(model), "--spec", str(tmp_path / "no.json"), *out), "no.json")
    spec.write_text('{"n_cells": 3}')
    refused(ghn("predict", "--checkpoint", str(model), "--spec", str(spec), *out), "lacks", "genotype")
    refused(
        ghn("register", "--run", str(tmp_path), "--name", "x", "--tracking-uri", f"sqlite:///{tmp_path}/m.db"),
        "ghn train",
    )
    nowhere = ("--images", str(tmp_path), "--deepnets", str(tmp_path), "--out", str(tmp_path / "e.json"))
    refused(ghn("evaluate", "--model", str(model), *nowhere), "ghn shard deepnets")
    registry = f"sqlite:///{tmp_path}/m.db"
    refused(
        ghn("evaluate", "--model", "models:/none@candidate", *nowhere, "--tracking-uri", registry),
        "models:/none@candidate",
    )
    refused(ghn("evaluate", "--model", str(model), *nowhere, "--part", "1/2"), "--results")
    refused(ghn("evaluate", "--model", str(model), *nowhere, "--results", str(tmp_path), "--part", "3/2"), "part 3/2")
    refused(ghn("report", "--evaluation", "no.json", "--run", str(tmp_path), "--out", str(tmp_path)), "ghn evaluate")
    refused(ghn("demo", "--images", "no.zip", "--out", str(tmp_path / "d")), "no.zip does not exist")
    refused(ghn("demo", "--out", str(tmp_path)), "is not empty and holds no earlier demo")
    assert not (tmp_path / "p.safetensors").exists() and not (tmp_path / "e.json").exists()
