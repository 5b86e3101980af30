"""`dags/` and `pipelines.local.airflow_server` as people run them: LocalExecutor, PostgreSQL, REST API, and kills."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines.training.run_folder import read_metrics
from tests.airflow_client import Airflow, running_airflow, until
from tests.postgres import postgres
from tests.two_hosts import COMMAND, processes_of, two_hosts

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
IMAGES = {"limit": 300, "image_size": 16, "shard_samples": 60}
NETWORKS = {"train_count": 12, "parts": 2, "count": 3, "max_nodes": 100, "shard_samples": 5}
NETWORKS |= {"image_size": 16, "channels": [8], "fc_dims": [32], "splits": ["val", "deep"]}
SECRET, PASSWORD = "planted-secret-5f1c", "planted-password-91ab"
MODEL = "ghn2-digits"


@dataclass(frozen=True)
class Site:
    """A running installation."""

    airflow: Airflow
    database: str
    tracking: str
    hosts: tuple[str, ...]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("airflow")
    tracking = f"sqlite:///{folder}/mlflow.db"
    quick = {
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
        "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
        "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
        "SCHEDULER__JOB_HEARTBEAT_SEC": "2",
        "WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
    }
    environment = {
        **{f"AIRFLOW__{name}": value for name, value in quick.items()},
        "AIRFLOW_CONN_GHN_MLFLOW": json.dumps(
            {"conn_type": "http", "login": "ghn", "password": PASSWORD, "extra": {"tracking_uri": tracking}}
        ),
        "MLFLOW_TRACKING_URI": tracking,
        "GHN_PLANTED_SECRET_ACCESS_KEY": SECRET,
        "GHN_ROOT": "s3://ghn/test",
        "GHN_NAME": MODEL,
        "GHN_RECIPE": "smoke",
        "GHN_OVERRIDES": "training.steps=6 training.processes=1",
        "GHN_EVALUATED_SPLITS": "val deep",
        "GHN_EVALUATION_CHUNKS": "2",
        "GHN_EVALUATION_CRON": "0 0 29 2 *",  # not while the tests run
        "GHN_RETRY_DELAY_S": "2",
        "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "GHN_HOST_COMMAND": COMMAND,
    }
    with postgres("airflow") as database:
        if os.geteuid() == 0:
            with two_hosts(folder) as hostfile:
                names = tuple(line.split()[0] for line in hostfile.read_text().splitlines())
                environment["GHN_HOSTFILE"] = str(hostfile)
                with running_airflow(folder / "site", environment, database=database) as airflow:
                    yield Site(airflow, database, tracking, names)
        else:
            with running_airflow(folder / "site", environment, database=database) as airflow:
                yield Site(airflow, database, tracking, ())


def versions(site: Site) -> list[Any]:
    mlflow.set_tracking_uri(site.tracking)
    return list(mlflow.MlflowClient().search_model_versions(f"name='{MODEL}'"))


def run_folder(site: Site, run: str) -> Path:
    folder = site.airflow.folder / "runs" / "meta_train"
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in run)
    return folder / name / "train"


def steps(site: Site, run: str) -> list[int]:
    return [row["step"] for row in read_metrics(run_folder(site, run))]


def test_shards_train_evaluate_and_promote_by_themselves(site: Site) -> None:
    airflow = site.airflow
    made = [airflow.trigger("shard_images", **IMAGES), airflow.trigger("shard_deepnets", **NETWORKS)]
    ends = [airflow.succeed(dag, run) for dag, run in zip(("shard_images", "shard_deepnets"), made, strict=True)]
    assert [key for key in ends[1]["tasks"] if key[0] == "train_part"] == [("train_part", 0), ("train_part", 1)]

    run = until(lambda: airflow.runs("meta_train"), 60, "the asset that starts training")[0]
    assert run["run_type"] == "asset_triggered"
    airflow.succeed("meta_train", run["dag_run_id"])
    assert steps(site, run["dag_run_id"]) == list(range(1, 7))
    log = airflow.log("meta_train", run["dag_run_id"], "train")
    assert "train: 6 of 6 steps" in log  # progress as sentences, as it went on

    def evaluation() -> Any:
        return [item for item in airflow.runs("evaluate") if item["run_type"] == "asset_triggered"]

    evaluated = until(evaluation, 60, "the asset that starts evaluation")[0]["dag_run_id"]
    end = airflow.succeed("evaluate", evaluated)
    assert len([key for key in end["tasks"] if key[0] == "score"]) == 4  # two splits in two chunks
    assert end["tasks"]["champion", -1]["state"] == "skipped"  # there is none yet
    promoted = until(lambda: airflow.runs("promote"), 60, "the asset that starts promotion")[0]["dag_run_id"]
    airflow.succeed("promote", promoted)

    (version,) = versions(site)
    client = mlflow.MlflowClient()
    tags = version.tags
    assert "Not promoted: against random initialization" in version.description and "too few" in version.description
    assert tags["ghn.recipe"] == "smoke" and len(tags["ghn.manifest.images"]) == 64 and "ghn.evaluated_at" in tags
    logged = client.get_run(version.run_id)
    assert logged.data.metrics["eval.val.predicted.top1.mean"] >= 0 and logged.inputs.dataset_inputs
    assert any(name.startswith("system/") for name in logged.data.metrics)
    assert (site.airflow.folder / "runs" / "evaluate").is_dir()


def test_wrong_parameters_are_refused_before_anything_runs(site: Site, tmp_path: Path) -> None:
    airflow, trap = site.airflow, tmp_path / "trap"
    for dag, params in (
        ("meta_train", {"nodes": 0}),
        ("meta_train", {"recipe": f"smoke; touch {trap}"}),
        ("meta_train", {"name": "$(id)"}),
        ("meta_train", {"backend": "moon"}),
        ("evaluate", {"splits": ["val", "vall"]}),
        ("shard_deepnets", {"parts": "2; id"}),
    ):
        status, content = airflow.call("POST", f"/dags/{dag}/dagRuns", {"logical_date": None, "conf": params})
        assert status == 400 and next(iter(params)) in json.dumps(content), (params, content)
    before = len(versions(site))
    run = airflow.trigger("meta_train", overrides=[f"training.steps=6; touch {trap}", f"images.url=`touch {trap}`"])
    end = airflow.wait("meta_train", run)
    assert end["state"] == "failed" and end["tasks"]["plan", -1]["try_number"] == 1  # another try makes no sense
    assert "training.steps" in airflow.log("meta_train", run, "plan")
    run = airflow.trigger("shard_images", size=16)  # it is called image_size
    end = airflow.wait("shard_images", run)
    assert end["state"] == "failed" and end["tasks"]["shard", -1]["try_number"] == 1
    assert "no parameter size; there are" in airflow.log("shard_images", run, "shard")
    assert not trap.exists() and len(versions(site)) == before


def test_two_triggers_and_a_killed_scheduler(site: Site) -> None:
    airflow, before = site.airflow, len(versions(site))
    airflow.pause("evaluate", True)
    runs = [airflow.trigger("meta_train", overrides=["training.steps=30", f"training.seed={i}"]) for i in (1, 2)]

    def training() -> list[str]:
        return [run for run in runs if any(steps(site, run)[3:])]

    first = until(training, 120, "the first training")[0]
    os.kill(airflow.pid("scheduler"), signal.SIGKILL)
    together = 0
    deadline = time.monotonic() + 400
    while (states := [airflow.get(f"/dags/meta_train/dagRuns/{run}")["state"] for run in runs]) != ["success"] * 2:
        assert "failed" not in states and time.monotonic() < deadline, states
        together = max(together, sum(airflow.task("meta_train", run, "train")["state"] == "running" for run in runs))
        time.sleep(0.5)
    assert together == 1  # the pool
    for run in runs:
        assert steps(site, run) == list(range(1, 31)), run
    assert first in runs and len(versions(site)) == before + 2


def test_killed_failed_and_cleared_tasks_act_on_all_nodes(site: Site) -> None:
    airflow, before = site.airflow, len(versions(site))
    settings: dict[str, Any] = {"overrides": ["training.steps=150", "training.seed=3", "training.checkpoint_every=5"]}
    if site.hosts:
        settings |= {"backend": "hosts", "nodes": 2}
        settings |= _local_shards(site)
    run = airflow.trigger("meta_train", **settings)

    def working() -> list[int]:
        on_hosts = [pid for name in site.hosts for pid in processes_of(name)]
        return on_hosts if site.hosts else _processes_with(str(run_folder(site, run)))

    def after(step: int) -> bool:
        return any(number > step for number in steps(site, run))

    until(lambda: after(6), 120, "the first steps")
    assert all(processes_of(name) for name in site.hosts) and working()
    if site.hosts:
        assert {row["slowest_rank"] for row in read_metrics(run_folder(site, run))} <= {0, 1}
    os.kill(_task_runner(working()), signal.SIGKILL)
    until(
        lambda: not set(working()) & {0} and airflow.task("meta_train", run, "train")["try_number"] == 2, 60, "a retry"
    )
    reached = max(steps(site, run))
    until(lambda: after(reached + 3), 120, "steps of the second try")

    airflow.set_task("meta_train", run, "train", "failed")
    until(lambda: not working(), 30, "the end of all processes on all nodes")
    assert airflow.wait("meta_train", run)["state"] == "failed" and len(versions(site)) == before
    airflow.clear("meta_train", run, "train")
    airflow.succeed("meta_train", run)
    assert steps(site, run) == list(range(1, 151))
    assert max(row["session"] for row in read_metrics(run_folder(site, run))) >= 3
    assert len(versions(site)) == before + 1


def test_an_old_evaluation_fails_visibly_with_the_numbers(site: Site) -> None:
    site.airflow.pause("evaluate", False)
    promotions = len(site.airflow.runs("promote"))
    run = site.airflow.trigger("evaluate", max_age_hours=0.000001, networks=2)
    end = site.airflow.wait("evaluate", run)
    assert end["state"] == "failed" and end["tasks"]["alert", -1]["state"] == "failed"
    assert "evaluated 0.0 hours ago, limit 1e-06" in site.airflow.log("evaluate", run, "alert")
    assert "ghn alert: evaluate.alert failed in run" in site.airflow.log("evaluate", run, "alert")  # the callback
    assert end["tasks"]["announce", -1]["state"] == "skipped"  # with limits nothing is promoted
    assert len(site.airflow.runs("promote")) == promotions


def test_secrets_are_nowhere(site: Site) -> None:
    """Neither in logs, nor in Airflow's database (XCom, parameters, rendered fields), nor in MLflow."""
    import psycopg2

    s3 = json.loads((site.airflow.folder / "s3" / "server.json").read_text())
    planted = [SECRET, PASSWORD, s3["secret_key"]]
    searched = 0
    private = {"server.json", "api-secret", "jwt-secret"}
    for file in [*site.airflow.folder.rglob("*"), Path(site.tracking.removeprefix("sqlite:///"))]:
        if file.is_file() and file.name not in private:
            content = file.read_bytes()
            searched += 1
            assert not [secret for secret in planted if secret.encode() in content], file
    assert searched > 100
    rows = 0
    with psycopg2.connect(site.database.replace("+psycopg2", "")) as connection, connection.cursor() as cursor:
        cursor.execute("select table_name from information_schema.tables where table_schema = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'select t::text from "{table}" t')
            for (text,) in cursor.fetchall():
                rows += 1
                assert not [secret for secret in planted if secret in text], table
    assert rows > 100


def _local_shards(site: Site) -> dict[str, str]:
    """Copies that hosts with networks of their own can read: the object store listens on loopback."""
    copies = {}
    for kind in ("images", "deepnets"):
        copies[kind] = str(site.airflow.folder / "s3" / "data" / "ghn" / "test" / kind)
    return copies


def _processes_with(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _task_runner(pids: list[int]) -> int:
    """Return the process of Airflow that started the commands: the first ancestor that is not one of them."""
    parents = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    outside = {parent for parent in parents.values() if parent not in parents}
    assert len(outside) == 1, parents
    return outside.pop()
