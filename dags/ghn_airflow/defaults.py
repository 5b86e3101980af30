"""Defaults of all DAGs: parameters, retries, time limits, pools, and where runs leave what they make.

Variables of the environment set an installation's defaults when the DAG files are parsed; whoever triggers a run may choose others.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any

from airflow.sdk import Param

from ghn_airflow.alerts import report_failure
from ghn_airflow.backends import NAMES

TRAINING_POOL = "ghn_training"
EVALUATED = ("val", "test", "wide", "deep", "dense", "bnfree", "predefined")
TAGS = ["ghn"]

_NAME = os.environ.get("GHN_NAME", "ghn2-cifar10")
_ROOT = os.environ.get("GHN_ROOT", "s3://ghn/cifar10")
_ADDRESS = r"^[^-\s]\S*$"


def default_args(hours: float, *, retries: int | None = None) -> dict[str, Any]:
    """Return arguments for all tasks of a DAG.

    Args:
        hours: most that a task may take.
        retries: default: ``GHN_RETRIES``, or 3; the pause doubles from ``GHN_RETRY_DELAY_S`` (60) to half an hour.

    """
    return {
        "owner": "ghn",
        "retries": int(os.environ.get("GHN_RETRIES", "3")) if retries is None else retries,
        "retry_delay": timedelta(seconds=float(os.environ.get("GHN_RETRY_DELAY_S", "60"))),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=30),
        "execution_timeout": timedelta(hours=hours),
        "on_failure_callback": report_failure,
    }


def images(title: str = "images") -> Param:
    """Root of an image shard set."""
    return _address(title, f"{_ROOT}/images", "Root of the image shards: s3://bucket/prefix or a folder")


def deepnets(title: str = "architectures") -> Param:
    """Root of the architecture shard sets."""
    return _address(title, f"{_ROOT}/deepnets", "Root of the architecture shards: s3://bucket/prefix or a folder")


def name() -> Param:
    """A registered model."""
    return Param(
        _NAME,
        type="string",
        title="registered model",
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name in MLflow's registry, one for each image set, e.g. ghn2-cifar10",
    )


def splits(description: str, *, title: str = "splits") -> Param:
    """Evaluated splits, at least one; ``GHN_EVALUATED_SPLITS`` says which are chosen."""
    return Param(
        os.environ.get("GHN_EVALUATED_SPLITS", " ".join(EVALUATED)).split(),
        type="array",
        items={"type": "string", "enum": list(EVALUATED)},
        examples=list(EVALUATED),
        minItems=1,
        title=title,
        description=description,
    )


def work() -> Param:
    """Folder for what runs leave behind."""
    text = "Folder for what the run leaves behind; with several nodes or in containers one that all of them see"
    return _address("work folder", os.environ.get("GHN_HOME", "runs/airflow"), text, section="Where it runs")


def backend() -> Param:
    """Where commands run."""
    return Param(
        os.environ.get("GHN_BACKEND", "local"),
        type="string",
        enum=list(NAMES),
        title="back-end",
        section="Where it runs",
        description="A process of the worker, the hosts of the host file, containers, or a Kubernetes Job",
    )


def nodes() -> Param:
    """On how many nodes training runs."""
    return Param(
        int(os.environ.get("GHN_NODES", "1")),
        type="integer",
        minimum=1,
        maximum=4096,
        title="nodes",
        section="Where it runs",
        description="Hosts, containers or pods that train together; more than 1 needs another back-end than local",
    )


def optional_count(title: str, description: str, **more: Any) -> Param:
    """A whole number from 1, or nothing."""
    return Param(None, type=["null", "integer"], minimum=1, title=title, description=description, **more)


def numbers(title: str, description: str, **more: Any) -> Param:
    """Some whole numbers, or nothing."""
    return Param(None, type=["null", "array"], items={"type": "integer"}, title=title, description=description, **more)


def run_folder(params: Any, context: Any) -> str:
    """Return the folder of a DAG run: the same for every try of every task, and for no other run."""
    run = re.sub(r"[^A-Za-z0-9._-]+", "-", context["dag_run"].run_id)
    return f"{str(params['work']).rstrip('/')}/{context['dag'].dag_id}/{run}"


def _address(title: str, default: str, description: str, **more: Any) -> Param:
    return Param(default, type="string", minLength=1, pattern=_ADDRESS, title=title, description=description, **more)
