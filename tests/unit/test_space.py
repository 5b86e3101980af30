"""The sampling rules: every row of the published table, and reproducibility."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn import ArchitectureSpec, sample_architectures
from ghn.errors import InputError
from ghn.genotype import PARAMETER_FREE_OPS
from ghn.layout import layout
from ghn.space import RULES, SAMPLED_SPLITS, count_parameters, redraw_widths, sample_spec
from tests.strategies import architectures


@cache
def sample(split: str, count: int = 300) -> list[ArchitectureSpec]:
    return [sample_spec(split, 3, index) for index in range(count)]


def steps(spec: ArchitectureSpec) -> int:
    return len(spec.genotype.normal) // 2


@pytest.mark.parametrize("split", SAMPLED_SPLITS)
def test_cells_and_steps_stay_in_the_splits_ranges(split: str) -> None:
    rules = RULES[split]
    cells = {spec.n_cells for spec in sample(split)}
    assert min(cells) >= rules.cells[0] and max(cells) <= rules.cells[1]
    assert len(cells) > 0.8 * (rules.cells[1] - rules.cells[0] + 1)
    assert {steps(spec) for spec in sample(split)} <= set(range(rules.steps[0], rules.steps[1] + 1))
    assert all(steps(spec) <= rules.deep_steps for spec in sample(split) if spec.n_cells > rules.thresholds[1])


@pytest.mark.parametrize("split", SAMPLED_SPLITS)
def test_parameter_cap_holds_for_both_image_sizes(split: str) -> None:
    for spec in sample(split):
        for size in (32, 224):
            at_cap = dataclasses.replace(spec, C=32, fc_dim=256, image_size=size)
            assert count_parameters(layout(at_cap, prune=False)) <= RULES[split].max_parameters


def test_each_choice_takes_all_its_values() -> None:
    specs = sample("train")
    assert {spec.ks for spec in specs} == {3, 5, 7}
    assert {spec.C_mult for spec in specs} == {1, 2}
    assert {spec.stem_type for spec in specs} == {0, 1}
    assert {spec.fc_layers for spec in specs} == {1, 2}
    assert {spec.stem_pool for spec in specs if spec.stem_type == 0} == {True, False}
    assert not any(spec.stem_pool for spec in specs if spec.stem_type == 1)


def test_preprocessing_is_forced_where_channels_could_change() -> None:
    for spec in sample("train") + sample("dense"):
        if steps(spec) > 1 or spec.C_mult > 1 or not spec.is_vit:
            assert spec.preproc
    assert any(not spec.preproc for spec in sample("train", 600))


def test_global_pooling_is_forced_for_vit_and_deep_networks() -> None:
    specs = sample("train", 600)
    assert all(spec.glob_avg for spec in specs if spec.is_vit or spec.n_cells > 10)
    free = [spec.glob_avg for spec in specs if not spec.is_vit and spec.n_cells < 7]
    assert 0.8 < np.mean(free) < 0.98


def test_normalization_is_missing_only_in_the_shallowest_networks() -> None:
    specs = sample("train", 600)
    assert all(spec.n_cells <= 5 and steps(spec) <= 2 for spec in specs if spec.norm is None)
    shallow = [spec.norm is None for spec in specs if spec.n_cells <= 5 and steps(spec) <= 2]
    assert 0.3 < np.mean(shallow) < 0.7
    assert all(spec.norm is None for spec in sample("bnfree"))


@pytest.mark.parametrize("split", SAMPLED_SPLITS)
def test_genotype_rules(split: str) -> None:
    for spec in sample(split):
        genotype = spec.genotype
        assert genotype.normal_concat == genotype.reduce_concat
        assert genotype.normal_concat[-1] == 1 + steps(spec)  # the final state is always concatenated
        assert "none" not in genotype.ops or steps(spec) > 1
        assert any("conv" in op or op in ("cse", "msa") for op in genotype.ops)
        assert "cse" not in genotype.ops or any("conv" in op for op in genotype.ops)
        for edges in (genotype.normal, genotype.reduce):
            names = [op for op, _ in edges]
            assert names.count("cse") <= 1
            assert names.count("conv_5x5") + names.count("conv_7x7") <= 1
            for k in range(0, len(edges), 2):
                assert edges[k][1] != edges[k + 1][1]


def test_half_of_the_reduction_cells_are_parameter_free() -> None:
    free = [all(op in PARAMETER_FREE_OPS for op, _ in spec.genotype.reduce) for spec in sample("train", 600)]
    assert 0.4 < np.mean(free) < 0.68  # a few of the others are so by chance


def test_states_are_dropped_from_the_concatenation() -> None:
    specs = [spec for spec in sample("dense") if steps(spec) >= 4]
    kept = [len(spec.genotype.normal_concat) / steps(spec) for spec in specs]
    assert {1.0} < set(kept) and 0.65 < np.mean(kept) < 0.9


def test_published_widths_narrow_with_size() -> None:
    for spec in sample("train"):
        base = dataclasses.replace(spec, C=32, fc_dim=256)
        count = count_parameters(layout(base, prune=False))
        if count > 0.8e6 or spec.n_cells > 12 or not spec.glob_avg or {"conv_5x5", "conv_7x7"} & spec.genotype.ops:
            assert spec.C == 32
        assert spec.C % 16 == 0 and 32 <= spec.C <= 128
        assert spec.fc_dim in range(64, 513, 64)
        assert spec.fc_dim <= 256 or spec.C <= 64
    assert len({spec.C for spec in sample("train", 600)}) > 4


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
