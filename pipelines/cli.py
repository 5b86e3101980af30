"""The ``ghn`` command line. Each command imports only what it needs, when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipelines.process import tune_process

PATH = click.Path(path_type=Path)
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_TRACKING = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="sqlite:///runs/mlflow.db",
    show_default=True,
    help="MLflow's tracking and registry store.",
)


def _example(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Show an example at the end of a command's help, as it is written."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__doc__ = f"{function.__doc__}\n\n\b\nExample:\n  {text}"
        return function

    return decorate


@click.group(context_settings=_CONTEXT)
@click.version_option(package_name="ghn")
@click.option("--s3-endpoint", envvar="AWS_ENDPOINT_URL", help="Address of the S3 server (default: AWS).")
@click.option("--s3-region", envvar="AWS_DEFAULT_REGION", help="Region of the buckets.")
@click.option("--s3-path-style", is_flag=True, help="Name the bucket in the path, not in the host name.")
@click.option("--cache", envvar="GHN_CACHE", help="Folder that keeps shards read from S3.")
@click.option("--cache-gib", envvar="GHN_CACHE_GIB", type=click.FloatRange(min=0.001), help="Most it holds (50).")
@click.pass_context
def cli(
    context: click.Context,
    s3_endpoint: str | None,
    s3_region: str | None,
    s3_path_style: bool,
    cache: str | None,
    cache_gib: float | None,
) -> None:
    """Predict neural network parameters with Graph HyperNetworks: shard, meta-train, register, evaluate, predict.

    Credentials for S3 are found as AWS's own tools find them (variables, files, roles).
    """
    given = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_DEFAULT_REGION": s3_region,
        "GHN_S3_ADDRESSING": "path" if s3_path_style else None,
        "GHN_CACHE": cache,
        "GHN_CACHE_GIB": cache_gib,
    }
    os.environ.update({name: str(value) for name, value in given.items() if value})  # for processes started here, too
    tune_process()
    if os.environ.get("GHN_S3") and context.invoked_subcommand != "s3":
        from pipelines import embedded_s3

        embedded_s3.use_configured()


@cli.group()
def shard() -> None:
    """Write images or architectures as WebDataset tar shards with a manifest; look at such sets."""


@shard.command("images")
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
@_example("ghn shard images --source digits --out s3://ghn/images --seed 0 --shard-samples 500")
def shard_images_command(source: str, out: str, **options: Any) -> None:
    """Split an image source into train, val and test and shard each; run it again to finish after a stop."""
    from pipelines.shards.jobs import shard_images

    _print_manifests(out, shard_images(source, out, **options))


@shard.command("deepnets")
@click.option("--split", "splits", multiple=True, required=True, help="train, val, test, wide, ...; may be repeated.")
@click.option("--from-hdf5", "hdf5", type=PATH, help="Take them from an official DeepNets-1M file, not the generator.")
@click.option("--count", type=click.IntRange(min=1), help="Architectures of each split (of a file: the first; or all).")
@click.option("--out", required=True, help="Root of the shard sets: s3://bucket/prefix or a folder.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the sample (default: 0).")
@click.option("--shard-samples", type=click.IntRange(min=1), default=1000, show_default=True, help="Per shard.")
@click.option("--part", metavar="N/COUNT", help="Write only this range of the shards, as one of COUNT machines.")
@click.option("--num-classes", type=click.IntRange(min=2), default=10, show_default=True, help="Classifier width.")
@click.option("--image-size", type=click.IntRange(8, 1024), default=32, show_default=True, help="Pixels.")
@click.option("--channels", type=int, multiple=True, help="Initial channels to draw from (default: published rule).")
@click.option("--fc-dims", type=int, multiple=True, help="Hidden classifier widths (default: published rule).")
@click.option("--max-nodes", type=click.IntRange(min=2), help="Pass over architectures with larger graphs.")
@_example("ghn shard deepnets --split train --count 1000 --out s3://ghn/deepnets --seed 0 --shard-samples 250")
def shard_deepnets_command(
    splits: tuple[str, ...], out: str, hdf5: Path | None, part: str | None, **options: Any
) -> None:
    """Sample architectures by the DeepNets-1M rules (or take the official ones) and shard them."""
    from pipelines.shards.jobs import shard_deepnets, shard_official_deepnets
    from pipelines.shards.writer import Part

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


@shard.command("verify")
@click.argument("url")
@click.option("--deep", is_flag=True, help="Decode every image and build every graph, too.")
@_example("ghn shard verify s3://ghn/deepnets")
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


@shard.command("ls")
@click.argument("url")
@_example("ghn shard ls s3://ghn/deepnets/train")
def shard_ls(url: str) -> None:
    """List the shard set at URL, or all sets below it, shard by shard."""
    from pipelines.shards.inspect import list_sets

    list_sets(url, click.echo)


@shard.command("stats")
@click.argument("url")
@click.option("--window", type=click.IntRange(min=1), default=8, show_default=True, help="Of the reading order.")
@click.option("--lanes", type=click.IntRange(min=1), default=1, show_default=True, help="Of the reading order.")
@click.option("--sample", type=click.IntRange(min=1), default=2000, show_default=True, help="Samples to look into.")
@click.option("--draw", type=PATH, help="SVG file for pictures of the distributions.")
@_example("ghn shard stats s3://ghn/deepnets --draw deepnets.svg")
def shard_stats(url: str, window: int, lanes: int, sample: int, draw: Path | None) -> None:
    """Count samples, bytes, nodes and parameters of the sets at URL, and measure how well they are shuffled."""
    from pipelines.shards.inspect import measure_sets
    from pipelines.shards.statistics import draw_statistics, statistics_table

    measured = measure_sets(url, window=window, lanes=lanes, sample=sample)
    click.echo(statistics_table(measured))
    if draw is not None:
        draw_statistics(measured, draw)
        click.echo(f"picture: {draw}")


@cli.command()
@click.option("--recipe", default="embedded", show_default=True, help="A recipe's name, or a TOML file.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override; may be repeated.")
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
@_example("ghn train --recipe cifar10 --set images.url=s3://ghn/cifar10 --set training.steps=1000 --run runs/cifar10")
def train(
    recipe: str,
    overrides: tuple[str, ...],
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
    from pipelines.settings import load_recipe
    from pipelines.training.launch import train as train_job

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
    if os.environ.get("RANK", "0") == "0":
        click.echo(resolved.to_toml())
    train_job(resolved, run, store=store, stop_after=stop_after)


@cli.command()
@click.option("--out", type=PATH, required=True, help="JSON file, for a recipe's training.cost_model.")
@click.option("--networks", type=click.IntRange(min=1), default=256, show_default=True, help="Networks to measure.")
@click.option("--images", type=click.IntRange(min=2), default=32, show_default=True, help="Images of a batch.")
@click.option("--image-size", type=click.IntRange(8, 1024), default=32, show_default=True, help="Pixels.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the networks.")
@_example("ghn calibrate --out costs.json && ghn train --recipe cifar10 --set training.cost_model=costs.json")
def calibrate(out: Path, **options: Any) -> None:
    """Measure what networks cost on this machine, so that training deals them evenly over ranks."""
    from pipelines.training.calibrate import calibrate as calibrate_job

    for name, value in calibrate_job(out, **options).items():
        click.echo(f"{name.replace('_', ' '):32s} {value:g}")
    click.echo(f"cost model: {out}")


@cli.command()
@click.option("--run", type=PATH, required=True, help="Folder of a finished `ghn train`.")
@click.option("--name", required=True, help="Registered model, e.g. ghn2-digits.")
@click.option("--alias", default="candidate", show_default=True, help="Moved to the new version.")
@click.option("--experiment", default="ghn", show_default=True, help="MLflow experiment.")
@click.option("--artifacts", help="Artifact root of a new experiment, e.g. s3://ghn/mlflow.")
@click.option("--average", is_flag=True, help="The averaged weights of a run with training.ema.")
@_TRACKING
@_example("ghn register --run runs/train --name ghn2-digits --artifacts s3://ghn/mlflow")
def register(run: Path, **options: Any) -> None:
    """Log a finished run to MLflow and register its model."""
    from pipelines.register import register as register_job

    result = register_job(run, **options)
    click.echo(f"registered {result['name']} version {result['version']} as {result['model_uri']}")


@cli.command()
@click.option("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/VERSION, or a checkpoint's path.")
@click.option("--images", required=True, help="Root of an image shard set.")
@click.option("--deepnets", required=True, help="Root of the architecture shard sets.")
@click.option("--split", "splits", multiple=True, help="Default: every split but train.")
@click.option("--out", type=PATH, default=Path("runs/evaluation.json"), show_default=True, help="JSON file to write.")
@click.option("--networks", type=click.IntRange(min=1), help="At most so many networks of each split.")
@click.option("--image-limit", type=click.IntRange(min=1), help="At most so many images.")
@click.option("--image-split", type=click.Choice(["test", "val"]), default="test", show_default=True, help="Images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random initializations.")
@_TRACKING
@_example("ghn evaluate --model models:/ghn2-digits@candidate --images s3://ghn/images --deepnets s3://ghn/deepnets")
def evaluate(model: str, splits: tuple[str, ...], **options: Any) -> None:
    """Evaluate a model on unseen architectures and test images, beside random initialization."""
    from pipelines.evaluate import DEFAULT_SPLITS
    from pipelines.evaluate import evaluate as evaluate_job
    from pipelines.report import table

    click.echo(table(evaluate_job(model, splits=splits or DEFAULT_SPLITS, **options)))


@cli.command()
@click.option("--name", required=True, help="Registered model.")
@click.option("--evaluation", type=PATH, help="Of the candidate. Default: what `ghn evaluate` stored with it.")
@click.option("--champion-evaluation", type=PATH, help="The same for the champion.")
@click.option("--split", "splits", multiple=True, help="That must have been evaluated. Default: every one but train.")
@click.option("--dry-run", is_flag=True, help="Decide, but change nothing.")
@_TRACKING
@_example("ghn promote --name ghn2-cifar10 --dry-run")
def promote(name: str, splits: tuple[str, ...], **options: Any) -> None:
    """Make the candidate champion if it is better on val, and worse on no other split, beyond noise."""
    from pipelines.evaluate import DEFAULT_SPLITS
    from pipelines.promote import promote as promote_job

    result = promote_job(name, splits=splits or DEFAULT_SPLITS, **options)
    done = "would be promoted" if options["dry_run"] else "is champion now"
    click.echo(f"{name} version {result['version']} {done if result['promoted'] else 'is not promoted'}")
    for reason in result["reasons"]:
        click.echo(f"  {reason}")


@cli.command()
@click.option("--name", required=True, help="Registered model.")
@click.option("--reason", required=True, help="Written to the description of the version that is left.")
@_TRACKING
@_example('ghn rollback --name ghn2-cifar10 --reason "wrong answers on wide networks"')
def rollback(name: str, **options: Any) -> None:
    """Make the champion before the present one champion again."""
    from pipelines.promote import rollback as rollback_job

    result = rollback_job(name, **options)
    click.echo(f"{name} version {result['version']} is champion again, instead of {result['left']}")


@cli.command()
@click.option("--evaluation", type=PATH, required=True, help="JSON file of `ghn evaluate`.")
@click.option("--run", type=PATH, required=True, help="Folder of the `ghn train` behind it (for the curve).")
@click.option("--out", type=PATH, required=True, help="Folder for report.json and report.html.")
@_example("ghn report --evaluation runs/evaluation.json --run runs/train --out runs")
def report(evaluation: Path, run: Path, out: Path) -> None:
    """Make report.json and a self-contained report.html with pictures."""
    from pipelines.report import table, write_report

    content = write_report(evaluation, run, out)
    click.echo(table(content))
    click.echo(f"report: {out / 'report.html'} and {out / 'report.json'}")


@cli.command("convert-checkpoint")
@click.argument("official", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; must not hold anything yet.")
@_example("ghn convert-checkpoint ghn2_cifar10.pt --out models/ghn2-cifar10")
def convert_checkpoint(official: Path, out: Path) -> None:
    """Write the OFFICIAL .pt checkpoint (GHN-2, GHN-1 or the MLP baseline) in this project's format."""
    from ghn.checkpoint import convert_checkpoint as convert

    hypernet = convert(official, out)
    parameters = sum(parameter.numel() for parameter in hypernet.parameters())
    click.echo(f"{out}: {parameters:,} parameters, {hypernet.config}")


