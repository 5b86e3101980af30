"""### Meta-training.

Checks recipe, shards and memory (`plan`), trains on any number of nodes, and registers the model as **candidate**. Training leaves
checkpoints: a task that was killed, cleared or retried goes on from the newest one, in the same run folder, and the same
weights are registered once only. One training runs at a time (pool `ghn_training`).

**Starts**: when images *and* architectures were sharded, or by hand. **Then**: `evaluate` starts.
"""

from __future__ import annotations

import os

from airflow.sdk import DAG, Param, get_current_context, task

from ghn_airflow import defaults
from ghn_airflow.assets import CANDIDATE, DEEPNETS, IMAGES
from ghn_airflow.operator import GhnOperator
from ghn_airflow.settings import options, settings_of

with DAG(
    dag_id="meta_train",
    description="Plan, train on several nodes, and register the candidate",
    doc_md=__doc__,
    schedule=(IMAGES & DEEPNETS),
    catchup=False,
    tags=defaults.TAGS,
    max_active_runs=2,
    default_args=defaults.default_args(hours=24 * 14),
    params={
        "recipe": Param(
            os.environ.get("GHN_RECIPE", "cifar10"),
            type="string",
            minLength=1,
            pattern=r"^[^-\s]\S*$",
            title="recipe",
            description="Name, or path of a TOML file that the nodes see",
        ),
        "overrides": Param(
            os.environ.get("GHN_OVERRIDES", "").split() or None,
            type=["null", "array"],
            items={"type": "string", "pattern": r"^[a-z]+\.[a-z_]+=.*$"},
            title="overrides",
            description="One line for each: section.key=value, e.g. training.steps=1000",
        ),
        "images": defaults.images(),
        "deepnets": defaults.deepnets(),
        "name": defaults.name(),
        "experiment": Param(
            "ghn", type="string", minLength=1, pattern=r"^[^-].*$", title="experiment", description="Of MLflow"
        ),
        "artifacts": Param(
            os.environ.get("GHN_ARTIFACTS"),
            type=["null", "string"],
            title="artifacts",
            description="Root for artifacts of a new experiment, e.g. s3://ghn/mlflow (empty: MLflow's default)",
        ),
        "store": Param(
            None,
            type=["null", "string"],
            title="checkpoint store",
            description="Root for checkpoints, e.g. s3://ghn/runs (empty: in the work folder)",
        ),
        "backend": defaults.backend(),
        "nodes": defaults.nodes(),
        "work": defaults.work(),
    },
) as dag:

    @task(multiple_outputs=True, retries=0)
    def commands() -> dict[str, object]:
        """Make the command lines."""
        context = get_current_context()
        given = settings_of(context)
        folder = defaults.run_folder(given, context)
        run = f"{folder}/train"
        store = f"{given['store'].rstrip('/')}/{folder.rsplit('/', 1)[-1]}" if given["store"] else None
        recipe = options(
            recipe=given["recipe"],
            set=[
                f"images.url={given['images']}",
                f"architectures.url={given['deepnets']}",
                *(given["overrides"] or ()),
            ],
            run=run,
            store=store,
        )
        tracking = options(experiment=given["experiment"], artifacts=given["artifacts"])
        return {
            "plan": ["train", *recipe, "--plan"],
            "train": ["train", *recipe, *tracking],
            "register": ["register", *options(run=run, name=given["name"]), *tracking],
            "announce": {key: given[key] for key in ("name", "images", "deepnets")},
        }

    made = commands()
    plan = GhnOperator(task_id="plan", arguments=made["plan"])
    train = GhnOperator(
        task_id="train", arguments=made["train"], nodes="{{ params.nodes }}", pool=defaults.TRAINING_POOL
    )
    register = GhnOperator(
        task_id="register", arguments=made["register"], outlets=[CANDIDATE], announce=made["announce"]
    )
    plan >> train >> register
