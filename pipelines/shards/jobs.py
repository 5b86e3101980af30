"""The sharding jobs: an image source, or a sample of architectures, into shard sets."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghn.deepnets import read_deepnets
from ghn.errors import InputError
from ghn.graph import GRAPH_REVISION
from ghn.space import GENERATOR_VERSION, SPLITS
from pipelines.part import Part
from pipelines.progress import Progress, emit
from pipelines.shards.architectures import architecture_record
from pipelines.shards.generate import sampled_records
from pipelines.shards.image_records import OnBadImage, image_records
from pipelines.shards.manifest import Manifest
from pipelines.shards.writer import Records, SampleRecord, SetWriter
from pipelines.sources.images import Check
from pipelines.sources.opening import VAL_FRACTION, ImageSource, open_source
from pipelines.storage import open_store

_SHARD_MIB = 128  # some eight of them are in memory at the most


class _Job(NamedTuple):
    """One set, or a part of one: who writes it, its records from a position on, how many, and the first position."""

    writer: SetWriter
    records: Callable[[int], Records]
    total: int
    start: int = 0


def shard_images(
    source: str,
    out: str,
    *,
    seed: int,
    shard_samples: int,
    shard_mib: int = _SHARD_MIB,
    image_size: int | None = None,
    limit: int | None = None,
    val_fraction: float = VAL_FRACTION,
    on_bad_image: OnBadImage = "fail",
    check: Check = "decode",
) -> dict[str, Manifest]:
    """Write the train, val and test splits of an image source below ``out``; return their manifests.

    Each sample holds the encoded image (its extension) and ``cls``, the class number in ASCII. All shard sets are
    checked before the first is written.

    Args:
        source: see :func:`pipelines.sources.open_source`, also for ``seed``, ``image_size``, ``limit``,
            ``val_fraction`` and ``check``.
        out: root of the shard sets.
        seed: of splits and order.
        shard_samples: most images of a shard.
        shard_mib: most MiB of a shard (of more than one image).
        image_size: pixels to resize to, ``None`` for the original bytes.
        limit: use only so many images.
        val_fraction: of the training images.
        on_bad_image: ``fail`` ends the job with a list of the images that can not be read; ``skip`` leaves them out and
            lists them in the manifest.
        check: how thoroughly images are looked at.

    """
    if shard_mib < 1:
        raise InputError(f"shard-mib={shard_mib}: give at least 1")
    images = open_source(source, seed=seed, image_size=image_size, limit=limit, val_fraction=val_fraction, check=check)
    request = {
        "image_size": image_size,
        "limit": limit,
        "val_fraction": val_fraction,
        "listing_sha256": images.digest,
        "shard_samples": shard_samples,
        "shard_mib": shard_mib,
        "on_bad_image": on_bad_image,
        "check": check,
    }
    jobs = []
    for split, indices in images.splits.items():
        store, facts = open_store(f"{out.rstrip('/')}/{split}"), _image_facts(images, split, seed, request)
        writer = SetWriter(store, facts, shard_samples=shard_samples, shard_bytes=shard_mib << 20)
        jobs.append(_Job(writer, functools.partial(_image_records, images, indices, on_bad_image), len(indices)))
    return _run("shard images", "image", jobs)


def _image_facts(images: ImageSource, split: str, seed: int, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says about a split, and what its request was."""
    return {
        "kind": "images",
        "split": split,
        "source": images.listing.name,
        "seed": seed,
        "classes": list(images.listing.classes),
        "request": dict(request),
    }


def _image_records(images: ImageSource, indices: Any, on_bad_image: OnBadImage, start: int) -> Records:
    return image_records(images, indices, start, on_bad_image)


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
    part: Part | None = None,
) -> dict[str, Manifest]:
    """Sample ``count`` architectures of each split (``predefined`` has two) and write them below ``out``.

    With ``max_nodes``, architectures with larger graphs are passed over (their indices stay unused): a short training run
    may want cheap networks; the evaluated splits should stay whole. With ``part``, only that range of the shards is written;
    manifests of splits whose other parts are missing are left out of the result.

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
            "split": split,
            "source": "DeepNets-1M generator",
            "seed": seed,
            "generator_version": GENERATOR_VERSION,
            "request": {**widths, "count": total, "shard_samples": shard_samples, "max_nodes": max_nodes},
        }

        def records(start: int, missing: int, split: str = split) -> Iterator[SampleRecord]:
            return sampled_records(split, seed, widths, max_nodes, start=start, count=missing)

        jobs.append(_deepnets_job(out, facts, total, shard_samples, part, records, indexed=max_nodes is None))
    return _run("shard deepnets", "architecture", jobs)


def shard_official_deepnets(
    hdf5: str | os.PathLike[str],
    splits: Sequence[str],
    out: str,
    *,
    count: int | None = None,
    shard_samples: int,
    num_classes: int = 10,
    image_size: int = 32,
    part: Part | None = None,
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
        facts = {"split": split, "source": Path(hdf5).name, "seed": 0, "request": request}

        def records(start: int, missing: int, nets: Any = nets) -> Iterator[SampleRecord]:
            return map(architecture_record, nets[start : start + missing])

        jobs.append(_deepnets_job(out, facts, len(nets), shard_samples, part, records, indexed=True))
    return _run("shard deepnets", "architecture", jobs)


def _deepnets_job(
    out: str,
    facts: dict[str, Any],
    total: int,
    shard_samples: int,
    part: Part | None,
    records: Callable[[int, int], Iterator[SampleRecord]],
    *,
    indexed: bool,
) -> _Job:
    """Return the job for a part of a split.

    Args:
        out: root of the shard sets.
        facts: of the manifest.
        total: architectures of the split.
        shard_samples: architectures of a shard.
        part: what to write of it.
        records: from (index, number) to so many records from that index on.
        indexed: whether record i has index i. Else a part has to count through those of the parts before it.

    """
    facts.update({"kind": "deepnets", "graph_revision": GRAPH_REVISION})
    part = part or Part()
    shards = part.range_of(-(-total // shard_samples)) if shard_samples > 0 else range(0)
    first, last = shards.start * shard_samples, min(total, shards.stop * shard_samples)
    store = open_store(f"{out.rstrip('/')}/{facts['split']}")
    writer = SetWriter(store, facts, shard_samples=shard_samples, part=part, first_shard=shards.start)
    missing = last - first - writer.done

    def rest(start: int) -> Iterator[SampleRecord]:
        if indexed or writer.done:
            yield from records(start, missing)
            return
        for number, record in enumerate(records(0, last)):
            if number >= first:
                yield record

    return _Job(writer, rest, last - first, first if indexed else 0)


def _run(name: str, unit: str, jobs: Sequence[_Job]) -> dict[str, Manifest]:
    """Write all sets; each was compared with what is stored before the first is written."""
    manifests: dict[str, Manifest] = {}
    done = sum(min(job.writer.done, job.total) for job in jobs)
    with Progress(name, sum(job.total for job in jobs), unit=unit, initial=done) as progress:
        for job in jobs:

            def counted(start: int, job: _Job = job) -> Records:
                for record in job.records(start):
                    yield record
                    progress.update()

            manifest = job.writer.write(counted, start=job.start)
            if manifest is not None:
                manifests[manifest.split] = manifest
                if manifest.rejected:
                    emit(
                        "rejected", split=manifest.split, count=len(manifest.rejected), first=manifest.rejected[0].name
                    )
    return manifests
