"""`pipelines.storage`: folders and S3 behave alike, and what goes wrong is tried again or named."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from ghn.errors import InputError, StorageError
from pipelines.storage import LocalStore, ReadCache, Store, open_store
from pipelines.storage.settings import StorageSettings
from tests.faulty_proxy import Proxy, Request, proxy


@pytest.fixture
def faulty(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Proxy, str]]:
    """A proxy in front of the S3 server, and an address behind it."""
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running, s3


@pytest.fixture(params=["s3", "moto"])
def remote(request: pytest.FixtureRequest) -> str:
    """An address on each implementation of S3."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["folder", "s3", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue(request.param))


def test_stores_behave_alike(store: Store) -> None:
    assert list(store.list()) == [] and store.size("a") is None
    for key in ("a", "b/c", "b/ü 1", "b2"):
        store.write(key, key.encode() * 3)
    assert list(store.list()) == ["a", "b/c", "b/ü 1", "b2"] and list(store.list("b/")) == ["b/c", "b/ü 1"]
    assert store.read("b/ü 1") == "b/ü 1".encode() * 3 and store.size("a") == 3
    assert store.read("b/c", 2, 5) == b"cb/" and store.read("b/c", 7) == b"/c" and store.read("a", 1, 1) == b""
    store.write("a", b"")
    assert store.read("a") == b"" and store.size("a") == 0
    with pytest.raises(FileNotFoundError):
        store.read("missing")
    store.delete("a")
    store.delete("a")
    assert store.size("a") is None and store.remove_unfinished() == 0
    assert pickle.loads(pickle.dumps(store)).read("b2") == b"b2b2b2"


