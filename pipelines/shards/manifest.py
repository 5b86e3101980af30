"""The manifest of a shard set: written last, so a shard set without one does not exist."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ghn.errors import DataError, InputError
from pipelines.storage import Store

MANIFEST_NAME = "manifest.json"


class ShardEntry(BaseModel):
    """One tar: name, size in bytes, SHA-256 and samples; for architectures also the sums of nodes and parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    samples: int = Field(ge=1)
    nodes: int | None = None
    parameters: int | None = None


class Rejection(BaseModel):
    """One item of the source that could not be read and was left out, by its name in the source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    reason: str


class Manifest(BaseModel):
    """What a shard set holds and how it was made.

    ``request`` is everything that decides its content (source, seed, sizes): the same request gives the same bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    kind: Literal["images", "deepnets"]
    split: str
    source: str
    seed: int
    generator_version: int | None = None
    graph_revision: int | None = None
    classes: list[str] | None = None
    request: dict[str, Any]
    samples: int
    shards: list[ShardEntry]
    rejected: list[Rejection] = []

    def encode(self) -> bytes:
        """Return the file's bytes (sorted keys: equal manifests are equal bytes)."""
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()

    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.encode()).hexdigest()

    def summary(self) -> str:
        """Return in one line how much there is."""
        size = sum(entry.bytes for entry in self.shards) / 1e6
        left_out = f", {len(self.rejected)} unreadable left out" if self.rejected else ""
        return f"{self.samples:,} samples in {len(self.shards)} shards, {size:,.2f} MB{left_out}"


def read_manifest(store: Store, kind: Literal["images", "deepnets"] | None = None) -> Manifest:
    """Read and check the manifest of a shard set (of any kind, if none is given).

    Raises:
        InputError: if there is none, or it describes another kind of shard set.
        DataError: if it is damaged or of another schema version.

    """
    try:
        content = store.read(MANIFEST_NAME)
    except FileNotFoundError:
        raise InputError(
            f"no shard set at {store.root}: it has no {MANIFEST_NAME}; make it with `ghn shard {kind or 'images'}` "
            "(an interrupted job leaves none: run it again)"
        ) from None
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{store.url(MANIFEST_NAME)} is damaged or of another version: {where}: {first['msg']}"
        ) from error
    if kind not in (None, manifest.kind):
        raise InputError(f"{store.root} holds {manifest.kind} shards, but {kind} shards are needed")
    if manifest.samples < 1:
        raise DataError(f"{store.root} holds no samples; make the shard set again")
    if manifest.samples != (found := sum(entry.samples for entry in manifest.shards)):
        raise DataError(
            f"{store.url(MANIFEST_NAME)} is damaged: {manifest.samples} samples, but {found} in its shards; make the "
            "shard set again"
        )
    return manifest
