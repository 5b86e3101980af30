"""Read a shard set in an order that depends on (seed, epoch) alone, from any position.

The order does not know how many ranks or workers read, so a run can resume anywhere, on any number of them. Shards are
permuted, then the samples of ``window`` consecutive shards are shuffled together. Content is verified against the
manifest before it is parsed: webdataset alone ends a truncated shard early without an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ghn.errors import DataError
from pipelines.shards.manifest import Manifest, ShardEntry, read_manifest
from pipelines.shards.tar import read_samples
from pipelines.storage import Store, open_store

_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ReaderState:
    """Where a reader is: which shard set, which epoch, and how many of its samples were given out."""

    manifest: str
    epoch: int
    position: int


class ShardReader:
    """Endless, resumable reading of one shard set.

    Args:
        store: the shard set.
        kind: ``images`` or ``deepnets``.
        seed: of the order.
        window: shards that are shuffled together (at least 1).

    """

    def __init__(self, store: Store, kind: Literal["images", "deepnets"], *, seed: int, window: int = 8) -> None:
        self.store = store
        self.manifest: Manifest = read_manifest(store, kind)
        self.seed, self.window = seed, window
        self.epoch = self.position = 0
        self._samples: Iterator[dict[str, Any]] | None = None
        self._cache: dict[str, list[dict[str, Any]]] = {}
        self._cacheable = sum(entry.bytes for entry in self.manifest.shards) <= _CACHE_BYTES

    def state(self) -> ReaderState:
        """Return the position behind the last sample given out."""
        return ReaderState(manifest=self.manifest.digest(), epoch=self.epoch, position=self.position)

    def restore(self, state: ReaderState) -> None:
        """Go on where a reader of the same shard set was; raises :class:`DataError` for another set."""
        if state.manifest != self.manifest.digest():
            raise DataError(
                f"{self.store.root} is not the shard set that the checkpoint was trained on (its manifest differs); "
                "give the same shards, or start a new run"
            )
        self.epoch, self.position, self._samples = state.epoch, state.position, None

    def take(self, count: int) -> list[dict[str, Any]]:
        """Return the next ``count`` samples, going into the next epoch where one ends."""
        samples: list[dict[str, Any]] = []
        while len(samples) < count:
            if self._samples is None:
                self._samples = self.epoch_samples(self.epoch, self.position)
            sample = next(self._samples, None)
            if sample is None:
                self.epoch, self.position, self._samples = self.epoch + 1, 0, None
            else:
                samples.append(sample)
                self.position += 1
        return samples

    def epoch_samples(self, epoch: int, position: int = 0) -> Iterator[dict[str, Any]]:
        """Yield one epoch's samples from ``position`` on; shards before it are not read."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.manifest.shards))
        for first in range(0, len(order), self.window):
            shards = [self.manifest.shards[i] for i in order[first : first + self.window]]
            count = sum(shard.samples for shard in shards)
            inner = rng.permutation(count)
            if position >= count:
                position -= count
                continue
            samples = [sample for shard in shards for sample in self._read(shard)]
            for i in inner[position:]:
                yield samples[i]
            position = 0

    def in_order(self) -> Iterator[dict[str, Any]]:
        """Yield all samples once, as they are stored."""
        for shard in self.manifest.shards:
            yield from self._read(shard)

    def _read(self, shard: ShardEntry) -> list[dict[str, Any]]:
        if shard.name not in self._cache:
            samples = read_shard(self.store, shard)
            if not self._cacheable:
                return samples
            self._cache[shard.name] = samples
        return self._cache[shard.name]


def read_shard(store: Store, shard: ShardEntry) -> list[dict[str, Any]]:
    """Return a shard's samples as ``{"__key__": key, extension: bytes}``, verified against the manifest.

    Raises:
        DataError: if the shard is missing, or its size, SHA-256 or number of samples is another one.

    """
    try:
        content = store.read(shard.name)
    except FileNotFoundError:
        raise DataError(
            f"{store.url(shard.name)} is missing, but the manifest names it; make the shard set again"
        ) from None
    if len(content) != shard.bytes or hashlib.sha256(content).hexdigest() != shard.sha256:
        raise DataError(
            f"{store.url(shard.name)} is damaged: {len(content)} bytes that do not match the manifest's "
            f"{shard.bytes} bytes and SHA-256; delete it and its manifest and make the shard set again"
        )
    samples = read_samples(content, shard.name)
    if len(samples) != shard.samples:
        raise DataError(f"{store.url(shard.name)} holds {len(samples)} samples, the manifest says {shard.samples}")
    return samples


def open_reader(
    root: str, split: str, kind: Literal["images", "deepnets"], *, seed: int = 0, window: int = 8
) -> ShardReader:
    """Open the shard set of one split below ``root``."""
    return ShardReader(open_store(f"{root.rstrip('/')}/{split}"), kind, seed=seed, window=window)