@cli.command()
@click.option("--checkpoint", type=PATH, required=True, help="Checkpoint folder, or an official .pt file.")
@click.option("--spec", type=PATH, help="JSON file with one architecture specification.")
@click.option("--model", help="torchvision:NAME, timm:NAME or FILE.py:FACTORY instead.")
@click.option("--num-classes", type=click.IntRange(min=2), default=10, show_default=True, help="Of the model.")
@click.option(
    "--image-size", type=click.IntRange(8, 1024), default=32, show_default=True, help="Of the model, in pixels."
)
@click.option("--small-input", is_flag=True, help="Keep the resolution in the model's first layers.")
@click.option("--allow-default", multiple=True, metavar="PATTERN", help="Parameters that may stay unpredicted.")
@click.option("--draw", type=PATH, help="SVG file for a drawing of the graph.")
@click.option("--out", type=PATH, required=True, help="safetensors file to write.")
@_example(
    "ghn predict --checkpoint runs/train/model --model torchvision:resnet50 --small-input --out resnet50.safetensors"
)
def predict(checkpoint: Path, out: Path, **options: Any) -> None:
    """Predict all parameters of one network."""
    from pipelines.predict import predict as predict_job

    click.echo(predict_job(checkpoint, out, **options))


@cli.command()
@click.option("--images", default="digits", show_default=True, envvar="IMAGES", help="As in `ghn shard images`.")
@click.option("--out", type=PATH, default=Path("runs/demo"), show_default=True, help="Folder of the demo; made anew.")
@click.option("--tiny", is_flag=True, help="A few steps on a tiny shard, to see that everything works.")
@_example("ghn demo --images cifar10.zip --out runs/cifar10-demo")
def demo(images: str, out: Path, tiny: bool) -> None:
    """Run the whole job, from shards to report, as the Airflow DAG `smoke`."""
    from pipelines.demo import demo as demo_job

    click.echo(demo_job(images, out, tiny=tiny))


