"""Settings that come from variables of the environment, so that every process of a job has the same."""

from __future__ import annotations

import os
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ghn.errors import InputError


class EnvironmentSettings(BaseModel):
    """Typed settings, each from the variable ``prefix`` + its name in capitals."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prefix: ClassVar[str]

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings; raises :class:`InputError` that names a variable with a bad value.

        Other variables that begin in the same way are left alone: Kubernetes makes some for each of its services.
        """
        given = {name: os.environ.get(f"{cls.prefix}{name.upper()}") for name in cls.model_fields}
        try:
            return cls.model_validate({name: value for name, value in given.items() if value})
        except ValidationError as error:
            first = error.errors()[0]
            name = f"{cls.prefix}{str(first['loc'][0]).upper()}"
            raise InputError(f"environment variable {name}={first['input']!r}: {first['msg']}") from error
