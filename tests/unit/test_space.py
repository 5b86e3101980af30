"""`ghn.space`, the sampling rules: every row of the published table, and reproducibility."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn import Architecture, ArchitectureSpec, sample_architectures
from ghn.errors import InputError
from ghn.genotype import OPS, PARAMETER_FREE_OPS
from ghn.layout import layout
from ghn.parameter_count import count_parameters
from ghn.space import RULES, SAMPLED_SPLITS, redraw_widths, sample_spec
from tests.strategies import architectures


@cache
def sample(split: str, count: int = 300) -> list[ArchitectureSpec]:
    return [sample_spec(split, 3, index) for index in range(count)]


def train() -> list[ArchitectureSpec]:
    """A sample large enough for shares; the same for all tests."""
    return sample("train", 1500)


def steps(spec: ArchitectureSpec) -> int:
    return len(spec.genotype.normal) // 2


def share(values: list[bool], expected: float, *, minimum: int = 50) -> None:
    """Check a share of true values within five standard errors."""
    assert len(values) >= minimum
    error = (expected * (1 - expected) / len(values)) ** 0.5
    assert abs(np.mean(values) - expected) <= 5 * error, (np.mean(values), expected)


def uniform(values: list, choices: list) -> None:
    """Check that each choice is drawn equally often, and nothing else."""
    assert set(values) == set(choices)
    for choice in choices:
        share([value == choice for value in values], 1 / len(choices))


# Numbers of cells and steps


@pytest.mark.parametrize(
    ("split", "low", "high"),
    [
        ("train", 4, 18),
        ("val", 4, 18),
        ("test", 4, 18),
        ("wide", 4, 18),
        ("deep", 10, 36),
        ("dense", 4, 18),
        ("bnfree", 4, 18),
    ],
)
def test_cells_are_drawn_evenly_from_the_splits_range(split: str, low: int, high: int) -> None:
    cells = [spec.n_cells for spec in sample(split)]
    assert (min(cells), max(cells)) == (low, high)
    share([n <= (low + high) // 2 for n in cells], ((low + high) // 2 - low + 1) / (high - low + 1))


@pytest.mark.parametrize(
    ("split", "low", "medium", "high", "threshold"),
    [("train", 1, 2, 4, 7), ("bnfree", 1, 2, 4, 7), ("deep", 1, 2, 4, 18), ("dense", 2, 6, 10, 7)],
)
def test_shallow_networks_take_more_steps(split: str, low: int, medium: int, high: int, threshold: int) -> None:
    shallow = {steps(spec) for spec in sample(split) if spec.n_cells <= threshold}
    deep = {steps(spec) for spec in sample(split) if spec.n_cells > max(threshold, 10)}
    assert shallow == set(range(low, high + 1)) and deep == set(range(low, medium + 1))


def test_what_is_deep_begins_at_a_random_number_of_cells() -> None:
    """Thresholds are 7 to 10: of networks with 8 cells a quarter counts as deep, with 9 half, with 10 three quarters.

    Only shallow ones may have 3 or 4 steps, which the rejections make rarer than 1 or 2 by a factor to be measured first.
    """
    specs = sample("train", 4000)

    def many(cells: range) -> float:
        return float(np.mean([steps(spec) > 2 for spec in specs if spec.n_cells in cells]))

    never_deep = many(range(4, 8))
    factor = never_deep / (1 - never_deep)
    for n_cells, shallow in ((8, 0.75), (9, 0.5), (10, 0.25), (11, 0.0)):
        expected = factor * shallow / 2 / (factor * shallow / 2 + 1 - shallow / 2)
        share([steps(spec) > 2 for spec in specs if spec.n_cells == n_cells], expected)


@pytest.mark.parametrize("split", SAMPLED_SPLITS)
def test_parameter_cap_holds_for_both_image_sizes(split: str) -> None:
    cap = 100_000_000 if split in ("deep", "dense") else 10_000_000
    assert RULES[split].max_parameters == cap
    for spec in sample(split):
        for size in (32, 224):
            at_cap = dataclasses.replace(spec, C=32, fc_dim=256, image_size=size)
            assert count_parameters(layout(at_cap, prune=False)) <= cap


def test_the_cap_counts_dead_operations() -> None:
    def counts(spec: ArchitectureSpec) -> tuple[int, int]:
        return count_parameters(layout(spec, prune=False)), count_parameters(layout(spec))

    pairs = [counts(spec) for spec in sample("train")]
    assert all(whole >= alive for whole, alive in pairs) and any(whole > alive for whole, alive in pairs)


# Choices of a network


def test_stem_kernels_are_3_5_or_7() -> None:
    uniform([spec.ks for spec in train()], [3, 5, 7])


def test_channels_are_kept_or_doubled_at_reductions() -> None:
    uniform([spec.C_mult for spec in train()], [1, 2])


def test_both_stems_are_drawn() -> None:
    uniform([spec.stem_type for spec in train()], [0, 1])


def test_half_of_the_plain_stems_have_a_pool() -> None:
    uniform([spec.stem_pool for spec in train() if spec.stem_type == 0], [False, True])
    assert not any(spec.stem_pool for spec in train() if spec.stem_type == 1)


def test_classifiers_have_one_or_two_layers() -> None:
    uniform([spec.fc_layers for spec in train()], [1, 2])


def test_preprocessing_is_forced_where_channels_could_change() -> None:
    assert all(spec.preproc for spec in train() + sample("dense") if steps(spec) > 1 or spec.C_mult > 1)


def test_preprocessing_is_forced_without_attention() -> None:
    assert all(spec.preproc for spec in train() if not spec.is_vit)


def test_a_fifth_of_the_other_vit_networks_is_preprocessed() -> None:
    free = [s.preproc for s in sample("train", 4000) if s.is_vit and steps(s) == 1 and s.C_mult == 1]
    share(free, 0.2)


def test_global_pooling_is_forced_for_vit_and_deep_networks() -> None:
    assert all(spec.glob_avg for spec in train() if spec.is_vit or spec.n_cells > 10)


def test_nine_tenths_of_the_others_pool_globally() -> None:
    share([spec.glob_avg for spec in train() if not spec.is_vit and spec.n_cells <= 7], 0.9)


def test_half_of_the_shallowest_networks_have_no_normalization() -> None:
    uniform([spec.norm for spec in train() if spec.n_cells <= 5 and steps(spec) <= 2], [None, "bnorm"])


def test_all_other_networks_have_normalization() -> None:
    assert all(spec.norm == "bnorm" for spec in train() if spec.n_cells > 5 or steps(spec) > 2)


def test_bnfree_never_has_normalization() -> None:
    assert all(spec.norm is None for spec in sample("bnfree"))


# Genotypes


def test_each_step_has_two_different_inputs_drawn_evenly() -> None:
    pairs = [spec.genotype.normal[2 * k : 2 * k + 2] for spec in sample("dense") for k in range(steps(spec))]
    assert all(a[1] != b[1] for a, b in pairs)
    third = [{a[1], b[1]} for spec in sample("dense") for a, b in [spec.genotype.normal[2:4]]]
    uniform([tuple(sorted(inputs)) for inputs in third], [(0, 1), (0, 2), (1, 2)])


def test_operations_are_drawn_evenly() -> None:
    """But for what the rejections make rarer: cse, and large kernels."""
    ops = [op for spec in train() if steps(spec) > 1 for op, _ in spec.genotype.normal]
    plain = [op for op in ops if op not in ("cse", "conv_5x5", "conv_7x7")]
    for op in set(OPS) - {"cse", "conv_5x5", "conv_7x7"}:
        assert abs(plain.count(op) / len(plain) - 1 / 12) < 0.02, op


def test_half_of_the_reduction_cells_are_parameter_free() -> None:
    free = [all(op in PARAMETER_FREE_OPS for op, _ in spec.genotype.reduce) for spec in train() if steps(spec) > 2]
    assert 0.45 < np.mean(free) < 0.62  # rejections spare these cells


def test_half_of_the_genotypes_drop_states_each_with_half_probability() -> None:
    assert all(spec.genotype.normal_concat == spec.genotype.reduce_concat for spec in train())
    assert all(spec.genotype.normal_concat[-1] == 1 + steps(spec) for spec in train())  # never the final state
    two = [len(spec.genotype.normal_concat) == 2 for spec in train() if steps(spec) == 2]
    share(two, 0.75)


def test_none_needs_more_than_one_step() -> None:
    assert not any("none" in spec.genotype.ops for spec in train() if steps(spec) == 1)
    assert any("none" in spec.genotype.ops for spec in train() if steps(spec) == 2)


def everything() -> list[ArchitectureSpec]:
    return [spec for split in SAMPLED_SPLITS for spec in sample(split)] + train()


def test_networks_without_conv_attention_or_cse_are_rejected() -> None:
    assert all(any("conv" in op or op in ("cse", "msa") for op in spec.genotype.ops) for spec in everything())


def test_cse_without_convolution_is_rejected() -> None:
    assert all(any("conv" in op for op in s.genotype.ops) for s in everything() if "cse" in s.genotype.ops)


def cells_of(spec: ArchitectureSpec) -> list[list[str]]:
    return [[op for op, _ in edges] for edges in (spec.genotype.normal, spec.genotype.reduce)]


def test_two_cse_in_a_cell_are_rejected() -> None:
    assert all(cell.count("cse") <= 1 for spec in everything() for cell in cells_of(spec))


def test_two_large_kernels_in_a_cell_are_rejected() -> None:
    large = [cell.count("conv_5x5") + cell.count("conv_7x7") for spec in everything() for cell in cells_of(spec)]
    assert max(large) == 1


def test_disconnected_graphs_are_rejected() -> None:
    for spec in everything()[::10]:
        Architecture(spec=spec).graph.validate()


# Widths


def widths_class(spec: ArchitectureSpec) -> str:
    """The class of the published rule for initial channels."""
    base = dataclasses.replace(spec, C=32, fc_dim=256, num_classes=10)
    count = count_parameters(layout(base, prune=False))
    if count > 0.8e6 or not spec.glob_avg or {"conv_5x5", "conv_7x7"} & spec.genotype.ops or spec.n_cells > 12:
        return "largest"
    if count > 0.4e6 or spec.n_cells > 10:
        return "large"
    return "small" if count > 0.2e6 or spec.n_cells > 8 else "smallest"


@pytest.mark.parametrize(
    ("kind", "channels"),
    [("largest", [32]), ("large", [32, 48]), ("small", [32, 48, 64]), ("smallest", list(range(32, 129, 16)))],
)
def test_larger_networks_stay_narrower(kind: str, channels: list[int]) -> None:
    uniform([spec.C for spec in sample("train", 4000) if widths_class(spec) == kind], channels)


def test_hidden_widths_go_to_256_and_of_small_narrow_networks_to_512() -> None:
    def wide_head(spec: ArchitectureSpec) -> bool:
        return widths_class(spec) == "smallest" and spec.C <= 64

    specs = sample("train", 4000)
    uniform([spec.fc_dim for spec in specs if not wide_head(spec)], [64, 128, 192, 256])
    uniform([spec.fc_dim for spec in specs if wide_head(spec)], list(range(64, 513, 64)))


def test_training_redraws_widths_by_the_size_at_its_images() -> None:
    """Stems and patches differ in size; a network may be large for 224-pixel images alone."""
    for spec in sample("train"):
        for size in (32, 224):
            here = dataclasses.replace(spec, image_size=size)
            drawn = {redraw_widths(here, np.random.default_rng(k)).C for k in range(8)}
            assert (drawn == {32}) or widths_class(here) != "largest"
            assert drawn <= set(range(32, 129, 16))


def test_wide_multiplies_the_channels() -> None:
    narrow = {sample_spec("wide", 5, i, channels=(8,)).C for i in range(5)}
    assert narrow == {32}
    assert {sample_spec("wide", 5, i, channels=(8,), image_size=224).C for i in range(5)} == {16}


def test_predefined_are_resnet50_and_the_vit() -> None:
    resnet, vit = sample_architectures("predefined", 2, 0)
    assert sum(p.numel() for p in resnet.network(device="meta").parameters()) == 23_520_842  # 10 classes, 3x3 stem
    assert vit.spec.is_vit and vit.spec.n_cells == 12 and vit.spec.C == 128


@given(split=st.sampled_from(SAMPLED_SPLITS), seed=st.integers(0, 2**32), start=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_sample_does_not_depend_on_its_batch(split: str, seed: int, start: int) -> None:
    together = sample_architectures(split, 3, seed, start=start)
    alone = [sample_architectures(split, 1, seed, start=start + i)[0] for i in range(3)]
    assert [a.spec for a in together] == [a.spec for a in alone]
    assert together[0].spec != sample_spec(split, seed + 1, start)


def test_a_sample_does_not_depend_on_the_number_of_processes() -> None:
    alone = [sample_spec("train", 5, index) for index in range(12)]
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        shared = list(pool.map(sample_spec, ["train"] * 12, [5] * 12, range(12)))
    assert shared == alone


@given(architectures())
@settings(max_examples=50, deadline=None)
def test_specifications_survive_json(architecture) -> None:
    spec = architecture.spec
    assert ArchitectureSpec.from_json(spec.to_json()) == spec
    drawn = redraw_widths(spec, np.random.default_rng(0), (24,), (48,))
    assert (drawn.C, drawn.fc_dim) == (24, 48)
    assert dataclasses.replace(drawn, C=spec.C, fc_dim=spec.fc_dim) == spec


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"C": 12}, "C=12"),
        ({"n_cells": 0}, "n_cells=0"),
        ({"n_cells": True}, "n_cells"),
        ({"norm": "layer"}, "norm"),
        ({"ks": 4}, "ks=4"),
        ({"preproc": False}, "preproc"),
        ({"typo": 1}, "typo"),
        ({"genotype": {"normal": []}}, "genotype"),
        ({"image_size": 10**9}, "image_size"),
    ],
)
def test_bad_specifications_are_named(change: dict, named: str) -> None:
    data = {**sample_spec("dense", 0, 0).to_json(), **change}
    with pytest.raises(InputError, match=named):
        ArchitectureSpec.from_json(data)


def test_unknown_splits_and_negative_numbers_are_errors() -> None:
    with pytest.raises(InputError, match="tset"):
        sample_architectures("tset", 1, 0)
    with pytest.raises(InputError, match="count=-1"):
        sample_architectures("test", -1, 0)
