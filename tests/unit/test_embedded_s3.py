"""`pipelines.local.embedded_s3`: starts once, asks for credentials, keeps its objects, stops by its own id."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ghn.errors import EnvironmentSetupError
from pipelines.local import embedded_s3
from pipelines.storage import open_store


def test_objects_survive_a_restart_and_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = embedded_s3.start(tmp_path)
    try:
        assert embedded_s3.start(tmp_path) == first  # runs already
        monkeypatch.setattr(os, "environ", {**os.environ, **first})
        open_store("s3://ghn/x").write("key", b"value")
        pid = json.loads((tmp_path / "server.json").read_text())["pid"]
        assert first["AWS_SECRET_ACCESS_KEY"] not in Path(f"/proc/{pid}/cmdline").read_text()
        assert (tmp_path / "server.json").stat().st_mode & 0o077 == 0
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        second = embedded_s3.start(tmp_path)
        monkeypatch.setattr(os, "environ", {**os.environ, **second})
        assert open_store("s3://ghn/x").read("key") == b"value"
        assert second["AWS_ACCESS_KEY_ID"] == first["AWS_ACCESS_KEY_ID"]
    finally:
        embedded_s3.stop(tmp_path)
    assert not embedded_s3._answers(int(second["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    embedded_s3.stop(tmp_path)  # again: nothing to do


def test_a_remembered_id_of_another_process_is_not_killed(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(json.dumps({"pid": os.getpid(), "endpoint": "http://127.0.0.1:1"}))
    embedded_s3.stop(tmp_path)  # this very process would have been stopped


def test_commands_run_as_clients_and_the_server_ends_with_them(tmp_path: Path, capfd) -> None:
    code = "import os; print(os.environ['AWS_ENDPOINT_URL']); raise SystemExit(7)"
    assert embedded_s3.run_client(tmp_path, [sys.executable, "-c", code]) == 7
    endpoint = capfd.readouterr().out.strip()
    assert endpoint.startswith("http://127.0.0.1:")
    time.sleep(0.1)
    assert not embedded_s3._answers(int(endpoint.rpartition(":")[2]))
    with pytest.raises(EnvironmentSetupError, match="no command 'no-such-command'"):
        embedded_s3.run_client(tmp_path, ["no-such-command"])
    with pytest.raises(EnvironmentSetupError, match="ghn s3 start"):
        embedded_s3.client_environment(tmp_path / "nowhere")
