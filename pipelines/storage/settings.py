"""How stores and the cache are used: from the environment, so that every process of a job uses them alike.

Address, region and credentials of S3 are those of boto3's own chain: ``AWS_ENDPOINT_URL``, ``AWS_DEFAULT_REGION``, profiles,
roles.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipelines.environment import EnvironmentSettings


class StorageSettings(EnvironmentSettings):
    """Settings of this project, each from the variable ``GHN_`` + its name in capitals."""

    prefix: ClassVar[str] = "GHN_"

    s3_addressing: Literal["auto", "path", "virtual"] = Field("auto", description="where requests name the bucket")
    s3_deadline_s: float = Field(120.0, gt=0, description="how long one operation is tried again")
    s3_parallel: int = Field(4, ge=1, le=64, description="parts of one object that travel at once")
    s3_part_mib: int = Field(64, ge=5, le=5120, description="larger objects are written in parts of so many MiB")
    cache: str | None = Field(None, description="folder that keeps shards read from S3")
    cache_gib: float = Field(50.0, gt=0, description="most that the cache may hold")
