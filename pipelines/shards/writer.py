"""Write a shard set: byte-identical for the same request, resumable, published by its manifest alone.

A set is written by one process or by several, each of which takes a *part*: a range of shards. A part's journal says which
of its shards are stored and where its source goes on; it is brought up to date every few seconds, so a job that was
killed repeats no more than that. Whoever finishes last puts the journals together to the manifest and removes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ghn.errors import InputError, StorageError
from pipelines.part import Part
from pipelines.progress import emit
from pipelines.shards.manifest import MANIFEST_NAME, Manifest, Rejection, ShardEntry, read_manifest
from pipelines.shards.tar import write_samples
from pipelines.storage import Store

_JOURNAL = re.compile(r"journal-\d{5}-of-\d{5}\.json")
_JOURNAL_S = 3.0
_AT_ONCE = 3  # shards that are encoded or travel while the next one is gathered; each is in memory
_MEMBER_BYTES = 1024  # at most: a member's header, and what rounds its content up to whole blocks


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """One sample to store: a unique key, its encoded fields by extension, and numbers to add up in the manifest.

    ``position`` is where the source goes on after this sample.
    """

    key: str
    fields: dict[str, bytes]
    position: int
    nodes: int | None = None
    parameters: int | None = None


Records = Iterator[SampleRecord | Rejection]
"""What a source gives, in its final order."""


def _journal_key(part: Part) -> str:
    return f"journal-{part.number:05d}-of-{part.count:05d}.json"


class _Journal(BaseModel):
    """What is stored of one part of a set, and where its source goes on."""

    model_config = ConfigDict(extra="forbid")

    request: str
    finished: bool = False
    position: int = 0
    shards: list[ShardEntry] = []
    rejected: list[Rejection] = []


@dataclass(kw_only=True)
class _Shard:
    """Samples of one shard, what was rejected before them, and where the source goes on behind them."""

    name: str
    position: int = 0
    records: list[SampleRecord] = dataclasses.field(default_factory=list)
    rejected: list[Rejection] = dataclasses.field(default_factory=list)

    def total(self, name: str) -> int | None:
        values = [getattr(record, name) for record in self.records]
        return None if values[0] is None else sum(values)


class SetWriter:
    """Writer of one shard set, or of a part of it.

    A finished set made by the same request is left alone; one made by another request is never overwritten.

    Args:
        store: where the set goes.
        facts: the manifest's fields but for ``samples``, ``shards`` and ``rejected``.
        shard_samples: most samples of a shard (>= 1).
        shard_bytes: most bytes of a shard that has more than one sample.
        part: which part of the set this is.
        first_shard: number of the part's first shard.

    Raises:
        InputError: if ``store`` holds a set made by another request.

    Attributes:
        manifest: of the finished set, ``None`` if it is not finished.

    """

    def __init__(
        self,
        store: Store,
        facts: dict[str, Any],
        *,
        shard_samples: int,
        shard_bytes: int | None = None,
        part: Part | None = None,
        first_shard: int = 0,
    ) -> None:
        if shard_samples < 1:
            raise InputError(f"shard-samples={shard_samples}: give at least 1")
        self.store, self.facts = store, facts
        self.shard_samples, self.shard_bytes = shard_samples, shard_bytes or 1 << 62
        self.part, self.first_shard = part or Part(), first_shard
        self._request = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._saved = time.monotonic()
        self._stored: set[str] = set()
        self._found: frozenset[str] = frozenset()
        self.manifest = _find_finished(store, facts)
        self._journal = self._read_journal(_journal_key(self.part)) or _Journal(request=self._request)

    @property
    def done(self) -> int:
        """Samples of this part that are stored."""
        shards = self._journal.shards if self.manifest is None else self.manifest.shards
        return sum(entry.samples for entry in shards)

    def write(self, records: Callable[[int], Records], *, start: int = 0) -> Manifest | None:
        """Write what is missing; return the manifest, or ``None`` as long as other parts are not finished.

        Args:
            records: from a position of the source to its records from there on.
            start: position of the part's first record.

        Raises:
            InputError: if the whole set would hold no samples.

        """
        if self.manifest is None and not self._journal.finished:
            position = self._journal.position if self._journal.shards else start
            self._write_part(records(position))
        if self.manifest is None:
            self.manifest = self._publish()
        if self.manifest is not None:
            self._clean(self.manifest)
        return self.manifest

    def _write_part(self, records: Records) -> None:
        journal, behind = self._journal, list[Rejection]()
        self._forget_other_requests()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            pending: deque[tuple[Future[ShardEntry], _Shard]] = deque()
            try:
                for shard in self._cut(records, behind):
                    pending.append((pool.submit(self._store_shard, shard), shard))
                    while len(running := [future for future, _ in pending if not future.done()]) > _AT_ONCE:
                        wait(running, return_when=FIRST_COMPLETED)  # of any: the oldest one may take longest
                    while pending and pending[0][0].done():
                        self._settle(pending)
            except BaseException:  # the source fails, or somebody stops the job: what is on its way is kept
                while pending:
                    self._settle(pending)
                if journal.shards:
                    self._save_journal()
                raise
            while pending:
                self._settle(pending)
        journal.rejected += behind
        journal.finished = True
        if journal.shards or self.part.count > 1:
            self._save_journal()

    def _forget_other_requests(self) -> None:
        """Remove journals of other requests: what they say of the shards here is about to be untrue."""
        self._found = frozenset(self.store.list())
        for key in self._found:
            if _JOURNAL.fullmatch(key) and self._read_journal(key) is None:
                self.store.delete(key)

    def _cut(self, records: Records, behind: list[Rejection]) -> Iterator[_Shard]:
        """Yield shards; what is rejected behind the last sample goes to ``behind``."""
        number = self.first_shard + len(self._journal.shards)
        held = 0
        shard = _Shard(name=self._name(number))
        for record in records:
            if isinstance(record, Rejection):
                behind.append(record)
                continue
            size = sum(len(value) + _MEMBER_BYTES for value in record.fields.values())
            if shard.records and (len(shard.records) == self.shard_samples or held + size > self.shard_bytes):
                yield shard
                number, held = number + 1, 0
                shard = _Shard(name=self._name(number))
            shard.rejected += behind
            behind.clear()
            shard.records.append(record)
            shard.position = record.position
            held += size
        if shard.records:
            yield shard

    def _name(self, number: int) -> str:
        return f"{self.facts['kind']}-{self.facts['split']}-{number:06d}.tar"

    def _store_shard(self, shard: _Shard) -> ShardEntry:
        """Encode and store a shard, unless it is there already."""
        samples, nodes, parameters = len(shard.records), shard.total("nodes"), shard.total("parameters")
        content = write_samples((record.key, record.fields) for record in shard.records)
        shard.records.clear()  # in memory once, not twice, while it travels
        digest = hashlib.sha256(content).hexdigest()
        if shard.name not in self._found or self.store.read(shard.name) != content:
            self.store.write(shard.name, content, digest)
        return ShardEntry(
            name=shard.name,
            bytes=len(content),
            sha256=digest,
            samples=samples,
            nodes=nodes,
            parameters=parameters,
        )

    def _settle(self, pending: deque[tuple[Future[ShardEntry], _Shard]]) -> None:
        """Wait for the oldest upload. If it failed it stays the oldest: no shard behind it gets into the journal."""
        entry, shard = pending[0]
        self._journal.shards.append(entry.result())
        self._stored.add(shard.name)
        pending.popleft()
        self._journal.rejected += shard.rejected
        self._journal.position = shard.position
        if time.monotonic() - self._saved > _JOURNAL_S:
            self._save_journal()

    def _save_journal(self) -> None:
        self.store.write(_journal_key(self.part), self._journal.model_dump_json().encode())
        self._saved = time.monotonic()

    def _read_journal(self, key: str) -> _Journal | None:
        """Return a journal, ``None`` if there is none of this request."""
        try:
            journal = _Journal.model_validate_json(self.store.read(key))
        except (FileNotFoundError, ValidationError):
            return None
        if journal.request != self._request:
            return None
        return journal

    def _publish(self) -> Manifest | None:
        """Put all parts together, if all are finished, and write the manifest."""
        parts = [Part(number, self.part.count) for number in range(1, self.part.count + 1)]
        journals = [self._journal if part == self.part else self._read_journal(_journal_key(part)) for part in parts]
        unfinished = [
            part.number for part, journal in zip(parts, journals, strict=True) if not journal or not journal.finished
        ]
        if unfinished:  # unless another process has just published the set, and removed the journals
            manifest = _find_finished(self.store, self.facts)
            if manifest is None:
                emit("part", part=self.part.number, of=self.part.count, waiting_for=unfinished[:20])
            return manifest
        shards = [entry for journal in journals if journal for entry in journal.shards]
        if not shards:
            raise InputError(
                f"nothing to write to {self.store.root}: the source has no samples for split {self.facts['split']!r}"
            )
        if gone := [e.name for e in shards if e.name not in self._stored and self.store.size(e.name) != e.bytes]:
            for part in parts:
                self.store.delete(_journal_key(part))
            raise StorageError(
                f"{self.store.url(gone[0])} was stored but is gone ({len(gone)} shards in all); run the same command again"
            )
        manifest = Manifest(
            **self.facts,
            samples=sum(entry.samples for entry in shards),
            shards=shards,
            rejected=[item for journal in journals if journal for item in journal.rejected],
        )
        try:
            self.store.write(MANIFEST_NAME, manifest.encode())
        except StorageError:  # a part that finished at the same moment may have published, and cleaned up
            if _find_finished(self.store, self.facts) is None:
                raise
        return manifest

    def _clean(self, manifest: Manifest) -> None:
        """Remove journals, and what jobs that were killed or had another request left behind."""
        known = {entry.name for entry in manifest.shards}
        shard = re.compile(rf"{manifest.kind}-{manifest.split}-\d{{6,}}\.tar")
        for key in self.store.list():
            if _JOURNAL.fullmatch(key) or (shard.fullmatch(key) and key not in known):
                self.store.delete(key)
        self.store.remove_unfinished()


def _find_finished(store: Store, facts: dict[str, Any]) -> Manifest | None:
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
