"""`ghn.deepnets`: what is written in the official format is read back, lazily, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn import Architecture, read_deepnets, sample_architectures
from ghn.deepnets import DeepNets
from ghn.errors import DataError, GHNError, InputError, OutOfRangeError
from ghn.graph import sort_edges
from ghn.space import SAMPLED_SPLITS
from tests.official_files import write_official
from tests.strategies import architectures


def fingerprints(sequence) -> list[str]:
    return [architecture.graph.fingerprint() for architecture in sequence]


@given(
    split=st.sampled_from(SAMPLED_SPLITS),
    seed=st.integers(0, 1000),
    published=st.booleans(),
    size=st.sampled_from([32, 224]),
)
@settings(max_examples=10, deadline=None)
def test_what_was_written_is_read(split: str, seed: int, published: bool, size: int) -> None:
    written = sample_architectures(split, 3, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = write_official(Path(folder) / "deepnets1m_eval.hdf5", {split: written}, published=published)
        found = list(read_deepnets(path, split, num_classes=7, image_size=size))
    assert [(a.split, a.index) for a in found] == [(split, 0), (split, 1), (split, 2)]
    for a, b in zip(written, found, strict=True):
        C = a.spec.C // 2 if split == "wide" and size == 224 else a.spec.C  # widened twofold, not fourfold
        assert b.spec == dataclasses.replace(a.spec, C=C, num_classes=7, image_size=size)
        assert b.stored_graph is not None
        assert b.graph.fingerprint() == Architecture(spec=b.spec).graph.fingerprint()


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    splits = {"val": sample_architectures("val", 6, 0), "deep": sample_architectures("deep", 1, 0)}
    return write_official(tmp_path_factory.mktemp("official") / "deepnets1m_eval.hdf5", splits)


def test_it_is_a_sequence(official: Path) -> None:
    nets = read_deepnets(official, "val")
    assert len(nets) == 6 and nets[-1].index == 5 and nets[-1].label == "val[5]"
    part = nets[1:5][::2]
    assert [a.index for a in part] == [1, 3]
    assert [spec.C for spec in nets.specs()] == [a.spec.C for a in nets]
    for index in (6, -7):
        with pytest.raises(IndexError, match=rf"val\[{index}\]: there are 6"):
            nets[index]
    assert issubclass(OutOfRangeError, InputError)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_open_the_file_for_themselves(official: Path, method: str) -> None:
    nets = read_deepnets(official, "val")
    first = nets[0].graph.fingerprint()  # open in this process too
    loader = torch.utils.data.DataLoader(
        nets, batch_size=None, num_workers=2, multiprocessing_context=method, collate_fn=_with_process
    )
    rows = list(loader)
    assert [fingerprint for fingerprint, _ in rows] == fingerprints(nets) and rows[0][0] == first
    assert os.getpid() not in {process for _, process in rows} and len({process for _, process in rows}) == 2


def _with_process(architecture: Architecture) -> tuple[str, int]:
    return architecture.graph.fingerprint(), os.getpid()


@pytest.fixture
def copy(official: Path, tmp_path: Path) -> Path:
    for file in official.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / official.name


def read_all(path: Path, split: str = "val") -> None:
    list(read_deepnets(path, split))


def change_json(path: Path, change) -> None:
    file = path.with_name(f"{path.stem}_meta.json")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def change_hdf5(path: Path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replace(file, name: str, value) -> None:
    del file[name]
    file[name] = value


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated_files_are_named(copy: Path, keep: float) -> None:
    content = copy.read_bytes()
    copy.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(DataError, match=f"{copy} is damaged or no HDF5 file"):
        read_all(copy)


def test_damaged_data_name_the_network(copy: Path) -> None:
    with h5py.File(copy) as file:
        at = file["val/2/adj"].id.get_chunk_info(0).byte_offset
    content = bytearray(copy.read_bytes())
    content[at + 10 : at + 40] = bytes(30)
    copy.write_bytes(content)
    nets = read_deepnets(copy, "val")
    assert nets[1].index == 1
    with pytest.raises(DataError, match=r"network val\[2\] can not be read"):
        nets[2]


def _add(name: str, where: tuple[int, int], value: int):
    def change(file) -> None:
        table = file[name][()]
        table[where] = value
        replace(file, name, table)

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.__delitem__("val/3"), "has 5 networks in one and 6 in the other"),
        (lambda f: f.move("val/3", "val/9"), r"network val\[3\] can not be read"),
        (_add("val/0/adj", (5, 2), 1), r"network val\[0\]: an edge does not run forward"),
        (_add("val/0/adj", (0, -1), 200), r"network val\[0\]: path lengths and edges contradict"),
        (_add("val/0/nodes", (4, 2), 60_000), r"val\[0\], node 4 refers to number 60000"),
        (_add("val/0/nodes", (1, 2), 0), r"val\[0\], node 1 \(conv 'cells.0.input'\) is no parameter"),
        (lambda f: replace(f, "val/0/nodes", f["val/0/nodes"][:-1]), r"val\[0\]: shapes"),
    ],
)
def test_changed_hdf5_files_are_named(copy: Path, change, named: str) -> None:
    change_hdf5(copy, change)
    with pytest.raises(DataError, match=named):
        read_all(copy)


def _rewire(content: dict) -> None:
    """Let the first operation with a choice read another input; names and numbers of nodes stay."""
    for net in content["val"]["nets"]:
        for cell in ("normal", "reduce"):
            for edge in net["genotype"][cell]:
                edge[1] = 1 - edge[1] if edge[1] < 2 else edge[1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["val"]["nets"].reverse(), "do not belong together"),
        (lambda c: c["val"]["nets"].pop(), "has 6 networks in one and 5 in the other"),
        (lambda c: c["val"].update(meta=c["deep"]["meta"]), "do not belong together"),
        (_rewire, "connected otherwise|no parameter|no node for"),
        (lambda c: c["val"].pop("nets"), "split 'val': it is damaged"),
        (lambda c: c["val"]["meta"].update(primitives_ext=[]), "split 'val': it is damaged"),
        (lambda c: c["val"]["nets"][0].update(genotype=None), r"network val\[0\]: .*genotype"),
        (lambda c: c["val"]["nets"][0].update(ks=4), r"network val\[0\]: .*ks=4"),
        (lambda c: c["val"]["nets"][1].update(num_nodes=3), r"val\[1\] has \d+ nodes in one and 3"),
    ],
)
def test_foreign_or_changed_json_files_are_named(copy: Path, change, named: str) -> None:
    change_json(copy, change)
    with pytest.raises((DataError, InputError), match=named) as caught:
        read_all(copy)
    assert f"{copy.stem}_meta.json" in str(caught.value)


def test_the_stored_graph_can_be_taken_unverified(copy: Path) -> None:
    """An edge more, with its path lengths, is another graph; it is read as it is only when asked for."""
    graph = sample_architectures("val", 1, 0)[0].graph
    extra = dataclasses.replace(graph, edges=sort_edges([*graph.edges, (0, len(graph) - 1)]))
    distances = np.where(extra.distances <= 250, extra.distances, 0)
    change_hdf5(copy, lambda f: replace(f, "val/0/adj", distances))
    with pytest.raises(DataError, match=r"val\[0\] is connected otherwise"):
        read_deepnets(copy, "val")[0]
    assert read_deepnets(copy, "val", verify=False)[0].graph.edges == extra.edges


def test_missing_things_are_named(copy: Path) -> None:
    with pytest.raises(InputError, match="no split 'train'; it has val, deep"):
        read_deepnets(copy, "train")
    with pytest.raises(InputError, match="num_classes=1"):
        read_deepnets(copy, "val", num_classes=1)
    meta = copy.with_name(f"{copy.stem}_meta.json")
    meta.write_text(meta.read_text()[:-100])
    with pytest.raises(DataError, match="is not JSON"):
        read_deepnets(copy, "val")
    meta.unlink()
    with pytest.raises(InputError, match=f"no file {meta}"):
        read_deepnets(copy, "val")
    with pytest.raises(GHNError, match=r"no file nowhere\.hdf5"):
        read_deepnets("nowhere.hdf5", "val")


@given(architectures())
@settings(max_examples=10, deadline=None)
def test_fingerprints_do_not_depend_on_node_order(architecture: Architecture) -> None:
    graph = architecture.graph
    waiting = {v: {u for u, w in graph.edges if w == v} for v in range(len(graph))}
    order, ready = [], [v for v, before in waiting.items() if not before]
    rng = random.Random(0)
    while ready:
        v = ready.pop(rng.randrange(len(ready)))
        order.append(v)
        for w, before in waiting.items():
            if v in before:
                before.remove(v)
                if not before:
                    ready.append(w)
    number = {old: new for new, old in enumerate(order)}
    edges = sort_edges((number[u], number[v]) for u, v in graph.edges)
    shuffled = dataclasses.replace(graph, nodes=tuple(graph.nodes[i] for i in order), edges=edges)
    assert shuffled.fingerprint() == graph.fingerprint()
    for k in range(0, len(edges), 7):
        fewer = dataclasses.replace(graph, edges=graph.edges[:k] + graph.edges[k + 1 :])
        assert fewer.fingerprint() != graph.fingerprint()


def test_only_what_is_asked_for_is_read(copy: Path) -> None:
    change_hdf5(copy, lambda f: f.move("val/5", "val/50"))
    nets = read_deepnets(copy, "val")
    assert isinstance(nets, DeepNets) and len(fingerprints(nets[:5])) == 5
