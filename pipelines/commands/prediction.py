"""Predict, with a checkpoint or a server; serve; take over official checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import PATH, TRACKING, example


@click.command(short_help="Predict all parameters of a network")
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
    from pipelines.serving.predict import predict as predict_job

    click.echo(predict_job(out, **options))


@click.command(short_help="Answer predictions over HTTP")
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


@click.command("convert-checkpoint", short_help="Take over an official checkpoint")
@click.argument("official", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; must not hold anything yet.")
@example("ghn convert-checkpoint ghn2_cifar10.pt --out models/ghn2-cifar10")
def convert_checkpoint(official: Path, out: Path) -> None:
    """Write the OFFICIAL .pt checkpoint (GHN-2, GHN-1 or the MLP baseline) in this project's format."""
    from ghn.checkpoint import convert_checkpoint as convert

    hypernet = convert(official, out)
    parameters = sum(parameter.numel() for parameter in hypernet.parameters())
    click.echo(f"{out}: {parameters:,} parameters, {hypernet.config}")
