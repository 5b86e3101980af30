"""What several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

NOTHING_TO_DO = 99
"""Exit code of a command that found nothing to do; Airflow's tasks are skipped then."""


class _LocalPath(click.Path):
    """A path on this machine; an address of an object store is refused instead of becoming a folder ``s3:``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is not on this machine; give a path", param, ctx)
        if not str(value).strip():
            self.fail("give a path", param, ctx)
        return super().convert(value, param, ctx)


PATH = _LocalPath(path_type=Path)
TRACKING = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="sqlite:///runs/mlflow.db",
    show_default=True,
    help="MLflow's tracking and registry store.",
)


class Ordered(click.Group):
    """A group that lists its commands as they are defined."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in order."""
        return list(self.commands)


def example(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Show an example at the end of a command's help, as it is written."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__doc__ = f"{function.__doc__}\n\n\b\nExample:\n  {text}"
        return function

    return decorate
