"""`pipelines.lineage`: where a model comes from."""

from __future__ import annotations

import re

import pytest

from pipelines.lineage import commit, inputs, tags
from pipelines.recipe import load_recipe

MANIFESTS = {"images": "a" * 64, "deepnets": "b" * 64}


def test_tags_name_recipe_shards_code_and_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHN_GIT_COMMIT", "c0ffee")
    monkeypatch.setenv("GHN_IMAGE_DIGEST", "sha256:1234")
    recipe = load_recipe("smoke")
    assert tags(recipe, MANIFESTS) == {
        "ghn.recipe": "smoke",
        "ghn.recipe_digest": recipe.digest(),
        "ghn.graph_revision": "1",
        "ghn.manifest.images": "a" * 64,
        "ghn.manifest.deepnets": "b" * 64,
        "mlflow.source.git.commit": "c0ffee",
        "ghn.image_digest": "sha256:1234",
    }


def test_what_is_not_known_has_no_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GHN_IMAGE_DIGEST", raising=False)
    monkeypatch.setenv("GHN_GIT_COMMIT", "c0ffee")
    assert "ghn.image_digest" not in tags(load_recipe("smoke"), MANIFESTS)


def test_the_commit_of_a_working_copy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GHN_GIT_COMMIT", raising=False)
    assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", commit())


def test_shard_sets_are_inputs() -> None:
    recipe = load_recipe("smoke", ["images.url=s3://b/images", "architectures.url=s3://b/nets"])
    found = {item.dataset.name: item.dataset for item in inputs(recipe, MANIFESTS)}
    assert (found["images"].source, found["images"].digest) == ("s3://b/images/train", "a" * 32)
    assert found["deepnets"].source == "s3://b/nets/train"
