"""``infra/policy``: what each role may do with the bucket, that it is just its work, and that an API takes it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest

from tests.manifests import INFRA, Manifest, kinds

POLICIES = sorted(path.name for path in (INFRA / "policy").glob("*.json"))


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
    documented = (INFRA.parent / "docs" / "how-to" / "kubernetes.md").read_text()
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
