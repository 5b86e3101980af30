"""Read a shard set in the order of :mod:`pipelines.shards.order`, from any position, as one of any number of ranks.

Content is verified against the manifest before it is parsed (webdataset alone ends a truncated shard early without an
error), and nothing is ever unpickled. Shards are fetched ahead of their turn by threads.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from ghn.errors import DataError
from pipelines.progress import emit
from pipelines.shards.manifest import Manifest, ShardEntry, read_manifest
from pipelines.shards.order import epoch_order
from pipelines.shards.tar import read_samples
from pipelines.storage import ReadCache, Store, open_store

Kind = Literal["images", "deepnets"]
OnBadShard = Literal["fail", "skip"]
Sample = dict[str, Any]
"""``{"__key__": key, extension: bytes}``"""

_KEPT_BYTES = 256 << 20  # sets up to this size stay in memory, in that of every rank


@dataclass(frozen=True, kw_only=True)
class ReaderState:
    """Where a reader is: which shard set, which epoch, and how many of its samples all ranks together were given."""

    manifest: str
    epoch: int
    position: int


@dataclass(kw_only=True)
class ReaderMetrics:
    """What a reader did so far.

    Attributes:
        samples: given out.
        shards: fetched (from the store or the cache on disk).
        bytes: of these shards.
        fetch_s: seconds that fetching, verifying and parsing took, summed over threads.
        stall_s: seconds for which somebody waited for a shard.
        bad_shards: names of shards that were skipped.
        replaced: samples of bad shards in whose place others were given out.

    """

    samples: int = 0
    shards: int = 0
    bytes: int = 0
    fetch_s: float = 0.0
    stall_s: float = 0.0
    bad_shards: list[str] = field(default_factory=list)
    replaced: int = 0


class ShardReader:
    """Endless, resumable reading of one shard set.

    Epochs follow each other without a gap, so every rank makes any number of equal steps and no sample is left out.

    Args:
        store: the shard set.
        kind: ``images`` or ``deepnets``.
        seed: of the order.
        window: shards that are shuffled together (at least 1).
        lanes: see :mod:`pipelines.shards.order`.
        rank: which of the readers this is, from 0.
        world_size: how many readers there are; each gets every ``world_size``-th sample.
        prefetch: shards that are fetched ahead of their turn.
        on_bad_shard: ``fail`` raises for a missing or damaged shard. ``skip`` reports and counts it and gives, in place of
            each of its samples, one of the next good shard: positions, and so resuming and equal steps, stay exact.
        cache: on local disk; default: the one that ``GHN_CACHE`` names, for S3.

    Raises:
        InputError, DataError: see :func:`read_manifest`.

    """

    def __init__(
        self,
        store: Store,
        kind: Kind,
        *,
        seed: int,
        window: int = 8,
        lanes: int = 1,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        on_bad_shard: OnBadShard = "fail",
        cache: ReadCache | None = None,
    ) -> None:
        self.store = store
        self.manifest: Manifest = read_manifest(store, kind)
        self.seed, self.window, self.lanes = seed, window, lanes
        self.rank, self.world_size = rank, world_size
        self.prefetch, self.on_bad_shard = prefetch, on_bad_shard
        self.cache = cache or (ReadCache.configured() if store.root.startswith("s3://") else None)
        self.metrics = ReaderMetrics()
        self.epoch = self.position = 0
        self._stream: Iterator[Sample] | None = None
        self._kept: dict[int, Sequence[Sample]] = {}
        self._bad: set[int] = set()
        self._keeps = sum(entry.bytes for entry in self.manifest.shards) <= _KEPT_BYTES
        self._counts = np.array([entry.samples for entry in self.manifest.shards], dtype=np.int64)
        self._ends = np.cumsum(self._counts)

    def state(self) -> ReaderState:
        """Return the position behind the last samples given out; the same on every rank after as many steps."""
        return ReaderState(manifest=self.manifest.digest(), epoch=self.epoch, position=self.position)

    def restore(self, state: ReaderState) -> None:
        """Go on where readers of the same shard set were, however many; raises :class:`DataError` for another set."""
        if state.manifest != self.manifest.digest():
            raise DataError(
                f"{self.store.root} is not the shard set that the checkpoint was trained on (its manifest differs); "
                "give the same shards, or start a new run"
            )
        self.epoch, self.position, self._stream = state.epoch, state.position, None

    def take(self, count: int) -> list[Sample]:
        """Return this rank's next ``count`` samples, going into the next epoch where one ends.

        All ranks together are given ``count * world_size`` samples.
        """
        if self._stream is None:
            self._stream = self.samples()
        taken = [next(self._stream) for _ in range(count)]
        done = self.position + count * self.world_size
        self.epoch, self.position = self.epoch + done // self.manifest.samples, done % self.manifest.samples
        return taken

    def samples(self) -> Iterator[Sample]:
        """Yield this rank's samples from the current position on, without end and without moving the position."""
        number = self.epoch * self.manifest.samples + self.position + self.rank
        while True:
            epoch, position = divmod(number, self.manifest.samples)
            order = epoch_order(
                self._counts.tolist(), seed=self.seed, epoch=epoch, window=self.window, lanes=self.lanes
            )[position :: self.world_size]
            yield from self._read(order)
            number += self.world_size * len(order)

    def in_order(self) -> Iterator[Sample]:
        """Yield all samples once, as they are stored."""
        return self._read(np.arange(self.manifest.samples))

    def _read(self, order: np.ndarray) -> Iterator[Sample]:
        """Yield samples by their numbers; a shard is in memory from its first sample's turn to its last one's."""
        shards = np.searchsorted(self._ends, order, side="right")
        within = order - (self._ends - self._counts)[shards]
        wanted, first = np.unique(shards, return_index=True)
        _, last = np.unique(shards[::-1], return_index=True)
        leaves = dict(zip(wanted.tolist(), (len(order) - 1 - last).tolist(), strict=True))
        with _Ahead(self, wanted[np.argsort(first)].tolist()) as ahead:
            held: dict[int, Sequence[Sample]] = {}
            for turn, (shard, i) in enumerate(zip(shards.tolist(), within.tolist(), strict=True)):
                if shard not in held:
                    held[shard] = ahead.take()
                samples = held[shard]
                self.metrics.samples += 1
                self.metrics.replaced += shard in self._bad
                yield samples[i % len(samples)]
                if leaves[shard] == turn:
                    del held[shard]

    def _fetch(self, shard: int) -> _Fetched:
        """Return a shard's samples; in place of a bad one, if those are skipped, the samples of the next good one."""
        if shard in self._kept:
            return _Fetched(self._kept[shard])
        started = time.monotonic()
        count, error = len(self.manifest.shards), None
        for other in range(shard, shard + (1 if self.on_bad_shard == "fail" else count)):
            entry = self.manifest.shards[other % count]
            try:
                samples = read_shard(self.store, entry, self.cache)
            except DataError as problem:
                error = error or problem
                continue
            if self._keeps:
                self._kept[shard] = samples = list(
                    samples
                )  # the same objects each time: users may add what they decoded
            return _Fetched(samples, entry.bytes, time.monotonic() - started, error)
        if error is None or self.on_bad_shard == "fail":
            raise error or DataError(f"{self.store.root} holds no shards")
        raise DataError(f"every shard of {self.store.root} is bad; make the shard set again. First: {error}") from error

    def _count(self, shard: int, fetched: _Fetched, waited: float) -> None:
        metrics, name = self.metrics, self.manifest.shards[shard].name
        metrics.shards += fetched.bytes > 0
        metrics.bytes += fetched.bytes
        metrics.fetch_s += fetched.seconds
        metrics.stall_s += waited
        if fetched.error is not None and shard not in self._bad:
            self._bad.add(shard)
            metrics.bad_shards.append(name)
            emit("bad_shard", shard=self.store.url(name), reason=str(fetched.error))


