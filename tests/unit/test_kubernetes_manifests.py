"""``infra/kubernetes``, ``infra/policy`` and ``infra/deepspeed``: valid, safe, and what our commands take."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipelines.cli import cli
from pipelines.recipe import load_recipe

INFRA = Path(__file__).resolve().parents[2] / "infra"
OVERLAYS = sorted(path.name for path in (INFRA / "kubernetes" / "overlays").iterdir())
POLICIES = sorted(path.name for path in (INFRA / "policy").glob("*.json"))
PART_OF = {"app.kubernetes.io/part-of": "ghn"}

Manifest = dict[str, Any]


@functools.cache
def build(overlay: str) -> list[Manifest]:
    """Render an overlay as ``kubectl apply -k`` would."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl is not None, "no kubectl: run `make setup`"
    command = [kubectl, "kustomize", str(INFRA / "kubernetes" / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr  # a deprecated field is a warning there
    return list(yaml.safe_load_all(done.stdout))


def kinds(overlay: str, kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in build(overlay) if m["kind"] == kind}


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


def policy(name: str) -> Manifest:
    return json.loads((INFRA / "policy" / name).read_text())


def each(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allows(name: str, action: str, key: str) -> bool:
    """Say whether a role may do this: with an object, or (``List...``) with a prefix of the bucket."""
    for statement in policy(name)["Statement"]:
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", "*")
        resource = "arn:aws:s3:::ghn" if action.startswith("s3:List") else f"arn:aws:s3:::ghn/{key}"
        if (
            action in each(statement["Action"])
            and any(fnmatchcase(resource, pattern) for pattern in each(statement["Resource"]))
            and any(fnmatchcase(key, pattern) for pattern in each(prefixes))
        ):
            return True
    return False


def statements() -> Iterator[tuple[str, Manifest]]:
    for name in POLICIES:
        for statement in policy(name).get("Statement", ()):
            yield name, statement


def test_policies_name_what_they_allow() -> None:
    assert {name for name, _ in statements()} == {
        "bucket.json",
        "serving.json",
        "sharding.json",
        "training.json",
        "trust.json",
    }
    for name, statement in statements():
        if statement["Effect"] == "Deny":
            assert name == "bucket.json"
            continue
        assert not any("*" in action for action in each(statement["Action"])), name
        resources = each(statement.get("Resource", []))
        assert not any(resource in ("*", "arn:aws:s3:::*", "arn:aws:s3:::ghn/*") for resource in resources), name
        assert statement.get("Principal") != "*"


OPERATIONS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "upload_fileobj": "s3:PutObject",
    "list_objects_v2": "s3:ListBucket",
    "delete_object": "s3:DeleteObject",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
}


def test_sharding_may_do_all_that_the_store_does_and_the_docs_say_what() -> None:
    source = (INFRA.parent / "pipelines" / "storage" / "s3.py").read_text()
    called = set(re.findall(r'self\.(?:_call|_pages)\(\s*"(\w+)"|self\.client\.(\w+)\(', source))
    assert {one or other for one, other in called} == OPERATIONS.keys()
    assert all(allows("sharding.json", action, "cifar10/images/x") for action in OPERATIONS.values())
    used = {
        action
        for name, s in statements()
        if name in ("sharding.json", "training.json", "serving.json")
        for action in each(s["Action"])
    }
    assert used == set(OPERATIONS.values())
    documented = (INFRA.parent / "docs" / "kubernetes.md").read_text()
    assert all(f"`{action}`" in documented for action in used)


@pytest.mark.parametrize(
    ("name", "may", "key"),
    [
        ("training.json", "List Get", "cifar10/images/train/manifest.json"),
        ("training.json", "List Get Put Abort Delete", "runs/cifar10/checkpoints/step-1/state.json"),
        ("training.json", "List Get Put Abort", "mlflow/1/artifacts/model"),
        ("training.json", "", "served/answer"),
        ("training.json", "", "other"),
        ("serving.json", "List Get", "mlflow/1/artifacts/model"),
        ("serving.json", "List Get Put Abort", "served/answer"),
        ("serving.json", "", "cifar10/images/train/manifest.json"),
        ("serving.json", "", "runs/cifar10/checkpoints/step-1/state.json"),
        ("sharding.json", "List Get Put Abort Delete", "cifar10/deepnets/train/manifest.json"),
        ("sharding.json", "", "runs/cifar10/checkpoints/step-1/state.json"),
        ("sharding.json", "", "mlflow/1/artifacts/model"),
    ],
)
def test_roles_may_do_just_their_work(name: str, may: str, key: str) -> None:
    actions = {
        "List": "s3:ListBucket",
        "Get": "s3:GetObject",
        "Put": "s3:PutObject",
        "Abort": "s3:AbortMultipartUpload",
        "Delete": "s3:DeleteObject",
    }
    assert [short for short, action in actions.items() if allows(name, action, key)] == may.split()


def test_roles_reach_all_addresses_of_the_settings() -> None:
    (settings,) = (m["data"] for m in kinds("cpu", "ConfigMap").values())
    places = {
        name: settings[name].removeprefix("s3://ghn/")
        for name in ("GHN_ROOT", "GHN_RUNS", "GHN_ARTIFACTS", "GHN_SERVE_STORE")
    }
    assert allows("training.json", "s3:GetObject", f"{places['GHN_ROOT']}/images/x")
    assert allows("training.json", "s3:PutObject", f"{places['GHN_RUNS']}/x")
    assert allows("training.json", "s3:PutObject", f"{places['GHN_ARTIFACTS']}/x")
    assert allows("serving.json", "s3:PutObject", f"{places['GHN_SERVE_STORE']}/x")
    (expiring,) = (rule for rule in policy("lifecycle.json")["Rules"] if "Expiration" in rule)
    assert expiring["Filter"]["Prefix"] == f"{places['GHN_SERVE_STORE']}/"


def test_an_api_takes_the_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto import mock_aws

    for variable in [name for name in os.environ if name.startswith("AWS_ENDPOINT")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        s3, iam = boto3.client("s3", "us-east-1"), boto3.client("iam", "us-east-1")
        s3.create_bucket(Bucket="ghn")
        s3.put_bucket_policy(Bucket="ghn", Policy=json.dumps(policy("bucket.json")))
        s3.put_bucket_lifecycle_configuration(Bucket="ghn", LifecycleConfiguration=policy("lifecycle.json"))
        for name in ("training", "serving", "sharding"):
            iam.create_policy(PolicyName=name, PolicyDocument=json.dumps(policy(f"{name}.json")))
        iam.create_role(RoleName="ghn-train", AssumeRolePolicyDocument=json.dumps(policy("trust.json")))


def test_the_trust_policy_names_an_account_of_ours() -> None:
    (statement,) = policy("trust.json")["Statement"]
    provider = statement["Principal"]["Federated"].partition("oidc-provider/")[2]
    _, _, namespace, account = statement["Condition"]["StringEquals"][f"{provider}:sub"].split(":")
    assert kinds("cpu", "ServiceAccount")[account]["metadata"]["namespace"] == namespace


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("zero0", ["training.zero_stage=0"]),
        ("zero1", []),
        ("zero2", ["training.zero_stage=2"]),
        ("bfloat16", ["training.precision=bfloat16"]),
    ],
)
def test_deepspeed_recipes_are_cifar10_but_for_one_key(name: str, overrides: list[str]) -> None:
    recipe = load_recipe(str(INFRA / "deepspeed" / f"{name}.toml"))
    assert recipe == load_recipe("cifar10", overrides)
    # Stages of ZeRO do not decide the result: a run may go on with another one.
    assert (recipe.digest() == load_recipe("cifar10").digest()) is name.startswith("zero")


def test_the_hostfile_is_read_by_deepspeed_and_by_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.syspath_prepend(str(INFRA.parent / "dags"))
    from deepspeed.launcher.runner import fetch_hostfile

    from ghn_airflow.backends.hosts import read_hostfile

    file = str(INFRA / "deepspeed" / "hostfile")
    hosts = read_hostfile(file)
    assert dict(fetch_hostfile(file)) == {host.name: host.slots for host in hosts} == {"node-a": 2, "node-b": 2}
    assert all(host.address and host.interface for host in hosts)


def test_deepspeeds_environment_is_as_it_reads_it() -> None:
    for line in (INFRA / "deepspeed" / "deepspeed_env").read_text().splitlines():
        name, value = line.split("=", maxsplit=1)  # as DeepSpeed does: a comment or an empty line would end it
        assert re.fullmatch(r"[A-Z0-9_]+", name) and value and not re.search("KEY|SECRET|PASSWORD", name)
