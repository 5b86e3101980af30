"""What an evaluation reads: networks of the splits (shards or an official file), and test images that all processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ghn.architecture import Architecture, predefined_architectures
from ghn.deepnets import read_deepnets
from ghn.errors import InputError
from ghn.space import SPLITS
from pipelines.image_batch import decode, to_batch, training_batch
from pipelines.recipe import ImageSettings
from pipelines.shards.architectures import read_architectures
from pipelines.shards.manifest import read_manifest
from pipelines.shards.reader import open_reader
from pipelines.storage import open_store

_BATCH = 64
_PREDEFINED = "predefined"


@dataclass(frozen=True, kw_only=True)
class Split:
    """The networks of one split, and a digest of all that decides them."""

    architectures: Sequence[Architecture]
    manifest: str


@dataclass(frozen=True, kw_only=True)
class EvaluatedImages:
    """Decoded images in a file that processes map into their memory, so that they share it.

    It is iterated over as batches (images (64, 3, S, S), class numbers (64,)), again and again.
    """

    file: Path
    labels: np.ndarray
    settings: ImageSettings

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches in stored order."""
        pixels = np.load(self.file, mmap_mode="r")
        for start in range(0, len(self.labels), _BATCH):
            part = slice(start, start + _BATCH)
            decoded = list(zip(pixels[part], self.labels[part].tolist(), strict=True))
            yield to_batch(decoded, self.settings.mean, self.settings.std)


def open_splits(
    deepnets: str, splits: Sequence[str], *, networks: int | None, num_classes: int, image_size: int
) -> dict[str, Split]:
    """Open splits, of each the first ``networks`` (``None``: all).

    Args:
        deepnets: root of architecture shard sets, or an official ``.hdf5`` file (its ``predefined`` networks are built).
        splits: names.
        networks: at most so many of each.
        num_classes: of the classifiers, where a file leaves it open.
        image_size: pixels; shards must have been made for it.

    Raises:
        InputError: if a split is not there, or was made for other images.

    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise InputError(f"unknown split {unknown[0]!r}; splits are {', '.join(SPLITS)}")
    found = {}
    for split in splits:
        architectures: Sequence[Architecture]
        if not is_official(deepnets):
            architectures = read_architectures(deepnets, split)
            digest = manifest_digest(deepnets, split)
        elif split == _PREDEFINED:
            architectures = predefined_architectures(num_classes, image_size)
            digest = f"{_PREDEFINED}-{num_classes}-{image_size}"
        else:
            official = read_deepnets(deepnets, split, num_classes, image_size)
            architectures = official
            digest = f"{_file_digest(official.path, official.meta_path)}-{num_classes}-{image_size}"
        if (size := architectures[0].spec.image_size) != image_size:
            raise InputError(f"{deepnets}/{split} was made for {size}-pixel images, the model for {image_size}")
        found[split] = Split(architectures=architectures[:networks], manifest=digest)
    return found


def is_official(deepnets: str) -> bool:
    """Whether an address is that of an official file, not of shard sets."""
    return deepnets.endswith((".hdf5", ".h5"))


def read_test_images(
    url: str, split: str, settings: ImageSettings, folder: Path, limit: int | None = None
) -> EvaluatedImages:
    """Decode one split's images, the first ``limit`` in stored (shuffled) order, into a file below ``folder``."""
    reader = open_reader(url, split, "images")
    count = min(limit or reader.manifest.samples, reader.manifest.samples)
    file, size = folder / "images.npy", settings.size
    pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
    labels = np.empty(count, dtype=np.int64)
    for i, sample in zip(range(count), reader.in_order(), strict=False):
        pixels[i], labels[i] = decode(sample, size, settings.evaluated_side)
    pixels.flush()
    return EvaluatedImages(file=file, labels=labels, settings=settings)


def training_images(url: str, settings: ImageSettings, *, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented batches of the training split without end, the same ones for the same seed."""
    reader = open_reader(url, "train", "images", seed=seed, window=settings.shuffle_window, prefetch=1)
    step = 0
    while True:
        yield training_batch(reader.take(batch), settings, np.random.default_rng([seed, step]))
        step += 1


def manifest_digest(root: str, split: str) -> str:
    """SHA-256 of the manifest of one split's shard set."""
    return read_manifest(open_store(f"{root}/{split}")).digest()


def describe_images(url: str, split: str, images: EvaluatedImages) -> dict[str, Any]:
    """Return what an evaluation says about its images."""
    manifest = read_manifest(open_store(f"{url}/{split}"))
    return {
        "url": url,
        "manifest": manifest.digest(),
        "split": split,
        "count": len(images.labels),
        "all": len(images.labels) == manifest.samples,
        "size": images.settings.size,
        "classes": len(manifest.classes or ()),
        "set": _image_set(manifest.classes or ()),
    }


def _image_set(classes: Sequence[str]) -> str | None:
    """Recognize a published image set by its classes."""
    if set(classes) == _CIFAR10:
        return "cifar10"
    wordnet = [name for name in classes if len(name) == 9 and name[0] == "n" and name[1:].isdecimal()]
    return "imagenet" if len(wordnet) == len(classes) == 1000 else None


_CIFAR10 = frozenset(
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)


def _file_digest(*files: Path) -> str:
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()
