"""Published results with predicted parameters (paper, tables 2 and 3), to be shown beside ours where they are comparable.

Accuracies in percent, mean and best over the split, from the authors' results for each network: top-1 on CIFAR-10, top-5 on
ImageNet. ``sgd`` is 50 epochs of ordinary training on CIFAR-10 and one epoch on ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghn.space import RULES

_COLUMNS = {"cifar10": ("ghn2", "ghn1", "mlp", "sgd"), "imagenet": ("ghn2", "ghn1", "sgd")}
_METRIC = {"cifar10": "top1", "imagenet": "top5"}
_STEPS_WORTH = {"cifar10": 2500, "imagenet": 5000}
_NETWORKS = {"val": 500, "test": 500, "wide": 100, "deep": 100, "dense": 100, "bnfree": 100}
_TABLE: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "cifar10": {
        "val": ((67.5, 78.6), (51.5, 60.8), (43.8, 62.3), (88.5, 93.5)),
        "test": ((66.9, 77.1), (51.4, 59.9), (42.2, 60.2), (88.5, 93.1)),
        "wide": ((64.0, 76.0), (43.1, 58.6), (22.3, 45.3), (88.9, 94.8)),
        "deep": ((60.5, 76.5), (48.3, 59.0), (37.9, 56.5), (84.5, 92.5)),
        "dense": ((65.8, 76.6), (51.8, 59.3), (44.8, 58.5), (87.3, 93.0)),
        "bnfree": ((36.8, 58.7), (13.7, 18.4), (23.9, 44.0), (45.6, 89.1)),
    },
    "imagenet": {
        "val": ((28.5, 50.5), (17.6, 34.0), (36.4, 61.3)),
        "test": ((27.2, 48.3), (17.2, 32.1), (37.7, 62.0)),
        "wide": ((19.4, 47.4), (15.8, 30.2), (38.7, 61.6)),
        "deep": ((24.7, 45.6), (15.9, 29.4), (22.1, 53.0)),
        "dense": ((26.4, 46.9), (15.1, 30.4), (36.3, 58.7)),
        "bnfree": ((7.2, 20.5), (0.5, 0.7), (8.0, 45.2)),
    },
}
if set(_NETWORKS) > set(RULES):
    raise RuntimeError("a published split is unknown")


def published(image_set: str | None, split_sizes: Mapping[str, int], *, whole_image_set: bool, official: bool) -> Any:
    """Return the published results on the same image set and splits, and what differs from ours; ``None`` if there are none.

    Args:
        image_set: ``cifar10``, ``imagenet``, or ``None`` for another one.
        split_sizes: networks of each evaluated split.
        whole_image_set: whether all test images were used.
        official: whether the networks are those of an official file.

    """
    splits = {name: rows for name, rows in _TABLE.get(image_set or "", {}).items() if name in split_sizes}
    if image_set is None or not splits:
        return None
    differences = []
    if not whole_image_set:
        differences.append("ours are on a part of the test images")
    if not official:
        differences.append("our networks are other samples of the same rules")
    if fewer := [name for name in splits if split_sizes[name] != _NETWORKS[name]]:
        differences.append(f"ours are of another number of networks on {', '.join(fewer)}")
    columns = _COLUMNS[image_set]
    return {
        "metric": _METRIC[image_set],
        "sgd_steps_worth": _STEPS_WORTH[image_set],
        "differences": differences,
        "splits": {
            name: {column: {"mean": mean, "best": best} for column, (mean, best) in zip(columns, rows, strict=True)}
            for name, rows in splits.items()
        },
    }