@cli.group()
def s3() -> None:
    """The embedded S3 server that demo and smoke runs use when AWS_ENDPOINT_URL is not set."""


@s3.command("start")
@click.argument("folder", type=PATH)
@_example("ghn s3 start runs/demo/s3")
def s3_start(folder: Path) -> None:
    """Start the server over FOLDER, unless AWS_ENDPOINT_URL names another one."""
    from pipelines import embedded_s3

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or embedded_s3.start(folder)["AWS_ENDPOINT_URL"]
    click.echo(f"object store at {endpoint}")


@s3.command("stop")
@click.argument("folder", type=PATH)
@_example("ghn s3 stop runs/demo/s3")
def s3_stop(folder: Path) -> None:
    """Stop the server of FOLDER; its objects stay."""
    from pipelines import embedded_s3

    embedded_s3.stop(folder)


@s3.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=PATH)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_example("ghn s3 exec runs/demo/s3 -- mlflow models serve -m models:/ghn2-digits@candidate --env-manager local")
def s3_exec(folder: Path, command: tuple[str, ...]) -> None:
    """Run COMMAND as a client of the server of FOLDER, which runs for as long as the command does."""
    from pipelines import embedded_s3

    sys.exit(embedded_s3.run_client(folder, command))


def main() -> None:
    """Run the command line; deliberate errors print one message, other errors are bugs and keep their traceback."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("ghn: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except Exception as error:
        from ghn.errors import GHNError

        if not isinstance(error, GHNError):
            raise
        click.echo(f"ghn: {error}", err=True)
        sys.exit(error.exit_code)


def _print_manifests(out: str, manifests: dict[str, Any]) -> None:
    from pipelines.shards.inspect import describe

    for split, manifest in manifests.items():
        click.echo(f"{out}/{split}: {describe(manifest)}")


if __name__ == "__main__":
    main()
