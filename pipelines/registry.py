"""MLflow's registry as the jobs use it: one way to open it, to name its errors, and to fetch a model."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghn.errors import GHNError, InputError, StorageError

CANDIDATE, CHAMPION = "candidate", "champion"
_PREFIX = "models:/"
_LIBRARIES = ("boto", "sqlalchemy", "requests", "urllib3")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint on this machine, and which registered version it is (``None``: none)."""

    uri: str
    checkpoint: Path
    name: str | None = None
    version: int | None = None
    run_id: str | None = None

    @property
    def label(self) -> str:
        """A name for people."""
        return f"{self.name} version {self.version}" if self.name else self.uri


@contextlib.contextmanager
def open_registry(tracking_uri: str | None) -> Iterator[Any]:
    """Give an ``MlflowClient``; errors of MLflow and the libraries below it become one message.

    Raises:
        StorageError: if the registry can not be used.

    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    with registry_errors(f"the registry {without_password(tracking_uri or mlflow.get_tracking_uri())}"):
        if tracking_uri:
            mlflow.set_tracking_uri(tracking_uri)
        yield mlflow.MlflowClient()


@contextlib.contextmanager
def registry_errors(what: str) -> Iterator[None]:
    """Turn what MLflow and the libraries below it raise into one message that names ``what``."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except GHNError:
        raise
    except Exception as error:
        if not (isinstance(error, (MlflowException, OSError)) or type(error).__module__.startswith(_LIBRARIES)):
            raise
        raise StorageError(
            f"can not read or store {what}: {error}; check MLFLOW_TRACKING_URI, AWS_ENDPOINT_URL and credentials"
        ) from error


def find_version(client: Any, name: str, alias: str) -> Any:
    """Return the version with an alias, ``None`` if there is none.

    Raises:
        InputError: if there is no such registered model.

    """
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise InputError(f"there is no registered model {name}; register one with `ghn register`") from error
        raise
    return None if version is None else client.get_model_version(name, version)


def has_model(uri: str, tracking_uri: str | None) -> bool:
    """Say whether ``models:/NAME@ALIAS`` is there (other addresses: whether the checkpoint is)."""
    name, at, alias = uri.removeprefix(_PREFIX).partition("@")
    if not at or not uri.startswith(_PREFIX):
        return uri.startswith(_PREFIX) or Path(uri).exists()
    with open_registry(tracking_uri) as client:
        try:
            return find_version(client, name, alias) is not None
        except InputError:
            return False


def same_version(uri: str, other: str, tracking_uri: str | None) -> bool:
    """Say whether two addresses ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` lead to the same registered version."""
    with open_registry(tracking_uri) as client:
        one, two = (_version(client, address) for address in (uri, other))
    return (one.name, one.version) == (two.name, two.version)


def _version(client: Any, uri: str) -> Any:
    """Return a registered version; raises :class:`InputError` if it is not there."""
    from mlflow.exceptions import MlflowException

    name, at, alias = uri.removeprefix(_PREFIX).partition("@")
    try:
        if at:
            return client.get_model_version_by_alias(name, alias)
        name, _, number = name.rpartition("/")
        return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(
            f"no model {uri}: {error}; register one with `ghn register`, make it champion with `ghn promote`, or name another "
            "version"
        ) from error


def fetch_model(uri: str, tracking_uri: str | None, folder: Path) -> Model:
    """Bring a model to this machine.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, or a checkpoint's path, which stays where it is.
        tracking_uri: of MLflow.
        folder: where to put it.

    Raises:
        InputError: if there is no such model or version.
        StorageError: if it can not be downloaded.

    """
    if not uri.startswith(_PREFIX):
        return Model(uri=uri, checkpoint=Path(uri))
    with open_registry(tracking_uri) as client:
        version = _version(client, uri)
        place = _download(version, folder)
    return Model(
        uri=uri,
        checkpoint=next((place / "artifacts").iterdir()),  # registered with the name of its folder
        name=version.name,
        version=int(version.version),
        run_id=version.run_id,
    )


def fetch_served(uri: str, tracking_uri: str | None, folder: Path) -> Path:
    """Bring a registered model with its code to this machine, once; return its folder (of a logged model: as it is).

    Raises:
        InputError: if there is no such model or version.
        StorageError: if it can not be downloaded.

    """
    if uri.startswith(_PREFIX):
        with open_registry(tracking_uri) as client:
            version = _version(client, uri)
            place = folder / hashlib.sha256(str(version.source).encode()).hexdigest()[:16]  # a version never changes
            if not (place / "MLmodel").is_file():
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=folder) as temporary:
                    _download(version, Path(temporary)).rename(place)
            return place
    if not (Path(uri) / "MLmodel").is_file():
        raise InputError(f"no logged model at {uri}; give models:/NAME@champion, or a folder with a file MLmodel")
    return Path(uri)


def _download(version: Any, folder: Path) -> Path:
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(f"{_PREFIX}{version.name}/{version.version}", dst_path=str(folder)))


def without_password(uri: str) -> str:
    """Return an address as it may be shown: without the password that it may carry."""
    scheme, separator, rest = uri.partition("://")
    login, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{login.partition(':')[0]}:***@{place}" if at and ":" in login else uri
