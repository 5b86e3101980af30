"""Run a command as a Kubernetes Indexed Job: one pod for each node; a headless Service gives them names.

The Job has the job's name, so a new try joins one that runs, or replaces one that failed. Credentials come from a Secret
that the pods read; they never pass through Airflow. The namespace of ``infra/kubernetes/`` takes these pods, and its network
policies cover them.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ghn_airflow.backends.base import (
    FINAL_CODES,
    NOTHING_TO_DO,
    PASSED,
    RENDEZVOUS_PORT,
    Backend,
    BackendError,
    Job,
    Log,
    raise_for,
)

_POLL_S = 5.0
_BACKOFF_LIMIT = 3
_CONTAINER = "ghn"
_NOT_FOUND, _CONFLICT = 404, 409
_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


def settings() -> dict[str, str]:
    """Return the installation's settings from the environment, with their defaults."""
    names = {
        "image": ("GHN_IMAGE", "ghn-train"),
        "namespace": ("GHN_KUBERNETES_NAMESPACE", "default"),
        "secret": ("GHN_KUBERNETES_SECRET", "ghn-s3"),
        "claim": ("GHN_KUBERNETES_CLAIM", ""),
        "cpu": ("GHN_KUBERNETES_CPU", "4"),
        "memory": ("GHN_KUBERNETES_MEMORY", "16Gi"),
        "gpus": ("GHN_KUBERNETES_GPUS", "0"),
        "deadline_s": ("GHN_KUBERNETES_DEADLINE_S", "1209600"),
        "poll_s": ("GHN_KUBERNETES_POLL_S", str(_POLL_S)),
    }
    return {key: os.environ.get(variable, default) for key, (variable, default) in names.items()}


