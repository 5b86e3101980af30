"""`ghn.build`, `ghn.deepnets` and `ghn.trace`: three ways to one graph, of the published networks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ghn import load_checkpoint, trace
from ghn.architecture import example_input
from ghn.layout import layout
from ghn.parameter_count import count_parameters
from tests.parity.conftest import Ledger
from tests.parity.reference import SPLITS, built, read_networks, read_split


@pytest.mark.parametrize("every", [25, pytest.param(1, marks=[pytest.mark.integration, pytest.mark.timeout(1200)])])
def test_one_graph_and_one_prediction(every: int, reference: Path, ledger: Ledger) -> None:
    hypernet = load_checkpoint(reference / "ghn2_cifar10.pt")
    count, nodes, worst = 0, 0, 0.0
    for architecture in read_networks(reference, every):
        traced = trace(architecture.network(device="meta"), example_input(architecture))
        graphs = [built(architecture).graph, architecture.graph, traced]
        assert len({graph.fingerprint() for graph in graphs}) == 1, architecture.label
        with torch.no_grad():
            first, *others = hypernet(graphs)
        for other in others:
            assert first.keys() == other.keys(), architecture.label
            worst = max(worst, *(float((first[name] - other[name]).abs().max()) for name in first))
        assert worst <= 1e-5, architecture.label
        count, nodes = count + 1, nodes + len(traced)
    ledger.add("graphs built, read and traced: nodes, names, edges", f"{nodes} nodes of {count} networks", "0", "0")
    ledger.add("their predictions (ghn2_cifar10)", f"3 x {count} networks", f"{worst:.1e}", "1e-5")


def test_one_graph_for_large_images(reference: Path, ledger: Ledger) -> None:
    count = 0
    for split in SPLITS:
        for architecture in read_split(reference, split, 1000, 224)[::25]:
            traced = trace(architecture.network(device="meta"), example_input(architecture))
            prints = {graph.fingerprint() for graph in (built(architecture).graph, architecture.graph, traced)}
            assert len(prints) == 1, architecture.label
            count += 1
    ledger.add("the same for 224-pixel images, 1000 classes", f"{count} networks", "0", "0")


def test_parameter_counts(reference: Path, ledger: Ledger) -> None:
    """The counts in the files are those of the cap: at C=32, fc_dim=256, 10 classes, dead operations included."""
    count = 0
    for name in set(SPLITS.values()):
        content = json.loads((reference / f"deepnets1m_{name}_meta.json").read_text())
        for split in content:
            for spec, net in zip(read_split(reference, split).specs(), content[split]["nets"], strict=True):
                for size, key in ((32, "cifar10"), (224, "imagenet")):
                    at_cap = dataclasses.replace(spec, C=32, fc_dim=256, image_size=size)
                    assert count_parameters(layout(at_cap, prune=False)) == net["num_params"][key], (split, key)
                count += 1
    ledger.add("parameter counts, 32 and 224 pixels", f"2 x {count} networks", "0", "0")
