"""`ghn_airflow.backends` and `operator`: argument lists without a shell, one job for all tries, nothing left behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes_server import Cluster, kubernetes_server

DAGS = Path(__file__).resolve().parents[2] / "dags"
NASTY = "--set=x.y=$(id); touch /tmp/never | cat && `id` 'quoted' \"twice\""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DAGS))


def job(*arguments: str, **more: Any) -> Any:
    from ghn_airflow.backends import Job

    return Job(name="ghn-train-0123456789", arguments=arguments, **more)


def processes(*scripts: str) -> list[Any]:
    from ghn_airflow.backends.base import Process

    return [Process(label=f"n{i}", command=[sys.executable, "-c", script]) for i, script in enumerate(scripts)]


def backend() -> Any:
    from ghn_airflow.backends.base import ProcessBackend

    class Bare(ProcessBackend):
        def run(self, job: Any, log: Any) -> None: ...

    return Bare()


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_lines_come_as_they_are_written_with_the_nodes_name() -> None:
    lines: list[tuple[float, str]] = []
    script = "import time; print('first\\nsecond', flush=True); time.sleep(1.5); print('last', end='')"
    backend().run_processes(processes(script), lambda line: lines.append((time.monotonic(), line)), 5)
    assert [line for _, line in lines] == ["[n0] first", "[n0] second", "[n0] last"]
    assert lines[1][0] - lines[0][0] < 0.5 < 1.0 < lines[2][0] - lines[0][0]


def test_the_real_command_runs_and_its_errors_are_told() -> None:
    from ghn_airflow.backends import BackendError, choose

    lines: list[str] = []
    choose("local").run(job("--version"), lines.append)
    assert lines == ["ghn, version 0.1.0"]
    with pytest.raises(BackendError, match=r"exit code 2; its last lines: ghn: no recipe 'nothing'") as caught:
        choose("local").run(job("train", "--recipe=nothing"), lines.append)
    assert caught.value.final  # another try would end in the same way
    with pytest.raises(BackendError, match="one node, not 2"):
        choose("local").run(job("--version", nodes=2), lines.append)
    with pytest.raises(BackendError, match="unknown back-end 'moon'"):
        choose("moon")


def test_one_failure_ends_all_and_names_the_node() -> None:
    from ghn_airflow.backends import BackendError

    bare, lines = backend(), list[str]()
    scripts = ("import os, time; print(os.getpid(), flush=True); time.sleep(600)", "import sys; sys.exit('broken')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ghn_airflow.backends.base._AFTER_FAILURE_S", 0.5)
        with pytest.raises(BackendError, match="on n1 failed with exit code 1; its last lines: broken") as caught:
            bare.run_processes(processes(*scripts), lines.append, 5)
    assert not caught.value.final
    gone(int(next(line for line in lines if "[n0]" in line).split()[1]))


def test_stopping_lets_commands_end_and_then_makes_them() -> None:
    from ghn_airflow.backends import BackendError

    on_term = "import signal; signal.signal(signal.SIGTERM,"
    wait = "print('up', flush=True); time.sleep(600)"
    polite = f"import sys, time; {on_term} lambda *_: sys.exit(print('saved', flush=True))); {wait}"
    stubborn = f"import time; {on_term} signal.SIG_IGN); {wait}"
    bare, lines = backend(), list[str]()

    def tell(line: str) -> None:
        lines.append(line)
        if sum(item.endswith("up") for item in lines) == 2 and line.endswith("up"):
            bare.stop()

    started = time.monotonic()
    with pytest.raises(BackendError, match="was stopped"):
        bare.run_processes(processes(polite, stubborn), tell, 1.0)
    assert "[n0] saved" in lines and time.monotonic() - started < 15


def test_nothing_outlives_the_task_whatever_happens_to_it(tmp_path: Path) -> None:
    """The task is killed with -9 while its command, which has a child of its own group, is at work."""
    script = f"""
import sys; sys.path.insert(0, {str(DAGS)!r})
from ghn_airflow.backends.base import Process, ProcessBackend
class Bare(ProcessBackend):
    def run(self, job, log): ...
command = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
processes = [Process(label="", command=[sys.executable, "-c", command])]
Bare().run_processes(processes, lambda line: print(line, flush=True), 5)
"""
    task = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert task.stdout is not None
    command = int(task.stdout.readline())
    assert is_running(command)
    os.kill(task.pid, signal.SIGKILL)
    task.wait()
    gone(command)


def test_hosts_get_ranks_and_shells_get_one_quoted_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ghn_airflow.backends import BackendError, choose
    from ghn_airflow.backends.hosts import rank_processes, read_hostfile

    file = tmp_path / "hostfile"
    file.write_text("# two machines\nnode-a slots=2 address=10.0.0.1 interface=eth1\n\nnode-b slots=1\n")
    hosts = read_hostfile(str(file))
    monkeypatch.setenv("GHN_HOST_COMMAND", "ip netns exec {name}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    found = rank_processes(hosts, job("train", NASTY, environment={"MLFLOW_TRACKING_PASSWORD": "planted-password"}))
    assert [p.command[:4] for p in found] == [["ip", "netns", "exec", name] for name in ("node-a", "node-a", "node-b")]
    for rank, process in enumerate(found):
        assert process.command[-1] == NASTY and f"RANK={rank}" in process.command and "WORLD_SIZE=3" in process.command
        assert "MASTER_ADDR=10.0.0.1" in process.command and not any("planted" in part for part in process.command)
    assert "GLOO_SOCKET_IFNAME=eth1" in found[0].command and "LOCAL_RANK=1" in found[1].command
    monkeypatch.setenv("GHN_HOST_COMMAND", "ssh -tt {name}")
    (quoted,) = rank_processes(hosts[1:], job("train", NASTY))
    assert len(quoted.command) == 4 and shlex.split(quoted.command[3])[-1] == NASTY

    monkeypatch.setenv("GHN_HOSTFILE", str(file))
    with pytest.raises(BackendError, match="has 2 hosts, not 3"):
        choose("hosts").run(job("train", nodes=3), print)
    for line, named in (("node-a slots=0", "line 1: write NAME"), ("a b", "'b' is not"), ("-o slots=1", "write NAME")):
        file.write_text(line)
        with pytest.raises(BackendError, match=named):
            read_hostfile(str(file))
    with pytest.raises(BackendError, match="set GHN_HOSTFILE"):
        read_hostfile(str(tmp_path / "missing"))


def test_containers_have_the_jobs_name_and_get_secrets_by_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ghn_airflow.backends import BackendError, choose

    calls = tmp_path / "calls"
    docker = tmp_path / "docker"
    docker.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"open({str(calls)!r}, 'a').write(json.dumps([sys.argv[1:], os.environ.get('AWS_SECRET_ACCESS_KEY')]) + '\\n')\n"
        "if sys.argv[1] == 'image': print('sha256:abc')\n"
    )
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("GHN_DOCKER", str(docker))
    monkeypatch.setenv("GHN_CONTAINER_VOLUMES", "/data:/mnt/ghn")
    secrets = {"AWS_SECRET_ACCESS_KEY": "planted-secret"}
    choose("container").run(job("train", NASTY, nodes=2, environment=secrets), print)
    made = [json.loads(line) for line in calls.read_text().splitlines()]
    arguments = [call for call, _ in made]
    name = "ghn-train-0123456789"
    first, last = arguments[0], arguments[-2]
    assert first == last == ["rm", "--force", f"{name}-0", f"{name}-1"]  # of an earlier try; its own
    assert ["network", "create", name] in arguments and arguments[-1] == ["network", "rm", name]
    started = [(call, secret) for call, secret in made if call[0] == "run"]
    assert sorted(call[call.index("--name") + 1] for call, _ in started) == [f"{name}-0", f"{name}-1"]
    for call, secret in started:
        assert call[-2:] == ["train", NASTY] and secret == "planted-secret" and "planted-secret" not in call
        assert call[call.index("GHN_IMAGE_DIGEST") - 1] == "--env"
        assert call[call.index("AWS_SECRET_ACCESS_KEY") - 1] == "--env" and f"MASTER_ADDR={name}-0" in call
    monkeypatch.setenv("GHN_DOCKER", str(tmp_path / "missing"))
    with pytest.raises(BackendError, match=r"can not run .*missing"):
        choose("container").run(job("train"), print)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    pytest.importorskip("kubernetes")
    with kubernetes_server(tmp_path) as (cluster, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        monkeypatch.setenv("GHN_KUBERNETES_NAMESPACE", "research")
        monkeypatch.setenv("GHN_KUBERNETES_POLL_S", "0.05")
        yield cluster


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_manifests_are_valid(nodes: int, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import kubernetes_validate

    from ghn_airflow.backends.kubernetes import render, settings

    monkeypatch.setenv("GHN_KUBERNETES_CLAIM", "ghn-work")
    monkeypatch.setenv("GHN_KUBERNETES_GPUS", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    variables = {"MLFLOW_TRACKING_PASSWORD": "planted-secret", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    manifests = render(job("train", NASTY, nodes=nodes, environment=variables), settings())
    assert [m["kind"] for m in manifests] == (["Service", "Job"] if nodes > 1 else ["Job"])
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)
    assert "planted-secret" not in json.dumps(manifests)
    spec = manifests[-1]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == nodes
    container = spec["template"]["spec"]["containers"][0]
    assert {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"} in container["env"]
    assert container["command"] == ["ghn"] and container["args"] == ["train", NASTY]


def test_a_kubernetes_job_is_followed_to_its_end(cluster: Cluster) -> None:
    from ghn_airflow.backends import choose

    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        if line == "step 1":
            cluster.log.append("step 2")
        elif line == "step 2":
            cluster.outcome = "Complete"

    cluster.log.append("step 1")
    choose("kubernetes").run(job("train", nodes=2), tell)
    assert [line for line in lines if line.startswith("step")] == ["step 1", "step 2"]
    assert "pods: 2 active, 0 succeeded, 0 failed" in lines
    name = "ghn-train-0123456789"
    assert cluster.created == [f"Service/{name}", f"Job/{name}"] and not cluster.jobs and not cluster.services


def test_another_try_joins_a_running_job_and_replaces_a_failed_one(cluster: Cluster) -> None:
    from ghn_airflow.backends import BackendError, choose

    cluster.outcome = "Failed"
    cluster.log += ["loading", "ghn: no shard set at s3://x"]
    with pytest.raises(BackendError, match=r"failed with exit code 1; its last lines: loading \| ghn: no shard set"):
        choose("kubernetes").run(job("train"), lambda line: None)
    assert len(cluster.jobs) == 1 and len(cluster.created) == 1  # it stays, to be looked at
    lines: list[str] = []

    def running(line: str) -> None:
        lines.append(line)
        if line.startswith("started"):
            cluster.outcome = None
        if line == "loading":  # the task is killed and tried again while the Job runs
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choose("kubernetes").run(job("train"), running)
    assert len(cluster.created) == 2 and len(cluster.deleted) == 1
    threading.Timer(0.3, lambda: setattr(cluster, "outcome", "Complete")).start()
    choose("kubernetes").run(job("train"), lines.append)
    assert len(cluster.created) == 2 and any(line.startswith("joining the Job research/") for line in lines)


def test_exit_codes_of_pods_mean_what_they_mean_elsewhere(cluster: Cluster) -> None:
    from ghn_airflow.backends import BackendError, NothingToDoError, choose

    cluster.outcome, cluster.exit_code, cluster.log = "Failed", 2, ["ghn: no shard set"]
    with pytest.raises(BackendError, match="exit code 2") as caught:
        choose("kubernetes").run(job("train"), lambda line: None)
    assert caught.value.final
    cluster.jobs.clear()
    cluster.exit_code, cluster.log = 99, ["there is no champion yet"]
    with pytest.raises(NothingToDoError, match="no champion yet"):
        choose("kubernetes").run(job("evaluate"), lambda line: None)


def test_a_job_is_deleted_when_the_tasks_time_is_up(cluster: Cluster) -> None:
    from ghn_airflow.backends import choose

    class TimeIsUp(BaseException): ...

    def tell(line: str) -> None:
        if "active" in line:
            raise TimeIsUp

    backend = choose("kubernetes")
    with pytest.raises(TimeIsUp):
        backend.run(job("train"), tell)
    assert cluster.jobs
    backend.stop()  # as Airflow does then
    assert not cluster.jobs


def test_stopping_deletes_the_job(cluster: Cluster) -> None:
    from ghn_airflow.backends import BackendError, choose

    backend = choose("kubernetes")
    with pytest.raises(BackendError, match="stopped; its Job is deleted"):
        backend.run(job("train", nodes=3), lambda line: backend.stop() if "active" in line else None)
    assert not cluster.jobs and not cluster.services


def test_every_try_of_a_task_has_the_same_name_and_no_other_task_has_it() -> None:
    from types import SimpleNamespace

    from ghn_airflow.operator import job_name

    def name(**change: Any) -> str:
        facts = {
            "dag_id": "meta_train",
            "task_id": "train",
            "run_id": "manual__2026-11-26T00:00:00+00:00",
            "map_index": -1,
        }
        return job_name(SimpleNamespace(**{**facts, **change}))

    names = {name(), name(run_id="other"), name(task_id="plan"), name(map_index=3), name(dag_id="évaluer" * 20)}
    assert len(names) == 5 and name(try_number=7) == name()
    assert all(
        len(item) <= 58 and item.replace("-", "").isalnum() and item.isascii() and item.islower() for item in names
    )


def test_progress_is_told_in_sentences() -> None:
    from ghn_airflow.operator import as_sentence

    event = {"event": "progress", "time": 1.0, "job": "train", "done": 3, "total": 9, "unit": "step", "rate": 0.5}
    line = json.dumps({**event, "eta_s": 12.0, "loss": 2.3})
    assert as_sentence(f"[node 1] {line}") == "[node 1] train: 3 of 9 steps, 0.5/s, 0:00:12 left, loss 2.3"
    for other in ("plain", '{"event": "progress"', '{"event": "progress", "job": 1}', '{"event": "resume"}'):
        assert as_sentence(other) == other
