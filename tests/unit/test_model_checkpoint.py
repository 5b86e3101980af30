"""`ghn.checkpoint`, the files of a model: round trips, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from ghn import GHN, GHNConfig, load_checkpoint, predict, sample_architectures, save_checkpoint
from ghn.checkpoint import CONFIG_NAME, WEIGHTS_NAME, read_metadata
from ghn.errors import DataError, InputError


def test_a_round_trip_keeps_weights_configuration_and_facts(small_hypernet: GHN, tmp_path: Path) -> None:
    save_checkpoint(small_hypernet, tmp_path / "model", {"steps": 3})
    again = load_checkpoint(tmp_path / "model")
    assert again.config == small_hypernet.config and not again.training
    assert read_metadata(tmp_path / "model") == {"steps": 3}
    for name, tensor in small_hypernet.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {CONFIG_NAME, WEIGHTS_NAME}


def test_official_files_load(small_hypernet: GHN, tmp_path: Path) -> None:
    official = {"state_dict": small_hypernet.state_dict(), "config": small_hypernet.config.to_json(), "epoch": 1}
    torch.save(official, tmp_path / "ghn.pt")
    assert load_checkpoint(tmp_path / "ghn.pt").config == small_hypernet.config


@pytest.mark.parametrize(
    "config",
    [
        GHNConfig(hid=16, max_shape=(8, 24, 5, 5), num_classes=1000),
        GHNConfig(hid=8, max_shape=(24, 8, 16, 16), ve=False, weight_norm=False, layernorm=False),
        GHNConfig(hid=12, max_shape=(4, 4, 1, 1), hypernet="mlp"),
    ],
)
def test_official_files_of_any_size_load(config: GHNConfig, tmp_path: Path) -> None:
    hypernet = GHN(config)
    assert hypernet.bias_class[1].in_features == max(config.max_shape[:2])  # as in the published code
    state = {"state_dict": hypernet.state_dict(), "config": config.to_json(), "epoch": 1}
    torch.save(state, tmp_path / "ghn.pt")
    graph = sample_architectures("test", 1, 0, num_classes=config.num_classes)[0].graph
    with torch.no_grad():
        one, other = predict(hypernet, graph), predict(load_checkpoint(tmp_path / "ghn.pt"), graph)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_interrupted_writing_leaves_no_checkpoint(small_hypernet: GHN, tmp_path: Path, monkeypatch) -> None:
    save_checkpoint(small_hypernet, tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr("ghn.checkpoint.os.fsync", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save_checkpoint(small_hypernet, tmp_path / "model")
    with pytest.raises(InputError, match="not a GHN checkpoint"):
        load_checkpoint(tmp_path / "model")


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_pickles_are_never_executed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in (("a.pt", lambda f: torch.save({"state_dict": _Evil(), "config": {}}, f)), ("b.pt", _dump)):
        write(tmp_path / name)
        with pytest.raises(InputError, match="official GHN checkpoint"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "evil").exists()


def _dump(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Evil()))


def _official(hypernet: GHN, path: Path, **change: object) -> Path:
    state = {**hypernet.state_dict(), **{k: v for k, v in change.items() if v is not None}}
    for key in [k for k, v in change.items() if v is None]:
        del state[key]
    torch.save({"state_dict": state, "config": hypernet.config.to_json()}, path)
    return path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gnn.gru.bias_ih": None}, "lacks the tensor 'gnn.gru.bias_ih'"),
        ({"surprise": torch.zeros(1)}, "unexpected tensor 'surprise'"),
        ({"ln.weight": torch.zeros(5)}, r"'ln.weight' has shape \(5,\)"),
    ],
)
def test_wrong_tensors_are_named(small_hypernet: GHN, tmp_path: Path, change: dict, named: str) -> None:
    with pytest.raises(DataError, match=named):
        load_checkpoint(_official(small_hypernet, tmp_path / "ghn.pt", **change))


def test_damage_and_other_kinds_are_errors(small_hypernet: GHN, tmp_path: Path) -> None:
    folder = save_checkpoint(small_hypernet, tmp_path / "model")
    weights = folder / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="SHA-256"):
        load_checkpoint(folder)
    weights.unlink()
    with pytest.raises(DataError, match=r"no model\.safetensors"):
        load_checkpoint(folder)
    (folder / CONFIG_NAME).write_text(json.dumps({"format": "something else"}))
    with pytest.raises(InputError, match="another kind"):
        load_checkpoint(folder)
    (folder / CONFIG_NAME).write_text("{")
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(folder)
    torch.save({"state_dict": {}, "config": {"hid": 32}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="its config must say num_classes, hid"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save({"state_dict": {"ln": 3}, "config": small_hypernet.config.to_json()}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="something else than tensors"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="state_dict and config"):
        load_checkpoint(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="can not be read"):
        load_checkpoint(tmp_path / "text.pt")
    with pytest.raises(InputError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nowhere")


def test_what_can_not_be_written_leaves_what_was_there(small_hypernet: GHN, tmp_path: Path) -> None:
    folder = save_checkpoint(small_hypernet, tmp_path / "model", {"steps": 1})
    with pytest.raises(InputError, match="not JSON-ready"):
        save_checkpoint(small_hypernet, folder, {"steps": object()})
    assert read_metadata(folder) == {"steps": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        save_checkpoint(small_hypernet, tmp_path / "file")


@pytest.mark.parametrize(
    "change", [{"hid": 32.0}, {"ve": "no"}, {"max_shape": None}, {"max_shape": [8, 8, "a", 7]}, {"num_classes": True}]
)
def test_configurations_of_other_types_are_refused(change: dict) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        GHNConfig.from_json({**GHNConfig().to_json(), **change})
    with pytest.raises(InputError, match="JSON object"):
        GHNConfig.from_json(5)


@pytest.mark.parametrize("key", ["config", "weights_sha256", "metadata"])
def test_a_configuration_file_that_lacks_something_is_damaged(key: str, small_hypernet: GHN, tmp_path: Path) -> None:
    file = save_checkpoint(small_hypernet, tmp_path) / CONFIG_NAME
    data = json.loads(file.read_text())
    del data[key]
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=key):
        load_checkpoint(tmp_path)
