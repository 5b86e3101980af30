"""Shard sets: write, verify, list, measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import PATH, Ordered, example


@click.group(cls=Ordered, short_help="Write image and architecture shards; look at them")
def shard() -> None:
    """Write images or architectures as tar shards; look at such sets."""


@shard.command("images", short_help="Shard an image source")
@click.option(
    "--source", required=True, help="`digits`, a folder or zip with class folders, ImageNet, a CIFAR archive."
)
@click.option("--out", required=True, help="Root of the shard set: s3://bucket/prefix or a folder.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the splits and the order.")
@click.option("--shard-samples", type=click.IntRange(min=1), default=1000, show_default=True, help="Images per shard.")
@click.option("--shard-mib", type=click.IntRange(min=1), default=128, show_default=True, help="MiB per shard, at most.")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Of the training images, where the source has no validation split.",
)
@click.option("--image-size", type=click.IntRange(8, 1024), help="Resize to so many pixels (default: keep the files).")
@click.option("--limit", type=click.IntRange(min=1), help="Use only so many images in all.")
@click.option(
    "--on-bad-image",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do about images that can not be read; both list them.",
)
@click.option(
    "--check",
    type=click.Choice(["decode", "quick"]),
    default="decode",
    show_default=True,
    help="Decode every image, or look at headers, checksums and ends.",
)
@example("ghn shard images --source digits --out s3://ghn/images --seed 0 --shard-samples 500")
def shard_images_command(source: str, out: str, **options: Any) -> None:
    """Split an image source into train, val and test and shard each; run it again to finish after a stop."""
    from pipelines.shards.jobs import shard_images

    _print_manifests(out, shard_images(source, out, **options))


@shard.command("deepnets", short_help="Sample architectures and shard them")
@click.option("--split", "splits", multiple=True, required=True, help="train, val, test, wide, ...; may be repeated.")
@click.option("--from-hdf5", "hdf5", type=PATH, help="Take them from an official DeepNets-1M file, not the generator.")
@click.option("--count", type=click.IntRange(min=1), help="Architectures of each split (of a file: the first; or all).")
@click.option("--out", required=True, help="Root of the shard sets: s3://bucket/prefix or a folder.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the sample (default: 0).")
@click.option("--shard-samples", type=click.IntRange(min=1), default=1000, show_default=True, help="Per shard.")
@click.option("--part", metavar="N/COUNT", help="Write only this range of the shards, as one of COUNT machines.")
@click.option("--num-classes", type=click.IntRange(min=2), default=10, show_default=True, help="Classifier width.")
@click.option(
    "--image-size", type=click.IntRange(8, 1024), default=32, show_default=True, help="Height and width in pixels."
)
@click.option("--channels", type=int, multiple=True, help="Initial channels to draw from (default: published rule).")
@click.option("--fc-dims", type=int, multiple=True, help="Hidden classifier widths (default: published rule).")
@click.option("--max-nodes", type=click.IntRange(min=2), help="Pass over architectures with larger graphs.")
@example("ghn shard deepnets --split train --count 1000 --out s3://ghn/deepnets --seed 0 --shard-samples 250")
def shard_deepnets_command(
    splits: tuple[str, ...], out: str, hdf5: Path | None, part: str | None, **options: Any
) -> None:
    """Sample architectures by the DeepNets-1M rules (or take the official ones) and shard them."""
    from pipelines.part import Part
    from pipelines.shards.jobs import shard_deepnets, shard_official_deepnets

    options["part"] = Part.parse(part) if part else None
    if hdf5 is None:
        if options["count"] is None:
            raise click.UsageError("give --count, or --from-hdf5 FILE for the official architectures")
        manifests = shard_deepnets(splits, out, **{**options, "seed": options["seed"] or 0})
    else:
        drawn = {name: options.pop(name) for name in ("seed", "channels", "fc_dims", "max_nodes")}
        if given := [f"--{name.replace('_', '-')}" for name, value in drawn.items() if value not in (None, ())]:
            raise click.UsageError(f"{', '.join(given)} belong to the generator; leave them out with --from-hdf5")
        manifests = shard_official_deepnets(hdf5, splits, out, **options)
    _print_manifests(out, manifests)
    for split in splits:
        if split not in manifests:
            click.echo(f"{out}/{split}: part {part} is stored; the manifest follows when all parts are")


@shard.command("verify", short_help="Compare shard sets with their manifests")
@click.argument("url")
@click.option("--deep", is_flag=True, help="Decode every image and build every graph, too.")
@example("ghn shard verify s3://ghn/deepnets")
def shard_verify(url: str, deep: bool) -> None:
    """Compare the shard set at URL, or all sets below it, with the manifests; the exit code is 5 if anything is wrong."""
    from ghn.errors import DataError
    from pipelines.shards.inspect import verify_sets

    problems = verify_sets(url, deep=deep)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise DataError(f"{url}: {len(problems)} problems, listed above; make the bad sets again")
    click.echo(f"{url}: everything is as the manifests say")


@shard.command("ls", short_help="List shard sets")
@click.argument("url")
@example("ghn shard ls s3://ghn/deepnets/train")
def shard_ls(url: str) -> None:
    """List the shard set at URL, or all sets below it, shard by shard."""
    from pipelines.shards.inspect import list_sets

    list_sets(url, click.echo)


@shard.command("stats", short_help="Measure shard sets")
@click.argument("url")
@click.option("--window", type=click.IntRange(min=1), default=8, show_default=True, help="Of the reading order.")
@click.option("--lanes", type=click.IntRange(min=1), default=1, show_default=True, help="Of the reading order.")
@click.option("--sample", type=click.IntRange(min=1), default=2000, show_default=True, help="Samples to look into.")
@click.option("--draw", type=PATH, help="SVG file for pictures of the distributions.")
@example("ghn shard stats s3://ghn/deepnets --draw deepnets.svg")
def shard_stats(url: str, window: int, lanes: int, sample: int, draw: Path | None) -> None:
    """Count samples, bytes, nodes and parameters of the sets at URL, and measure how well they are shuffled."""
    from pipelines.shards.inspect import measure_sets
    from pipelines.shards.statistics import draw_statistics, statistics_table

    measured = measure_sets(url, window=window, lanes=lanes, sample=sample)
    click.echo(statistics_table(measured))
    if draw is not None:
        draw_statistics(measured, draw)
        click.echo(f"picture: {draw}")


def _print_manifests(out: str, manifests: dict[str, Any]) -> None:
    for split, manifest in manifests.items():
        click.echo(f"{out}/{split}: {manifest.summary()}")
