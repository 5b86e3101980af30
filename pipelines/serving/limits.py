"""What one request may ask for, and how much may be asked at once: from the environment of the server."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ghn.errors import InputError
from pipelines.environment import EnvironmentSettings
from pipelines.machine import cores, memory_bytes

_EACH_BYTES = 2 << 30  # that one request in work may take, with the default limits


class LimitError(InputError):
    """A request asks for more than the server gives."""


def _default_parallel() -> int:
    """Return how many requests processors and memory allow."""
    return max(1, min(cores(), memory_bytes() // _EACH_BYTES))


class Limits(EnvironmentSettings):
    """Settings of the server, each from the variable ``GHN_SERVE_`` + its name in capitals."""

    prefix: ClassVar[str] = "GHN_SERVE_"

    body_mib: float = Field(default=4.0, gt=0, description="largest request")
    nesting: int = Field(default=16, ge=4, description="deepest JSON")
    architectures: int = Field(default=16, ge=1, description="most architectures in one request")
    nodes: int = Field(default=2500, ge=2, description="most nodes of one graph")
    values: int = Field(default=200_000_000, ge=1, description="most values predicted for one request")
    vector_values: int = Field(
        default=4_000_000, ge=1, description="most values among them in biases, norms and other vectors"
    )
    seconds: float = Field(
        default=60.0, gt=0, description="longest time for one request, waiting for its turn included"
    )
    slow_s: float = Field(default=30.0, gt=0, description="longest time to send a request or to fetch an answer")
    parallel: int = Field(default_factory=_default_parallel, ge=1, description="requests in work at once")
    waiting: int = Field(default=32, ge=0, description="requests that may wait for their turn")
    unsent_mib: float = Field(default=1024.0, gt=0, description="answers that wait to be fetched by their clients")
    inline_mib: float = Field(default=128.0, gt=0, description="larger answers go to the store")
    store: str | None = Field(default=None, description="root for larger answers: s3://bucket/prefix or a folder")
    models: str = Field(default="*", description="torchvision models that may be named: patterns, separated by spaces")
