"""`pipelines.evaluation.job` and `pool`: the same scores from any number of processes, in parts, after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ghn import GHN, GHNConfig, sample_architectures, save_checkpoint
from ghn.errors import EnvironmentSetupError, InputError
from pipelines.evaluation.report import table, write_report
from pipelines.part import Part
from pipelines.shards.jobs import shard_deepnets
from tests.command_line import GHN_COMMAND
from tests.evaluations import evaluate, scored_here
from tests.official_files import write_official

SPLITS = ("val", "deep")
CONFIG = GHNConfig(hid=8, max_shape=(8, 8, 7, 7))


def model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    return save_checkpoint(GHN(CONFIG), folder, {"recipe": {"images": {"size": 16, "augment": "shift"}}})


@pytest.fixture(scope="module")
def given(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model, images and networks to evaluate."""
    root = tmp_path_factory.mktemp("evaluated")
    widths = {"image_size": 16, "channels": (8,), "fc_dims": (32,)}
    shard_deepnets(SPLITS, str(root / "nets"), count=4, seed=0, shard_samples=5, **widths)
    return {
        "model": str(model(root / "model", 0)),
        "images": str(shards / "images"),
        "deepnets": str(root / "nets"),
        "splits": SPLITS,
        "image_limit": 24,
    }


