"""Models that training writes for others to use: safetensors and configuration, also on S3."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ghn import GHN, save_checkpoint
from ghn.checkpoint import CONFIG_NAME
from pipelines.progress import emit
from pipelines.storage import Store
from pipelines.training.run_folder import AVERAGE_NAME, MODEL_NAME

_EXPORTS = "models"


def finish_run(hypernet: GHN, average: Sequence[Tensor] | None, run: Path, facts: Mapping[str, Any]) -> None:
    """Write a finished run's model, and the one with averaged weights, into the run folder."""
    for name, model in _models(hypernet, average):
        save_checkpoint(model, run / name, facts)


def export_model(
    hypernet: GHN, average: Sequence[Tensor] | None, store: Store, step: int, facts: Mapping[str, Any]
) -> None:
    """Write the models of a step to ``models/step-N/`` of a store; ``config.json`` comes last, without it there is no model."""
    for name, model in _models(hypernet, average):
        with tempfile.TemporaryDirectory() as folder:
            files = list(save_checkpoint(model, folder, facts).iterdir())
            for file in sorted(files, key=lambda file: file.name == CONFIG_NAME):
                store.write(f"{_EXPORTS}/step-{step:09d}/{name}/{file.name}", file.read_bytes())
    emit("export", step=step, url=store.url(f"{_EXPORTS}/step-{step:09d}"))


def _models(hypernet: GHN, average: Sequence[Tensor] | None) -> Iterator[tuple[str, GHN]]:
    yield MODEL_NAME, hypernet
    if average is not None:
        model = copy.deepcopy(hypernet)
        for parameter, value in zip(model.parameters(), average, strict=True):
            parameter.data.copy_(value)
        yield AVERAGE_NAME, model
