"""`pipelines.cli`: help with examples; bad input gives one message, no traceback, and a code that is not 0."""

from __future__ import annotations

import json
import subprocess
import sys
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


def test_help_is_a_table_of_contents_and_imports_nothing_heavy() -> None:
    code = "import sys, pipelines.cli; print({'torch', 'mlflow', 'deepspeed', 'boto3', 'airflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    done = ghn_process("--help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ") and line[2:3].islower()]
    assert [name for name in listed if name in cli.commands] == list(
        cli.commands
    )  # in the order in which one needs them


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


def test_files_and_packages_that_can_not_be_used_give_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for command in (["s3", "stop", "file"], ["demo", "--out", "file"], ["airflow", "--folder", "file"]):
        done = ghn(*command, cwd=tmp_path)
        assert done.returncode == 3, command
        refused(done, "file")
    monkeypatch.setitem(sys.modules, "boto3", None)  # as if it were not installed
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = ghn("shard", "ls", "s3://bucket/prefix")
    assert done.returncode == 3
    refused(done, "boto3", "pip install 'ghn[train]'")


def test_paths_on_this_machine_are_no_addresses(tmp_path: Path) -> None:
    for command in (["train", "--run", "s3://bucket/run"], ["report", "--evaluation", "e.json", "--out", "s3://b/x"]):
        done = ghn(*command, cwd=tmp_path)
        assert done.returncode == 2 and not list(tmp_path.iterdir())
        refused(done, "s3://", "give a path")
    done = ghn("evaluate", "--model", "m", "--images", "i", "--deepnets", "d", "--out", "e.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    refused(done, ".json")


def test_a_launcher_that_names_no_rank_is_named(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "x")
    refused(ghn("train", "--recipe", "smoke"), "RANK='x'")
