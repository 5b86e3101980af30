"""Small shard sets, and a run on them that nothing disturbs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.shards.jobs import shard_deepnets, shard_images
from tests.distributed.jobs import train


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    shard_images("digits", str(root / "images"), seed=0, shard_samples=60, image_size=16, limit=300)
    widths = {"image_size": 16, "channels": (8,), "fc_dims": (32,)}
    shard_deepnets(["train"], str(root / "nets"), count=12, seed=0, shard_samples=5, max_nodes=100, **widths)
    return root


@pytest.fixture(scope="session")
def undisturbed(shards: Path, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = train(shards, run)
    assert done.returncode == 0, done.stderr
    return run
