"""How stores and the cache are used: from the environment, so that every process of a job uses them alike.

Address, region and credentials of S3 are those of boto3's own chain (``AWS_ENDPOINT_URL``, ``AWS_REGION``, profiles, roles).
"""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ghn.errors import InputError


class StorageSettings(BaseModel):
    """Settings of this project, each from the variable ``GHN_`` + its name in capitals."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    s3_addressing: Literal["auto", "path", "virtual"] = Field("auto", description="where requests name the bucket")
    s3_deadline_s: float = Field(120.0, gt=0, description="how long one operation is tried again")
    s3_parallel: int = Field(4, ge=1, le=64, description="parts of one object that travel at once")
    s3_part_mib: int = Field(64, ge=5, le=5120, description="larger objects are written in parts of so many MiB")
    cache: str | None = Field(None, description="folder that keeps shards read from S3")
    cache_gib: float = Field(50.0, gt=0, description="most that the cache may hold")

    @classmethod
    def from_environment(cls) -> StorageSettings:
        """Read the settings; raises :class:`InputError` that names a variable with a bad value."""
        given = {name: os.environ.get(f"GHN_{name.upper()}") for name in cls.model_fields}
        try:
            return cls.model_validate({name: value for name, value in given.items() if value})
        except ValidationError as error:
            first = error.errors()[0]
            name = f"GHN_{str(first['loc'][0]).upper()}"
            raise InputError(f"environment variable {name}={first['input']!r}: {first['msg']}") from error
