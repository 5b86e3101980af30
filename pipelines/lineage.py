"""Where a model comes from, in MLflow's words: tags of runs and versions, and the shard sets as dataset inputs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghn.graph import GRAPH_REVISION
from pipelines.recipe import Recipe

_COMMIT_VARIABLE = "GHN_GIT_COMMIT"
_IMAGE_VARIABLE = "GHN_IMAGE_DIGEST"


def tags(recipe: Recipe, manifests: Mapping[str, str]) -> dict[str, str]:
    """Return tags that say which recipe, shards, code and container image were used.

    The commit is that of the working copy that this code lies in, or ``GHN_GIT_COMMIT`` (set it where an image is built);
    the image's digest is ``GHN_IMAGE_DIGEST``. What is not known has no tag.

    Args:
        recipe: the resolved recipe.
        manifests: SHA-256 of each shard set's manifest by its kind.

    """
    known = {"mlflow.source.git.commit": commit(), "ghn.image_digest": os.environ.get(_IMAGE_VARIABLE, "")}
    return {
        "ghn.recipe": recipe.name,
        "ghn.recipe_digest": recipe.digest(),
        "ghn.graph_revision": str(GRAPH_REVISION),
        **{f"ghn.manifest.{kind}": digest for kind, digest in manifests.items()},
        **{name: value for name, value in known.items() if value},
    }


def commit() -> str:
    """Return the commit of this code, with ``-dirty`` if files were changed since, or an empty string."""
    if given := os.environ.get(_COMMIT_VARIABLE):
        return given
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return ""
    try:
        found, changed = (
            subprocess.run(["git", "-C", here, *command], capture_output=True, text=True, timeout=20, check=True).stdout
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.strip() + ("-dirty" if changed.strip() else "")


def inputs(recipe: Recipe, manifests: Mapping[str, str]) -> list[Any]:
    """Return the shard sets that training reads, for ``MlflowClient.log_inputs``."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    urls = {"images": recipe.images.url, "deepnets": recipe.architectures.url}
    return [
        DatasetInput(
            Dataset(name=kind, digest=manifests[kind][:32], source_type="webdataset", source=f"{url}/train"),
            [InputTag("mlflow.data.context", "training")],
        )
        for kind, url in urls.items()
    ]
