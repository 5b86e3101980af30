"""All of `dags/` as Airflow sees it: quick to parse, complete, and every task a command with an argument list."""

from __future__ import annotations

import ast
import itertools
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DAGS = REPOSITORY / "dags"
NAMES = {"shard_images", "shard_deepnets", "meta_train", "evaluate", "promote", "smoke"}
DESCRIBE = """
import json, os, sys
import airflow.sdk, airflow.providers.standard.operators.python
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.encoders import coerce_to_core_timetable
from airflow.timetables.base import TimeRestriction
from airflow.utils.types import DagRunType
from pendulum import datetime
sys.path.insert(0, sys.argv[1])  # as Airflow itself does with its DAGs folder
bag = DagBag(sys.argv[1])
def names(condition):
    if hasattr(condition, "uri"):
        return [condition.name]
    return [name for one in getattr(condition, "objects", ()) for name in names(one)]
banned = ("torch", "numpy", "pandas", "ghn", "pipelines", "mlflow", "kubernetes", "boto3")
heavy = [name for name in banned if name in sys.modules]
def next_run(dag):
    timetable = coerce_to_core_timetable(dag.timetable)
    restriction = TimeRestriction(earliest=datetime(2026, 1, 1, 12), latest=None, catchup=True)
    run = timetable.next_dagrun_info(last_automated_data_interval=None, restriction=restriction)
    times = {"run_after": run.run_after, "data_interval": run.data_interval}
    return timetable.generate_run_id(run_type=DagRunType.SCHEDULED, **times)
nights = [next_run(bag.dags["evaluate"])]
os.environ["GHN_EVALUATION_CRON"] = "17 4 * * *"
nights.append(next_run(DagBag(sys.argv[1] + "/evaluate.py").dags["evaluate"]))
json.dump({
    "errors": {str(k): str(v) for k, v in bag.import_errors.items()},
    "seconds": {item.file: item.duration.total_seconds() for item in bag.dagbag_stats},
    "heavy": heavy,
    "nights": nights,
    "dags": {name: {
        "doc": dag.doc_md, "tags": sorted(dag.tags), "active": dag.max_active_runs,
        "params": {key: dag.params.get_param(key).dump() for key in dag.params},
        "tasks": {t.task_id: {"kind": t.task_type, "owner": t.owner, "retries": t.retries, "pool": t.pool,
            "backoff": bool(t.retry_exponential_backoff), "limit": t.execution_timeout.total_seconds(),
            "callback": bool(t.on_failure_callback), "mapped": t.is_mapped, "after": sorted(t.upstream_task_ids),
            "outlets": [o.name for o in t.outlets], "rule": str(t.trigger_rule),
            "setup": t.is_setup, "teardown": t.is_teardown,
            "arguments": list(t.arguments) if name == "smoke" else None} for t in dag.tasks},
        "assets": sorted(names(getattr(dag.timetable, "asset_condition", None))),
    } for name, dag in bag.dags.items()},
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("airflow")
    home = tmp_path_factory.mktemp("airflow")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GHN_")},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
    }
    done = subprocess.run([sys.executable, "-c", DESCRIBE, str(DAGS)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index('{"errors"') :])


def test_they_load_quickly_and_import_nothing_heavy(bag: dict[str, Any]) -> None:
    assert bag["errors"] == {} and set(bag["dags"]) == NAMES and bag["heavy"] == []
    assert len(bag["seconds"]) == len(NAMES)
    assert all(seconds < 2 for seconds in bag["seconds"].values()), bag["seconds"]


def test_the_linter_bans_heavy_imports(tmp_path: Path) -> None:
    bad = "import torch\nfrom pipelines.cli import main\n\n\ndef function() -> None:\n    import mlflow\n"
    config = ("--config", str(DAGS / "ruff.toml"), "--stdin-filename", str(DAGS / "x.py"), "--select", "TID253")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", *config, "-"], input=bad, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout.count("is banned at the module level") == 2, done.stdout + done.stderr


def test_everything_that_people_need_is_there(bag: dict[str, Any]) -> None:
    for name, dag in bag["dags"].items():
        assert dag["doc"] and "ghn" in dag["tags"], name
        for key, param in dag["params"].items():
            assert param["description"] and param["schema"].get("type"), (name, key)
        for task_id, task in dag["tasks"].items():
            assert task["owner"] == "ghn" and task["limit"] > 0, (name, task_id)
            if name != "smoke":  # which is to fail at once
                assert task["callback"] and task["backoff"], (name, task_id)
            if task["kind"] == "GhnOperator" and (name, task_id) not in (("evaluate", "alert"),) and name != "smoke":
                assert task["retries"] == 3, (name, task_id)
    assert bag["dags"]["meta_train"]["tasks"]["train"]["pool"] == "ghn_training"


def test_assets_join_them(bag: dict[str, Any]) -> None:
    made = {name: {o for t in dag["tasks"].values() for o in t["outlets"]} for name, dag in bag["dags"].items()}
    assert made["shard_images"] == {"ghn_images"} and made["shard_deepnets"] == {"ghn_deepnets"}
    assert bag["dags"]["meta_train"]["assets"] == ["ghn_deepnets", "ghn_images"]
    assert made["meta_train"] == {"ghn_candidate"} and bag["dags"]["evaluate"]["assets"] == ["ghn_candidate"]
    assert made["evaluate"] == {"ghn_evaluation"} and bag["dags"]["promote"]["assets"] == ["ghn_evaluation"]
    assert bag["dags"]["shard_deepnets"]["tasks"]["train_part"]["mapped"]
    assert bag["dags"]["evaluate"]["tasks"]["score"]["mapped"]


def test_models_are_evaluated_every_night_at_the_chosen_time(bag: dict[str, Any]) -> None:
    assert bag["nights"] == ["scheduled__2026-01-02T03:00:00+00:00", "scheduled__2026-01-02T04:17:00+00:00"]


def test_the_smoke_dag_runs_in_order(bag: dict[str, Any]) -> None:
    tasks = bag["dags"]["smoke"]["tasks"]
    assert tasks["start_store"]["setup"] and tasks["stop_store"]["teardown"]
    chain = ["train", "resume", "register", "evaluate", "report"]
    for before, after in itertools.pairwise(chain):
        assert before in tasks[after]["after"]
    assert set(tasks["train"]["after"]) == {
        "shard_images",
        "shard_train_architectures",
        "shard_evaluated_architectures",
    }


def test_every_task_of_the_smoke_dag_is_one_known_command(bag: dict[str, Any]) -> None:
    from pipelines.cli import cli

    tasks = bag["dags"]["smoke"]["tasks"]
    for task_id, task in tasks.items():
        assert task["arguments"][0] in cli.commands, task_id
        assert not any(character in argument for argument in task["arguments"] for character in ";|&$`"), task_id
    covered = [a for a in tasks["shard_evaluated_architectures"]["arguments"] if not a.startswith("-")]
    assert {"val", "test", "wide", "deep", "dense", "bnfree", "predefined"} <= set(covered)


def test_dag_files_import_only_airflow_and_the_standard_library() -> None:
    allowed = {*sys.stdlib_module_names, "airflow", "ghn_airflow"}
    files = [*DAGS.glob("*.py"), *(DAGS / "ghn_airflow").rglob("*.py")]
    assert len(files) > 15
    for path in files:
        for node in ast.parse(path.read_text()).body:  # what is inside functions is imported when they run
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= allowed, path


@pytest.fixture
def ghn_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("airflow")
    monkeypatch.syspath_prepend(str(DAGS))


def event(second: int, **extra: str) -> SimpleNamespace:
    return SimpleNamespace(timestamp=second, extra=extra)


def context(kind: str, triggering: dict[str, list[Any]], inlets: dict[str, list[Any]], **conf: Any) -> dict[str, Any]:
    from airflow.sdk import Param
    from airflow.sdk.definitions.param import ParamsDict

    params = {"name": "form", "images": "form", "work": "w"}
    run = SimpleNamespace(run_type=kind, run_id="manual__2026-11-26T01:02:03+00:00", conf=conf)
    found = {"params": params, "dag_run": run, "triggering_asset_events": triggering, "inlet_events": inlets}
    known = {
        "name": Param("form", type="string", pattern="^[a-z]+$"),
        "images": Param("form", type="string", minLength=1),
        "work": Param("w"),
    }
    return {**found, "dag": SimpleNamespace(dag_id="evaluate", params=ParamsDict(known))}


def test_a_run_does_what_its_trigger_says(ghn_airflow: None) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    from ghn_airflow.settings import settings_of

    events = {
        "a": [event(5, name="new", backdoor="x"), event(2, name="old", images="old")],
        "b": [event(3, images="mid")],
    }
    found = settings_of(context("asset_triggered", events, {}))
    assert found == {"name": "new", "images": "mid", "work": "w"}  # the newest word on each; other keys have no say
    with pytest.raises(ParamValidationError):
        settings_of(context("asset_triggered", {"a": [event(1, name="$(id)")]}, {}))
    inlets = {"asset": [event(1, name="first"), event(9, name="last")]}
    assert settings_of(context("scheduled", {}, inlets), ["asset"])["name"] == "last"  # type: ignore[list-item]
    assert settings_of(context("scheduled", {}, {"asset": []}), ["asset"])["name"] == "form"  # type: ignore[list-item]
    assert settings_of(context("manual", {}, inlets, name="x"), ["asset"])["name"] == "form"  # type: ignore[list-item]


def test_a_parameter_that_the_dag_does_not_have_is_refused(ghn_airflow: None) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    from ghn_airflow.settings import check_parameters

    check_parameters(context("manual", {}, {}, name="x", openlineage={}))
    with pytest.raises(AirflowFailException, match="no parameter splitz; there are images, name, work"):
        check_parameters(context("manual", {}, {}, splitz=["val"], name="x"))


def test_values_stay_single_arguments(ghn_airflow: None) -> None:
    from ghn_airflow.defaults import run_folder
    from ghn_airflow.settings import options

    nasty = "x; touch /tmp/y $(id) `id` | cat --plan"
    assert options(run=nasty, set=["a=1", nasty], limit=None, plan=True, dry_run=False) == [
        f"--run={nasty}",
        "--set=a=1",
        f"--set={nasty}",
        "--plan",
    ]
    here = context("manual", {}, {})
    assert run_folder(here["params"], here) == "w/evaluate/manual__2026-11-26T01-02-03-00-00"


class _Messages(BaseHTTPRequestHandler):
    received: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.received.append((self.path, json.loads(body)["text"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_a_failure_is_sent_to_the_alert_connection(ghn_airflow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk import Connection

    from ghn_airflow.alerts import report_failure

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Messages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = SimpleNamespace(
        schema="http", host="127.0.0.1", port=server.server_address[1], extra_dejson={"path": "/hook"}
    )
    monkeypatch.setattr(Connection, "get", classmethod(lambda cls, name: found if name == "ghn_alerts" else None))
    task = SimpleNamespace(dag_id="evaluate", task_id="alert", run_id="r1")
    report_failure({"ti": task, "exception": "wide: -10.00 percent"})
    server.shutdown()
    server.server_close()
    assert _Messages.received == [("/hook", "evaluate.alert failed in run r1: wide: -10.00 percent")]
    report_failure({"ti": task})  # nobody listens any more: it is logged, and nothing is raised
