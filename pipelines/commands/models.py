"""Registered models and checkpoints: register, promote, roll back, serve, convert, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import PATH, TRACKING, example


@click.command()
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
    from pipelines.register import register as register_job

    result = register_job(run, **options)
    click.echo(f"registered {result['name']} version {result['version']} as {result['model_uri']}")


@click.command()
@click.option("--name", required=True, help="Registered model.")
@click.option("--evaluation", type=PATH, help="Of the candidate. Default: what `ghn evaluate` stored with it.")
@click.option("--champion-evaluation", type=PATH, help="The same for the champion.")
@click.option("--split", "splits", multiple=True, help="That must have been evaluated. Default: every one but train.")
@click.option("--dry-run", is_flag=True, help="Decide, but change nothing.")
@TRACKING
@example("ghn promote --name ghn2-cifar10 --dry-run")
def promote(name: str, splits: tuple[str, ...], **options: Any) -> None:
    """Make the candidate champion if it is better on val, and worse on no other split, beyond noise."""
    from pipelines.evaluation.inputs import DEFAULT_SPLITS
    from pipelines.evaluation.promotion import promote as promote_job

    result = promote_job(name, splits=splits or DEFAULT_SPLITS, **options)
    done = "would be promoted" if options["dry_run"] else "is champion now"
    click.echo(f"{name} version {result['version']} {done if result['promoted'] else 'is not promoted'}")
    for reason in result["reasons"]:
        click.echo(f"  {reason}")


@click.command()
@click.option("--name", required=True, help="Registered model.")
@click.option("--reason", required=True, help="Written to the description of the version that is left.")
@TRACKING
@example('ghn rollback --name ghn2-cifar10 --reason "wrong answers on wide networks"')
def rollback(name: str, **options: Any) -> None:
    """Make the champion before the present one champion again."""
    from pipelines.evaluation.promotion import rollback as rollback_job

    result = rollback_job(name, **options)
    click.echo(f"{name} version {result['version']} is champion again, instead of {result['left']}")


@click.command()
@click.option("--model", "uri", required=True, help="models:/NAME@champion, models:/NAME/VERSION, or a logged model.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True, help="Port to listen on.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes.")
@TRACKING
@example("ghn serve --model models:/ghn2-cifar10@champion")
def serve(uri: str, tracking_uri: str, **options: Any) -> None:
    """Serve a registered model, as `mlflow models serve` does; a signal to stop lets requests finish."""
    from pipelines.serving.serve import serve as serve_job

    serve_job(uri, tracking_uri, **options)


@click.command("convert-checkpoint")
@click.argument("official", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; must not hold anything yet.")
@example("ghn convert-checkpoint ghn2_cifar10.pt --out models/ghn2-cifar10")
def convert_checkpoint(official: Path, out: Path) -> None:
    """Write the OFFICIAL .pt checkpoint (GHN-2, GHN-1 or the MLP baseline) in this project's format."""
    from ghn.checkpoint import convert_checkpoint as convert

    hypernet = convert(official, out)
    parameters = sum(parameter.numel() for parameter in hypernet.parameters())
    click.echo(f"{out}: {parameters:,} parameters, {hypernet.config}")


@click.command()
@click.option("--checkpoint", type=PATH, help="Checkpoint folder, or an official .pt file.")
@click.option("--server", help="Address of a model server instead, e.g. http://127.0.0.1:5001.")
@click.option("--spec", type=PATH, help="JSON file with one architecture specification.")
@click.option("--graph", type=PATH, help="JSON file with an exported graph instead.")
@click.option("--model", help="torchvision:NAME, timm:NAME or FILE.py:FACTORY instead.")
@click.option("--num-classes", type=click.IntRange(min=2), default=10, show_default=True, help="Of the model.")
@click.option(
    "--image-size", type=click.IntRange(8, 1024), default=32, show_default=True, help="Of the model, in pixels."
)
@click.option("--small-input", is_flag=True, help="Keep the resolution in the model's first layers.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32", help="Of the written tensors."
)
@click.option("--name", "names", multiple=True, metavar="PATTERN", help="Parameters to write. Default: all.")
@click.option("--allow-default", multiple=True, metavar="PATTERN", help="Parameters that may stay unpredicted.")
@click.option("--draw", type=PATH, help="SVG file for a drawing of the graph.")
@click.option("--out", type=PATH, required=True, help="safetensors file to write.")
@example(
    "ghn predict --checkpoint runs/train/model --model torchvision:resnet50 --small-input --out resnet50.safetensors"
)
def predict(out: Path, **options: Any) -> None:
    """Predict all parameters of one network, with a checkpoint here or by a model server."""
    from pipelines.predict import predict as predict_job

    click.echo(predict_job(out, **options))
