"""Evaluation, its report, and what follows from it: alerts, promotion, the way back."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import NOTHING_TO_DO, PATH, TRACKING, example


@click.command(short_help="Score a model on unseen architectures")
@click.option("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/VERSION, or a checkpoint's path.")
@click.option("--images", required=True, help="Root of an image shard set.")
@click.option("--deepnets", required=True, help="Root of the architecture shard sets, or an official .hdf5 file.")
@click.option("--split", "splits", multiple=True, help="Default: every split but train.")
@click.option("--out", type=PATH, default=Path("runs/evaluation.json"), show_default=True, help="JSON file to write.")
@click.option("--networks", type=click.IntRange(min=1), help="At most so many networks of each split.")
@click.option("--image-limit", type=click.IntRange(min=1), help="At most so many images.")
@click.option(
    "--image-split", type=click.Choice(["test", "val"]), default="test", show_default=True, help="Which images."
)
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
    model: str,
    splits: tuple[str, ...],
    part: str | None,
    optional: bool,
    unless_model: str | None,
    out: Path,
    tracking_uri: str,
    processes: int | None,
    results: str | None,
    **asked: Any,
) -> None:
    """Score a model on unseen architectures and test images, beside baselines; the same command again goes on."""
    from pipelines.part import Part

    wanted = Part.parse(part) if part else None
    if out.suffix == ".jsonl":
        raise click.UsageError(
            f"--out {out}: the .jsonl file lies beside the JSON file; give a name that ends in .json"
        )
    if wanted and not results:
        raise click.UsageError("give --results, where the scores of all parts come together")
    from ghn.space import EVALUATED_SPLITS
    from pipelines.evaluation.job import Question
    from pipelines.evaluation.job import evaluate as evaluate_job
    from pipelines.evaluation.report import table
    from pipelines.registry import has_model, same_version

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that temporary files are removed
    if optional and not has_model(model, tracking_uri):
        click.echo(f"there is no {model} yet: nothing to evaluate")
        click.get_current_context().exit(NOTHING_TO_DO)
    if unless_model and same_version(model, unless_model, tracking_uri):
        click.echo(f"{model} is the same version as {unless_model}: nothing to evaluate")
        click.get_current_context().exit(NOTHING_TO_DO)
    question = Question(model=model, splits=splits or EVALUATED_SPLITS, **asked)
    evaluation = evaluate_job(
        question, out=out, tracking_uri=tracking_uri, processes=processes, results=results, part=wanted
    )
    click.echo(table(evaluation) if evaluation else f"part {part} is stored in {results}")


@click.command(short_help="Fail if an evaluation is worse or old")
@click.option("--name", required=True, help="Registered model.")
@click.option(
    "--max-age-hours", type=click.FloatRange(min=0), default=48.0, show_default=True, help="Of the newest evaluation."
)
@TRACKING
@example("ghn alert --name ghn2-cifar10 --max-age-hours 30")
def alert(name: str, **options: Any) -> None:
    """Fail (exit code 7), with the numbers, if an evaluation shows a loss beyond noise, or is too old."""
    from pipelines.evaluation.alert import alert as alert_job

    for line in alert_job(name, **options):
        click.echo(line)


@click.command(short_help="Draw an evaluation as an HTML page")
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


@click.command(short_help="Make the candidate champion, if it is better")
@click.option("--name", required=True, help="Registered model.")
@click.option("--evaluation", type=PATH, help="Of the candidate. Default: what `ghn evaluate` stored with it.")
@click.option("--champion-evaluation", type=PATH, help="The same for the champion.")
@click.option("--split", "splits", multiple=True, help="That must have been evaluated. Default: every one but train.")
@click.option("--dry-run", is_flag=True, help="Decide, but change nothing.")
@TRACKING
@example("ghn promote --name ghn2-cifar10 --dry-run")
def promote(name: str, splits: tuple[str, ...], **options: Any) -> None:
    """Make the candidate champion if it is better on val, and worse on no other split, beyond noise."""
    from ghn.space import EVALUATED_SPLITS
    from pipelines.evaluation.promotion import promote as promote_job

    result = promote_job(name, splits=splits or EVALUATED_SPLITS, **options)
    done = "would be promoted" if options["dry_run"] else "is champion now"
    click.echo(f"{name} version {result['version']} {done if result['promoted'] else 'is not promoted'}")
    for reason in result["reasons"]:
        click.echo(f"  {reason}")


@click.command(short_help="Go back to the champion before")
@click.option("--name", required=True, help="Registered model.")
@click.option("--reason", required=True, help="Written to the description of the version that is left.")
@TRACKING
@example('ghn rollback --name ghn2-cifar10 --reason "wrong answers on wide networks"')
def rollback(name: str, **options: Any) -> None:
    """Make the champion before the present one champion again."""
    from pipelines.evaluation.promotion import rollback as rollback_job

    result = rollback_job(name, **options)
    click.echo(f"{name} version {result['version']} is champion again, instead of {result['left']}")
