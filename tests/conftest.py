"""Shared fixtures: the reference data (skipped with a reason where it is not there), small models, an S3 server."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ghn import GHN, GHNConfig
from tests import s3_servers

torch.set_num_threads(1)  # results and times that do not depend on what else runs

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = Path(os.environ.get("GHN_REFERENCE", REPOSITORY.parent / "shared" / "reference"))


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with the published system's data and predictions."""
    if not (REFERENCE / "expected.json").is_file():
        pytest.skip(f"no reference data at {REFERENCE} (set GHN_REFERENCE)")
    return REFERENCE


@pytest.fixture(scope="session")
def small_config() -> GHNConfig:
    """A small GHN-2."""
    return GHNConfig(hid=8, max_shape=(8, 8, 7, 7))


@pytest.fixture
def small_hypernet(small_config: GHNConfig) -> GHN:
    """A small GHN-2 with fixed random weights."""
    torch.manual_seed(0)
    return GHN(small_config).eval()


@pytest.fixture(autouse=True)
def _no_ambient_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests choose their own settings; those of whoever runs them stay out, but for where data and tools are."""
    for name in list(os.environ):
        ours = name.startswith(("GHN_", "AWS_")) or name in ("IMAGES", "MLFLOW_TRACKING_URI", "RANK", "WORLD_SIZE")
        if ours and name not in ("GHN_REFERENCE", "GHN_DATA", "GHN_DOCKER_ENGINE"):
            monkeypatch.delenv(name)
    yield


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The embedded S3 server, one for all tests: the environment of its clients."""
    with s3_servers.running("rclone", tmp_path_factory.mktemp("rclone")) as client:
        yield client


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Another implementation of S3, one for all tests."""
    with s3_servers.running("moto", tmp_path_factory.mktemp("moto")) as client:
        yield client


@pytest.fixture
def s3(rclone_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The test becomes a client of the embedded S3 server; gives an address in its bucket where nothing is yet."""
    return _client_of(rclone_server, monkeypatch)


@pytest.fixture
def moto(moto_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The same with the other implementation."""
    return _client_of(moto_server, monkeypatch)


_PREFIXES = itertools.count()


def _client_of(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return f"s3://ghn/test-{next(_PREFIXES)}"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small shard sets to train on: ``images`` and ``nets``."""
    from pipelines.shards.jobs import shard_deepnets, shard_images

    root = tmp_path_factory.mktemp("shards")
    shard_images("digits", str(root / "images"), seed=0, shard_samples=60, image_size=16, limit=300)
    widths = {"image_size": 16, "channels": (8,), "fc_dims": (32,)}
    shard_deepnets(["train"], str(root / "nets"), count=12, seed=0, shard_samples=5, max_nodes=100, **widths)
    return root


@pytest.fixture(scope="session")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps on them that nothing disturbed."""
    from tests.distributed.jobs import train

    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = train(shards, run)
    assert done.returncode == 0, done.stderr
    return run
