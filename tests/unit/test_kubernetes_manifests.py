"""``infra/kubernetes``: valid, safe, and what our commands take."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from pipelines.cli import cli
from pipelines.recipe import load_recipe
from tests.manifests import INFRA, Manifest, build, kinds

OVERLAYS = sorted(path.name for path in (INFRA / "kubernetes" / "overlays").iterdir())


def templates(overlay: str) -> dict[str, Manifest]:
    """Return the pod templates by the name of what makes the pods."""
    found = {}
    for manifest in build(overlay):
        spec = manifest.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            found[manifest["metadata"]["name"]] = spec["template"]
    return found


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    known = {"matchLabels", "matchExpressions"}
    assert selector.keys() <= known and all(e["operator"] == "In" for e in selector.get("matchExpressions", ()))
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ())
    )


def arguments(overlay: str, container: Manifest) -> list[str]:
    """Return a container's arguments with the settings put in, as the kubelet does."""
    settings = {
        name: value
        for source in container["envFrom"]
        if "configMapRef" in source
        for name, value in kinds(overlay, "ConfigMap")[source["configMapRef"]["name"]]["data"].items()
    }
    return [re.sub(r"\$\((\w+)\)", lambda match: settings[match[1]], argument) for argument in container["args"]]


def parse(args: list[str]) -> tuple[str, dict[str, Any]]:
    """Parse a command line of ``ghn`` without running it."""
    context = click.Context(cli, info_name="ghn")
    name, command, rest = cli.resolve_command(context, args)
    assert name is not None and command is not None
    return name, command.make_context(name, rest, parent=context).params


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str, version: str) -> None:
    import kubernetes_validate

    manifests = build(overlay)
    assert {m["kind"] for m in manifests} == {
        *("Namespace", "ServiceAccount", "ConfigMap", "NetworkPolicy", "Service"),
        *("Job", "Deployment", "PodDisruptionBudget", "CronJob"),
    }
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "ghn"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_may_do_little_and_take_little(overlay: str) -> None:
    assert templates(overlay).keys() == {"ghn-train", "ghn-serve", "ghn-evaluate"}
    accounts = kinds(overlay, "ServiceAccount")
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())
    for template in templates(overlay).values():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False and pod["serviceAccountName"] in accounts
        assert pod["terminationGracePeriodSeconds"] >= 30
        assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 1000}.items()
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])
        for container in containers(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys() & container["resources"][
                "requests"
            ].keys()
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
            assert re.fullmatch(r"ghn-train:\d+\.\d+\.\d+(-gpu)?", container["image"])  # never "latest"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_and_ports_meet_pods(overlay: str) -> None:
    pods = templates(overlay)
    for name, service in kinds(overlay, "Service").items():
        (chosen,) = [
            t for t in pods.values() if selects({"matchLabels": service["spec"]["selector"]}, t["metadata"]["labels"])
        ]
        assert chosen is pods[name]
        open_ports = [port for container in containers(chosen) for port in container["ports"]]
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            assert target in {p["containerPort"] for p in open_ports} | {p["name"] for p in open_ports}
    for kind in ("Deployment", "PodDisruptionBudget"):
        for name, owner in kinds(overlay, kind).items():
            assert [n for n, t in pods.items() if selects(owner["spec"]["selector"], t["metadata"]["labels"])] == [name]
    server = containers(pods["ghn-serve"])[0]
    (port,) = server["ports"]
    assert pods["ghn-serve"]["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    for probe, path in (("startupProbe", "/health"), ("livenessProbe", "/health"), ("readinessProbe", "/ready")):
        assert server[probe]["httpGet"] == {"path": path, "port": port["name"]}
    assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] == 300


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_is_closed_but_for_what_is_needed(overlay: str) -> None:
    policies = {name: m["spec"] for name, m in kinds(overlay, "NetworkPolicy").items()}
    covers = {
        policy: {
            name for name, t in templates(overlay).items() if selects(spec["podSelector"], t["metadata"]["labels"])
        }
        for policy, spec in policies.items()
    }
    everyone = set(templates(overlay))
    assert covers == {
        "ghn-deny": everyone,
        "ghn-stores": everyone,
        "ghn-ranks": {"ghn-train"},
        "ghn-serve": {"ghn-serve"},
    }
    assert policies["ghn-deny"].keys() == {"podSelector", "policyTypes"}
    assert policies["ghn-deny"]["policyTypes"] == ["Ingress", "Egress"]
    ranks = policies["ghn-ranks"]
    assert ranks["ingress"] == [{"from": [{"podSelector": ranks["podSelector"]}]}]
    assert ranks["egress"] == [{"to": [{"podSelector": ranks["podSelector"]}]}]
    (allowed,) = policies["ghn-serve"]["ingress"]
    assert allowed["ports"] == [
        {"protocol": "TCP", "port": containers(templates(overlay)["ghn-serve"])[0]["ports"][0]["containerPort"]}
    ]
    assert all(peer["podSelector"]["matchLabels"] == {"ghn-client": "true"} for peer in allowed["from"])
    assert all(
        rule["to"] and rule["ports"] for rule in policies["ghn-stores"]["egress"]
    )  # an empty one would allow all


def test_airflows_jobs_are_under_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(INFRA.parent / "dags"))
    from ghn_airflow.backends import Job
    from ghn_airflow.backends.kubernetes import render, settings

    job = render(Job(name="ghn-train-0", arguments=("train",), nodes=2), settings())[-1]["spec"]["template"]
    policies = kinds("cpu", "NetworkPolicy")
    chosen = {n for n, m in policies.items() if selects(m["spec"]["podSelector"], job["metadata"]["labels"])}
    assert chosen == {"ghn-deny", "ghn-stores", "ghn-ranks"}
    # What the namespace's level "restricted" asks for.
    (container,) = job["spec"]["containers"]
    security = {**job["spec"].get("securityContext", {}), **container["securityContext"]}
    assert security["runAsNonRoot"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]} and security["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_secret_is_inside_and_all_that_is_named_exists(overlay: str) -> None:
    assert not kinds(overlay, "Secret")
    secret = re.compile(r"(?i)secret|password|token|access_key")
    for settings in kinds(overlay, "ConfigMap").values():
        assert not any(secret.search(name) for name in settings["data"])
        assert not any("@" in value for value in settings["data"].values())
    named = {}
    for name, template in templates(overlay).items():
        for container in containers(template):
            assert not any(secret.search(item["name"]) for item in container.get("env", ()))
            sources = container["envFrom"]
            maps = [source["configMapRef"]["name"] for source in sources if "configMapRef" in source]
            assert maps and all(m in kinds(overlay, "ConfigMap") for m in maps)
            named[name] = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
    assert named == {"ghn-train": {"ghn-s3"}, "ghn-evaluate": {"ghn-s3"}, "ghn-serve": {"ghn-serve-s3"}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_training_runs_with_these_flags_and_ranks(overlay: str) -> None:
    job = kinds(overlay, "Job")["ghn-train"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["ghn"]
    name, given = parse(arguments(overlay, container))
    recipe = load_recipe(given["recipe"], given["overrides"])
    assert name == "train" and given["store"] == "s3://ghn/runs/cifar10" and str(given["run"]).startswith("/tmp/")
    assert (recipe.images.url, recipe.architectures.url) == ("s3://ghn/cifar10/images", "s3://ghn/cifar10/deepnets")
    assert recipe.training.grace_s < job["template"]["spec"]["terminationGracePeriodSeconds"]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    service = kinds(overlay, "Service")[job["template"]["spec"]["subdomain"]]
    assert job["completionMode"] == "Indexed" and service["spec"]["clusterIP"] == "None"
    assert environment["WORLD_SIZE"] == str(job["completions"]) == str(job["parallelism"])
    assert environment["MASTER_ADDR"] == f"ghn-train-0.{service['metadata']['name']}"
    assert environment["MASTER_PORT"] == str(service["spec"]["ports"][0]["port"])
    gpu = overlay == "gpu"
    assert (container["resources"]["limits"].get("nvidia.com/gpu") == "1") is gpu
    assert (environment.get("DS_ACCELERATOR") == "cuda") is ("NCCL_SOCKET_IFNAME" in environment) is gpu
    assert container["image"].endswith("-gpu") is gpu


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_evaluation_and_server_run_with_these_flags(overlay: str) -> None:
    candidate, champion, alert = containers(templates(overlay)["ghn-evaluate"])
    models = []
    for container in (candidate, champion):
        name, given = parse(arguments(overlay, container))
        assert name == "evaluate" and given["optional"] and given["results"] == "s3://ghn/runs/evaluation"
        assert given["processes"] == int(container["resources"]["limits"]["cpu"])
        models.append(given.pop("model"))
    assert models == ["models:/ghn2-cifar10@candidate", "models:/ghn2-cifar10@champion"]
    name, given = parse(arguments(overlay, alert))
    assert (name, given["name"], alert["command"]) == ("alert", "ghn2-cifar10", ["ghn"])

    (server,) = containers(templates(overlay)["ghn-serve"])
    name, given = parse(arguments(overlay, server))
    assert (name, server["command"]) == ("serve", ["ghn"])
    assert (given["uri"], given["host"], given["port"]) == ("models:/ghn2-cifar10@champion", "0.0.0.0", 8080)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (99, 0), (2, 2), (7, 7), (143, 143)])
def test_a_model_that_is_not_there_yet_is_no_failure(code: int, expected: int, tmp_path: Path) -> None:
    program = tmp_path / "ghn"
    program.write_text(f'#!/bin/sh\ntest "$#" = 2 && test "$2" = "a b" && exit {code}\nexit 1\n')
    program.chmod(0o755)
    command = containers(templates("cpu")["ghn-evaluate"])[0]["command"]
    done = subprocess.run([*command, "evaluate", "a b"], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == expected
