"""Credentials for the commands: from Airflow's connections where there are some, else from the workers' environment."""

from __future__ import annotations

from typing import Any

_S3_CONNECTION, _MLFLOW_CONNECTION = "ghn_s3", "ghn_mlflow"


def connection_environment() -> dict[str, str]:
    """Return variables from the connections ``ghn_s3`` and ``ghn_mlflow``; what they leave open stays as it is.

    ``ghn_s3``: login and password are the keys; extra: ``endpoint_url``, ``region_name``. ``ghn_mlflow``: extra
    ``tracking_uri``, or host, port and schema of the server; login and password if it asks for them. Airflow masks passwords.
    """
    variables: dict[str, Any] = {}
    if (s3 := _find(_S3_CONNECTION)) is not None:
        extra = s3.extra_dejson
        variables |= {
            "AWS_ACCESS_KEY_ID": s3.login,
            "AWS_SECRET_ACCESS_KEY": s3.password,
            "AWS_ENDPOINT_URL": extra.get("endpoint_url"),
            "MLFLOW_S3_ENDPOINT_URL": extra.get("endpoint_url"),
            "AWS_DEFAULT_REGION": extra.get("region_name"),
        }
    if (mlflow := _find(_MLFLOW_CONNECTION)) is not None:
        address = f"{mlflow.schema or 'http'}://{mlflow.host}" + (f":{mlflow.port}" if mlflow.port else "")
        variables |= {
            "MLFLOW_TRACKING_URI": mlflow.extra_dejson.get("tracking_uri") or (address if mlflow.host else None),
            "MLFLOW_TRACKING_USERNAME": mlflow.login,
            "MLFLOW_TRACKING_PASSWORD": mlflow.password,
        }
    found = {name: str(value) for name, value in variables.items() if value}
    if "AWS_SECRET_ACCESS_KEY" in found:
        found["AWS_SESSION_TOKEN"] = ""  # one of the worker's would belong to other keys
    return found


def _find(name: str) -> Any:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return Connection.get(name)
    except AirflowNotFoundException:
        return None
