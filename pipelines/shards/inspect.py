"""Look at shard sets: are they whole, what is in them?"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghn.errors import DataError, GHNError, InputError
from pipelines.progress import Progress
from pipelines.shards.architectures import architecture_record, read_architecture
from pipelines.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest
from pipelines.shards.order import ShuffleQuality, epoch_order, shuffle_quality
from pipelines.shards.reader import Sample, read_shard
from pipelines.sources.images import EXTENSIONS
from pipelines.storage import Store, open_store

_THREADS = 2  # shards in memory at once


def _open_sets(url: str) -> list[tuple[Store, Manifest]]:
    """Open the shard set at an address, or all sets below it.

    Raises:
        InputError: if there is none.

    """
    store = open_store(url)
    if store.size(MANIFEST_NAME) is not None:
        return [(store, read_manifest(store))]
    below = [key.removesuffix(f"/{MANIFEST_NAME}") for key in store.list() if key.endswith(f"/{MANIFEST_NAME}")]
    if not below:
        raise InputError(f"no shard set at {url} or below it: there is no {MANIFEST_NAME}")
    stores = [open_store(store.url(name)) for name in below]
    return [(each, read_manifest(each)) for each in stores]


def verify_sets(url: str, *, deep: bool = False) -> list[str]:
    """Compare everything below an address with its manifests; return what is wrong, as sentences.

    Always: sizes, SHA-256, numbers of samples, unique keys, complete samples, classes in range, nothing that does not belong
    there. With ``deep`` every image is decoded and every graph built and counted, too.
    """
    sets = _open_sets(url)
    problems: list[str] = []
    with Progress("verify", sum(len(manifest.shards) for _, manifest in sets), unit="shard") as progress:
        for store, manifest in sets:
            problems += _foreign_objects(store, manifest)
            keys: Counter[str] = Counter()
            with ThreadPoolExecutor(_THREADS) as pool:

                def check(
                    entry: ShardEntry, store: Store = store, manifest: Manifest = manifest
                ) -> tuple[list[str], list[str]]:
                    return _check_shard(store, manifest, entry, deep=deep)

                for found, shard_keys in pool.map(check, manifest.shards):
                    problems += found
                    keys.update(shard_keys)
                    progress.update()
            problems += [f"{store.root}: key {key} occurs {n} times" for key, n in keys.items() if n > 1]
    return problems


def _foreign_objects(store: Store, manifest: Manifest) -> list[str]:
    known = {MANIFEST_NAME, *(entry.name for entry in manifest.shards)}
    return [f"{store.url(key)} does not belong to the shard set" for key in store.list() if key not in known]


def _check_shard(store: Store, manifest: Manifest, entry: ShardEntry, *, deep: bool) -> tuple[list[str], list[str]]:
    """Return what is wrong with a shard, and the keys of its samples."""
    try:
        samples = read_shard(store, entry)
    except GHNError as error:
        return [str(error)], []
    check = _check_image if manifest.kind == "images" else _check_architecture
    problems, nodes, parameters = [], 0, 0
    for sample in samples:
        try:
            counted = check(sample, manifest, deep)
            nodes, parameters = nodes + counted[0], parameters + counted[1]
        except (GHNError, ValueError, OSError, SyntaxError) as error:
            problems.append(f"{store.url(entry.name)}: sample {sample['__key__']}: {error}")
    if deep and manifest.kind == "deepnets" and (nodes, parameters) != (entry.nodes, entry.parameters):
        problems.append(
            f"{store.url(entry.name)}: {nodes} nodes and {parameters} parameters, the manifest says {entry.nodes} and "
            f"{entry.parameters}"
        )
    return problems, [sample["__key__"] for sample in samples]


def _check_image(sample: Sample, manifest: Manifest, deep: bool) -> tuple[int, int]:
    images = [name for name in sample if name in EXTENSIONS]
    if len(images) != 1 or not sample.get("cls", b"").isdigit():
        raise DataError(f"it has the fields {sorted(sample.keys() - {'__key__'})}, not one image and a class number")
    if int(sample["cls"]) >= len(manifest.classes or ()):
        raise DataError(f"class {int(sample['cls'])} of {len(manifest.classes or ())}")
    if deep:
        from PIL import Image

        with Image.open(io.BytesIO(sample[images[0]])) as image:
            image.load()
    return 0, 0


def _check_architecture(sample: Sample, manifest: Manifest, deep: bool) -> tuple[int, int]:
    if "json" not in sample:
        raise DataError("it holds no specification")
    architecture = read_architecture(sample)
    if not deep:
        return 0, 0
    record = architecture_record(architecture)
    return record.nodes or 0, record.parameters or 0


@dataclass(frozen=True, kw_only=True)
class SetStatistics:
    """What is in one shard set.

    Attributes:
        manifest: of the set.
        bytes: of all shards.
        quality: how far reading in shuffled order moves samples.
        distributions: for a sample of the set, values by name: bytes and class of images; nodes and parameters.

    """

    manifest: Manifest
    bytes: int
    quality: ShuffleQuality
    distributions: dict[str, np.ndarray]


def measure_sets(url: str, *, window: int, lanes: int, sample: int) -> list[SetStatistics]:
    """Return statistics of all sets below an address; totals are those of the manifests.

    Args:
        url: of the sets.
        window: of the reading order, see :func:`~pipelines.shards.order.epoch_order`.
        lanes: likewise.
        sample: samples to look at for the distributions, from evenly chosen shards.

    """
    measured = []
    for store, manifest in _open_sets(url):
        counts = [entry.samples for entry in manifest.shards]
        order = epoch_order(counts, seed=0, epoch=0, window=window, lanes=lanes)
        facts = _image_facts if manifest.kind == "images" else _architecture_facts
        rows = [facts(item) for item in _some_samples(store, manifest, sample)]
        measured.append(
            SetStatistics(
                manifest=manifest,
                bytes=sum(entry.bytes for entry in manifest.shards),
                quality=shuffle_quality(order),
                distributions={name: np.array([row[name] for row in rows]) for name in rows[0]},
            )
        )
    return measured


def _some_samples(store: Store, manifest: Manifest, count: int) -> Iterator[Sample]:
    wanted = -(-min(count, manifest.samples) * len(manifest.shards) // manifest.samples)
    each = -(-count // wanted)
    for i in np.linspace(0, len(manifest.shards) - 1, wanted).round().astype(int):
        yield from read_shard(store, manifest.shards[i])[:each]


def _image_facts(sample: Sample) -> dict[str, int]:
    content: Any = next(sample[name] for name in sample if name in EXTENSIONS)
    return {"bytes": len(content), "class": int(sample["cls"])}


def _architecture_facts(sample: Sample) -> dict[str, int]:
    record = architecture_record(read_architecture(sample))
    return {"nodes": record.nodes or 0, "parameters": record.parameters or 0}


def list_sets(url: str, show: Callable[[str], None]) -> None:
    """Show each set below an address, and its shards."""
    for store, manifest in _open_sets(url):
        show(f"{store.root}: {manifest.summary()}")
        for entry in manifest.shards:
            show(f"  {entry.name}  {entry.samples:>7,} samples  {entry.bytes:>13,} bytes  sha256 {entry.sha256[:16]}")
