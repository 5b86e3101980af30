"""Evaluations as `ghn evaluate` writes them, with chosen accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NETWORKS = 20


def evaluation(
    version: int, accuracies: Mapping[str, Sequence[float]], *, baseline: float = 10.0, run_id: str = "unknown"
) -> dict[str, Any]:
    """Return an evaluation of a version of ghn2-test with these accuracies on each split."""
    networks = [
        {"split": split, "index": i, "nodes": 9, "parameters": 99, "accuracy": a, "baseline": baseline, "failure": ""}
        for split, values in accuracies.items()
        for i, a in enumerate(values)
    ]
    splits = {
        split: {"networks": len(values), "mean": sum(values) / len(values)} for split, values in accuracies.items()
    }
    return {
        "schema_version": 1,
        "model": {"uri": f"models:/ghn2-test/{version}", "name": "ghn2-test", "version": version, "run_id": run_id},
        "metric": "top-1 accuracy in percent",
        "batchnorm": "batch statistics",
        "images": {"url": "images", "manifest": "a1", "split": "test", "count": 256},
        "architectures": {"url": "nets", "manifests": dict.fromkeys(accuracies, "b2")},
        "splits": splits,
        "networks": networks,
    }


def spread(mean: float, count: int = NETWORKS) -> list[float]:
    """Accuracies that differ between networks by more than any two models here do."""
    return [mean + (i - (count - 1) / 2) for i in range(count)]