def test_large_objects_and_ranges(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHN_S3_PART_MIB", "5")
    store = open_store(remote)
    data = os.urandom((11 << 20) + 7)
    store.write("object", data)
    assert store.read("object") == data and store.size("object") == len(data)
    assert store.read("object", 5 << 20, (5 << 20) + 9) == data[5 << 20 : (5 << 20) + 9]
    assert store.read("object", len(data) - 3) == data[-3:]
    store.client.create_multipart_upload(Bucket="ghn", Key=f"{store.prefix}left")
    assert store.remove_unfinished() in (0, 1) and list(store.list()) == ["object"]


def test_large_objects_travel_in_parts(faulty: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch) -> None:
    running, url = faulty
    monkeypatch.setenv("GHN_S3_PART_MIB", "5")
    content = os.urandom(12 << 20)
    store = open_store(url)
    store.write("large", content)
    assert store.read("large") == content
    parts = [request for request in running.requests if "partNumber=" in request.path]
    assert len(parts) == 3 and all("x-amz-checksum-sha256" in _lower(request) for request in parts)
    store.write("small", b"1")
    assert "x-amz-checksum-sha256" in _lower(running.requests[-1])


def _lower(request: Request) -> set[str]:
    return {name.lower() for name in request.headers}


def test_transient_failures_are_tried_again(faulty: tuple[Proxy, str]) -> None:
    running, url = faulty
    store = open_store(url)
    for fault in ("503", "drop"):
        first = len(running.requests)
        running.fault = lambda request, fault=fault, first=first: fault if request.number - first < 2 else None
        store.write("key", fault.encode())
        running.fault = lambda request: None
        assert store.read("key") == fault.encode()
    first = len(running.requests)
    running.fault = lambda request: (
        "drop" if request.number == first + 1 else None
    )  # the listing behind the first answer
    assert store.size("missing") is None and len(running.requests) == first + 3


def test_a_download_that_breaks_off_goes_on_where_it_stopped(faulty: tuple[Proxy, str]) -> None:
    running, url = faulty
    store = open_store(url)
    content = os.urandom(6 << 20)
    store.write("key", content)
    gets = len(running.requests)
    running.fault = lambda request: "cut" if request.number - gets < 3 else None
    assert store.read("key") == content
    ranges = [request.headers.get("Range") for request in running.requests[gets:]]
    assert ranges[:3] == [None, None, f"bytes={3 << 20}-"] and len(ranges) == 4  # the first attempt is in one piece


def test_trying_again_ends_at_the_deadline(faulty: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch) -> None:
    running, url = faulty
    monkeypatch.setenv("GHN_S3_DEADLINE_S", "1")
    store = open_store(url)
    running.fault = lambda request: "full" if request.method == "PUT" else None
    with pytest.raises(StorageError, match=r"key: the store answered InsufficientStorage.*the space"):
        store.write("key", b"1")
    assert 2 <= running.count("PUT") < 12
    running.fault = lambda request: "quota"
    with pytest.raises(StorageError, match="QuotaExceeded"):
        store.write("key", b"1")


def test_the_deadline_counts_from_the_first_failure(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHN_S3_DEADLINE_S", "0.5")
    store = open_store(s3)
    failures = iter([True, False])

    def slow() -> str:
        time.sleep(0.7)  # a long transfer that breaks off at its end
        if next(failures):
            raise EndpointConnectionError(endpoint_url="x")
        return "done"

    assert store._persist("key", slow) == "done"  # type: ignore[attr-defined]


def test_expired_credentials_are_looked_up_anew_and_named(faulty: tuple[Proxy, str]) -> None:
    running, url = faulty
    store = open_store(url)
    running.fault = lambda request: "expired" if request.number == 0 else None
    store.write("key", b"1")
    head = len(running.requests)
    running.fault = lambda request: "expired" if request.number <= head + 1 else None  # the answer to HEAD has no body
    assert store.size("key") == 1
    running.fault = lambda request: "expired"
    for ask in (store.size, store.read):
        with pytest.raises(StorageError, match="the credentials have expired"):
            ask("key")
    with pytest.raises(StorageError, match=r"key: the credentials have expired; renew them and run the same command"):
        store.read("key")


def test_uploads_that_were_never_completed_are_removed(s3: str) -> None:
    store, root = open_store(f"{s3}/sub"), s3.removeprefix("s3://ghn/")
    for key in ("sub/x", "other"):
        store.client.create_multipart_upload(Bucket="ghn", Key=f"{root}/{key}")
    assert store.remove_unfinished() == 1 and store.remove_unfinished() == 0


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    monkeypatch.setenv("GHN_S3_ADDRESSING", "path")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    client = open_store(s3).client
    assert client.meta.region_name == "eu-north-1" and client.meta.config.s3["addressing_style"] == "path"
    monkeypatch.setenv("GHN_S3_PARALLEL", "0")
    with pytest.raises(InputError, match="GHN_S3_PARALLEL='0'"):
        StorageSettings.from_environment()


def test_keys_can_not_leave_a_folder(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "store"))
    for key in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(InputError, match="outside"):
            store.write(key, b"1")


FULL = """
import resource, signal, sys
from pipelines.storage import ReadCache, open_store
from ghn.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
ReadCache(sys.argv[1] + "/cache", 10**9).put("0" * 64, bytes(200_000))  # costs the cache only
store = open_store(sys.argv[1])
store.write("small", bytes(50_000))
try:
    store.write("large", bytes(200_000))
except StorageError as error:
    sys.exit(f"{error}")
"""


def test_a_disk_that_refuses_leaves_no_partial_file(tmp_path: Path) -> None:
    """The limit of this process's file sizes stands for a full disk: the system refuses in the middle of a write."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "can not write" in done.stderr and "File too large" in done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["small"]


def test_a_cache_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_bytes(bytes(90))
    (tmp_path / "folder").mkdir()
    cache = ReadCache(tmp_path, 100)
    for i in range(3):
        cache.put(hashlib.sha256(bytes([i]) * 60).hexdigest(), bytes([i]) * 60)
    assert len(list(tmp_path.iterdir())) == 3 and (tmp_path / "thesis.docx").is_file()
    ReadCache(tmp_path / "thesis.docx", 100).put("0" * 64, b"1")  # no folder: costs the cache only


def test_cached_content_is_what_its_name_says(tmp_path: Path) -> None:
    cache = ReadCache(tmp_path, 10)
    cache.put("a" * 64, b"12345678901")
    assert cache.get("a" * 64) is None and not any(tmp_path.iterdir())


def test_a_bucket_that_does_not_exist_is_named(remote: str) -> None:
    store = open_store("s3://nobody/x")
    for ask in (store.read, store.size, store.list, lambda key: store.write(key, b"1")):
        with pytest.raises(StorageError, match="bucket 'nobody' does not exist; create it first"):
            ask("key")


def test_storage_errors_name_the_address_and_the_next_step(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        open_store(s3).read("missing")
    assert open_store(s3).size("missing") is None
    monkeypatch.setenv("GHN_S3_DEADLINE_S", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="check the credentials"):
        open_store(s3).write("key", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"can not use the object store at http://127.0.0.1:9"):
        open_store(s3).read("key")


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "s3:///x"])
def test_bad_addresses_are_named(url: str) -> None:
    with pytest.raises(InputError, match=url):
        open_store(url)


def test_listing_goes_through_all_pages(s3: str) -> None:
    store = open_store(s3)
    for i in range(12):
        store.write(f"many/{i:02d}", b"")
    assert list(store.list("many/")) == [f"many/{i:02d}" for i in range(12)]
    store.delete("many/03")
    assert len(store.list("many/")) == 11 and io.BytesIO(store.read("many/04")).read() == b""
