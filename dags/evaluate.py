"""### Evaluation on unseen architectures.

Scores the model on every split, one mapped task for each split and part of its networks; then the champion, where there is
another one, on the same networks and images; then writes the evaluation into MLflow and draws a report. At the end it looks for
alarms: a loss beyond noise on any split, or an evaluation that is too old, fails the run with the numbers in the message.

**Starts**: every night, when a new candidate was registered, or by hand. **Then**: `promote` starts.
"""

from __future__ import annotations

import os

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from ghn_airflow import defaults
from ghn_airflow.assets import CANDIDATE, EVALUATION
from ghn_airflow.operator import GhnOperator
from ghn_airflow.settings import kind_of_run, options, settings_of

NIGHTLY = os.environ.get("GHN_EVALUATION_CRON", "0 3 * * *")

with DAG(
    dag_id="evaluate",
    description="Score candidate and champion on every split",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable(NIGHTLY, timezone="UTC"), assets=CANDIDATE),
    catchup=False,
    tags=defaults.TAGS,
    max_active_runs=1,
    default_args=defaults.default_args(hours=24),
    params={
        "name": defaults.name(),
        "alias": Param(
            "candidate",
            type="string",
            enum=["candidate", "champion"],
            title="alias",
            description="Which version is looked at",
        ),
        "images": defaults.images(),
        "deepnets": defaults.deepnets(title="architectures (shards, or an official .hdf5 file)"),
        "splits": defaults.splits("To be scored"),
        "chunks": Param(
            int(os.environ.get("GHN_EVALUATION_CHUNKS", "2")),
            type="integer",
            minimum=1,
            maximum=1024 // len(defaults.EVALUATED),  # Airflow maps over so many tasks, at most
            title="chunks",
            description="Tasks that share each split",
        ),
        "processes": Param(
            int(os.environ.get("GHN_EVALUATION_PROCESSES", "1")),
            type="integer",
            minimum=1,
            maximum=1024,
            title="processes",
            description="Of each task, with one thread each; tasks run side by side, too",
        ),
        "networks": defaults.optional_count("networks", "At most so many of each split (empty: all)"),
        "image_limit": defaults.optional_count("images", "At most so many (empty: all)"),
        "baselines": Param(
            None,
            type=["null", "array"],
            items={"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*=.+$"},
            title="baselines",
            section="Baselines",
            description="One line for each: NAME=MODEL, e.g. ghn1=models:/ghn1-cifar10/3",
        ),
        "sgd_steps": Param(
            0,
            type="integer",
            minimum=0,
            title="SGD steps",
            section="Baselines",
            description="Train networks for so many steps, too: how many is a prediction worth? (0: do not)",
        ),
        "sgd_networks": defaults.optional_count(
            "SGD networks", "Of each split, at most (empty: all)", section="Baselines"
        ),
        "max_age_hours": Param(
            48.0,
            type="number",
            exclusiveMinimum=0,
            title="oldest evaluation",
            description="In hours, before there is an alarm",
        ),
        "backend": defaults.backend(),
        "work": defaults.work(),
    },
) as dag:

    @task(multiple_outputs=True, retries=0, inlets=[CANDIDATE])
    def commands() -> dict[str, object]:
        """Make the command lines, one for each split and chunk."""
        context = get_current_context()
        given = settings_of(context, inlets=[CANDIDATE])
        folder = defaults.run_folder(given, context)
        by_itself = kind_of_run(context) != "manual"  # then a model that is not there yet is no failure
        same = ("images", "deepnets", "networks", "image_limit", "processes")
        measured = options(**{key: given[key] for key in same}, results=f"{folder}/scores")
        compared = options(**{key: given[key] for key in ("sgd_steps", "sgd_networks")}, baseline=given["baselines"])
        splits = options(split=given["splits"])
        address = f"models:/{given['name']}@{given['alias']}"
        model = options(model=address, out=f"{folder}/evaluation.json", optional=by_itself)
        champion = options(model=f"models:/{given['name']}@champion", out=f"{folder}/champion.json")
        return {
            "parts": [
                ["evaluate", *model, *measured, *compared, f"--part={part}/{given['chunks']}", f"--split={split}"]
                for split in given["splits"]
                for part in range(1, given["chunks"] + 1)
            ],
            "champion": ["evaluate", *champion, *measured, *splits, "--optional", f"--unless-model={address}"],
            "summarize": ["evaluate", *model, *measured, *compared, *splits],
            "report": ["report", *options(evaluation=f"{folder}/evaluation.json", out=folder)],
            "alert": ["alert", *options(name=given["name"], max_age_hours=given["max_age_hours"])],
            "announce": {
                "name": given["name"],
                "splits": given["splits"],
                "whole": given["networks"] is None and given["image_limit"] is None and "val" in given["splits"],
            },
        }

    @task(retries=0)
    def parts(made: dict[str, list[list[str]]]) -> list[list[str]]:
        """Give the list that is mapped over."""
        return made["parts"]

    made = commands()
    score = GhnOperator.partial(
        task_id="score",
        map_index_template="{{ task.arguments[-1].partition('=')[2] }} {{ task.arguments[-2].partition('=')[2] }}",
    ).expand(arguments=parts(made))
    champion = GhnOperator(task_id="champion", arguments=made["champion"])
    summarize = GhnOperator(
        task_id="summarize",
        trigger_rule="none_failed",  # there may be no champion
        arguments=made["summarize"],
    )

    @task(outlets=[EVALUATION], retries=0)
    def announce(said: dict[str, object]) -> None:
        """Start the promotion, unless only a part was looked at."""
        if not said.pop("whole"):
            raise AirflowSkipException("an evaluation with limits, or without val, promotes nothing")
        get_current_context()["outlet_events"][EVALUATION].extra = said

    report = GhnOperator(task_id="report", arguments=made["report"])
    alert = GhnOperator(task_id="alert", arguments=made["alert"], retries=0)
    score >> champion >> summarize >> report >> alert
    summarize >> announce(made["announce"])
