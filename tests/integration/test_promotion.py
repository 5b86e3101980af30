"""`pipelines.evaluation.promotion` and `alert` in a real registry, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import mlflow
import pytest

from ghn.errors import AlertError, DataError, InputError
from pipelines.evaluation.alert import alert
from pipelines.evaluation.promotion import promote, rollback
from tests.command_line import ghn, ghn_process, refused
from tests.evaluations import evaluation, spread

pytestmark = pytest.mark.integration
NAME = "ghn2-test"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture
def registry(tracking: str, tmp_path: Path) -> Callable[..., int]:
    """Register a candidate with an evaluation; returns its version. Each test begins with an empty model."""
    mlflow.set_tracking_uri(tracking)
    client = mlflow.MlflowClient()
    if client.search_registered_models(f"name='{NAME}'"):
        client.delete_registered_model(NAME)
    client.create_registered_model(NAME)
    experiment = client.create_experiment(tmp_path.name, artifact_location=str(tmp_path / "artifacts"))

    def candidate(**accuracies: list[float]) -> int:
        run = client.create_run(experiment)
        version = client.create_model_version(NAME, source=f"{tmp_path}/model", run_id=run.info.run_id)
        if accuracies:
            whole = evaluation(int(version.version), accuracies, run_id=run.info.run_id)
            client.log_dict(run.info.run_id, whole, f"evaluations/{NAME}-{version.version}.json")
        client.set_registered_model_alias(NAME, "candidate", version.version)
        return int(version.version)

    return candidate


def run(tracking: str, command: str, *options: str) -> CompletedProcess[str]:
    splits = ("--split", "val") if command == "promote" else ()
    return ghn(command, "--name", NAME, "--tracking-uri", tracking, *splits, *options)


def champion() -> Any:
    client = mlflow.MlflowClient()
    version = client.get_registered_model(NAME).aliases.get("champion")
    return version and client.get_model_version(NAME, version)


def test_a_better_candidate_becomes_champion_and_can_be_rolled_back(registry, tracking: str) -> None:
    first = registry(val=spread(40), wide=spread(30))
    dry = run(tracking, "promote", "--dry-run")
    assert dry.returncode == 0 and "would be promoted" in dry.stdout and champion() is None
    assert run(tracking, "promote").returncode == 0 and int(champion().version) == first
    assert "already" in run(tracking, "promote").stdout

    worse = registry(val=spread(41), wide=spread(20))
    done = run(tracking, "promote")
    assert done.returncode == 0 and "is not promoted" in done.stdout and "wide: -10.00" in done.stdout
    assert int(champion().version) == first
    assert "Not promoted" in mlflow.MlflowClient().get_model_version(NAME, str(worse)).description

    second = registry(val=spread(41), wide=spread(30))
    assert "is champion now" in run(tracking, "promote").stdout and int(champion().version) == second
    assert "Promoted: against version 1" in champion().description and "val: +1.00" in champion().description

    done = run(tracking, "rollback", "--reason", "nobody likes it")
    assert done.returncode == 0 and int(champion().version) == first
    assert "nobody likes it" in mlflow.MlflowClient().get_model_version(NAME, str(second)).description
    again = run(tracking, "promote")
    assert again.returncode == 0 and "was rolled back" in again.stdout and int(champion().version) == first
    last = run(tracking, "rollback", "--reason", "further")
    assert last.returncode == 2 and "no champion before it" in last.stderr


def test_a_rollback_passes_over_versions_that_were_rolled_back(registry, tracking: str) -> None:
    versions = [registry(val=spread(accuracy)) for accuracy in (40, 41, 42)]
    client = mlflow.MlflowClient()
    for version in versions:
        client.set_registered_model_alias(NAME, "candidate", str(version))
        promote(NAME, tracking_uri=tracking, splits=("val",))
    client.set_model_version_tag(NAME, str(versions[1]), "ghn.rolled_back", "2026-01-01")
    assert rollback(NAME, tracking_uri=tracking, reason="test")["version"] == versions[0]


def test_what_is_not_whole_never_promotes(registry, tracking: str, tmp_path: Path) -> None:
    file = tmp_path / "cut.json"

    def refused(error: type[Exception], named: str, evaluation: Path | None) -> None:
        with pytest.raises(error, match=named):
            promote(NAME, tracking_uri=tracking, splits=("val",), evaluation=evaluation)

    refused(InputError, "no version with the alias candidate", None)
    version = registry()
    refused(InputError, f"ghn evaluate --model models:/{NAME}/{version}", None)
    run_id = mlflow.MlflowClient().get_model_version(NAME, str(version)).run_id
    whole = json.dumps(evaluation(version, {"val": spread(40)}, run_id=run_id))
    for content in (whole[:-30], "", "[]", whole.replace('"mean": 40.0', '"mean": 50.0')):
        file.write_text(content)
        refused(DataError, "broken or incomplete", file)
    done = run(tracking, "promote", "--evaluation", str(file))
    assert done.returncode == 5 and "broken or incomplete" in done.stderr and "Traceback" not in done.stderr
    for other in (
        evaluation(version + 1, {"val": spread(40)}, run_id=run_id),
        evaluation(version, {"val": spread(40)}),
    ):
        file.write_text(json.dumps(other))
        refused(InputError, f"not of {NAME} version {version}", file)
    refused(InputError, "can not read", tmp_path)
    assert champion() is None
    file.write_text(whole)
    promote(NAME, tracking_uri=tracking, splits=("val",), evaluation=file)
    assert int(champion().version) == version


def test_a_registry_or_model_that_is_not_there_is_named(registry, tracking: str) -> None:
    registry()
    nobody = ghn("promote", "--name", "nobody", "--tracking-uri", tracking)
    assert nobody.returncode == 2
    refused(nobody, "no registered model nobody")
    nowhere = ghn_process("promote", "--name", NAME, "--tracking-uri", "sqlite:////proc/nowhere/mlflow.db")
    assert nowhere.returncode == 4 and "Traceback" not in nowhere.stderr and "/proc/nowhere" in nowhere.stderr


def evaluated(version: int, hours_ago: float) -> None:
    then = datetime.now(UTC) - timedelta(hours=hours_ago)
    mlflow.MlflowClient().set_model_version_tag(NAME, str(version), "ghn.evaluated_at", then.isoformat())


def test_alarms_name_the_numbers(registry, tracking: str) -> None:
    first = registry(val=spread(40), wide=spread(30))
    with pytest.raises(InputError, match="no registered model nobody"):
        alert("nobody", tracking_uri=tracking, max_age_hours=2)
    with pytest.raises(AlertError, match=r"candidate \(version 1\): never evaluated"):
        alert(NAME, tracking_uri=tracking, max_age_hours=2)
    evaluated(first, 1)
    assert alert(NAME, tracking_uri=tracking, max_age_hours=2) == [
        f"candidate (version {first}): evaluated 1.0 hours ago, limit 2"
    ]
    promote(NAME, tracking_uri=tracking, splits=("val",))
    worse = registry(val=spread(41), wide=spread(20))
    evaluated(worse, 3)
    done = run(tracking, "alert", "--max-age-hours", "2")
    assert done.returncode == 7 and "Traceback" not in done.stderr
    assert f"candidate (version {worse}): evaluated 3.0 hours ago, limit 2" in done.stderr
    assert "wide: -10.00 percent on 20 networks" in done.stderr and "val: +1.00" not in done.stderr.splitlines()[-1]
    assert f"champion (version {first}): evaluated" not in done.stderr.splitlines()[-1]  # it is young enough
    with pytest.raises(AlertError, match="has no evaluation"):
        registry()
        alert(NAME, tracking_uri=tracking, max_age_hours=2)


def test_a_version_that_lost_against_itself_is_an_alarm(registry, tracking: str) -> None:
    version = registry(val=spread(40))
    evaluated(version, 0)
    client = mlflow.MlflowClient()
    run_id = client.get_model_version(NAME, str(version)).run_id
    whole = evaluation(version, {"val": spread(40)}, run_id=run_id)
    lost = {"verdict": "worse", "text": "val: -3.00 percent on 20 networks"}
    client.log_dict(
        run_id, {**whole, "previous": {"version": version, "differences": [lost]}}, f"evaluations/{NAME}-{version}.json"
    )
    with pytest.raises(AlertError, match=r"against itself before: val: -3\.00 percent on 20 networks"):
        alert(NAME, tracking_uri=tracking, max_age_hours=2)