@pytest.fixture(scope="module")
def whole(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An evaluation that nothing disturbed, without other processes."""
    with scored_here():
        found = evaluate(**given, out=tmp_path_factory.mktemp("whole") / "e.json")
    assert found is not None
    return found


@pytest.fixture
def here() -> Iterator[None]:
    """Nothing but the pool depends on processes; the tests of the pool do without this."""
    with scored_here():
        yield


def results(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*.json")}


def test_two_processes_give_what_one_gives(given, whole, tmp_path: Path) -> None:
    found = evaluate(**given, out=tmp_path / "e.json", processes=2)
    assert {**found, "results": ""} == {**whole, "results": ""}
    assert json.loads((tmp_path / "e.json").read_text()) == found
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert lines == whole["networks"]
    assert [(n["split"], n["index"]) for n in lines] == [(split, i) for split in SPLITS for i in range(4)]
    for split in SPLITS:
        values = [n["scores"]["predicted"]["top1"] for n in lines if n["split"] == split]
        assert whole["splits"][split]["scores"]["predicted"]["top1"]["mean"] == pytest.approx(sum(values) / 4)


def test_it_goes_on_after_kill_9(given, tmp_path: Path) -> None:
    trained = {"sgd_steps": 8}  # which takes a while
    with scored_here():
        whole = evaluate(**given, **trained, out=tmp_path / "whole.json")
    command = [GHN_COMMAND, "evaluate", "--out", str(tmp_path / "e.json"), "--processes", "2", "--sgd-steps", "8"]
    for name in ("model", "images", "deepnets"):
        command += [f"--{name}", given[name]]
    command += ["--image-limit", "24", *(part for split in SPLITS for part in ("--split", split))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    folder = tmp_path / "e.results"
    deadline = time.monotonic() + 120
    while len(results(folder)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).stdout:  # its processes go with it
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = results(folder)
    assert 3 <= len(before) < 24 and not (tmp_path / "e.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "e.json").read_text())
    assert {**found, "results": ""} == {**whole, "results": ""}
    after = results(folder)
    assert len(after) == 24 and {key: after[key] for key in before} == before  # what was stored was not done again


def test_parts_come_together(here, given, whole, tmp_path: Path) -> None:
    shared = {"results": str(tmp_path / "scores"), "out": tmp_path / "e.json"}
    for split in SPLITS:
        for number in (1, 2, 3):
            assert evaluate(**{**given, "splits": (split,)}, **shared, part=Part(number, 3)) is None
    before = results(tmp_path / "scores")
    assert len(before) == 16 and not (tmp_path / "e.json").exists()
    found = evaluate(**given, **shared)
    assert {**found, "results": ""} == {**whole, "results": ""} and results(tmp_path / "scores") == before


def test_scores_are_kept_by_what_decides_them(here, given, whole, tmp_path: Path) -> None:
    shared = {"results": str(tmp_path / "scores"), "out": tmp_path / "e.json"}
    arguments = {**given, "splits": ("val",), "networks": 2}
    evaluate(**arguments, **shared)
    assert len(results(tmp_path / "scores")) == 4
    other = evaluate(**{**arguments, "model": str(model(tmp_path / "other", 1))}, **shared)
    assert len(results(tmp_path / "scores")) == 6  # random initialization is that of before
    assert other["networks"] != whole["networks"][:2]
    evaluate(**{**arguments, "seed": 1}, **shared)
    assert len(results(tmp_path / "scores")) == 10


def test_baselines_see_the_same_networks_and_images(here, given, whole, tmp_path: Path) -> None:
    other = model(tmp_path / "other", 1)
    more = {"baselines": [f"ghn1={other}", f"twin={given['model']}"], "sgd_steps": 5, "sgd_networks": 2}
    found = evaluate(**{**given, "splits": ("val",)}, **more, out=tmp_path / "e.json")
    alone = evaluate(**{**given, "splits": ("val",), "model": str(other)}, out=tmp_path / "alone.json")
    for network, before, single in zip(found["networks"], whole["networks"], alone["networks"], strict=False):
        assert network["scores"]["twin"] == network["scores"]["predicted"] == before["scores"]["predicted"]
        assert network["scores"]["ghn1"] == single["scores"]["predicted"]
    assert [n["sgd"]["steps"] if "sgd" in n else None for n in found["networks"]] == [[0, 1, 2, 5]] * 2 + [None] * 2
    assert found["networks"][0]["sgd"]["scores"][0]["top1"] == found["networks"][0]["scores"]["random"]["top1"]
    sgd = found["splits"]["val"]["sgd"]
    assert sgd["networks"] == 2 and len(sgd["top1"]) == 4 and "worth SGD steps" in table(found)
    content = write_report(tmp_path / "e.json", None, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert content["splits"] == found["splits"] and page.count("<svg") == 5 and "ghn1" in page


def test_official_files_give_what_shards_of_the_same_networks_give(here, given, whole, tmp_path: Path) -> None:
    widths = {"image_size": 16, "channels": (8,), "fc_dims": (32,)}
    nets = sample_architectures("val", 4, 0, **widths)
    file = write_official(tmp_path / "deepnets1m_eval.hdf5", {"val": nets})
    arguments = {**given, "deepnets": str(file), "splits": ("val",)}
    found = evaluate(**arguments, out=tmp_path / "e.json")
    expected = [n["scores"] for n in whole["networks"] if n["split"] == "val"]
    assert [n["scores"] for n in found["networks"]] == expected
    with pytest.raises(InputError, match="has no split 'wide'"):
        evaluate(**{**arguments, "splits": ("wide",)}, out=tmp_path / "no.json")


def test_failures_are_counted_in_and_named(here, given, tmp_path: Path) -> None:
    hypernet = GHN(CONFIG)
    with torch.no_grad():
        hypernet.decoder.conv[2].bias.fill_(float("nan"))
    broken = save_checkpoint(hypernet, tmp_path / "broken", {"recipe": {"images": {"size": 16}}})
    found = evaluate(**{**given, "model": str(broken), "splits": ("val",)}, out=tmp_path / "e.json")
    assert found["splits"]["val"]["failed"] == 4 and found["splits"]["val"]["scores"]["predicted"]["top1"]["mean"] == 0
    assert {n["scores"]["predicted"]["failure"] for n in found["networks"]} == {"non-finite parameters"}
    assert "4 failed" in (write_report(tmp_path / "e.json", None, tmp_path), (tmp_path / "report.html").read_text())[1]


def test_a_process_that_is_killed_is_an_error_that_says_what_to_do(given, tmp_path: Path, monkeypatch) -> None:
    from pipelines.evaluation import pool

    monkeypatch.setattr(pool, "_work", _die)
    with pytest.raises(
        EnvironmentSetupError, match=r"val\[0\] \(predicted\) ended with exit code -9.*fewer --processes"
    ):
        evaluate(**given, out=tmp_path / "e.json", processes=1)
    assert not (tmp_path / "e.json").exists()


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"baselines": ["ghn1"]}, "NAME=MODEL"),
        ({"baselines": ["random=x"]}, "taken"),
        ({"baselines": ["ghn1=OTHER"]}, "size 32, not 16"),
        ({"splits": ("vall",)}, "unknown split 'vall'"),
        ({"model": "no-such-model"}, "no checkpoint"),
    ],
)
def test_what_can_not_be_evaluated_is_refused_at_once(
    given, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    other = save_checkpoint(GHN(CONFIG), tmp_path / "other", {"recipe": {"images": {"size": 32}}})
    change = {k: [b.replace("OTHER", str(other)) for b in v] if k == "baselines" else v for k, v in change.items()}
    with pytest.raises(InputError, match=named):
        evaluate(**{**given, **change}, out=tmp_path / "e.json")
    assert list(tmp_path.iterdir()) == [other]
