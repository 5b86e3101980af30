"""`ghn shard deepnets --from-hdf5`, `convert-checkpoint` and `evaluate` on official files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ghn import GHN, GHNConfig, load_checkpoint, read_deepnets, sample_architectures
from ghn.checkpoint import read_metadata
from pipelines.shards.architectures import read_architectures
from tests.command_line import ghn, refused
from tests.evaluations import scored_here
from tests.images import make_folder
from tests.official_files import write_official


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """An official pair of files and an official checkpoint, all small."""
    root = tmp_path_factory.mktemp("official")
    splits = {name: sample_architectures(name, 3, 0, channels=(8,), fc_dims=(32,)) for name in ("val", "wide")}
    write_official(root / "deepnets1m_eval.hdf5", splits, published=True)
    torch.manual_seed(0)
    hypernet = GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    config = {**hypernet.config.to_json(), "max_shape": (8, 8, 3, 3)}
    state = {"state_dict": hypernet.state_dict(), "config": config, "epoch": 299, "optimzer": {"state": {}}}
    torch.save(state, root / "ghn2.pt")
    return root


def shard(official: Path, out: Path, *more: str):
    command = ("shard", "deepnets", "--from-hdf5", str(official / "deepnets1m_eval.hdf5"), "--out", str(out))
    return ghn(*command, "--split", "val", "--split", "wide", *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_official_architectures_are_sharded(official: Path, tmp_path: Path) -> None:
    done = shard(official, tmp_path / "nets", "--shard-samples", "2")
    assert done.returncode == 0, done.stderr
    assert "nets/val: 3 samples in 2 shards" in done.stdout
    written = {name: sample_architectures(name, 3, 0, channels=(8,), fc_dims=(32,)) for name in ("val", "wide")}
    for split, architectures in written.items():
        found = read_architectures(str(tmp_path / "nets"), split)
        assert [a.spec for a in found] == [a.spec for a in architectures]
        manifest = json.loads((tmp_path / "nets" / split / "manifest.json").read_text())
        assert manifest["source"] == "deepnets1m_eval.hdf5"
        assert sum(entry["nodes"] for entry in manifest["shards"]) == sum(len(a.graph) for a in architectures)
    assert found[0].spec.C == 32  # widened fourfold
    before = contents(tmp_path / "nets")
    assert shard(official, tmp_path / "nets", "--shard-samples", "2").returncode == 0
    assert contents(tmp_path / "nets") == before
    assert shard(official, tmp_path / "other", "--shard-samples", "2").returncode == 0
    assert contents(tmp_path / "other") == before


def test_a_number_and_sizes_can_be_chosen(official: Path, tmp_path: Path) -> None:
    more = ("--count", "2", "--num-classes", "1000", "--image-size", "224")
    assert shard(official, tmp_path / "nets", *more).returncode == 0
    found = read_architectures(str(tmp_path / "nets"), "wide")
    assert [(a.index, a.spec.num_classes, a.spec.image_size, a.spec.C) for a in found] == [
        (0, 1000, 224, 16),
        (1, 1000, 224, 16),
    ]
    refused(shard(official, tmp_path / "nets"), "already holds a shard set with another request")


def test_an_official_model_is_evaluated_on_official_architectures(official: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "images", classes=10, per_class=10)
    images, nets = str(tmp_path / "set"), str(tmp_path / "nets")
    assert ghn("shard", "images", "--source", str(tmp_path / "images"), "--out", images).returncode == 0
    assert shard(official, tmp_path / "nets", "--count", "1").returncode == 0
    rows = []
    assert ghn("convert-checkpoint", str(official / "ghn2.pt"), "--out", str(tmp_path / "model")).returncode == 0
    for model in (official / "ghn2.pt", tmp_path / "model"):
        out = tmp_path / "evaluation.json"
        data = ("--images", images, "--deepnets", nets, "--split", "val", "--out", str(out))
        with scored_here():
            done = ghn("evaluate", "--model", str(model), *data)
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(out.read_text())["networks"])
    assert rows[0] == rows[1] and len(rows[0]) == 1


def test_an_official_checkpoint_is_converted(official: Path, tmp_path: Path) -> None:
    done = ghn("convert-checkpoint", str(official / "ghn2.pt"), "--out", str(tmp_path / "model"))
    assert done.returncode == 0 and "max_shape=(8, 8, 3, 3)" in done.stdout, done.stderr
    facts = read_metadata(tmp_path / "model")
    assert (facts["official"], facts["epoch"]) == ("ghn2.pt", 299)
    assert facts["recipe"]["images"]["mean"] == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    one, other = load_checkpoint(official / "ghn2.pt"), load_checkpoint(tmp_path / "model")
    assert one.config == other.config
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    again = ghn("convert-checkpoint", str(official / "ghn2.pt"), "--out", str(tmp_path / "model"))
    refused(again, "model is not empty")


def test_bad_official_files_are_refused(official: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    hdf5 = tmp_path / "deepnets1m_eval.hdf5"
    command = ("shard", "deepnets", "--from-hdf5", str(hdf5), "--split", "val")
    refused(ghn(*command, *out), f"no file {hdf5}")
    hdf5.write_bytes((official / hdf5.name).read_bytes()[:-1000])
    meta = hdf5.with_name("deepnets1m_eval_meta.json")
    meta.write_bytes((official / meta.name).read_bytes())
    refused(ghn(*command, *out), f"{hdf5} is damaged")
    hdf5.write_bytes((official / hdf5.name).read_bytes())
    write_official(tmp_path / "other.hdf5", {"val": sample_architectures("val", 3, 1, channels=(8,))})
    (tmp_path / "other_meta.json").replace(meta)
    refused(ghn(*command, *out), "do not belong together")
    assert not list((tmp_path / "out").rglob("manifest.json"))
    refused(ghn(*command, *out, "--seed", "3"), "--seed")
    refused(ghn("shard", "deepnets", "--split", "val", *out), "--count", "--from-hdf5")
    refused(ghn("convert-checkpoint", str(meta), *out), "can not be read as an official GHN checkpoint")
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_architecture_of_a_shard_is_the_official_one(official: Path, tmp_path: Path) -> None:
    assert shard(official, tmp_path / "nets").returncode == 0
    stored = read_architectures(str(tmp_path / "nets"), "val")
    for one, other in zip(stored, read_deepnets(official / "deepnets1m_eval.hdf5", "val"), strict=True):
        assert one.graph.fingerprint() == other.graph.fingerprint()
