"""The release: it builds, its page is well formed, and with the base dependencies alone it predicts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.integration

PREDICT = """
import json, sys, ghn, torch
architecture = ghn.sample_architectures("val", 1, seed=0)[0]
hypernet = ghn.GHN(ghn.GHNConfig(hid=8, max_shape=(8, 8, 7, 7)))
parameters = ghn.predict(hypernet, architecture.graph)
logits = architecture.run(parameters, torch.zeros(2, 3, 32, 32), training=False)
assert logits.shape == (2, 10), logits.shape
ghn.save_checkpoint(hypernet, "model")
json.dump(architecture.spec.to_json(), open("spec.json", "w"))
absent = [name for name in ("torchvision", "mlflow", "deepspeed", "boto3", "airflow") if name in sys.modules]
assert not absent, absent
"""


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_builds_and_predicts_with_the_base_dependencies_alone(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), ".", cwd=REPOSITORY)
    built = sorted(str(file) for file in dist.iterdir())
    assert [Path(name).suffix for name in built] == [".whl", ".gz"]
    run(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=tmp_path)

    run(sys.executable, "-m", "venv", "fresh", cwd=tmp_path)
    torch = REPOSITORY / "infra" / "lock" / "torch.txt"
    run("fresh/bin/pip", "install", "--quiet", "-c", str(torch), built[0], cwd=tmp_path)
    run("fresh/bin/python", "-c", PREDICT, cwd=tmp_path)
    said = run(
        *("fresh/bin/ghn", "predict", "--checkpoint", "model", "--spec", "spec.json", "--out", "out.safetensors"),
        cwd=tmp_path,
    )
    assert "parameter tensors predicted" in said and (tmp_path / "out.safetensors").is_file()
    refused = subprocess.run(
        ["fresh/bin/ghn", "shard", "ls", "s3://bucket/prefix"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 3 and "pip install 'ghn[train]'" in refused.stderr, refused.stderr
