"""`ghn.predict` against the published system: parameters and logits, number by number, and converted checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ghn import GHN, GHNConfig, load_checkpoint, predict, sample_architectures
from ghn.architecture import predefined_architectures
from ghn.checkpoint import convert_checkpoint
from ghn.functional import run_network
from tests import oracle
from tests.parity.conftest import Ledger
from tests.parity.reference import built, find_network

CHECKPOINTS = ("ghn2_cifar10", "ghn1_cifar10", "mlp_cifar10")


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_parameters_and_logits(checkpoint: str, reference: Path, ledger: Ledger) -> None:
    expected = json.loads((reference / "expected.json").read_text())[checkpoint]
    images = torch.from_numpy(np.load(reference / "images_32.npy"))
    hypernet = load_checkpoint(reference / f"{checkpoint}.pt")
    tensors, worst, worst_logit = 0, 0.0, 0.0
    networks = [(split, index, row) for split, rows in expected.items() for index, row in rows.items()]
    for split, index, row in networks:
        architecture = built(find_network(reference, split, int(index)))
        graph = architecture.graph
        edges = graph.virtual_edges()[0] if hypernet.config.ve else graph.edges
        assert (len(graph), len(edges)) == (row["n_nodes"], row["n_edges"]), architecture.label
        with torch.no_grad():
            parameters = predict(hypernet, graph)
            network = architecture.network().eval()
            logits = run_network(network, parameters, images)
        assert [name for name, _ in network.named_parameters()] == list(row["params"]), architecture.label
        for name, want in row["params"].items():
            tensor = parameters[name].double()
            assert list(tensor.shape) == want["shape"], (architecture.label, name)
            flat = tensor.flatten()
            found = [tensor.mean().item(), tensor.std(unbiased=False).item(), *flat[:4].tolist(), *flat[-4:].tolist()]
            published = [want["mean"], want["std"], *want["head"], *want["tail"]]
            np.testing.assert_allclose(found, published, rtol=1e-4, atol=1e-5, err_msg=f"{architecture.label} {name}")
            worst = max(worst, float(np.abs(np.subtract(found, published)).max()))
            tensors += 1
        published_logits = torch.tensor(row["logits"])
        difference = float((logits - published_logits).abs().max() / published_logits.abs().max())
        # The promise is 1%; correct networks agree a hundred times better, and a wrong stride hid below 0.1%.
        assert difference <= 1e-4, architecture.label
        worst_logit = max(worst_logit, difference)
    ledger.add(
        f"{checkpoint}: parameter tensors", f"{tensors} of {len(networks)} networks", f"{worst:.1e}", "1e-5 + 1e-4 x"
    )
    ledger.add(f"{checkpoint}: logits / largest", f"{len(networks)} networks", f"{worst_logit:.1e}", "1e-2")
    ledger.add(f"{checkpoint}: nodes and edges", f"{len(networks)} networks", "0", "0")


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_converted_checkpoints_predict_the_same(checkpoint: str, reference: Path, tmp_path: Path) -> None:
    official = load_checkpoint(reference / f"{checkpoint}.pt")
    convert_checkpoint(reference / f"{checkpoint}.pt", tmp_path / "model")
    converted = load_checkpoint(tmp_path / "model")
    assert converted.config == official.config
    graph = find_network(reference, "val", 0).graph
    with torch.no_grad():
        one, other = predict(official, graph), predict(converted, graph)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_imagenet_shapes(ledger: Ledger) -> None:
    """224-pixel networks with 1000 classes, from a hypernetwork with ImageNet's largest shape, against the equations."""
    torch.manual_seed(0)
    hypernet = GHN(GHNConfig(num_classes=1000, max_shape=(64, 64, 16, 16))).eval()
    sampled = [a for a in sample_architectures("train", 240, 3, 1000, 224) if len(a.graph) < 90]
    vit = next(a for a in sampled if a.spec.is_vit)
    flat = next(a for a in sampled if not a.spec.glob_avg)
    chosen = {a.index: a for a in (vit, flat, *sampled[:2])}.values()
    worst = 0.0
    for architecture in chosen:
        with torch.no_grad():
            fast, slow = predict(hypernet, architecture.graph), oracle.predict(hypernet, [architecture.graph])[0]
            logits = run_network(architecture.network().eval(), fast, torch.randn(2, 3, 224, 224))
        assert logits.shape == (2, 1000) and torch.isfinite(logits).all(), architecture.label
        assert list(fast) == list(slow)
        for name, tensor in slow.items():
            torch.testing.assert_close(fast[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{architecture.label} {name}")
            worst = max(worst, float((fast[name] - tensor).abs().max()))
    for architecture in predefined_architectures(1000, 224):
        with torch.no_grad():
            logits = run_network(
                architecture.network().eval(), predict(hypernet, architecture.graph), torch.randn(2, 3, 224, 224)
            )
        assert logits.shape == (2, 1000) and torch.isfinite(logits).all(), architecture.label
    ledger.add("ImageNet shapes: tensors, to the equations", f"{len(chosen)} networks", f"{worst:.1e}", "1e-5 + 1e-4 x")
