"""Writing and reading image shards on S3, next to the same client moving the same bytes; with published data, if it is there.

The raw speed is that of boto3 with as many requests at once, whole objects from and to memory, with checksums.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.images import make_images
from benchmarks.measure import Report, medians
from pipelines import embedded_s3
from pipelines.shards.jobs import shard_images
from pipelines.shards.manifest import Manifest
from pipelines.shards.reader import ShardReader
from pipelines.storage import open_store

DATA = Path(os.environ.get("GHN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
_REPEATS = 10  # of the 200 photographs: a job that takes a second says little
_AT_ONCE = 2
_RUNS = 5


def photographs(folder: Path) -> Path:
    """Return a folder of full-size photographs in class folders, each under several names."""
    source = DATA / "imagenet-sample.zip"
    if not source.is_file():
        source = folder / "made.zip"
        make_images(source, 200, 500, 375)
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            for i in range(_REPEATS):
                path = folder / "photographs" / Path(name).parent.name / f"{i}-{Path(name).name}"
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
        read(report, "shard_read_images", f"{root}/quick-0", at_least=85)
        read(report, "shard_read_32_pixels", f"{root}/small-0", at_least=None)


def write(
    report: Report, row: str, source: Path, out: str, shard_samples: int, *, at_least: float | None, check: Any
) -> None:
    number = 0

    def job() -> dict[str, Manifest]:
        nonlocal number
        number += 1
        return shard_images(str(source), f"{out}-{number - 1}", seed=0, shard_samples=shard_samples, check=check)

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

    compare(report, row, manifests, job, raw, at_least)


def read(report: Report, row: str, root: str, *, at_least: float | None) -> None:
    store = open_store(f"{root}/train")
    manifest = ShardReader(store, "images", seed=0).manifest

    def job() -> None:
        reader = ShardReader(store, "images", seed=0, window=1)
        for _ in reader.take(manifest.samples):
            pass

    def raw() -> None:
        client = store.client  # type: ignore[attr-defined]

        def get(name: str) -> int:
            answer = client.get_object(Bucket=embedded_s3.BUCKET, Key=f"{store.prefix}{name}")  # type: ignore[attr-defined]
            return len(answer["Body"].read())

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            deque(pool.map(get, [entry.name for entry in manifest.shards]), maxlen=0)

    compare(report, row, {"train": manifest}, job, raw, at_least)


def compare(
    report: Report,
    row: str,
    manifests: dict[str, Manifest],
    job: Callable[[], Any],
    raw: Callable[[], Any],
    at_least: float | None,
) -> None:
    ours, theirs = medians(_RUNS, job, raw)
    megabytes = sum(entry.bytes for manifest in manifests.values() for entry in manifest.shards) / 1e6
    samples = sum(manifest.samples for manifest in manifests.values())
    facts = {
        "mb_per_s": megabytes / ours,
        "raw_mb_per_s": megabytes / theirs,
        "samples_per_s": samples / ours,
        "samples": samples,
    }
    if at_least is None:
        report.grow("shards without a target", row=row, percent_of_raw=round(100 * theirs / ours, 1), **facts)
    else:
        report.row(row, 100 * theirs / ours, "% of the raw speed", at_least=at_least, **facts)
