"""Small shard sets for tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.shards.manifest import Manifest, Rejection
from pipelines.shards.writer import SampleRecord, SetWriter
from pipelines.storage import Store

FACTS: dict[str, Any] = {
    "kind": "images",
    "split": "train",
    "source": "test",
    "seed": 0,
    "classes": ["a", "b"],
    "request": {"n": 1},
}


def records(count: int) -> list[SampleRecord]:
    return [
        SampleRecord(key=f"{i:04d}", fields={"png": bytes([i % 256]) * i, "cls": b"1"}, position=i + 1)
        for i in range(count)
    ]


def write_shards(
    store: Store, items: Iterable[SampleRecord | Rejection], *, facts: dict[str, Any] = FACTS, **options: Any
) -> Manifest:
    """Write a whole set; what an interrupted call stored is not asked for again."""

    def from_position(start: int) -> Iterator[SampleRecord | Rejection]:
        return (item for item in items if isinstance(item, Rejection) or item.position > start)

    manifest = SetWriter(store, facts, **options).write(from_position)
    assert manifest is not None
    return manifest


def keys(samples: Iterable[dict[str, Any]]) -> list[str]:
    return [sample["__key__"] for sample in samples]


def content(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}
