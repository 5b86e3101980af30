"""`pipelines.named_networks` and `ghn.draw`: networks named at the command line, and their drawings."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ghn import GHN, GHNConfig, sample_architectures, save_checkpoint
from ghn.draw import draw_graph
from ghn.errors import InputError
from pipelines.named_networks import load_model
from tests.command_line import ghn, refused

MODEL = """
import helper
from torch import nn

def net(num_classes):
    pooled = nn.Sequential(nn.Conv2d(3, helper.WIDTH, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return pooled.append(nn.Linear(helper.WIDTH, num_classes))

def wrong():
    return 3

def fails():
    raise RuntimeError("no weights today")

def spare():
    module = net(10)
    module.register_parameter("spare", nn.Parameter(helper.ZEROS))
    return module
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("import torch\nWIDTH, ZEROS = 8, torch.zeros(2)")
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path / "model.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3))), tmp_path_factory.mktemp("model") / "model")


def test_a_models_parameters_are_predicted_and_drawn(checkpoint: Path, tmp_path: Path) -> None:
    out, drawing = tmp_path / "p.safetensors", tmp_path / "g.svg"
    options = ("--small-input", "--out", str(out), "--draw", str(drawing))
    done = ghn("predict", "--checkpoint", str(checkpoint), "--model", "torchvision:resnet18", *options)
    assert done.returncode == 0, done.stderr
    assert "62 of 62 parameter tensors predicted" in done.stdout
    assert load_file(out)["conv1.weight"].shape == (64, 3, 3, 3)
    assert "torchvision:resnet18" in drawing.read_text()


def test_models_from_files(file: Path) -> None:
    assert load_model(f"{file}:net", num_classes=7)[-1].out_features == 7
    assert load_model("timm:resnet18", num_classes=7).fc.out_features == 7
    assert load_model("torchvision:regnet_x_400mf", num_classes=7).fc.out_features == 7


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("resnet50", "write torchvision:NAME"),
        ("torchvision:resnet5O", "did you mean resnet50"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classification model"),
        ("timm:resnet-18", "did you mean"),
        ("nowhere.py:net", "no model file nowhere.py"),
        ("{}:nothing", "model.py has no function 'nothing'"),
        ("{}:wrong", "wrong returns int"),
        ("{}:fails", "fails fails: RuntimeError: no weights today"),
        ("{}:__import__('os').abort()", "has no function"),
    ],
)
def test_bad_names_are_errors(file: Path, name: str, named: str) -> None:
    with pytest.raises(InputError, match=named.replace("(", r"\(")):
        load_model(name.format(file), num_classes=10)


def test_files_that_do_not_import_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import nothing_like_this")
    with pytest.raises(InputError, match=r"model\.py does not import: ModuleNotFoundError"):
        load_model(f"{tmp_path / 'model.py'}:net", num_classes=10)


def test_uncovered_parameters_are_refused_at_the_command_line(checkpoint: Path, file: Path, tmp_path: Path) -> None:
    command = ("predict", "--checkpoint", str(checkpoint), "--model", f"{file}:spare", "--out", str(tmp_path / "p"))
    refused(ghn(*command), "spare", "allow_default")
    done = ghn(*command, "--allow-default", "spa*")
    assert done.returncode == 0 and "kept: spare (not between input and output)" in done.stdout
    refused(ghn(*command[:3], "--out", str(tmp_path / "p")), "--spec", "--model")


def test_drawings_show_every_node_and_edge() -> None:
    graph = sample_architectures("deep", 1, 0)[0].graph
    picture = ET.fromstring(draw_graph(graph, "a < b"))
    tag = "{http://www.w3.org/2000/svg}"
    used = {node.primitive for node in graph.nodes}
    assert len(picture.findall(f"{tag}circle")) == len(graph) + len(used)
    assert len(picture.findall(f"{tag}path")) == len(graph.edges)
    places = [(c.get("cx"), c.get("cy")) for c in picture.findall(f"{tag}circle")]
    assert len(set(places)) == len(places)
    width, height = float(picture.get("width")), float(picture.get("height"))
    assert all(0 < float(x) < width and 0 < float(y) < height for x, y in places)
