"""Drawing architectures into shards on S3, and reading them into graphs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Report, seconds
from ghn.architecture import Architecture
from ghn.genotype import spec_from_json
from ghn.space import sample_spec
from pipelines.local import embedded_s3
from pipelines.shards.jobs import shard_deepnets
from pipelines.shards.reader import open_reader, read_shard

COUNT = 100_000
_PER_CORE = 1_000


def draw(first: int) -> None:
    """Sample architectures and build their graphs with all virtual edges, on one core."""
    for index in range(first, first + _PER_CORE):
        Architecture(spec=sample_spec("train", 0, index)).graph.virtual_edges()


def measure(report: Report) -> None:
    rates = sorted(_PER_CORE / seconds(lambda first=first: draw(first)) for first in range(0, 3 * _PER_CORE, _PER_CORE))
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, embedded_s3.running(Path(folder)) as environment:
        os.environ.update(environment)
        root = f"s3://{embedded_s3.BUCKET}/deepnets"
        taken = seconds(lambda: shard_deepnets(["train"], root, count=COUNT, seed=0, shard_samples=1000))
        report.row(
            "generate",
            COUNT / taken / cores,
            "architectures/s per core",
            at_least=300,
            one_core_without_storing=rates[1],
            run_of=COUNT,
            seconds=taken,
            minutes_for_a_million=taken * 1e6 / COUNT / 60,
        )
        reader = open_reader(root, "train", "deepnets")
        entries = reader.manifest.shards[:3]

        def read(shard: int) -> None:
            for sample in read_shard(reader.store, entries[shard]):
                Architecture(spec=spec_from_json(sample["json"].decode())).graph.virtual_edges()

        rates = sorted(entries[i].samples / seconds(lambda i=i: read(i)) for i in range(3))
        stored = sum(entry.bytes for entry in entries) / sum(entry.samples for entry in entries)
        report.row("read_architecture", rates[1], "architectures/s per core", at_least=800)
        report.row("read_architecture_bytes", stored, "bytes stored for each", at_most=2048)


if __name__ == "__main__":
    sys.exit("run python -m benchmarks")