def render(job: Job, given: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the Service (for more than one node) and the Job, ready to be sent."""
    labels = {"app": "ghn", "app.kubernetes.io/part-of": "ghn", "ghn-job": job.name}
    failed_for_good = {
        "action": "FailJob",  # another try would end in the same way
        "onExitCodes": {"containerName": _CONTAINER, "operator": "In", "values": [*FINAL_CODES, NOTHING_TO_DO]},
    }
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.name, "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": job.nodes,
            "parallelism": job.nodes,
            "backoffLimit": _BACKOFF_LIMIT * job.nodes,  # all ranks end when one does, and find the checkpoint
            "podFailurePolicy": {"rules": [failed_for_good]},
            "activeDeadlineSeconds": int(given["deadline_s"]),
            "template": {"metadata": {"labels": labels}, "spec": _pod(job, given)},
        },
    }
    return [_service(job, labels), manifest] if job.nodes > 1 else [manifest]


def _service(job: Job, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the headless Service that gives the pods names."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name, "labels": labels},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"ghn-job": job.name},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def _pod(job: Job, given: Mapping[str, str]) -> dict[str, Any]:
    """Return what each pod is: one container without rights, and the shared volume, if there is one."""
    resources = {"cpu": given["cpu"], "memory": given["memory"]}
    if given["gpus"] != "0":
        resources["nvidia.com/gpu"] = given["gpus"]
    container: dict[str, Any] = {
        "name": _CONTAINER,
        "image": given["image"],
        "command": ["ghn"],
        "args": list(job.arguments),
        "env": _environment(job),
        "envFrom": [{"secretRef": {"name": given["secret"]}}],
        "resources": {"limits": resources, "requests": resources},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "restartPolicy": "Never",  # a failed pod stays, with its exit code and log; the Job makes another one
        "terminationGracePeriodSeconds": int(job.stop_s),
        "containers": [container],
    }
    if job.nodes > 1:
        pod["subdomain"] = job.name
    if given["claim"]:
        container["volumeMounts"] = [{"name": "work", "mountPath": "/mnt/ghn"}]
        pod["volumes"] = [{"name": "work", "persistentVolumeClaim": {"claimName": given["claim"]}}]
    return pod


def _environment(job: Job) -> list[dict[str, Any]]:
    """Return the worker's variables that are not secret, and, for more than one node, those of the rendezvous.

    An address that holds a password belongs into the Secret, not to the worker.
    """
    known = {**os.environ, **job.environment}
    environment: list[dict[str, Any]] = [{"name": name, "value": known[name]} for name in PASSED if name in known]
    if job.nodes > 1:
        environment += [
            {"name": "RANK", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX_ANNOTATION}']"}}},
            {"name": "WORLD_SIZE", "value": str(job.nodes)},
            {"name": "MASTER_ADDR", "value": f"{job.name}-0.{job.name}"},
            {"name": "MASTER_PORT", "value": str(RENDEZVOUS_PORT)},
            {"name": "GLOO_SOCKET_IFNAME", "value": "eth0"},
        ]
    return environment


class KubernetesBackend(Backend):
    """The cluster that the worker runs in, or that of the kubeconfig file."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._left: Callable[[], None] | None = None  # deletes what runs on without being followed

    def run(self, job: Job, log: Log) -> None:
        """Run the command; errors as in :meth:`Backend.run`."""
        try:
            from kubernetes import client, config
            from kubernetes.client.exceptions import ApiException
            from urllib3.exceptions import HTTPError
        except ImportError as error:
            raise BackendError(
                "the back-end kubernetes needs the package kubernetes: pip install kubernetes"
            ) from error
        try:
            _load_configuration(config)
        except config.ConfigException as error:
            raise BackendError(f"no Kubernetes configuration: {error}; run in the cluster or set KUBECONFIG") from error
        given = settings()
        batch, core = client.BatchV1Api(), client.CoreV1Api()
        try:
            self._submit(job, given, batch, core, log)
            try:
                self._follow(job, given, batch, core, log)
            except BaseException:  # of a time limit, for one: Airflow calls `stop` after it
                self._left = functools.partial(self._delete, job, given["namespace"], batch, core)
                raise
        except ApiException as error:
            raise BackendError(f"Kubernetes refused {job.name}: {error.status} {error.reason}: {error.body}") from error
        except HTTPError as error:
            raise BackendError(f"can not reach Kubernetes: {error}; another try joins the Job") from error

    def stop(self) -> None:
        """Delete the Job with its pods: where the Job is followed, at once, or here if it is followed no more."""
        self._stopping.set()
        if self._left is not None:
            self._left()

    def _submit(self, job: Job, given: Mapping[str, str], batch: Any, core: Any, log: Log) -> None:
        from kubernetes.client.exceptions import ApiException

        namespace = given["namespace"]
        known = _get(batch, job.name, namespace)
        if known is not None and _outcome(known) is None:
            log(f"joining the Job {namespace}/{job.name}, which an earlier try of this task started")
            return
        if known is not None:
            self._delete(job, namespace, batch, core)
        for manifest in render(job, given):
            create = batch.create_namespaced_job if manifest["kind"] == "Job" else core.create_namespaced_service
            try:
                create(namespace, manifest)
            except ApiException as error:
                if error.status != _CONFLICT:
                    raise
        log(f"started the Job {namespace}/{job.name} with {job.nodes} pods")

    def _follow(self, job: Job, given: Mapping[str, str], batch: Any, core: Any, log: Log) -> None:
        """Log progress and new lines of the first pod until the Job ends."""
        namespace, told = given["namespace"], ""
        lines = _NewLines(core, job.name, namespace)
        while True:
            stopping = self._stopping.is_set()
            found = _get(batch, job.name, namespace)
            if found is None:
                raise BackendError(f"the Job {namespace}/{job.name} was deleted while it ran")
            for line in lines.read():
                log(line)
            status = found.status
            state = f"pods: {status.active or 0} active, {status.succeeded or 0} succeeded, {status.failed or 0} failed"
            if state != told:
                log(state)
                told = state
            outcome = _outcome(found)
            if stopping or outcome == "Complete":
                self._delete(job, namespace, batch, core)
            if stopping:
                raise BackendError("the task was stopped; its Job is deleted")
            if outcome == "Complete":
                return
            if outcome is not None:  # it stays, to be looked at, until the next try
                raise_for(f"the Job {namespace}/{job.name}", *_failed_pod(core, job.name, namespace))
            self._stopping.wait(float(given["poll_s"]))

    def _delete(self, job: Job, namespace: str, batch: Any, core: Any) -> None:
        from kubernetes.client.exceptions import ApiException

        for delete in (batch.delete_namespaced_job, core.delete_namespaced_service):
            try:
                delete(job.name, namespace, propagation_policy="Foreground")
            except ApiException as error:
                if error.status != _NOT_FOUND:
                    raise
        while _get(batch, job.name, namespace) is not None:  # until its pods are gone
            time.sleep(0.5)


def _load_configuration(config: Any) -> None:
    """Read the kubeconfig file, where there is one, else what a pod knows of its cluster."""
    file = os.environ.get("KUBECONFIG")
    if file or Path("~/.kube/config").expanduser().is_file():
        config.load_kube_config(file)
    else:
        config.load_incluster_config()


def _get(batch: Any, name: str, namespace: str) -> Any:
    from kubernetes.client.exceptions import ApiException

    try:
        return batch.read_namespaced_job(name, namespace)
    except ApiException as error:
        if error.status == _NOT_FOUND:
            return None
        raise


def _outcome(found: Any) -> str | None:
    """Return ``Complete`` or ``Failed``, ``None`` while the Job runs."""
    for condition in found.status.conditions or ():
        if condition.type in ("Complete", "Failed") and condition.status == "True":
            return str(condition.type)
    return None


class _NewLines:
    """The log of the pod with index 0, from where it was read before."""

    def __init__(self, core: Any, name: str, namespace: str) -> None:
        self._core, self._name, self._namespace = core, name, namespace
        self._read_at: float | None = None
        self._latest = ""

    def read(self) -> list[str]:
        """Return the new lines, none if there is no such pod yet."""
        from kubernetes.client.exceptions import ApiException

        pods = self._core.list_namespaced_pod(self._namespace, label_selector=f"ghn-job={self._name}").items
        first = [pod for pod in pods if (pod.metadata.annotations or {}).get(_INDEX_ANNOTATION) == "0"]
        if not first:
            return []
        newest = max(first, key=lambda pod: str(pod.metadata.creation_timestamp))
        now = time.monotonic()
        since = {} if self._read_at is None else {"since_seconds": int(now - self._read_at) + 2}
        try:
            text = self._core.read_namespaced_pod_log(newest.metadata.name, self._namespace, timestamps=True, **since)
        except ApiException:  # the container has not started yet
            return []
        self._read_at = now
        stamped = [line.partition(" ") for line in str(text).splitlines()]
        new = [(stamp, line) for stamp, _, line in stamped if stamp > self._latest]
        self._latest = new[-1][0] if new else self._latest
        return [line for _, line in new]


def _failed_pod(core: Any, name: str, namespace: str) -> tuple[int | None, list[str]]:
    """Return exit code and last lines of the pod that failed first, as far as they are known."""
    from kubernetes.client.exceptions import ApiException

    found = []
    for pod in core.list_namespaced_pod(namespace, label_selector=f"ghn-job={name}").items:
        for status in (pod.status and pod.status.container_statuses) or ():
            ended = status.state and status.state.terminated
            if ended and ended.exit_code:
                found.append((str(ended.finished_at), ended.exit_code, pod.metadata.name))
    if not found:
        return None, []
    _, code, pod_name = min(found)
    try:
        text = core.read_namespaced_pod_log(pod_name, namespace, tail_lines=5)
    except ApiException:
        text = ""
    return code, str(text).splitlines()
