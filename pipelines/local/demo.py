"""The main job from one command: the Airflow DAG ``smoke`` on an embedded default, with its progress on the terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ghn.errors import InputError, JobError
from pipelines.evaluation.report import table
from pipelines.local import embedded_s3
from pipelines.local.checkout import REPOSITORY, airflow_settings, installed
from pipelines.progress import EVENTS_VARIABLE
from pipelines.shards.architectures import read_architectures
from pipelines.storage import LocalStore

_MARKER = "demo.json"
_POLL_S = 0.3
_OF_INSTALLATIONS = ("MLFLOW_TRACKING_URI", "GHN_ARTIFACTS")  # the demo registers in its own folder
_TINY = {
    "recipe": "smoke",
    "first_session": 2,
    "image_limit": "200",
    "train_count": 18,
    "test_count": 2,
    "test_images": 32,
}


def demo(images: str, out: Path, *, tiny: bool = False) -> str:
    """Run the DAG ``smoke`` in the folder ``out`` (made anew); return the closing text.

    Args:
        images: ``digits``, or a folder or zip with class folders.
        out: for shards, training run, registry, report and Airflow's own files.
        tiny: about 32 architectures, 200 images and 4 steps.

    Raises:
        InputError: if the images can not be used, or ``out`` holds something that is not a demo.
        JobError: if a task fails.

    """
    started = time.monotonic()
    conf: dict[str, Any] = {**_describe_images(images), **(_TINY if tiny else {}), "run": str(out)}
    _clear(out)
    events = (out / "events.jsonl").resolve()
    mine = {name: value for name, value in os.environ.items() if name not in _OF_INSTALLATIONS}
    environment = {**mine, **_airflow_environment(out), EVENTS_VARIABLE: str(events)}
    log = out / "airflow.log"
    _say(f"running the Airflow DAG `smoke` in {out} (its log: {log})")
    with log.open("wb") as stream:
        for command in (["db", "migrate"], ["dags", "test", "smoke", "--conf", json.dumps(conf)]):
            process = subprocess.Popen(
                [installed("airflow"), *command],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=REPOSITORY,
            )
            try:
                _follow(process, events)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            if process.returncode:
                raise JobError(f"the job stopped: {_reason(log)} (whole log: {log})")
    content = json.loads((out / "report.json").read_text())
    minutes = (time.monotonic() - started) / 60
    return f"{table(content)}\n\n{minutes:.1f} minutes. {closing(out, conf['name'], content)}"


def _describe_images(images: str) -> dict[str, Any]:
    """Look at the images before anything starts: how many classes, and a name for the model."""
    from pipelines.sources import open_source

    if images == "digits":
        return {"images": "digits", "num_classes": 10, "name": "ghn2-digits"}
    source = open_source(images, seed=0)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(images).resolve().stem)
    return {"images": str(Path(images).resolve()), "num_classes": len(source.listing.classes), "name": f"ghn2-{stem}"}


def _clear(out: Path) -> None:
    """Make an empty folder for the demo, removing an earlier demo but nothing else."""
    if out.exists():
        if any(out.iterdir()) and not (out / _MARKER).is_file():
            raise InputError(f"{out} is not empty and holds no earlier demo; choose another --out")
        embedded_s3.stop(out / "s3")
        shutil.rmtree(out)
    LocalStore(str(out)).write(_MARKER, b'{"schema_version": 1}\n')


def _airflow_environment(out: Path) -> dict[str, str]:
    colours = {"AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False", "NO_COLOR": "1"}
    return airflow_settings(out / "airflow") | colours


def _follow(process: subprocess.Popen[bytes], events: Path) -> None:
    """Show the jobs' events while the process runs: bars on a terminal, JSON lines elsewhere."""
    shown = 0
    bars: dict[str, Any] = {}
    running = True
    while running:
        running = process.poll() is None  # look once more after the end
        content = events.read_text() if events.is_file() else ""
        complete = content[shown : content.rfind("\n") + 1]
        shown += len(complete)
        for line in complete.splitlines():
            _show(json.loads(line), bars)
        if running:
            time.sleep(_POLL_S)
    for bar in bars.values():
        bar.close()


def _show(event: dict[str, Any], bars: dict[str, Any]) -> None:
    if not sys.stderr.isatty():
        _say(json.dumps(event))
        return
    if event["event"] != "progress":
        from tqdm import tqdm

        facts = {key: value for key, value in event.items() if key not in ("event", "time")}
        tqdm.write(f"{event['event']}: {facts}", file=sys.stderr)
        return
    job = event["job"]
    if job not in bars:
        from tqdm import tqdm

        for bar in bars.values():
            bar.close()
        bars[job] = tqdm(total=event["total"], desc=job, unit=event["unit"], dynamic_ncols=True)
    known = ("event", "time", "job", "done", "total", "unit", "rate", "eta_s")
    bars[job].set_postfix({key: value for key, value in event.items() if key not in known}, refresh=False)
    bars[job].update(event["done"] - bars[job].n)


def _reason(log: Path) -> str:
    """Find the failed command's own message in Airflow's log."""
    lines = log.read_text(errors="replace").splitlines()
    messages = [line for line in lines if "ghn: " in line]
    return messages[-1][messages[-1].index("ghn: ") :] if messages else (lines[-1] if lines else "no output")


def closing(out: Path, name: str, content: dict[str, Any]) -> str:
    """Write an example architecture and a request for it; return what to do with them, as commands.

    Args:
        out: folder of the demo.
        name: registered model.
        content: of ``report.json``.

    """
    with embedded_s3.client(out / "s3") as client:
        os.environ.update(client)
        spec = read_architectures(content["architectures"]["url"], "deep")[0].spec.to_json()
    store = LocalStore(str(out))
    store.write("architecture.json", (json.dumps(spec, indent=1) + "\n").encode())
    request = {"inputs": [{"specification": spec}]}
    store.write("request.json", (json.dumps(request) + "\n").encode())
    ghn = os.path.relpath(installed("ghn"))
    return "\n".join(
        (
            f"Pictures: {out / 'report.html'}. What you may want next:",
            "",
            "1. Serve the registered model, and ask it for the parameters of an unseen architecture:",
            f"   MLFLOW_TRACKING_URI=sqlite:///{out}/mlflow.db {ghn} s3 exec {out}/s3 -- mlflow models serve "
            f"-m models:/{name}@candidate --env-manager local --port 5001",
            f"   {ghn} predict --server http://127.0.0.1:5001 --spec {out}/architecture.json --out {out}/served.safetensors",
            f"   curl -s http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d @{out}/request.json",
            "2. Predict on the command line, the same file:",
            f"   {ghn} predict --checkpoint {out}/train/model --spec {out}/architecture.json --out {out}/parameters.safetensors",
            "3. Do the same with your own images:",
            "   make demo IMAGES=<folder or zip with class folders>",
        )
    )


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
