"""Evaluation, its report, and alerts."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import NOTHING_TO_DO, PATH, TRACKING, example


@click.command()
@click.option("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/VERSION, or a checkpoint's path.")
@click.option("--images", required=True, help="Root of an image shard set.")
@click.option("--deepnets", required=True, help="Root of the architecture shard sets, or an official .hdf5 file.")
@click.option("--split", "splits", multiple=True, help="Default: every split but train.")
@click.option("--out", type=PATH, default=Path("runs/evaluation.json"), show_default=True, help="JSON file to write.")
@click.option("--networks", type=click.IntRange(min=1), help="At most so many networks of each split.")
@click.option("--image-limit", type=click.IntRange(min=1), help="At most so many images.")
@click.option("--image-split", type=click.Choice(["test", "val"]), default="test", show_default=True, help="Images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of random parameters and SGD.")
@click.option("--baseline", "baselines", multiple=True, metavar="NAME=MODEL", help="Other models, e.g. GHN-1.")
@click.option("--sgd-steps", type=click.IntRange(min=0), default=0, help="Train each network for so many steps, too.")
@click.option("--sgd-networks", type=click.IntRange(min=1), help="Train at most so many of each split.")
@click.option("--processes", type=click.IntRange(1, 1024), help="Default: one for each processor.")
@click.option("--results", help="Root for scores of single networks, s3://... or a folder (default: beside --out).")
@click.option("--part", metavar="N/COUNT", help="Score only this part, into --results; without it, the rest follows.")
@click.option("--unless-model", help="End with code 99 if this is the same registered version.")
@click.option("--optional", is_flag=True, help="End with code 99 if there is no such model or alias.")
@TRACKING
@example("ghn evaluate --model models:/ghn2-digits@candidate --images s3://ghn/images --deepnets s3://ghn/deepnets")
def evaluate(
    model: str, splits: tuple[str, ...], part: str | None, optional: bool, unless_model: str | None, **options: Any
) -> None:
    """Score a model on unseen architectures and test images, beside baselines; the same command again goes on."""
    from pipelines.shards.writer import Part

    wanted = Part.parse(part) if part else None
    if wanted and not options["results"]:
        raise click.UsageError("give --results, where the scores of all parts come together")
    from pipelines.evaluation.inputs import DEFAULT_SPLITS
    from pipelines.evaluation.job import evaluate as evaluate_job
    from pipelines.evaluation.report import table
    from pipelines.registry import has_model, same_version

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that temporary files are removed
    if optional and not has_model(model, options["tracking_uri"]):
        click.echo(f"there is no {model} yet: nothing to evaluate")
        click.get_current_context().exit(NOTHING_TO_DO)
    if unless_model and same_version(model, unless_model, options["tracking_uri"]):
        click.echo(f"{model} is the same version as {unless_model}: nothing to evaluate")
        click.get_current_context().exit(NOTHING_TO_DO)
    evaluation = evaluate_job(model, splits=splits or DEFAULT_SPLITS, part=wanted, **options)
    click.echo(table(evaluation) if evaluation else f"part {part} is stored in {options['results']}")


@click.command()
@click.option("--name", required=True, help="Registered model.")
@click.option("--max-age-hours", type=click.FloatRange(min=0), default=48.0, show_default=True, help="Of evaluations.")
@TRACKING
@example("ghn alert --name ghn2-cifar10 --max-age-hours 30")
def alert(name: str, **options: Any) -> None:
    """Fail (exit code 7), with the numbers, if an evaluation shows a loss beyond noise, or is too old."""
    from pipelines.evaluation.alert import alert as alert_job

    for line in alert_job(name, **options):
        click.echo(line)


@click.command()
@click.option("--evaluation", type=PATH, required=True, help="JSON file of `ghn evaluate`.")
@click.option("--run", type=PATH, help="Folder of the `ghn train` behind it, for curve and recipe.")
@click.option("--out", type=PATH, required=True, help="Folder for report.json and report.html.")
@example("ghn report --evaluation runs/evaluation.json --run runs/train --out runs")
def report(evaluation: Path, run: Path | None, out: Path) -> None:
    """Make report.json and a self-contained report.html with pictures."""
    from pipelines.evaluation.report import table, write_report

    content = write_report(evaluation, run, out)
    click.echo(table(content))
    click.echo(f"report: {out / 'report.html'} and {out / 'report.json'}")
