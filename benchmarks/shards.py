"""Writing and reading image shards on S3, next to the same client moving the same bytes; with published data, if it is there.

The raw speed is that of boto3 with as many requests at once, whole objects from and to memory, with checksums.
"""

from __future__ import annotations

from pipelines.process import tune_process

tune_process()

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
from benchmarks.measure import Report, in_process, medians
from pipelines import embedded_s3
from pipelines.shards.jobs import shard_images
from pipelines.shards.manifest import Manifest, read_manifest
from pipelines.shards.reader import ShardReader
from pipelines.storage import open_store

DATA = Path(os.environ.get("GHN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
_REPEATS = 30  # of the 200 photographs: a job that takes a second says little about one that takes an hour
_AT_ONCE = 2
_RUNS = 3
_BATCH = 100


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
    with tempfile.TemporaryDirectory() as name, embedded_s3.running(Path(name) / "s3") as environment:
        os.environ.update(environment)
        folder, root = Path(name), f"s3://{embedded_s3.BUCKET}"
        photos, small = photographs(folder), small_images(folder)
        write(report, "shard_write_images", photos, f"{root}/quick", 500, at_least=70, check="quick")
        write(report, "shard_write_images_decoded", photos, f"{root}/decoded", 500, at_least=None, check="decode")
        write(report, "shard_write_32_pixels", small, f"{root}/small", 5000, at_least=None, check="quick")
        for row, part, at_least in (("images", "quick-0", 85.0), ("32_pixels", "small-0", None)):
            manifest = read_manifest(open_store(f"{root}/{part}/train"))
            times = in_process("shards", f"{root}/{part}")
            add(report, f"shard_read_{row}", {"train": manifest}, times["ours"], times["raw"], at_least)


def write(
    report: Report, row: str, source: Path, out: str, shard_samples: int, *, at_least: float | None, check: Any
) -> None:
    number = 0

    def job() -> dict[str, Manifest]:
        nonlocal number
        number += 1
        root = f"{out}-{number - 1}"
        return shard_images(str(source), root, seed=0, shard_samples=shard_samples, check=check, val_fraction=0)

    manifests = job()
    stores = {split: open_store(f"{out}-0/{split}") for split in manifests}
    contents = [
        (f"raw-{split}-{entry.name}", stores[split].read(entry.name))
        for split, manifest in manifests.items()
        for entry in manifest.shards
    ]
    store = open_store(out)

    def raw() -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            deque(pool.map(lambda item: store.write(*item), contents), maxlen=0)

    add(report, row, manifests, *medians(_RUNS, job, raw), at_least)


def time_reading(root: str) -> dict[str, float]:
    """In a process of its own, as training is: medians of reading all of a set, and of getting the same objects."""
    store = open_store(f"{root}/train")
    manifest = ShardReader(store, "images", seed=0).manifest

    def job() -> None:
        reader = ShardReader(store, "images", seed=0, window=1)
        for _ in range(0, manifest.samples, _BATCH):  # as training takes them: not all at once
            reader.take(_BATCH)

    client: Any = store.client  # type: ignore[attr-defined]

    def get(key: str) -> int:
        return len(client.get_object(Bucket=embedded_s3.BUCKET, Key=key)["Body"].read())

    def raw() -> None:
        prefix = store.root.removeprefix(f"s3://{embedded_s3.BUCKET}/")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            deque(pool.map(get, [f"{prefix}/{entry.name}" for entry in manifest.shards]), maxlen=0)

    ours, theirs = medians(_RUNS, job, raw)
    return {"ours": ours, "raw": theirs}


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
