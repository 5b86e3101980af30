"""Which rank this process is, by the variables that every launcher sets (torchrun, DeepSpeed, Kubernetes, ``ghn train``)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipelines.environment import EnvironmentSettings


class Launcher(EnvironmentSettings):
    """``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``; without the first two nobody launched this process.

    ``GHN_MASTER_FD`` comes from ``ghn train`` alone: the bound socket on loopback where rank 0 is to wait for the others.
    """

    prefix: ClassVar[str] = ""

    rank: int | None = Field(None, ge=0)
    world_size: int | None = Field(None, ge=1)
    local_rank: int = Field(0, ge=0)
    local_world_size: int = Field(1, ge=1)
    ghn_master_fd: int | None = Field(None, ge=0)

    @property
    def launched(self) -> bool:
        """Whether this process is one rank of a job that somebody else started."""
        return self.rank is not None and self.world_size is not None

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all: rank 0, or the command that starts the ranks."""
        return not self.launched or self.rank == 0
