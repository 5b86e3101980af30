"""What a DAG run works on: its parameters, or what the asset events say that started it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException

_ANNOUNCED = ("name", "images", "deepnets", "splits")
"""What events may say; everything else is decided by parameters and their defaults."""
_AIRFLOWS_OWN = ("airflow/", "openlineage")  # keys that Airflow and its providers add to what a run is given


def settings_of(context: Any, inlets: Sequence[Asset] = ()) -> dict[str, Any]:
    """Return the run's parameters.

    Where assets started the run, what their newest events say comes first; in a run by the clock, what the newest events of the
    ``inlets`` said, if there ever was one. A run that somebody triggered does what its form says.
    """
    settings = dict(context["params"])
    kind = kind_of_run(context)
    events: list[Any] = []
    if kind == "asset_triggered":  # all events since the last run are there, in no order
        events = [event for found in context["triggering_asset_events"].values() for event in found]
        events.sort(key=lambda event: event.timestamp)
    elif kind == "scheduled":
        for asset in inlets:
            events += list(context["inlet_events"][asset])[-1:]
    for event in events:
        for key in _ANNOUNCED:
            if key in settings and key in event.extra:
                # checked as a form is: whoever may post events could say anything
                settings[key] = context["dag"].params.get_param(key).resolve(event.extra[key])
    return settings


def check_parameters(context: Any) -> None:
    """Refuse parameters that the DAG does not have: Airflow ignores them, and the run would do something else than was meant.

    Raises:
        AirflowFailException: if the run was given such ones.

    """
    known = set(context["dag"].params)
    given = {key for key in context["dag_run"].conf or () if not key.startswith(_AIRFLOWS_OWN)}
    if unknown := sorted(given - known):
        raise AirflowFailException(f"no parameter {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def kind_of_run(context: Any) -> str:
    """Return what started the run: ``manual``, ``scheduled`` (the clock), ``asset_triggered``, or another of Airflow's kinds."""
    return str(getattr(context["dag_run"].run_type, "value", context["dag_run"].run_type))


def options(**given: Any) -> list[str]:
    """Return ``--name=value`` for each value that is not ``None``: one argument each, whatever the value holds.

    Lists give one option for each of their members; ``True`` gives the bare option, ``False`` none.
    """
    arguments = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(option)
        elif value is not None and value is not False:
            arguments += [f"{option}={item}" for item in (value if isinstance(value, (list, tuple)) else [value])]
    return arguments
