"""Writing and reading image shards on S3, next to the same client moving the same bytes; with published data, if it is there.

The raw speed is that of boto3 with two requests at once, whole objects from and to memory. Server and client have a core each,
as if on two machines; one row is repeated with both on all cores, where all that our side does is taken from the server.
"""

from __future__ import annotations

from pipelines.process import tune_process

tune_process()

import contextlib
import itertools
import json
import os
import sys
import tempfile
import zipfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.images import make_images
from benchmarks.measure import Report, in_process, medians, on_core
from pipelines.local import embedded_s3
from pipelines.shards.jobs import shard_images
from pipelines.shards.manifest import Manifest, read_manifest
from pipelines.shards.reader import ShardReader
from pipelines.storage import open_store

DATA = Path(os.environ.get("GHN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
_REPEATS = 60  # of the 200 photographs: a job that takes a second says little about one that takes an hour
_AT_ONCE = 2
_RUNS = 3
_BATCH = 100
_EPOCHS = 3  # of reading: its first and its last second are not like the others


def photographs(folder: Path) -> Path:
    """Return a folder of full-size photographs, each under several names; the first one of each is for tests."""
    source = DATA / "imagenet-sample.zip"
    if not source.is_file():
        source = folder / "made.zip"
        make_images(source, 200, 500, 375)
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            for i in range(_REPEATS):
                split = "train" if i else "test"
                path = folder / "photographs" / split / Path(name).parent.name / f"{i}-{Path(name).name}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return folder / "photographs"


def small_images(folder: Path) -> Path:
    """Return a zip of 32-pixel images."""
    source = DATA / "cifar10-jpeg.zip"
    if not source.is_file():
        source = folder / "small.zip"
        make_images(source, 20_000, 32, 32)
    return source


def measure(report: Report) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), f"s3://{embedded_s3.BUCKET}"
        photos, small = photographs(folder), small_images(folder)
        with contextlib.ExitStack() as stack:
            with on_core(0):
                os.environ.update(stack.enter_context(embedded_s3.running(folder / "s3")))
            stack.enter_context(on_core(1))
            write(report, "shard_write_images", photos, f"{root}/quick", 500, at_least=70, check="quick")
            write(report, "shard_write_images_decoded", photos, f"{root}/decoded", 500, at_least=None, check="decode")
            write(report, "shard_write_32_pixels", small, f"{root}/small", 5000, at_least=None, check="quick")
            read(report, "shard_read_images", f"{root}/quick-0", at_least=85.0)
            read(report, "shard_read_32_pixels", f"{root}/small-0", at_least=None)
        with embedded_s3.running(folder / "s3") as environment:
            os.environ.update(environment)
            read(report, "shard_read_images_on_shared_cores", f"{root}/quick-0", at_least=None)


def read(report: Report, row: str, root: str, *, at_least: float | None) -> None:
    manifest = read_manifest(open_store(f"{root}/train"))
    times = in_process("shards", root)
    add(report, row, {"train": manifest}, times["ours"], times["raw"], at_least)


def write(
    report: Report, row: str, source: Path, out: str, shard_samples: int, *, at_least: float | None, check: Any
) -> None:
    jobs, copies = itertools.count(), itertools.count()  # neither writes over what is there: that is faster

    def job() -> dict[str, Manifest]:
        root = f"{out}-{next(jobs)}"
        return shard_images(str(source), root, seed=0, shard_samples=shard_samples, check=check, val_fraction=0)

    manifests = job()
    stores = {split: open_store(f"{out}-0/{split}") for split in manifests}
    contents = [
        (f"{split}-{entry.name}", stores[split].read(entry.name))
        for split, manifest in manifests.items()
        for entry in manifest.shards
    ]

    def raw() -> None:
        store = open_store(f"{out}-raw-{next(copies)}")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            deque(pool.map(lambda item: store.write(*item), contents), maxlen=0)

    add(report, row, manifests, *medians(_RUNS if at_least else 1, job, raw), at_least)


def time_reading(root: str) -> dict[str, float]:
    """In a process of its own, as training is: medians of reading a set, and of getting the same objects, some times in a row."""
    store = open_store(f"{root}/train")
    manifest = ShardReader(store, "images", seed=0).manifest

    def job() -> None:
        reader = ShardReader(store, "images", seed=0, window=1)
        for _ in range(0, _EPOCHS * manifest.samples, _BATCH):  # as training takes them: not all at once
            reader.take(_BATCH)

    client: Any = store.client  # type: ignore[attr-defined]

    def get(key: str) -> int:
        return len(client.get_object(Bucket=embedded_s3.BUCKET, Key=key)["Body"].read())

    def raw() -> None:
        prefix = store.root.removeprefix(f"s3://{embedded_s3.BUCKET}/")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            deque(pool.map(get, [f"{prefix}/{entry.name}" for entry in manifest.shards] * _EPOCHS), maxlen=0)

    ours, theirs = medians(_RUNS, job, raw)
    return {"ours": ours / _EPOCHS, "raw": theirs / _EPOCHS}


def add(
    report: Report, row: str, manifests: dict[str, Manifest], ours: float, raw: float, at_least: float | None
) -> None:
    megabytes = sum(entry.bytes for manifest in manifests.values() for entry in manifest.shards) / 1e6
    samples = sum(manifest.samples for manifest in manifests.values())
    facts = {
        "mb_per_s": megabytes / ours,
        "raw_mb_per_s": megabytes / raw,
        "samples_per_s": samples / ours,
        "samples": samples,
    }
    if at_least is None:
        report.grow("shards without a target", row=row, percent_of_raw=round(100 * raw / ours, 1), **facts)
    else:
        report.row(row, 100 * raw / ours, "% of the raw speed", at_least=at_least, **facts)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(time_reading(sys.argv[1])) + "\n")
