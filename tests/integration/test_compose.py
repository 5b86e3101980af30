"""`infra/compose.yaml`, really started: images that can not be pulled are built (`tests/compose`)."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from ghn.errors import InputError, StorageError
from pipelines.ports import free_port
from pipelines.serving.predict import predict
from tests.airflow_client import Airflow, until
from tests.containers import Engine, run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY / "infra" / "compose.yaml"
SECRETS = (
    "POSTGRES_PASSWORD",
    "MLFLOW_DB_PASSWORD",
    "S3_SECRET_KEY",
    "AIRFLOW_PASSWORD",
    "AIRFLOW_JWT_SECRET",
    "GHN_SERVER_TOKEN",
)
AIRFLOW_PARTS = ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer")
SMOKE = {  # store and registry are those of the installation
    "run": "/data/runs/smoke",
    "recipe": "smoke",
    "first_session": 2,
    "image_limit": "200",
    "train_count": 18,
    "test_count": 1,
    "test_images": 32,
}


@dataclass(frozen=True, kw_only=True)
class Project:
    """The compose file as one project with its own settings."""

    engine: Engine
    environment: dict[str, str]

    def __call__(self, *arguments: str, timeout: int = 400) -> subprocess.CompletedProcess[str]:
        command = [*self.engine.compose, "--file", str(FILE), "--project-name", "ghn-test", *arguments]
        return run(*command, timeout=timeout, environment={**os.environ, **self.environment})

    def health(self, service: str) -> str:
        """Say whether a service's container is ``healthy``, or in which state it is."""
        (container,) = self("ps", "--quiet", service).stdout.split()
        (found,) = json.loads(self.engine.run("container", "inspect", container).stdout)
        return str(found["State"].get("Health", found["State"])["Status"])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `make compose-env` writes, with ports that are free."""
    sys.path.insert(0, str(REPOSITORY / "infra" / "compose"))
    try:
        import make_env
    finally:
        sys.path.pop(0)
    text = make_env.filled((REPOSITORY / "infra" / ".env.example").read_text())
    made = dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return made | {name: str(free_port()) for name in ("AIRFLOW_PORT", "MLFLOW_PORT", "SERVER_PORT", "S3_PORT")}


@pytest.fixture(scope="module")
def project(engine: Engine, settings: dict[str, str]) -> Iterator[Project]:
    engine.make_image(REPOSITORY, engine.platform, "--target", "platform")
    images = {"GHN_IMAGE": engine.train, "GHN_PLATFORM_IMAGE": engine.platform}
    for name in ("postgres", "gateway"):
        folder = REPOSITORY / "tests" / "compose"
        engine.make_image(folder, f"ghn-{name}:test", "--file", str(folder / f"{name}.Dockerfile"))
        images[f"{name.upper()}_IMAGE"] = f"ghn-{name}:test"
    made = Project(engine=engine, environment={**settings, **images})
    started = made("up", "--detach", "--no-build")
    try:
        assert started.returncode == 0, started.stderr[-3000:]
        yield made
    finally:
        made("down", "--volumes", "--timeout", "20")


@pytest.fixture(scope="module")
def airflow(project: Project, settings: dict[str, str]) -> Airflow:
    port = int(settings["AIRFLOW_PORT"])
    until(lambda: project.health("airflow-api-server") == "healthy", 180, "Airflow's API server")
    login = json.dumps({"username": "admin", "password": settings["AIRFLOW_PASSWORD"]}).encode()
    call = urllib.request.Request(f"http://127.0.0.1:{port}/auth/token", login, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, timeout=60) as answer:
        token = json.load(answer)["access_token"]
    return Airflow(Path(), port, token)


def test_nothing_starts_without_secrets_of_its_own(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for missing in SECRETS:
        given = {
            name: "x"
            for name in (*SECRETS, "S3_ACCESS_KEY", "AIRFLOW_FERNET_KEY", "AIRFLOW_SECRET_KEY", "AIRFLOW_DB_PASSWORD")
            if name != missing
        }
        command = [*engine.compose, "--file", str(FILE), "--env-file", str(tmp_path / "empty"), "config"]
        done = run(*command, environment={**os.environ, **given})
        assert done.returncode != 0 and missing in done.stderr and "make compose-env" in done.stderr
    text = FILE.read_text() + (REPOSITORY / "infra" / ".env.example").read_text()
    assert not re.search(r"(PASSWORD|SECRET|TOKEN|KEY)[:=] *['\"]?[A-Za-z0-9+/]{8,}", text)


def test_the_written_settings_are_fresh_and_private(tmp_path: Path) -> None:
    infra = tmp_path / "infra"
    (infra / "compose").mkdir(parents=True)
    for name in (".env.example", "compose/make_env.py"):
        (infra / name).write_text((REPOSITORY / "infra" / name).read_text())
    made = []
    for _ in range(2):
        assert run(sys.executable, str(infra / "compose" / "make_env.py")).returncode == 0
        made.append((infra / ".env").read_text())
    assert made[0] == made[1] and stat.S_IMODE((infra / ".env").stat().st_mode) == 0o600
    values = [line.partition("=")[2] for line in made[0].splitlines()[2:12]]
    assert len(set(values)) == 10 and all(len(value) >= 44 for value in values)


def test_ports_are_open_on_loopback_only(project: Project) -> None:
    said = yaml.safe_load(project("config").stdout)
    for name, service in said["services"].items():
        for port in service.get("ports", []):
            host = port["host_ip"] if isinstance(port, dict) else port.rpartition(":")[0].rpartition(":")[0]
            assert host == "127.0.0.1", name
        assert not service.get("privileged") and "no-new-privileges:true" in service["security_opt"], name
    assert "ports" not in said["services"]["postgres"] and "ports" not in said["services"]["model-server"]
    rows = run("ss", "--listening", "--tcp", "--numeric").stdout
    ports = [project.environment[name] for name in ("AIRFLOW_PORT", "MLFLOW_PORT", "SERVER_PORT", "S3_PORT")]
    for port in ports:
        assert set(re.findall(rf"(\S+):{port}\s", rows)) == {"127.0.0.1"}


def test_all_parts_come_up(project: Project, airflow: Airflow) -> None:
    for service in ("postgres", "s3", "mlflow", "airflow-api-server"):
        until(lambda service=service: project.health(service) == "healthy", 120, service)
    until(
        lambda: all(part.get("status") == "healthy" for part in airflow.get("/monitor/health").values()),
        120,
        "Airflow's parts",
    )
    dags = {dag["dag_id"] for dag in airflow.get("/dags")["dags"]}
    assert {"smoke", "shard_images", "shard_deepnets", "meta_train", "evaluate", "promote"} <= dags
    assert airflow.get("/importErrors")["total_entries"] == 0
    anonymous = Airflow(Path(), airflow.port)
    assert anonymous.call("GET", "/dags")[0] == 401


def test_the_smoke_dag_runs_and_its_model_is_served(
    project: Project, airflow: Airflow, tmp_path: Path, monkeypatch: Any
) -> None:
    airflow.succeed("smoke", airflow.trigger("smoke", **SMOKE), timeout_s=500)
    client = mlflow.MlflowClient(f"http://127.0.0.1:{project.environment['MLFLOW_PORT']}")
    version = client.get_model_version_by_alias("ghn2-digits", "candidate")
    assert client.get_run(version.run_id).info.artifact_uri.startswith("s3://ghn/mlflow/")
    tables = project(
        "exec", "-T", "postgres", "psql", "-U", "ghn", "-d", "mlflow", "-tAc", "SELECT count(*) FROM model_versions"
    ).stdout
    assert int(tables) == 1

    server = f"http://127.0.0.1:{project.environment['SERVER_PORT']}"
    client.set_registered_model_alias("ghn2-digits", "champion", version.version)
    project("restart", "--timeout", "5", "model-server")

    def answers() -> bool:
        try:
            return bool(urllib.request.urlopen(f"{server}/health", timeout=5).status == 200)
        except (urllib.error.HTTPError, OSError):
            return False

    until(answers, 180, "the model server")
    options: dict[str, Any] = {"server": server, "model": "torchvision:resnet18"}
    monkeypatch.delenv("GHN_SERVER_TOKEN", raising=False)
    with pytest.raises(InputError, match="wants a token"):
        predict(tmp_path / "refused", **options)
    monkeypatch.setenv("GHN_SERVER_TOKEN", project.environment["GHN_SERVER_TOKEN"] + "x")
    with pytest.raises(InputError, match="wants a token"):
        predict(tmp_path / "refused", **options)
    monkeypatch.setenv("GHN_SERVER_TOKEN", project.environment["GHN_SERVER_TOKEN"])
    predict(tmp_path / "served", **options)
    local = (
        "predict",
        "--checkpoint",
        "/data/runs/smoke/train/model",
        "--model",
        "torchvision:resnet18",
        "--out",
        "/data/local",
    )
    assert project("exec", "-T", "airflow-scheduler", "ghn", *local).returncode == 0
    digest = project("exec", "-T", "airflow-scheduler", "sha256sum", "/data/local").stdout.split()[0]
    assert run("sha256sum", str(tmp_path / "served")).stdout.split()[0] == digest
    for path in ("/metrics", "/version", "/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{server}{path}", timeout=10)

    project("stop", "--timeout", "30", "model-server")
    assert "Finished server process" in project("logs", "--tail", "5", "model-server").stdout
    with pytest.raises(StorageError, match=r"502|504"):
        monkeypatch.setattr("pipelines.serving.client._PATIENCE_S", 0.0)
        predict(tmp_path / "refused", **options)


def test_the_registry_is_restored_from_its_backup(project: Project, airflow: Airflow) -> None:
    """The commands of docs/how-to/operating.md."""
    client = mlflow.MlflowClient(f"http://127.0.0.1:{project.environment['MLFLOW_PORT']}")
    made = client.get_model_version_by_alias("ghn2-digits", "champion")
    dump = ("exec", "-T", "postgres", "sh", "-c", "pg_dump -U ghn --format=custom mlflow > /tmp/mlflow.dump")
    assert project(*dump).returncode == 0
    client.delete_registered_model("ghn2-digits")
    restore = "pg_restore -U ghn --clean --if-exists --dbname mlflow < /tmp/mlflow.dump"
    done = project("exec", "-T", "postgres", "sh", "-c", restore)
    assert done.returncode == 0, done.stderr
    restored = client.get_model_version_by_alias("ghn2-digits", "champion")
    assert (restored.source, restored.tags) == (made.source, made.tags)


def test_everything_survives_a_restart(project: Project, airflow: Airflow) -> None:
    assert project("restart", "--timeout", "5", "postgres", "s3", "mlflow", "airflow-api-server").returncode == 0
    until(lambda: project.health("airflow-api-server") == "healthy", 180, "Airflow's API server")
    client = mlflow.MlflowClient(f"http://127.0.0.1:{project.environment['MLFLOW_PORT']}")
    until(lambda: project.health("mlflow") == "healthy", 120, "MLflow")
    assert int(client.get_model_version_by_alias("ghn2-digits", "champion").version) == 1
    assert airflow.get("/dags/smoke/dagRuns")["dag_runs"][0]["state"] == "success"
