"""`ghn.space` against the published networks: its distributions, by two-sample Kolmogorov-Smirnov tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from scipy import stats

from ghn import ArchitectureSpec
from ghn.build import build_graph
from ghn.layout import layout
from ghn.parameter_count import count_parameters
from ghn.space import sample_spec
from tests.parity.conftest import Ledger
from tests.parity.reference import read_split

SAMPLES = 1000
SEED = 1


def measure(specs: list[ArchitectureSpec]) -> dict[str, list[int]]:
    at_cap = [dataclasses.replace(spec, C=32, fc_dim=256) for spec in specs]
    return {
        "nodes": [len(build_graph(spec)) for spec in specs],
        "cells": [spec.n_cells for spec in specs],
        "parameters": [count_parameters(layout(spec, prune=False)) for spec in at_cap],
    }


@pytest.mark.parametrize(
    ("sampled", "published"), [("test", ("train", "val", "test")), *((s, (s,)) for s in ("deep", "dense", "bnfree"))]
)
def test_sampled_distributions(sampled: str, published: tuple[str, ...], reference: Path, ledger: Ledger) -> None:
    ours = measure([sample_spec(sampled, SEED, index) for index in range(SAMPLES)])
    theirs = measure([spec for split in published for spec in read_split(reference, split).specs()])
    p = {name: float(stats.ks_2samp(ours[name], theirs[name]).pvalue) for name in ours}
    assert min(p.values()) > 0.01, p
    name = min(p, key=p.__getitem__)
    many = f"{SAMPLES} against {len(theirs['cells'])}"
    ledger.add(
        f"KS of nodes, cells, parameters: {'+'.join(published)}", many, f"p = {p[name]:.2f} ({name})", "p > 0.01"
    )
