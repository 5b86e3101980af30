"""The reference data as the tests use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ghn import Architecture, read_deepnets
from ghn.architecture import predefined_architectures
from ghn.deepnets import DeepNets

SPLITS = dict.fromkeys(("val", "test", "wide", "deep", "dense", "bnfree"), "eval") | {"train": "train"}


def read_split(reference: Path, split: str, num_classes: int = 10, image_size: int = 32) -> DeepNets:
    return read_deepnets(reference / f"deepnets1m_{SPLITS[split]}.hdf5", split, num_classes, image_size)


def read_networks(reference: Path, every: int = 1) -> Iterator[Architecture]:
    """Yield every n-th network of both files."""
    for split in SPLITS:
        yield from read_split(reference, split)[::every]


def find_network(reference: Path, split: str, index: int) -> Architecture:
    return predefined_architectures()[index] if split == "predefined" else read_split(reference, split)[index]


def built(architecture: Architecture) -> Architecture:
    """The same architecture, knowing only its specification."""
    return Architecture(spec=architecture.spec, split=architecture.split, index=architecture.index)
