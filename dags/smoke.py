"""The whole job as one DAG: shards, meta-training with a resume, registration, evaluation, report.

Run it with ``airflow dags test smoke``; ``make demo`` and ``make smoke`` do, with other parameters. By default it uses MLflow
of the installation, and a folder of its own.
"""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, Param

from ghn_airflow import defaults
from ghn_airflow.operator import GhnOperator

IMAGE_SIZE = "16"
ARTIFACTS = os.environ.get("GHN_ARTIFACTS") or "s3://ghn/mlflow"

PARAMS = {
    "run": Param("", type="string", description="Folder for what the run leaves behind (empty: below the work folder)"),
    "work": defaults.work(),
    "root": Param("s3://ghn/demo", type="string", description="Root of the shards on the object store"),
    "artifacts": Param(ARTIFACTS, type="string", description="Root of MLflow's artifacts"),
    "images": Param("digits", type="string", description="`digits`, or a folder or zip with class folders"),
    "image_limit": Param("", type="string", pattern="^[0-9]*$", description="Use only so many images (empty: all)"),
    "num_classes": Param(10, type="integer", minimum=2, description="Classes of the images"),
    "tracking": Param(
        "",
        type="string",
        description="MLflow's address (empty: that of the workers, or a SQLite file in the run's folder)",
    ),
    "name": Param("ghn2-digits", type="string", pattern="^[A-Za-z0-9._-]+$", description="Registered model"),
    "recipe": Param("embedded", type="string", description="Training recipe"),
    "first_session": Param(400, type="integer", minimum=1, description="Steps after which training stops and resumes"),
    "train_count": Param(300, type="integer", minimum=1, description="Training architectures"),
    "train_nodes": Param(130, type="integer", minimum=2, description="Largest graph that training uses, in nodes"),
    "test_count": Param(8, type="integer", minimum=1, description="Architectures of each evaluated split"),
    "test_images": Param(256, type="integer", minimum=1, description="Test images, at most"),
}


def tracking(address: str, folder: str) -> str:
    """Return the option that names MLflow, or nothing where the worker's environment does."""
    if not address and os.environ.get("MLFLOW_TRACKING_URI"):
        return ""
    return f"--tracking-uri={address or f'sqlite:///{folder}/mlflow.db'}"


with DAG(
    dag_id="smoke",
    description="Shard, meta-train, register, evaluate and report, small but real",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    params=PARAMS,
    user_defined_macros={"run_folder": defaults.run_folder, "tracking": tracking},
    tags=["ghn"],
    default_args={"owner": "ghn", "execution_timeout": timedelta(hours=2)},
    max_active_runs=1,
) as dag:
    FOLDER = "params.run or run_folder(params, {'dag': dag, 'dag_run': dag_run})"
    RUN = f"{{{{ {FOLDER} }}}}"
    TRACKING = f"{{{{ tracking(params.tracking, {FOLDER}) }}}}"
    SHARDS = ("{{ params.root }}/images", "{{ params.root }}/deepnets")
    MODEL = "{{ params.name }}@candidate"

    def ghn(task_id: str, *arguments: str) -> GhnOperator:
        """One task, one command, as a client of the run's object store."""
        return GhnOperator(task_id=task_id, arguments=arguments, environment={"GHN_S3": f"{RUN}/s3"}, backend="local")

    def train(task_id: str, *more: str) -> GhnOperator:
        """A session of the same training; the second one resumes."""
        settings = (
            f"images.url={SHARDS[0]}",
            f"architectures.url={SHARDS[1]}",
            "model.num_classes={{ params.num_classes }}",
        )
        overrides = [part for setting in settings for part in ("--set", setting)]
        return ghn(task_id, "train", "--recipe", "{{ params.recipe }}", *overrides, "--run", f"{RUN}/train", *more)

    deepnets = ("--out", SHARDS[1], "--num-classes", "{{ params.num_classes }}", "--image-size", IMAGE_SIZE)
    widths = ("--channels", "16", "--fc-dims", "64")

    start_store = ghn("start_store", "s3", "start", f"{RUN}/s3")
    shard_images = ghn(
        "shard_images",
        *("shard", "images", "--source", "{{ params.images }}", "--out", SHARDS[0], "--seed", "0"),
        *("--shard-samples", "500", "--image-size", IMAGE_SIZE),
        "{{ '--limit=' ~ params.image_limit if params.image_limit else '' }}",
    )
    shard_train = ghn(
        "shard_train_architectures",
        *("shard", "deepnets", "--split", "train", "--count", "{{ params.train_count }}", "--seed", "0"),
        *("--shard-samples", "250", "--max-nodes", "{{ params.train_nodes }}", *deepnets, *widths),
    )
    shard_evaluated = ghn(
        "shard_evaluated_architectures",
        *("shard", "deepnets", *(part for split in defaults.EVALUATED for part in ("--split", split))),
        *("--count", "{{ params.test_count }}", "--seed", "1", "--shard-samples", "100", *deepnets, *widths),
    )
    first_session = train("train", "--stop-after", "{{ params.first_session }}")
    resumed_session = train("resume")
    register = ghn(
        "register",
        *("register", "--run", f"{RUN}/train", "--name", "{{ params.name }}"),
        *("--artifacts", "{{ params.artifacts }}", TRACKING),
    )
    evaluate = ghn(
        "evaluate",
        *("evaluate", "--model", f"models:/{MODEL}", "--images", SHARDS[0], "--deepnets", SHARDS[1]),
        *("--image-limit", "{{ params.test_images }}", "--out", f"{RUN}/evaluation.json", TRACKING),
    )
    report = ghn("report", "report", "--evaluation", f"{RUN}/evaluation.json", "--run", f"{RUN}/train", "--out", RUN)
    stop_store = ghn("stop_store", "s3", "stop", f"{RUN}/s3")

    start_store.as_setup()
    stop_store.as_teardown(setups=start_store)
    start_store >> [shard_images, shard_train, shard_evaluated] >> first_session
    first_session >> resumed_session >> register >> evaluate >> report >> stop_store
