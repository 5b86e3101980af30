"""What happens when a task has failed for good: a line in the log, and a message to the connection ``ghn_alerts``."""

from __future__ import annotations

import json
import logging
import urllib.request
from typing import Any

_ALERT_CONNECTION = "ghn_alerts"
_TIMEOUT_S = 10.0


def report_failure(context: Any) -> None:
    """Say which task of which run failed, and why; never raises.

    The connection's host (with schema and port) gets a POST with a JSON object ``{"text": ...}``, as chat services take it.
    """
    log = logging.getLogger("airflow.task")
    task_instance = context["ti"]
    reason = context.get("exception") or context.get("reason") or "no heartbeat"
    text = f"{task_instance.dag_id}.{task_instance.task_id} failed in run {task_instance.run_id}: {reason}"
    log.error("ghn alert: %s", text)
    address = _address(log)
    if not address.startswith(("http://", "https://")):
        return
    request = urllib.request.Request(  # noqa: S310 - only http and https, see above
        address, json.dumps({"text": text}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
            pass
    except OSError as error:
        log.error("the alert could not be sent: %s", error)


def _address(log: logging.Logger) -> str:
    try:
        from airflow.sdk import Connection

        found = Connection.get(_ALERT_CONNECTION)
    except Exception as error:  # no such connection, or none can be read where this runs
        log.debug("no alert connection: %s", error)
        return ""
    port = f":{found.port}" if found.port else ""
    return f"{found.schema or 'https'}://{found.host}{port}{found.extra_dejson.get('path', '')}"
