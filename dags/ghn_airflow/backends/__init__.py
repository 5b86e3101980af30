"""Where a ``ghn`` command runs: on this machine, on hosts, in containers, or as a Kubernetes Job.

The person who triggers a DAG chooses the back-end and the number of nodes. Everything else (host file, image, volumes, name space)
is the installation's and comes from the environment of Airflow's workers; see ``docs/how-to/airflow.md``.
"""

from __future__ import annotations

from ghn_airflow.backends.base import Backend, BackendError, Job, NothingToDoError

__all__ = ["NAMES", "Backend", "BackendError", "Job", "NothingToDoError", "choose"]

NAMES = ("local", "hosts", "container", "kubernetes")


def choose(name: str) -> Backend:
    """Return a back-end by its name; its module is imported only now.

    Raises:
        BackendError: for another name.

    """
    if name == "local":
        from ghn_airflow.backends.local import LocalBackend

        return LocalBackend()
    if name == "hosts":
        from ghn_airflow.backends.hosts import HostsBackend

        return HostsBackend()
    if name == "container":
        from ghn_airflow.backends.container import ContainerBackend

        return ContainerBackend()
    if name == "kubernetes":
        from ghn_airflow.backends.kubernetes import KubernetesBackend

        return KubernetesBackend()
    raise BackendError(f"unknown back-end {name!r}; choose one of {', '.join(NAMES)}")
