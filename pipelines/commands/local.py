"""The whole job on an embedded default, and the S3 server behind it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from pipelines.commands.options import PATH, Ordered, example


@click.command(short_help="Run the whole job once, small but real")
@click.option("--images", default="digits", show_default=True, envvar="IMAGES", help="As in `ghn shard images`.")
@click.option("--out", type=PATH, default=Path("runs/demo"), show_default=True, help="Folder of the demo; made anew.")
@click.option("--tiny", is_flag=True, help="A few steps on a tiny shard, to see that everything works.")
@example("ghn demo --images cifar10.zip --out runs/cifar10-demo")
def demo(images: str, out: Path, tiny: bool) -> None:
    """Run the whole job, from shards to report, as the Airflow DAG `smoke`."""
    from pipelines.local.demo import demo as demo_job

    click.echo(demo_job(images, out, tiny=tiny))


@click.command(short_help="Run Airflow, MLflow and an object store")
@click.option("--folder", type=PATH, default=Path("runs/airflow"), show_default=True, help="For everything it leaves.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Of Airflow's pages.")
@click.option("--database", envvar="GHN_AIRFLOW_DATABASE", help="SQLAlchemy address (default: SQLite in the folder).")
@example("ghn airflow --folder runs/airflow --port 8080")
def airflow(folder: Path, port: int, database: str | None) -> None:
    """Run Airflow, MLflow and an object store on this machine, with all DAGs, until Ctrl-C."""
    from pipelines.local.airflow_server import serve

    serve(folder, port=port, database=database)


@click.group(cls=Ordered, short_help="Start, stop and use the embedded object store")
def s3() -> None:
    """The embedded S3 server that demo and smoke runs use when AWS_ENDPOINT_URL is not set."""


@s3.command("start", short_help="Start the server")
@click.argument("folder", type=PATH)
@example("ghn s3 start runs/demo/s3")
def s3_start(folder: Path) -> None:
    """Start the server over FOLDER, unless AWS_ENDPOINT_URL names another one."""
    from pipelines.local import embedded_s3

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or embedded_s3.start(folder)["AWS_ENDPOINT_URL"]
    click.echo(f"object store at {endpoint}")


@s3.command("stop", short_help="Stop the server")
@click.argument("folder", type=PATH)
@example("ghn s3 stop runs/demo/s3")
def s3_stop(folder: Path) -> None:
    """Stop the server of FOLDER; its objects stay."""
    from pipelines.local import embedded_s3

    embedded_s3.stop(folder)


@s3.command("exec", context_settings={"ignore_unknown_options": True}, short_help="Run a command as its client")
@click.argument("folder", type=PATH)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@example("ghn s3 exec runs/demo/s3 -- mlflow models serve -m models:/ghn2-digits@candidate --env-manager local")
def s3_exec(folder: Path, command: tuple[str, ...]) -> None:
    """Run COMMAND as a client of the server of FOLDER, which runs for as long as the command does."""
    from pipelines.local import embedded_s3

    sys.exit(embedded_s3.run_client(folder, command))
