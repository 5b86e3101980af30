"""The ``ghn`` command line. Each command imports only what it needs, when it runs."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from typing import NoReturn

import click

from pipelines.commands import data, evaluation, local, prediction, training
from pipelines.process import tune_process

_ENVIRONMENT = 3  # exit code of ghn.errors.EnvironmentSetupError, which may be what can not be imported
_EXTRAS = {"airflow": "demo", "matplotlib": "demo", "sklearn": "demo", "timm": "dev"}
"""Which extra has a package, where it is not `train`."""
_UNUSABLE = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT),
)
"""What is wrong with a file or folder that somebody else than we can mend."""
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
    """Run the command line.

    Deliberate errors print one message, and so do files that can not be used and packages that are not installed. Other
    errors are bugs and keep their traceback.
    """
    try:
        if code := cli.main(standalone_mode=False):  # of a command that left by `context.exit`
            sys.exit(code)
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or importlib.util.find_spec(package) is not None:
            raise  # of an installed package, or of this one
        extra = _EXTRAS.get(package, "train")
        _fail(f"this command needs {package}, which is not installed: pip install 'ghn[{extra}]'", _ENVIRONMENT)
    except Exception as error:
        from ghn.errors import GHNError

        if isinstance(error, GHNError):
            _fail(str(error), error.exit_code)
        if isinstance(error, OSError) and error.filename and error.errno in _UNUSABLE:
            _fail(str(error), _ENVIRONMENT)
        raise


def _fail(message: str, exit_code: int) -> NoReturn:
    click.echo(f"ghn: {message}", err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
