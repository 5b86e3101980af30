"""The DAG as Airflow sees it: every task one command, as an argument list, in the right order."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DESCRIBE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
sys.path.insert(0, sys.argv[1])  # as Airflow itself does with its DAGs folder
bag = DagBag(sys.argv[1])
dag = bag.dags["smoke"]
json.dump({
    "errors": {str(k): str(v) for k, v in bag.import_errors.items()},
    "tasks": {t.task_id: {"arguments": list(t.arguments), "after": sorted(t.upstream_task_ids),
        "setup": t.is_setup, "teardown": t.is_teardown} for t in dag.tasks},
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def dag(tmp_path_factory) -> dict:
    pytest.importorskip("airflow")
    home = tmp_path_factory.mktemp("airflow")
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
    }
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True, env=environment)
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, str(REPOSITORY / "dags")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index('{"errors"') :])


def test_it_loads_and_runs_in_order(dag: dict) -> None:
    assert dag["errors"] == {}
    tasks = dag["tasks"]
    assert tasks["start_store"]["setup"] and tasks["stop_store"]["teardown"]
    chain = ["train", "resume", "register", "evaluate", "report"]
    for before, after in itertools.pairwise(chain):
        assert before in tasks[after]["after"]
    assert set(tasks["train"]["after"]) == {
        "shard_images",
        "shard_train_architectures",
        "shard_evaluated_architectures",
    }


def test_every_task_is_one_known_command(dag: dict) -> None:
    from pipelines.cli import cli

    for task_id, task in dag["tasks"].items():
        assert task["arguments"][0] in cli.commands, task_id
        assert not any(character in argument for argument in task["arguments"] for character in ";|&$`"), task_id
    covered = [a for a in dag["tasks"]["shard_evaluated_architectures"]["arguments"] if not a.startswith("-")]
    assert {"val", "test", "wide", "deep", "dense", "bnfree", "predefined"} <= set(covered)
