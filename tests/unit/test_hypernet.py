"""`ghn.hypernet` against a plain transcription of the equations, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn import GHN, Architecture, GHNConfig, predict, sample_architectures
from ghn.errors import InputError
from ghn.hypernet.decoders import tile
from ghn.hypernet.embedding import ShapeTable
from tests import oracle
from tests.strategies import architectures

CONFIGS = {
    "ghn2": GHNConfig(hid=8, max_shape=(12, 12, 7, 7)),
    "ghn1": GHNConfig(hid=8, max_shape=(8, 16, 5, 5), ve=False, weight_norm=False, layernorm=False),
    "mlp": GHNConfig(hid=8, max_shape=(8, 8, 3, 3), hypernet="mlp"),
}
small = st.sampled_from(
    [
        a
        for a in sample_architectures("train", 250, 7, image_size=16, channels=(8, 16), fc_dims=(32,))
        if len(a.graph) <= 50
    ]
)  # the oracle takes seconds for larger graphs


@pytest.mark.parametrize("name", CONFIGS)
@given(architecture=small, seed=st.integers(0, 100))
@settings(max_examples=3, deadline=None)
def test_values_and_gradients_equal_the_oracle(name: str, architecture: Architecture, seed: int) -> None:
    torch.manual_seed(seed)
    hypernet = GHN(CONFIGS[name]).double()
    fast, slow = predict(hypernet, architecture.graph), oracle.predict(hypernet, [architecture.graph])[0]
    assert list(fast) == list(slow)
    weights = list(hypernet.parameters())
    for tensors in (fast, slow):
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, slow[key], rtol=1e-9, atol=1e-11)
    factors = {key: torch.randn_like(tensor) for key, tensor in slow.items()}
    gradients = [
        torch.autograd.grad(sum((factors[key] * tensors[key]).sum() for key in tensors), weights, allow_unused=True)
        for tensors in (fast, slow)
    ]
    for (parameter, _), quick, plain in zip(hypernet.named_parameters(), *gradients, strict=True):
        plain = torch.zeros(()) if plain is None else plain
        quick = torch.zeros_like(plain) if quick is None else quick
        torch.testing.assert_close(quick, plain.expand_as(quick), rtol=1e-7, atol=1e-9, msg=parameter)


@given(batch=st.lists(architectures(), min_size=1, max_size=3), virtual_edges=st.booleans())
@settings(max_examples=8, deadline=None)
def test_both_sweeps_agree(batch: list[Architecture], virtual_edges: bool) -> None:
    torch.manual_seed(0)
    hypernet = GHN(GHNConfig(hid=8, ve=virtual_edges)).double()
    graphs = hypernet.collate([architecture.graph for architecture in batch])
    states = torch.randn(len(graphs.primitives), 8, dtype=torch.float64, requires_grad=True)
    results = []
    for reverse in (False, True):
        by_node = hypernet.gnn.sweep_nodes(states, graphs, reverse=reverse)
        by_level = hypernet.gnn.sweep_levels(states, graphs.levels(reverse=reverse))
        torch.testing.assert_close(by_node, by_level)
        factor = torch.randn_like(by_node)
        inputs = [states, *hypernet.gnn.parameters()]
        results = [torch.autograd.grad((factor * out).sum(), inputs) for out in (by_node, by_level)]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


@given(batch=st.lists(architectures(), min_size=2, max_size=3))
@settings(max_examples=5, deadline=None)
def test_a_prediction_does_not_depend_on_its_meta_batch(batch: list[Architecture]) -> None:
    torch.manual_seed(0)
    hypernet = GHN(GHNConfig(hid=8, max_shape=(8, 8, 7, 7))).double()
    together = hypernet([architecture.graph for architecture in batch])
    for architecture, prediction in zip(batch, together, strict=True):
        alone = predict(hypernet, architecture.graph)
        assert all(torch.allclose(alone[name], tensor) for name, tensor in prediction.items())


def test_autocast_does_not_change_a_prediction(small_hypernet: GHN) -> None:
    graph = sample_architectures("train", 1, 0)[0].graph
    plain = predict(small_hypernet, graph)
    with torch.autocast("cpu", torch.bfloat16):
        low = predict(small_hypernet, graph)
    assert all(torch.equal(low[name], tensor) for name, tensor in plain.items())


def test_default_configuration_has_the_published_size() -> None:
    assert 1.55e6 < sum(p.numel() for p in GHN().parameters()) < 1.65e6
    imagenet = GHN(GHNConfig(num_classes=1000, max_shape=(64, 64, 16, 16)))
    assert 2.2e6 < sum(p.numel() for p in imagenet.parameters()) < 2.4e6


def test_another_number_of_classes_is_an_error_that_names_both() -> None:
    graph = sample_architectures("test", 1, 0, num_classes=7)[0].graph
    with pytest.raises(InputError, match=r"7 classes .* 10"):
        predict(GHN(), graph)


def test_shape_table_follows_the_published_rules() -> None:
    table = ShapeTable(10, 11)
    assert (len(table.channels), len(table.spatial)) == (391, 8)
    assert [table.channels[table.channel_row(n)] for n in (1, 2, 3, 4, 7, 9, 12, 60, 72, 10_000)] == [
        *(1, 1, 3, 8, 8, 8, 10, 56, 64, 8192)
    ]
    assert [table.spatial[table.spatial_row(k)] for k in (1, 2, 3, 4, 12, 13, 15, 100)] == [1, 3, 3, 3, 11, 14, 14, 16]
    assert table.rows(None) == (391, 391, 8, 8)
    assert table.rows((1, 49, 64)) == table.rows((1, 64, 7, 7))
    assert table.rows((1, 1, 64)) == table.rows((1, 1, 64, 1))
    large, five = ShapeTable(1000, 16), ShapeTable(5, 11)
    assert (len(large.channels), len(large.spatial)) == (391, 10)
    assert [large.channels[large.channel_row(n)] for n in (996, 1000, 1004)] == [992, 1000, 1000]
    assert [large.spatial[large.spatial_row(k)] for k in (12, 14, 15, 16, 17)] == [11, 14, 15, 16, 16]
    assert five.channels[five.channel_row(5)] == 8  # also where 5 is the number of classes


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=3))
def test_tiling_repeats_along_every_dimension(sizes: list[tuple[int, int]]) -> None:
    have, want = tuple(a for a, _ in sizes), tuple(b for _, b in sizes)
    source = torch.arange(torch.tensor(have).prod().item()).view(have)
    expected = source
    for dim, size in enumerate(want):
        expected = expected.index_select(dim, torch.arange(size) % have[dim])
    assert torch.equal(tile(source, want), expected)


@pytest.mark.parametrize(
    "bad", [{"hid": 6}, {"num_classes": 1}, {"max_shape": (4, 4, 3, 5)}, {"hypernet": "transformer"}]
)
def test_impossible_configurations_are_errors(bad: dict) -> None:
    with pytest.raises(InputError):
        GHNConfig(**bad)
