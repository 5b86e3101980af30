"""Every example runs and prints what it says, on small inputs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ghn import GHN, GHNConfig, load_checkpoint, save_checkpoint
from tests.examples import EXAMPLES, run_example


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_checkpoint(GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3))), tmp_path_factory.mktemp("model"))


def test_parameters_are_predicted_and_finetuned(checkpoint: Path, tmp_path: Path) -> None:
    small = ("--model", "shufflenet_v2_x0_5", "--images", 64, "--batch", 8, "--steps", 2, 0)
    done = run_example("predict_and_finetune.py", "--checkpoint", checkpoint, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " parameter tensors predicted" in done.stdout
    rows = re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+)$", done.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["0", "2"]
    assert all(0 <= float(value) <= 100 for row in rows for value in row[1:])


def test_a_search_space_is_learned_and_ranked(checkpoint: Path, tmp_path: Path) -> None:
    small = ("--steps", 24, "--networks", 3, "--checkpoint", checkpoint)
    done = run_example("own_search_space.py", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    start, end = map(float, re.search(r"meta-loss: ([\d.]+) at the start, ([\d.]+) at the end", done.stdout).groups())
    assert end < start
    assert re.findall(r"^ *(\w+): [\d.]+% on average over 3 unseen", done.stdout, re.MULTILINE) == [
        "random",
        "new",
        "given",
    ]
    ranked = [float(score) for score in re.findall(r"([\d.]+)%  depth", done.stdout)]
    assert len(ranked) == 3 and ranked == sorted(ranked, reverse=True)


def test_own_images_become_a_hypernetwork_that_is_evaluated(tmp_path: Path) -> None:
    """One run for two examples: the second one evaluates what the first one made."""
    small = ("--steps", 2, "--architectures", 4, "--processes", 1, "--out", "run")
    done = run_example("own_images.py", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 classes: circle, square, triangle" in done.stdout
    assert re.search(r"a network of \d+ nodes, predicted: \d+% of 36 test images are right", done.stdout)
    assert load_checkpoint(tmp_path / "run/train/model").config.num_classes == 3

    places = ("--checkpoint", "run/train/model", "--images", "run/images", "--deepnets", "run/deepnets", "--s3", "")
    small = ("--split", "train", "--networks", 2, "--image-limit", 16, "--out", "evaluation.json")
    done = run_example("evaluate_checkpoint.py", *places, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "top1 in percent on 16 test images (chance 33.3333)" in done.stdout
    assert re.search(r"^train +2 +0 +[\d.]+ ± [\d.]+ +[\d.]+ +[\d.]+$", done.stdout, re.MULTILINE)
    assert re.search(r"the best is train\[\d\]: \d+ nodes, [\d,]+ parameters", done.stdout)
    assert (tmp_path / "evaluation.json").is_file() and (tmp_path / "evaluation.jsonl").is_file()


def test_without_a_checkpoint_the_way_to_one_is_said(tmp_path: Path) -> None:
    done = run_example("evaluate_checkpoint.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "run `make demo` first" in done.stderr and "Traceback" not in done.stderr


def test_without_a_server_the_way_to_one_is_said(tmp_path: Path) -> None:
    done = run_example("call_the_server.py", "--server", "http://127.0.0.1:9", cwd=tmp_path, python=("-I", "-S"))
    assert done.returncode == 1
    assert "no model server at http://127.0.0.1:9" in done.stderr and "Traceback" not in done.stderr
    assert "ghn serve --model models:/ghn2-digits@candidate" in done.stderr


def test_each_is_in_the_table_and_says_how_to_run_it() -> None:
    table = (EXAMPLES / "README.md").read_text()
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 5
    for script in scripts:
        assert f"[`{script.name}`]({script.name})" in table
        head = " ".join(script.read_text().split('"""')[1].split())
        assert f"python examples/{script.name}" in head and " prints " in head and "CPU cores" in head
