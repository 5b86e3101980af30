"""The published system's graphs, parameters and logits, number by number (needs the reference data)."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ghn import Architecture, ArchitectureSpec, load_checkpoint, predict, trace
from ghn.architecture import predefined_architectures
from ghn.build import build_graph
from ghn.layout import layout
from ghn.prediction import run_network
from ghn.space import count_parameters, sample_spec

CHECKPOINTS = ("ghn2_cifar10", "ghn1_cifar10", "mlp_cifar10")


@pytest.fixture(scope="module")
def nets(reference: Path) -> dict[str, list[dict]]:
    splits = {}
    for name in ("eval", "train"):
        content = json.loads((reference / f"deepnets1m_{name}_meta.json").read_text())
        splits.update({split: part["nets"] for split, part in content.items()})
    return splits


def _architecture(nets: dict[str, list[dict]], split: str, index: int) -> Architecture:
    if split == "predefined":
        return predefined_architectures()[index]
    spec = ArchitectureSpec.from_json({"C": 32, **nets[split][index]})
    if split == "wide":
        spec = dataclasses.replace(spec, C=4 * spec.C)
    return Architecture(spec=spec, split=split, index=index)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_predicted_parameters_and_logits(checkpoint: str, reference: Path, nets: dict[str, list[dict]]) -> None:
    expected = json.loads((reference / "expected.json").read_text())[checkpoint]
    images = torch.from_numpy(np.load(reference / "images_32.npy"))
    hypernet = load_checkpoint(reference / f"{checkpoint}.pt")
    for split, rows in expected.items():
        for index, row in rows.items():
            architecture = _architecture(nets, split, int(index))
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
                found = [
                    tensor.mean().item(),
                    tensor.std(unbiased=False).item(),
                    *flat[:4].tolist(),
                    *flat[-4:].tolist(),
                ]
                published = [want["mean"], want["std"], *want["head"], *want["tail"]]
                np.testing.assert_allclose(
                    found, published, rtol=1e-4, atol=1e-5, err_msg=f"{architecture.label} {name}"
                )
            published_logits = torch.tensor(row["logits"])
            assert (logits - published_logits).abs().max() <= 0.01 * published_logits.abs().max(), architecture.label


def test_graphs_equal_the_published_ones(reference: Path, nets: dict[str, list[dict]]) -> None:
    """Same nodes and, node by node, the same distances to and from all others."""
    h5py = pytest.importorskip("h5py")
    compared = 0
    for name in ("eval", "train"):
        meta = json.loads((reference / f"deepnets1m_{name}_meta.json").read_text())
        with h5py.File(reference / f"deepnets1m_{name}.hdf5") as file:
            for split, part in meta.items():
                op_names = part["meta"]["unique_op_names"]
                for index, net in enumerate(part["nets"]):
                    graph = build_graph(ArchitectureSpec.from_json({"C": 32, **net}))
                    adjacency, rows = file[split][str(index)]["adj"][()], file[split][str(index)]["nodes"][()]
                    distances = np.where(graph.distances <= 250, graph.distances, 0)
                    published = [
                        (_full_name(op_names[str(o)], cell), adjacency, k) for k, (_, cell, o) in enumerate(rows)
                    ]
                    built = [
                        (node.parameters[0].name if node.parameters else node.primitive, distances, k)
                        for k, node in enumerate(graph.nodes)
                    ]
                    assert _signatures(published) == _signatures(built), f"{split}[{index}]"
                    compared += 1
    assert compared == sum(map(len, nets.values()))


def _full_name(name: str, cell: int) -> str:
    whole = name.startswith(("stem", "pos_enc", "classifier")) or "." not in name
    return name if whole else f"cells.{cell}.{name}"


def _signatures(nodes: list[tuple[str, np.ndarray, int]]) -> Counter:
    return Counter((name, np.sort(table[:, k]).tobytes(), np.sort(table[k]).tobytes()) for name, table, k in nodes)


def test_traced_graphs_equal_built_ones(nets: dict[str, list[dict]]) -> None:
    for split, rows in nets.items():
        for index in range(0, len(rows), 10):
            architecture = _architecture(nets, split, index)
            traced = trace(architecture.network(device="meta"), torch.empty(2, 3, 32, 32))
            assert not traced.kept
            assert _described(traced) == _described(architecture.graph), architecture.label


def _described(graph) -> Counter:
    return Counter(
        (node, np.sort(graph.distances[:, k]).tobytes(), np.sort(graph.distances[k]).tobytes())
        for k, node in enumerate(graph.nodes)
    )


def test_parameter_counts_equal_the_published_ones(nets: dict[str, list[dict]]) -> None:
    for split, rows in nets.items():
        for index, net in enumerate(rows):
            spec = ArchitectureSpec.from_json({**net, "C": 32, "fc_dim": 256})
            for size, key in ((32, "cifar10"), (224, "imagenet")):
                count = count_parameters(layout(dataclasses.replace(spec, image_size=size), prune=False))
                assert count == net["num_params"][key], (split, index, key)


@pytest.mark.parametrize(
    ("sampled", "published"), [("test", ("train", "val", "test")), *((s, (s,)) for s in ("deep", "dense", "bnfree"))]
)
def test_sampled_distributions(sampled: str, published: tuple[str, ...], nets: dict[str, list[dict]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    specs = [sample_spec(sampled, 1, index) for index in range(400)]
    at_cap = [dataclasses.replace(spec, C=32, fc_dim=256) for spec in specs]
    ours = {
        "nodes": [len(build_graph(spec)) for spec in specs],
        "cells": [spec.n_cells for spec in specs],
        "parameters": [count_parameters(layout(spec, prune=False)) for spec in at_cap],
    }
    rows = [net for split in published for net in nets[split]]
    theirs = {
        "nodes": [net["num_nodes"] for net in rows],
        "cells": [net["n_cells"] for net in rows],
        "parameters": [net["num_params"]["cifar10"] for net in rows],
    }
    for name in ours:
        assert stats.ks_2samp(ours[name], theirs[name]).pvalue > 0.01, name
