"""Write a shard set: byte-identical for the same request, resumable, published by its manifest alone."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ghn.errors import InputError
from pipelines.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest
from pipelines.storage import Store

Sample = dict[str, bytes]
"""Fields of one sample by extension; values are encoded already."""


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """One sample to store: a unique key, its fields, and numbers to add up in the manifest."""

    key: str
    fields: Sample
    nodes: int | None = None
    parameters: int | None = None


@dataclass(kw_only=True)
class _Shard:
    records: list[SampleRecord] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the tar: fixed times, owners and modes, so that equal samples are equal bytes."""
        import webdataset

        stream = io.BytesIO()
        writer = webdataset.TarWriter(stream, encoder=False, mtime=0, user="ghn", group="ghn", mode=0o644)
        for record in self.records:
            writer.write({"__key__": record.key, **record.fields})
        writer.close()
        return stream.getvalue()

    def total(self, name: str) -> int | None:
        values = [getattr(record, name) for record in self.records]
        return None if not values or values[0] is None else sum(values)


def write_shards(
    store: Store,
    records: Iterable[SampleRecord],
    *,
    shard_samples: int,
    facts: dict[str, Any],
) -> Manifest:
    """Write records into shards of at most ``shard_samples`` and, last, the manifest.

    A shard that is stored already with the same size is compared by content and left alone, so running an interrupted
    job again finishes what is missing. A finished set made by the same request is returned at once; one made by another
    request is never overwritten.

    Args:
        store: where the set goes.
        records: in their final order.
        shard_samples: samples per shard (>= 1).
        facts: the manifest's other fields.

    Raises:
        InputError: if there are no records, or ``store`` holds a set made by another request.

    """
    if shard_samples < 1:
        raise InputError(f"shard-samples={shard_samples}: give at least 1")
    if existing := find_finished(store, facts):
        return existing
    entries = []
    for number, shard in enumerate(_batches(records, shard_samples)):
        content = shard.encode()
        name = f"{facts['kind']}-{facts['split']}-{number:06d}.tar"
        if store.size(name) != len(content) or store.read(name) != content:
            store.write(name, content)
        entries.append(
            ShardEntry(
                name=name,
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                samples=len(shard.records),
                nodes=shard.total("nodes"),
                parameters=shard.total("parameters"),
            )
        )
    if not entries:
        raise InputError(f"nothing to write to {store.root}: the source has no samples for split {facts['split']!r}")
    manifest = Manifest(**facts, samples=sum(entry.samples for entry in entries), shards=entries)
    for key in store.list():  # what an interrupted job with another request left behind
        if key.endswith(".tar") and key not in {entry.name for entry in entries}:
            store.delete(key)
    store.write(MANIFEST_NAME, manifest.encode())
    return manifest


def find_finished(store: Store, facts: dict[str, Any]) -> Manifest | None:
    """Return the manifest of a finished set made by the same request, ``None`` if there is no set.

    Raises:
        InputError: if another request made the set that is there.

    """
    if store.size(MANIFEST_NAME) is None:
        return None
    manifest = read_manifest(store, facts["kind"])
    for name, value in facts.items():
        if (found := getattr(manifest, name)) != value:
            raise InputError(
                f"{store.root} already holds a shard set with another {name} ({found!r}, asked for {value!r}); "
                "choose another --out, or remove that set first"
            )
    return manifest


def _batches(records: Iterable[SampleRecord], size: int) -> Iterator[_Shard]:
    shard = _Shard()
    for record in records:
        shard.records.append(record)
        if len(shard.records) == size:
            yield shard
            shard = _Shard()
    if shard.records:
        yield shard
