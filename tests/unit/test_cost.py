"""`ghn.cost` and `pipelines.training.dealing`: costs told from specifications; networks dealt over ranks by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ghn import sample_architectures
from ghn.cost import KINDS, CostModel, amounts_of, work
from ghn.errors import InputError
from ghn.genotype import ArchitectureSpec
from pipelines.training.calibrate import Measured, fit, relative_errors
from pipelines.training.dealing import deal, memory_limit


@pytest.mark.parametrize(("split", "image_size"), [("train", 32), ("wide", 32), ("bnfree", 32), ("val", 224)])
def test_multiplications_are_those_that_torch_counts(split: str, image_size: int) -> None:
    for architecture in sample_architectures(split, 12, 3, image_size=image_size):
        amounts = dict(zip(KINDS, work(architecture.spec), strict=True))
        images = torch.empty(1, 3, image_size, image_size, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            architecture.network(device="meta").eval()(images)
        told = sum(amounts[k] for k in ("conv_1x1", "conv_kxk", "depthwise", "dilated", "linear", "attention", "head"))
        gates = architecture.spec.genotype.ops & {"cse"}
        assert told == pytest.approx(counter.get_total_flops() / 2, rel=0.02 if gates else 1e-9), architecture.label


def test_the_default_model_tells_cheap_networks_from_expensive_ones() -> None:
    model = CostModel.read()
    specs = [architecture.spec for architecture in sample_architectures("train", 60, 0)]
    costs = [model.estimate(spec, 64) for spec in specs]
    assert max(c.seconds for c in costs) > 20 * min(c.seconds for c in costs)
    assert all(c.seconds > 0 and c.saved_bytes > 0 for c in costs)
    twice = [model.estimate(spec, 128) for spec in specs]
    assert all(a.seconds < b.seconds <= 2 * a.seconds for a, b in zip(costs, twice, strict=True))


def test_a_fit_finds_the_coefficients_behind_measurements(tmp_path: Path) -> None:
    truth = CostModel.read()
    specs = [a.spec for a in sample_architectures("train", 200, 1) if isinstance(a.spec, ArchitectureSpec)]
    measured = [Measured(spec, *truth.estimate(spec, 8)) for spec in specs]
    model = fit(measured[::2], 8, "made up")
    errors = relative_errors(model, measured[1::2], 8)
    assert errors["seconds_90th_error_percent"] < 1 and errors["bytes_90th_error_percent"] < 1
    (tmp_path / "costs.json").write_text(model.to_json())
    read = CostModel.read(tmp_path / "costs.json")
    assert amounts_of(specs[:5], 8) @ read.seconds == pytest.approx(amounts_of(specs[:5], 8) @ model.seconds, rel=1e-2)


@pytest.mark.parametrize("content", ["", "[]", '{"device": "x", "kinds": {}}', None])
def test_other_files_are_no_cost_models(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "costs.json").write_text(content)
    with pytest.raises(InputError, match="ghn calibrate"):
        CostModel.read(tmp_path / "costs.json")
    rows = {kind: {"seconds": -1, "bytes": 1} for kind in KINDS}
    (tmp_path / "costs.json").write_text(json.dumps({"device": "x", "kinds": rows}))
    with pytest.raises(InputError, match="not negative"):
        CostModel.read(tmp_path / "costs.json")


@given(st.lists(st.floats(0, 100), max_size=60), st.integers(1, 9))
def test_dealing_gives_each_network_once_and_bounds_the_largest_load(costs: list[float], ranks: int) -> None:
    hands = deal(costs, ranks)
    assert sorted(position for hand in hands for position in hand) == list(range(len(costs)))
    assert all(hand == sorted(hand) for hand in hands)
    loads = [sum(costs[i] for i in hand) for hand in hands]
    best = max(sum(costs) / ranks, max(costs, default=0))  # no dealing has a smaller largest load
    assert max(loads) <= (2 - 1 / ranks) * best + 1e-9
    assert hands == deal(costs, ranks)


def test_memory_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    whole = memory_limit(None, torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_limit(None, torch.device("cpu")) == pytest.approx(whole / 4)
    assert memory_limit(2.0, torch.device("cpu")) == 2 * 2**30
    assert memory_limit(None, torch.device("cuda")) == float("inf")
