"""`pipelines.training.checkpoints` and `state`: whole or not at all, wherever they are stored."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn.errors import DataError, StorageError
from pipelines.storage import LocalStore, Store, open_store
from pipelines.training.checkpoints import (
    FOLDER,
    STATE_NAME,
    BackgroundWriter,
    Retention,
    TrainingState,
    folder,
    read_checkpoint,
    write_checkpoint,
)
from pipelines.training.run_folder import MetricsLog, read_metrics


def state(step: int) -> TrainingState:
    return TrainingState(
        step=step,
        total_steps=100,
        readers={},
        recipe_digest="r",
        manifests={},
        skipped=0,
        sessions=1,
        optimizer_step=step,
    )


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"weights": {"a": torch.full((3,), float(step))}, "optimizer": {"exp_avg.a": torch.arange(3.0)}}


def write(store: Store, step: int, **retention) -> None:
    write_checkpoint(store, state(step), tensors(step), Retention(**retention))


def kept(store: Store) -> list[int]:
    return [int(key.split("-")[1][:9]) for key in store.list(f"{FOLDER}/") if key.endswith(STATE_NAME)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    assert read_checkpoint(store) is None
    write(store, 5)
    found, content = read_checkpoint(store)
    assert found.step == 5 and set(found.files) == {"weights.safetensors", "optimizer.safetensors"}
    assert torch.equal(content["weights"]["a"], torch.full((3,), 5.0))


@given(st.integers(1, 3), st.one_of(st.none(), st.integers(1, 4)))
@settings(max_examples=12, deadline=None)
def test_the_newest_and_the_multiples_stay(tmp_path_factory, last: int, every: int | None) -> None:
    store = LocalStore(str(tmp_path_factory.mktemp("run")))
    for step in range(1, 9):
        write(store, step, last=last, every=every)
        assert kept(store) == [s for s in range(1, step + 1) if s > step - last or (every and s % every == 0)]


class Dying(Store):
    """A store whose process dies after so many operations that change something."""

    def __init__(self, inner: Store, allowed: int) -> None:
        super().__init__(inner.root)
        self.inner, self.left = inner, allowed

    def _count(self) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        return self.inner.read(key, start, stop)

    def write(self, key: str, content: bytes, sha256: str | None = None) -> None:
        self._count()
        self.inner.write(key, content, sha256)

    def delete(self, key: str) -> None:
        self._count()
        self.inner.delete(key)

    def size(self, key: str) -> int | None:
        return self.inner.size(key)

    def list(self, prefix: str = "") -> Sequence[str]:
        return self.inner.list(prefix)

    def remove_unfinished(self) -> int:
        return self.inner.remove_unfinished()


def test_whoever_dies_at_any_operation_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    for allowed in range(20):
        store = LocalStore(str(tmp_path / str(allowed)))
        write(store, 1)
        try:
            write(Dying(store, allowed), 2)
        except KeyboardInterrupt:
            found, content = read_checkpoint(store)
            assert found.step == (1 if allowed < 3 else 2)
            assert content["weights"]["a"][0] == found.step
            write(store, 3)
            assert kept(store) == [3] and len(store.list()) == 3
        else:
            assert allowed == 6 and kept(store) == [2]  # three writes, and the old one's three files
            return
    pytest.fail("the job never came to its end")


@pytest.mark.parametrize("damage", ["weights", "gone", "state"])
def test_damaged_checkpoints_are_passed_over(tmp_path: Path, damage: str, capsys) -> None:
    store = LocalStore(str(tmp_path))
    for step in (1, 2):
        write(store, step, last=5)
    newest = tmp_path / folder(2)
    if damage == "weights":
        file = newest / "weights.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    elif damage == "gone":
        (newest / "optimizer.safetensors").unlink()
    else:
        (newest / STATE_NAME).write_text("{")
    assert read_checkpoint(store)[0].step == 1
    assert '"event": "bad_checkpoint"' in capsys.readouterr().err
    (tmp_path / folder(1) / "weights.safetensors").unlink()
    with pytest.raises(DataError, match="no older checkpoint is left"):
        read_checkpoint(store)


def test_the_writer_forgives_some_failures_but_not_the_last(capsys) -> None:
    def fail() -> dict[str, object]:
        raise StorageError("the disk is full")

    writer = BackgroundWriter(2)
    for task in (fail, fail, lambda: {"step": 1}, fail, fail, fail):
        writer.submit(task)
    assert writer.done == [{"step": 1}]
    with pytest.raises(StorageError, match="3 checkpoints in a row"):
        writer.submit(fail)
    assert capsys.readouterr().err.count("the disk is full") == 5
    writer = BackgroundWriter(2)
    writer.submit(fail)
    with pytest.raises(StorageError, match="last checkpoint"):
        writer.close()


def test_writing_does_not_hold_up_whoever_submits() -> None:
    writer, go = BackgroundWriter(0), threading.Event()
    assert writer.submit(lambda: {"whole": go.wait(10)}) < 0.5 and writer.done == []
    threading.Timer(0.2, go.set).start()
    assert writer.submit(dict) > 0.1
    assert writer.done == [{"whole": True}]


def test_metrics_follow_the_checkpoints_to_another_machine(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "one").mkdir()
    log = MetricsLog(tmp_path / "one", store)
    log.go_back(0)
    for step in range(1, 8):
        log.append({"step": step})
        if step % 2 == 0 and (segment := log.segment(step)):
            store.write(*segment)
            if step != 2:  # as if that checkpoint's other files could not be stored
                log.stored(step)
    assert [row["step"] for row in read_metrics(tmp_path / "one")] == [1, 2, 3, 4, 5, 6, 7]
    (tmp_path / "other").mkdir()
    MetricsLog(tmp_path / "other", store).go_back(4)
    assert [row["step"] for row in read_metrics(tmp_path / "other")] == [1, 2, 3, 4]
    with (tmp_path / "one" / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 8})[:-3])
    MetricsLog(tmp_path / "one", LocalStore(str(tmp_path / "one"))).go_back(6)
    assert [row["step"] for row in read_metrics(tmp_path / "one")] == [1, 2, 3, 4, 5, 6]
