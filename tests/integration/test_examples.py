"""The example that needs a model server, with one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pipelines.register import register

from ghn import sample_architectures
from tests.examples import run_example
from tests.serving import ghn_serve, serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_a_server_is_asked_with_the_standard_library(undisturbed: Path, tmp_path: Path) -> None:
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    places = {"tracking_uri": tracking, "experiment": "x", "artifacts": str(tmp_path / "artifacts")}
    register(undisturbed, name="ghn2-digits", **places)
    architecture = sample_architectures("dense", 1, 9, image_size=16, channels=(16,))[0]
    (tmp_path / "architecture.json").write_text(json.dumps(architecture.spec.to_json()))
    arguments = ("--specification", "architecture.json")
    with serving(ghn_serve("models:/ghn2-digits@candidate"), tmp_path, MLFLOW_TRACKING_URI=tracking) as server:
        done = run_example("call_the_server.py", "--server", server.url, *arguments, cwd=tmp_path, python=("-I", "-S"))
        assert done.returncode == 0, done.stderr
        titles = re.findall(r"^(.+): (\d+) tensors, [\d.]+ MB, SHA-256 is right", done.stdout, re.MULTILINE)
        assert titles == [
            ("an architecture", str(len(architecture.graph.parameters))),
            ("resnet18", "62"),
            ("resnet18, only fc.*", "2"),
        ]
        assert re.search(r"^  conv1.weight +64x3x3x3 +first value [+-]\d\.\d{4}$", done.stdout, re.MULTILINE)
        assert re.search(r"^  fc.weight +10x512 ", done.stdout, re.MULTILINE)

        refused = run_example("call_the_server.py", "--server", server.url, "--model", "no_such", cwd=tmp_path)
        assert refused.returncode == 1
        assert "the server refused with 400" in refused.stderr and "Traceback" not in refused.stderr