class _Fetched(NamedTuple):
    """A shard's samples, what fetching them took, and why they are those of another shard, if they are."""

    samples: Sequence[Sample]
    bytes: int = 0
    seconds: float = 0.0
    error: DataError | None = None


class _Ahead:
    """Fetches shards in the order in which they are needed, some of them ahead."""

    def __init__(self, reader: ShardReader, shards: Sequence[int]) -> None:
        self._reader = reader
        self._coming = iter(shards)
        self._pending: deque[tuple[int, Future[_Fetched]]] = deque()
        self._pool = ThreadPoolExecutor(1 + reader.prefetch)

    def __enter__(self) -> _Ahead:
        self._fill()
        return self

    def __exit__(self, *error: object) -> None:
        for _, future in self._pending:
            future.cancel()
        self._pool.shutdown(wait=False)

    def _fill(self) -> None:
        while len(self._pending) <= self._reader.prefetch and (shard := next(self._coming, None)) is not None:
            self._pending.append((shard, self._pool.submit(self._reader._fetch, shard)))

    def take(self) -> Sequence[Sample]:
        """Return the next shard's samples."""
        started = time.monotonic()
        number, future = self._pending.popleft()
        fetched = future.result()
        self._reader._count(number, fetched, time.monotonic() - started)
        self._fill()
        return fetched.samples


def read_shard(store: Store, shard: ShardEntry, cache: ReadCache | None = None) -> Sequence[Sample]:
    """Return a shard's samples, verified against the manifest.

    Raises:
        DataError: if the shard is missing, or its size, SHA-256 or number of samples is another one.

    """
    content: bytes | memoryview | None = cache.get(shard.sha256) if cache else None
    if content is None:
        content = _read_verified(store, shard)
        if cache:
            cache.put(shard.sha256, content)
    try:
        samples = read_samples(content, shard.name)
    except Exception as error:  # a tar that was made to match the manifest can be wrong in any way
        raise DataError(f"{store.url(shard.name)} is no tar of samples: {error}; make the shard set again") from error
    if len(samples) != shard.samples:
        raise DataError(f"{store.url(shard.name)} holds {len(samples)} samples, the manifest says {shard.samples}")
    return samples


def _read_verified(store: Store, shard: ShardEntry) -> memoryview:
    """Return a shard's bytes; errors as in :func:`read_shard`."""
    try:
        content, digest = store.read_hashed(shard.name)
    except FileNotFoundError:
        raise DataError(
            f"{store.url(shard.name)} is missing, but the manifest names it; make the shard set again"
        ) from None
    if len(content) != shard.bytes or digest != shard.sha256:
        raise DataError(
            f"{store.url(shard.name)} is damaged: {len(content)} bytes that do not match the manifest's "
            f"{shard.bytes} bytes and SHA-256; delete it and its manifest and make the shard set again"
        )
    return content


def open_reader(root: str, split: str, kind: Kind, *, seed: int = 0, **options: Any) -> ShardReader:
    """Open the shard set of one split below ``root``; options are those of :class:`ShardReader`."""
    return ShardReader(open_store(f"{root.rstrip('/')}/{split}"), kind, seed=seed, **options)
