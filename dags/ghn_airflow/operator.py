"""One operator: a task is one ``ghn`` command, run by a chosen back-end with an argument list (never a shell)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from ghn_airflow.backends import Backend, BackendError, Job, NothingToDoError, choose
from ghn_airflow.connections import connection_environment
from ghn_airflow.settings import check_parameters

_STOP_S = 40.0
"""For which a command may take to stop, where it is not tied to the task (containers, Jobs), and where the command before failed.

Airflow itself kills a task five seconds after it asked it to stop; local processes end with it, without another checkpoint.
"""


class GhnOperator(BaseOperator):
    """Run ``ghn ARGUMENTS``; its output becomes the task's log, with progress as sentences.

    Args:
        arguments: the command line behind ``ghn``; templated, empty strings are left out.
        environment: variables added to the task's own; templated.
        backend: ``local``, ``hosts``, ``container`` or ``kubernetes``; templated. By default what the run's form says.
        nodes: on how many it runs; templated.
        announce: what the asset events of the outlets say (their ``extra``).

    """

    template_fields = ("arguments", "environment", "backend", "nodes", "announce")
    ui_color = "#dbeafe"

    def __init__(
        self,
        *,
        arguments: Sequence[str],
        environment: dict[str, str] | None = None,
        backend: str = "{{ params.backend }}",
        nodes: int | str = 1,
        announce: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments
        self.environment = environment or {}
        self.backend = backend
        self.nodes = nodes
        self.announce = announce
        self._running: Backend | None = None

    def execute(self, context: Any) -> None:
        """Run the command to its end.

        Raises:
            BackendError: with its last lines if it fails.
            AirflowFailException: the same, where another try makes no sense; or for parameters that the DAG does not have.
            AirflowSkipException: if there is nothing to do.

        """
        check_parameters(context)
        arguments = tuple(argument for argument in self.arguments if argument)
        if not arguments:
            raise AirflowSkipException("there is nothing to do with these parameters")
        self.log.info("running on %s, %s node(s): ghn %s", self.backend, self.nodes, " ".join(arguments))
        self._running = choose(self.backend)
        job = Job(
            name=job_name(context["ti"]),
            arguments=arguments,
            environment={**connection_environment(), **self.environment},
            nodes=int(self.nodes),
            stop_s=_STOP_S,
        )
        try:
            self._running.run(job, lambda line: self.log.info("%s", as_sentence(line)))
        except NothingToDoError as error:
            raise AirflowSkipException(str(error)) from error
        except BackendError as error:
            if error.final:
                raise AirflowFailException(str(error)) from error
            raise
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = dict(self.announce or {})

    def on_kill(self) -> None:
        """Stop the command and everything that it started, on all nodes."""
        if self._running is not None:
            self._running.stop()


def job_name(task_instance: Any) -> str:
    """Return a name that every try of the same task of the same run has, and nothing else; fit for hosts and Kubernetes."""
    parts = (task_instance.dag_id, task_instance.task_id, task_instance.run_id, str(task_instance.map_index))
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]
    readable = re.sub(r"[^a-z0-9]+", "-", f"{task_instance.dag_id}-{task_instance.task_id}".lower())[:40].strip("-")
    return f"ghn-{readable}-{digest}"


def as_sentence(line: str) -> str:
    """Return a progress event as people read it; other lines stay as they are."""
    start = line.find('{"event": "progress"')
    if start < 0:
        return line
    try:
        event = json.loads(line[start:])
        left = "" if event["eta_s"] is None else f", {timedelta(seconds=round(event['eta_s']))} left"
        known = ("event", "time", "job", "done", "total", "unit", "rate", "eta_s")
        facts = "".join(f", {key} {value}" for key, value in event.items() if key not in known)
        text = f"{event['job']}: {event['done']} of {event['total']} {event['unit']}s, {event['rate']:g}/s{left}{facts}"
    except (ValueError, KeyError, TypeError):
        return line
    return line[:start] + text
