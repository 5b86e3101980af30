"""The ``ghn`` command line. Each command imports only what it needs, when it runs."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from pipelines.commands import data, evaluation, local, prediction, training
from pipelines.process import tune_process

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Data": (data.shard,),
    "Training": (training.train, training.calibrate, training.register),
    "Evaluation": (
        *(evaluation.evaluate, evaluation.report),
        *(evaluation.promote, evaluation.rollback, evaluation.alert),
    ),
    "Prediction": (prediction.predict, prediction.serve, prediction.convert_checkpoint),
    "Everything on this machine": (local.demo, local.airflow, local.s3),
}
"""The commands as `ghn --help` lists them, in the order in which one needs them."""


class _Contents(click.Group):
    """A group whose help lists its commands by section."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(str(command.name), command.get_short_help_str()) for command in commands])


@click.group(cls=_Contents, context_settings=_CONTEXT)
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
    """Predict neural network parameters with Graph HyperNetworks, and meta-train what predicts them.

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
        from pipelines.local import embedded_s3

        embedded_s3.use_configured()


for commands in SECTIONS.values():
    for command in commands:
        cli.add_command(command)


def main() -> None:
    """Run the command line; deliberate errors print one message, other errors are bugs and keep their traceback."""
    try:
        if code := cli.main(standalone_mode=False):  # of a command that left by `context.exit`
            sys.exit(code)
    except click.exceptions.Abort:
        click.echo("ghn: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        from ghn.errors import EnvironmentSetupError, GHNError

        if isinstance(error, OSError) and error.filename and not isinstance(error, GHNError):
            _fail(f"{error.filename}: {error.strerror}", EnvironmentSetupError.exit_code)
        if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] not in ("ghn", "pipelines"):
            message = f"this command needs {error.name}, which is not installed: pip install 'ghn[train]'"
            _fail(message, EnvironmentSetupError.exit_code)
        if not isinstance(error, GHNError):
            raise
        _fail(str(error), error.exit_code)


def _fail(message: str, exit_code: int) -> NoReturn:
    click.echo(f"ghn: {message}", err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
