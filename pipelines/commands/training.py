"""Meta-training and its plan, what networks cost, and the registration of what came out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import PATH, TRACKING, example


@click.command(short_help="Meta-train; the same command again resumes")
@click.option("--recipe", default="embedded", show_default=True, help="A recipe's name, or a TOML file.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override; may be repeated.")
@click.option("--images", help="Root of the image shards: --set images.url=...")
@click.option("--deepnets", help="Root of the architecture shards: --set architectures.url=...")
@click.option("--run", type=PATH, default=Path("runs/train"), show_default=True, help="Folder of the run.")
@click.option("--stop-after", type=click.IntRange(min=1), help="End this session after so many steps in all.")
@click.option("--on-bad-shard", type=click.Choice(["fail", "skip"]), help="What to do about missing or damaged shards.")
@click.option(
    "--store", help="Where checkpoints and exported models go, e.g. s3://bucket/runs/NAME (default: the run)."
)
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow's store for metrics (default: none).")
@click.option("--experiment", envvar="MLFLOW_EXPERIMENT_NAME", default="ghn", show_default=True, help="Of MLflow.")
@click.option("--artifacts", envvar="GHN_ARTIFACTS", help="Artifact root of a new experiment, e.g. s3://ghn/mlflow.")
@click.option("--plan", is_flag=True, help="Check everything and say what the run would cost, without starting it.")
@example(
    "ghn train --recipe cifar10 --images s3://ghn/cifar10/images --deepnets s3://ghn/cifar10/deepnets --run runs/cifar10"
)
def train(
    recipe: str,
    overrides: tuple[str, ...],
    images: str | None,
    deepnets: str | None,
    run: Path,
    store: str | None,
    stop_after: int | None,
    on_bad_shard: str | None,
    tracking_uri: str | None,
    experiment: str,
    artifacts: str | None,
    plan: bool,
) -> None:
    """Meta-train a hypernetwork; the same command again resumes after a stop or a kill."""
    from pipelines.recipe import load_recipe
    from pipelines.training.launch import train as train_job
    from pipelines.training.launcher import Launcher

    roots = {"images.url": images, "architectures.url": deepnets}
    overrides = (*(f"{key}={root}" for key, root in roots.items() if root), *overrides)
    if on_bad_shard:
        overrides += tuple(f"{section}.on_bad_shard={on_bad_shard}" for section in ("images", "architectures"))
    resolved = load_recipe(recipe, overrides)
    if tracking_uri:
        os.environ.update(MLFLOW_TRACKING_URI=tracking_uri, MLFLOW_EXPERIMENT_NAME=experiment)
    if artifacts:
        os.environ["GHN_ARTIFACTS"] = artifacts
    if plan:
        from pipelines.training.plan import plan as plan_job

        click.echo(plan_job(resolved, run, store=store))
        return
    if Launcher.from_environment().is_first:
        click.echo(resolved.to_toml())
    train_job(resolved, run, store=store, stop_after=stop_after)


@click.command(short_help="Measure what networks cost on this machine")
@click.option("--out", type=PATH, required=True, help="JSON file, for a recipe's training.cost_model.")
@click.option("--networks", type=click.IntRange(min=1), default=256, show_default=True, help="Networks to measure.")
@click.option("--images", type=click.IntRange(min=2), default=32, show_default=True, help="Images of a batch.")
@click.option("--image-size", type=click.IntRange(8, 1024), default=32, show_default=True, help="Pixels.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the networks.")
@example("ghn calibrate --out costs.json && ghn train --recipe cifar10 --set training.cost_model=costs.json")
def calibrate(out: Path, **options: Any) -> None:
    """Measure what networks cost on this machine, so that training deals them evenly over ranks."""
    from pipelines.training.calibrate import calibrate as calibrate_job

    for name, value in calibrate_job(out, **options).items():
        click.echo(f"{name.replace('_', ' '):32s} {value:g}")
    click.echo(f"cost model: {out}")


@click.command(short_help="Register a finished run in MLflow")
@click.option("--run", type=PATH, required=True, help="Folder of a finished `ghn train`.")
@click.option("--name", required=True, help="Registered model, e.g. ghn2-digits.")
@click.option("--alias", default="candidate", show_default=True, help="Moved to the new version.")
@click.option("--experiment", default="ghn", show_default=True, help="MLflow experiment.")
@click.option("--artifacts", help="Artifact root of a new experiment, e.g. s3://ghn/mlflow.")
@click.option("--average", is_flag=True, help="The averaged weights of a run with training.ema.")
@TRACKING
@example("ghn register --run runs/train --name ghn2-digits --artifacts s3://ghn/mlflow")
def register(run: Path, **options: Any) -> None:
    """Log a finished run to MLflow and register its model."""
    from pipelines.training.register import register as register_job

    result = register_job(run, **options)
    click.echo(f"registered {result['name']} version {result['version']} as {result['model_uri']}")
