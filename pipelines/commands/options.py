"""What several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

NOTHING_TO_DO = 99
"""Exit code of a command that found nothing to do; Airflow's tasks are skipped then."""

PATH = click.Path(path_type=Path)
TRACKING = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="sqlite:///runs/mlflow.db",
    show_default=True,
    help="MLflow's tracking and registry store.",
)


def example(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Show an example at the end of a command's help, as it is written."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__doc__ = f"{function.__doc__}\n\n\b\nExample:\n  {text}"
        return function

    return decorate


def print_manifests(out: str, manifests: dict[str, Any]) -> None:
    """Say what shard sets hold."""
    from pipelines.shards.inspect import describe

    for split, manifest in manifests.items():
        click.echo(f"{out}/{split}: {describe(manifest)}")
