"""The sharding jobs: an image source, or a sample of architectures, into shard sets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ghn.deepnets import read_deepnets
from ghn.errors import InputError
from ghn.graph import GRAPH_REVISION
from ghn.space import GENERATOR_VERSION, SPLITS
from pipelines.images import ImageItem, open_source
from pipelines.progress import Progress
from pipelines.shards.generate import architecture_record, sampled_records
from pipelines.shards.manifest import Manifest
from pipelines.shards.writer import SampleRecord, find_finished, write_shards
from pipelines.storage import open_store


def shard_images(
    source: str, out: str, *, seed: int, shard_samples: int, image_size: int | None = None, limit: int | None = None
) -> dict[str, Manifest]:
    """Write the train, val and test splits of an image source below ``out``; return their manifests.

    Each sample holds the encoded image (its extension) and ``cls``, the class number in ASCII. All shard sets are
    checked before the first is written.
    """
    images = open_source(source, seed=seed, image_size=image_size, limit=limit)
    jobs = []
    for split, items in images.splits.items():
        store = open_store(f"{out.rstrip('/')}/{split}")
        facts = {
            "kind": "images",
            "split": split,
            "source": images.name,
            "seed": seed,
            "classes": list(images.classes),
            "request": {
                "image_size": image_size,
                "limit": limit,
                "listing_sha256": images.digest,
                "shard_samples": shard_samples,
            },
        }
        find_finished(store, facts)
        jobs.append((split, store, facts, items))
    manifests = {}
    with Progress("shard images", sum(len(items) for *_, items in jobs), unit="image") as progress:
        for split, store, facts, items in jobs:
            records = _image_records(items, progress)
            manifests[split] = write_shards(store, records, shard_samples=shard_samples, facts=facts)
    return manifests


def _image_records(items: Sequence[ImageItem], progress: Progress) -> Iterator[SampleRecord]:
    for number, item in enumerate(items):
        fields = {item.extension: item.load(), "cls": str(item.label).encode()}
        yield SampleRecord(key=f"{number:08d}", fields=fields)
        progress.update()


def shard_deepnets(
    splits: Sequence[str],
    out: str,
    *,
    count: int,
    seed: int,
    shard_samples: int,
    num_classes: int = 10,
    image_size: int = 32,
    channels: Sequence[int] | None = None,
    fc_dims: Sequence[int] | None = None,
    max_nodes: int | None = None,
) -> dict[str, Manifest]:
    """Sample ``count`` architectures of each split (``predefined`` has two) and write them below ``out``.

    With ``max_nodes``, architectures with larger graphs are passed over (their indices stay unused): a short training run
    may want cheap networks; the evaluated splits should stay whole.

    Each sample holds ``json``, the specification; its graph follows from it by ``graph_revision``.
    """
    if count < 1:
        raise InputError(f"count={count}: give at least 1")
    widths: dict[str, Any] = {
        "num_classes": num_classes,
        "image_size": image_size,
        "channels": list(channels) if channels else None,
        "fc_dims": list(fc_dims) if fc_dims else None,
    }

    jobs = []
    for split in splits:
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}; splits are {', '.join(SPLITS)}")
        total = min(count, 2) if split == "predefined" else count
        facts = {
            "source": "DeepNets-1M generator",
            "seed": seed,
            "generator_version": GENERATOR_VERSION,
            "request": {**widths, "count": total, "shard_samples": shard_samples, "max_nodes": max_nodes},
        }
        jobs.append((split, facts, total, sampled_records(split, total, seed, widths, max_nodes)))
    return _write_deepnets(out, jobs, shard_samples)


def shard_official_deepnets(
    hdf5: str | os.PathLike[str],
    splits: Sequence[str],
    out: str,
    *,
    count: int | None = None,
    shard_samples: int,
    num_classes: int = 10,
    image_size: int = 32,
) -> dict[str, Manifest]:
    """Write splits of an official DeepNets-1M file (the first ``count`` networks of each, or all) below ``out``.

    Each graph in the file is compared with the one that its specification gives, so the specification is all that a sample
    has to hold, as in :func:`shard_deepnets`.
    """
    jobs = []
    for split in splits:
        nets = read_deepnets(hdf5, split, num_classes, image_size)[:count]
        digest = hashlib.sha256()
        for spec in nets.specs():
            digest.update(json.dumps(spec.to_json(), sort_keys=True).encode())
        request = {
            "num_classes": num_classes,
            "image_size": image_size,
            "count": len(nets),
            "shard_samples": shard_samples,
            "specifications_sha256": digest.hexdigest(),
        }
        facts = {"source": Path(hdf5).name, "seed": 0, "request": request}
        jobs.append((split, facts, len(nets), map(architecture_record, nets)))
    return _write_deepnets(out, jobs, shard_samples)


def _write_deepnets(
    out: str, jobs: Sequence[tuple[str, dict[str, Any], int, Iterator[SampleRecord]]], shard_samples: int
) -> dict[str, Manifest]:
    """Write the records of each (split, facts, number, records); all sets are checked before the first."""
    stores = []
    for split, facts, _, _ in jobs:
        store = open_store(f"{out.rstrip('/')}/{split}")
        facts.update({"kind": "deepnets", "split": split, "graph_revision": GRAPH_REVISION})
        find_finished(store, facts)
        stores.append(store)
    manifests = {}
    with Progress("shard deepnets", sum(total for _, _, total, _ in jobs), unit="architecture") as progress:
        for store, (split, facts, _, records) in zip(stores, jobs, strict=True):
            counted = _counted(records, progress)
            manifests[split] = write_shards(store, counted, shard_samples=shard_samples, facts=facts)
    return manifests


def _counted(records: Iterator[SampleRecord], progress: Progress) -> Iterator[SampleRecord]:
    for record in records:
        yield record
        progress.update()
