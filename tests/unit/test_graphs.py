"""`ghn.graph` and `ghn.build`: built, traced and real graphs agree for any architecture."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from ghn import Architecture, ArchitectureGraph, trace
from ghn.architecture import example_input, predefined_architectures
from ghn.errors import InputError
from ghn.genotype import ArchitectureSpec, Genotype
from ghn.layout import layout
from ghn.networks import ChannelSqueezeExcitation
from ghn.parameter_count import count_parameters
from ghn.paths import connected_pairs, shortest_paths
from tests.oracle import _shortest_paths
from tests.strategies import architectures


def described(graph: ArchitectureGraph) -> Counter:
    """Nodes with their distances to and from all others: equal up to the order of incomparable nodes."""
    table = graph.distances
    return Counter(
        (node, np.sort(table[:, k]).tobytes(), np.sort(table[k]).tobytes()) for k, node in enumerate(graph.nodes)
    )


@given(architectures())
@settings(max_examples=40, deadline=None)
def test_graph_network_and_count_agree(architecture: Architecture) -> None:
    network, graph = architecture.network().eval(), architecture.graph
    graph.validate()
    assert {p.name: p.shape for p in graph.parameters} == {n: tuple(p.shape) for n, p in network.named_parameters()}
    assert count_parameters(layout(architecture.spec)) == sum(p.numel() for p in network.parameters())
    with torch.no_grad():
        logits = network(torch.randn(2, 3, 16, 16))
    assert logits.shape == (2, 10) and torch.isfinite(logits).all()


@given(architectures())
@settings(max_examples=15, deadline=None)
def test_traced_graph_equals_built_graph(architecture: Architecture) -> None:
    traced = trace(architecture.network(device="meta"), example_input(architecture))
    assert not traced.kept
    assert described(traced) == described(architecture.graph)


@given(architectures())
@settings(max_examples=10, deadline=None)
def test_virtual_edges_are_shortest_paths(architecture: Architecture) -> None:
    graph = architecture.graph
    assert graph.distances.tolist() == _shortest_paths(graph)
    u, v, s = connected_pairs(graph.distances, 7)
    assert len(u) == ((graph.distances >= 1) & (graph.distances <= 7)).sum() and s.max() <= 7
    assert (u < v).all()


@given(architectures())
@settings(max_examples=10, deadline=None)
def test_graphs_survive_json(architecture: Architecture) -> None:
    again = ArchitectureGraph.from_json(architecture.graph.to_json())
    assert again == architecture.graph and again.fingerprint() == architecture.graph.fingerprint()


def test_long_chains_have_no_distance_beyond_a_byte() -> None:
    table = shortest_paths(400, [(i, i + 1) for i in range(399)])
    assert table[0, 255] == 255 and table[0, 256] == 0 and table[100, 399] == 0


def _spec(**change: object) -> ArchitectureSpec:
    values: dict = {
        "genotype": Genotype(
            normal=(("conv_3x3", 0), ("none", 1), ("conv_1x1", 2), ("none", 0)),
            normal_concat=(3,),
            reduce=(("max_pool_3x3", 0), ("skip_connect", 1), ("none", 0), ("none", 1)),
            reduce_concat=(2, 3),
        ),
        "n_cells": 3,
        "C": 8,
        "C_mult": 1,
        "norm": "bnorm",
        "preproc": True,
        "ks": 3,
        "stem_type": 0,
        "stem_pool": False,
        "glob_avg": True,
        "fc_layers": 1,
        "fc_dim": 32,
        "image_size": 16,
        **change,
    }
    return ArchitectureSpec(**values)


def test_dead_operations_get_no_nodes_and_no_parameters() -> None:
    architecture = Architecture(spec=_spec())
    names = [p.name for p in architecture.graph.parameters]
    # Cell 2 is a reduction cell: its missing state 3 is zeros in the concatenation.
    assert architecture.network()(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    assert not any("_ops.3" in name for name in names)
    assert not any(name.startswith("cells.0.preprocess1") for name in names)


def test_a_strided_gate_sees_the_whole_map() -> None:
    """Squeeze-and-excitation averages over its input, not over the pixels that its stride keeps."""
    torch.manual_seed(0)
    gate = ChannelSqueezeExcitation(8, stride=2)
    x = torch.rand(2, 8, 6, 6)
    changed = x.clone()
    changed[:, :, 1::2, 1::2] += 1
    scale = torch.nn.functional.hardswish(gate.fc2(torch.relu(gate.fc1(changed.mean(dim=(2, 3))))))
    torch.testing.assert_close(gate(changed), (changed * scale[:, :, None, None])[:, :, ::2, ::2])
    assert not torch.equal(gate(changed), gate(x))


def test_a_network_without_connection_is_invalid() -> None:
    nothing = Genotype(
        normal=(("none", 0), ("none", 1)), normal_concat=(2,), reduce=(("none", 0), ("none", 1)), reduce_concat=(2,)
    )
    with pytest.raises(InputError, match="no operation connects"):
        layout(_spec(genotype=nothing))


@pytest.mark.parametrize("size", [15, 17, 28])
def test_odd_image_sizes_work(size: int) -> None:
    spec = _spec(image_size=size, stem_type=1, glob_avg=False)
    assert Architecture(spec=spec).network()(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_resnet50_is_traced_with_all_its_parameters() -> None:
    resnet = predefined_architectures(image_size=32)[0]
    graph = resnet.graph
    assert not graph.kept
    assert len(graph) == 126 and graph.nodes[-1].primitive == "bias"
    assert [p.role for p in graph.parameters[-2:]] == ["class_weight", "class_bias"]
    assert sum(node.primitive == "sum" for node in graph.nodes) == 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["edges"].append([5, 2]), r"edge \[5, 2\]"),
        (lambda d: d["edges"].clear(), "do not reach the output"),
        (lambda d: d["nodes"][3].update(primitive="teleport"), "teleport"),
        (lambda d: d["nodes"][1]["parameters"][0].__setitem__(1, [0, 1]), "shape"),
        (lambda d: d.pop("nodes"), "nodes"),
    ],
)
def test_malformed_graphs_are_named(change, named: str) -> None:
    data = Architecture(spec=_spec()).graph.to_json()
    change(data)
    with pytest.raises(InputError, match=named):
        ArchitectureGraph.from_json(data)
