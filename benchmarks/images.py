"""Reading image shards, next to decoding the same bytes from memory with the same decoder; one core."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Report, medians
from pipelines.image_batch import Decoded, decode, to_batch
from pipelines.shards.jobs import shard_images
from pipelines.shards.reader import open_reader, read_shard

_BATCH = 64
_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_images(path: Path, count: int, width: int, height: int) -> None:
    """Write a zip of JPEG images in two classes: smooth colours and noise, which compress like photographs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8))
            pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
            noisy = np.clip(pixels + rng.normal(0, 12, size=pixels.shape), 0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(noisy).save(stream, format="JPEG", quality=90)
            archive.writestr(f"{'ab'[i % 2]}/{i:05d}.jpg", stream.getvalue())


def measure(report: Report) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name, count, width, height, size in (
        ("read_images", 400, 500, 375, 224),
        ("read_images_32_pixels", 8000, 32, 32, 32),
    ):
        with tempfile.TemporaryDirectory() as folder:
            make_images(Path(folder) / "images.zip", count, width, height)
            shard_images(f"{folder}/images.zip", f"{folder}/shards", seed=0, shard_samples=count // 4)
            reader = open_reader(f"{folder}/shards", "train", "images")
            entry = reader.manifest.shards[0]
            samples = read_shard(reader.store, entry)

            def from_memory(samples: list[dict[str, Any]] = samples, size: int = size) -> None:
                for sample in samples:
                    decode(sample, size)

            def from_shard(store: Any = reader.store, entry: Any = entry, size: int = size) -> None:
                decoded: list[Decoded] = []
                rng = np.random.default_rng(0)
                for sample in read_shard(store, entry):
                    decoded.append(decode(sample, size))
                    if len(decoded) == _BATCH:
                        to_batch(decoded, *_STATISTICS, augmentation="crop_flip", rng=rng)
                        decoded = []
                if decoded:
                    to_batch(decoded, *_STATISTICS, augmentation="crop_flip", rng=rng)

            memory, shard = medians(9, from_memory, from_shard)
            percent, facts = 100 * memory / shard, {"images_per_second": len(samples) / shard}
            if size > 32:
                report.row(name, percent, "% of decoding alone", at_least=90, **facts)
            else:  # sets of such images stay in memory, decoded: this is the first epoch only
                report.grow("reading without a target", row=name, percent_of_decoding=round(percent, 1), **facts)
