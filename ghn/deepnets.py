"""The official DeepNets-1M files: ``deepnets1m_{train,eval,search}.hdf5`` with ``..._meta.json`` beside them.

The HDF5 file holds, for each network, the matrix of shortest path lengths and one row per node; the JSON file holds the
arguments of each network and the names that the rows refer to by number (the published code's file format).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from ghn.architecture import Architecture
from ghn.build import build_graph
from ghn.errors import DataError, GHNError, InputError, OutOfRangeError
from ghn.genotype import ArchitectureSpec
from ghn.graph import ArchitectureGraph, Node
from ghn.space import RULES

_ARGUMENTS = {field.name for field in dataclasses.fields(ArchitectureSpec)}
_TRAINING_C = 32  # training entries have no C: it is drawn each time a network is used
_STORED_DISTANCE = 250
_NO_PREFIX = ("stem", "pos_enc", "classifier")
_READ_ERRORS = (OSError, RuntimeError, KeyError, TypeError, ValueError)  # what h5py raises for damaged files


def read_deepnets(
    hdf5_path: str | os.PathLike[str],
    split: str,
    num_classes: int = 10,
    image_size: int = 32,
    *,
    verify: bool = True,
) -> DeepNets:
    """Open one split of an official DeepNets-1M file.

    Args:
        hdf5_path: the ``.hdf5`` file; its ``_meta.json`` must lie beside it.
        split: a split that the file holds, e.g. train, val, test, wide, deep, dense, bnfree.
        num_classes: width of the classifiers (the files leave it open).
        image_size: image height and width in pixels (published: 32 and 224). ``wide`` multiplies the stored channels by
            4, for 224-pixel images by 2.
        verify: compare each graph that is read with the one that its specification gives. ``False`` takes the stored
            nodes and edges as they are.

    Returns:
        A lazy sequence of architectures, whose graphs are those of the file. It may be pickled and used in worker
        processes: each opens the file for itself.

    Raises:
        InputError: if a file or the split is missing, or an argument is out of range.
        DataError: if a file is damaged, or the two do not belong together; the message names the file and the network.
        OutOfRangeError: (an IndexError too) from the sequence, for an index that does not exist.

    """
    return DeepNets(Path(hdf5_path), split, num_classes=num_classes, image_size=image_size, verify=verify)


class DeepNets(Sequence[Architecture]):
    """The architectures of one split, read when they are asked for; see :func:`read_deepnets`."""

    def __init__(self, path: Path, split: str, *, num_classes: int, image_size: int, verify: bool) -> None:
        self.path = path
        self.meta_path = path.with_name(f"{path.stem}_meta.json")
        self.split = split
        self.num_classes = num_classes
        self.image_size = image_size
        self.verify = verify
        self._handle: tuple[int, Any] | None = None  # process, open file
        for file in (self.path, self.meta_path):
            if not file.is_file():
                raise InputError(
                    f"no file {file}: official DeepNets-1M files are NAME.hdf5 with NAME_meta.json beside it"
                )
        self._nets, self._primitives, self._op_names = _read_meta(self.meta_path, split)
        stored = self._read(f"split {split!r}", lambda file: len(file[split]) if split in file else None)
        if stored is None:
            held = ", ".join(self._read("the list of splits", list)) or "none"
            raise InputError(f"{path} has no split {split!r}; it has {held}")
        if stored != len(self._nets):
            raise self._foreign(f"split {split!r} has {stored} networks in one and {len(self._nets)} in the other")
        if self._nets:
            self._spec(0)  # arguments out of range show now
        self._indices = range(len(self._nets))

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Architecture: ...

    @overload
    def __getitem__(self, index: slice) -> DeepNets: ...

    def __getitem__(self, index: int | slice) -> Architecture | DeepNets:
        """Read one architecture (negative numbers count from the end), or make a lazy part of the sequence."""
        if isinstance(index, slice):
            part = copy.copy(self)
            part._indices = self._indices[index]
            return part
        try:
            number = self._indices[index]
        except IndexError:
            raise OutOfRangeError(
                f"{self.path} has no network {self.split}[{index}]: there are {len(self)}, counted from 0"
            ) from None
        spec = self._spec(number)
        return Architecture(spec=spec, split=self.split, index=number, stored_graph=self._graph(number, spec))

    def specs(self) -> Iterator[ArchitectureSpec]:
        """Yield the specifications alone, which takes only the JSON file."""
        return (self._spec(number) for number in self._indices)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}  # each copy, in each process, opens the file for itself

    def _spec(self, number: int) -> ArchitectureSpec:
        net = json.loads(self._nets[number])
        arguments = {key: value for key, value in net.items() if key in _ARGUMENTS}
        sizes = {"num_classes": self.num_classes, "image_size": self.image_size}
        try:
            spec = ArchitectureSpec.from_json({"C": _TRAINING_C, **arguments, **sizes})
            if self.split in RULES:
                spec = dataclasses.replace(spec, C=spec.C * RULES[self.split].widening(spec.large_images))
        except InputError as error:
            raise InputError(f"{self.meta_path}, network {self.split}[{number}]: {error}") from error
        return spec

    def _graph(self, number: int, spec: ArchitectureSpec) -> ArchitectureGraph:
        where = f"network {self.split}[{number}]"
        group = f"{self.split}/{number}"
        adjacency, rows = self._read(where, lambda file: (file[f"{group}/adj"][()], file[f"{group}/nodes"][()]))
        n = len(rows) if rows.ndim else 0
        if adjacency.shape != (n, n) or rows.shape != (n, 3) or n < 2:
            raise DataError(
                f"{self.path}, {where}: shapes {adjacency.shape} and {rows.shape} are not those of one graph"
            )
        expected = json.loads(self._nets[number]).get("num_nodes", n)
        if n != expected:
            raise self._foreign(f"{where} has {n} nodes in one and {expected} in the other")
        targets, sources = np.nonzero(adjacency.T == 1)
        built = build_graph(spec)
        graph = ArchitectureGraph(
            nodes=tuple(self._nodes(rows, built, where)),
            edges=tuple(zip(sources.tolist(), targets.tolist(), strict=True)),
            num_classes=spec.num_classes,
        )
        if np.tril(adjacency).any():
            raise DataError(f"{self.path}, {where}: an edge does not run forward; get the file anew")
        if not np.array_equal(np.where(graph.distances <= _STORED_DISTANCE, graph.distances, 0), adjacency):
            raise DataError(f"{self.path}, {where}: path lengths and edges contradict each other; get the file anew")
        if self.verify and graph.fingerprint() != built.fingerprint():
            raise self._foreign(f"{where} is connected otherwise in one than in the other")
        return graph

    def _nodes(self, rows: np.ndarray, built: ArchitectureGraph, where: str) -> Iterator[Node]:
        """Yield the nodes of a file's rows, with the parameters that the specification's network has by these names."""
        named = {node.parameters[0].name: node for node in built.nodes if node.parameters}
        for k, (primitive_id, cell, name_id) in enumerate(rows.tolist()):
            try:
                primitive, kernel = _primitive(self._primitives[primitive_id])
                name = _parameter_name(self._op_names[name_id], cell)
            except KeyError as error:
                raise self._foreign(f"{where}, node {k} refers to number {error}, which has no name") from None
            if primitive in ("max_pool", "avg_pool"):
                yield Node(primitive=primitive, shape=(1, 1, kernel, kernel))
            elif primitive in _PARAMETER_FREE:
                yield Node(primitive=primitive)
            elif name in named and named[name].primitive == primitive:
                yield named.pop(name)
            else:
                raise self._foreign(f"{where}, node {k} ({primitive} {name!r}) is no parameter of that specification")
        if named:
            raise self._foreign(f"{where} has no node for the parameter {next(iter(named))!r}")

    def _read(self, what: str, read: Callable[[Any], Any]) -> Any:
        """Read from the HDF5 file, opened once in each process."""
        import h5py

        try:
            if self._handle is None or self._handle[0] != os.getpid():
                self._handle = os.getpid(), h5py.File(self.path, "r")
            return read(self._handle[1])
        except GHNError:
            raise
        except _READ_ERRORS as error:
            raise DataError(f"{self.path} is damaged or no HDF5 file: {what} can not be read ({error})") from error

    def _foreign(self, reason: str) -> DataError:
        return DataError(
            f"{self.path} and {self.meta_path.name} do not belong together, or one is damaged: {reason}; get both anew"
        )


_PARAMETER_FREE = frozenset({"input", "sum", "concat", "msa", "cse", "glob_avg"})


def _primitive(extended: str) -> tuple[str, int]:
    """Return the primitive of an extended one, and its kernel size (3 where the name says none)."""
    name, _, size = re.fullmatch(r"(.*?)(_(\d+)x\d+)?", extended).group(1, 2, 3)  # type: ignore[union-attr]
    return ("bias" if name == "fc-b" else name), int(size or 3)


def _parameter_name(op_name: str, cell: int) -> str:
    """Return the full parameter name of a node's op name, which is relative to its cell.

    The published files leave parts of some names out; they are put back.
    """
    if op_name.endswith("to_out.0."):
        op_name += "weight"
    op_name = re.sub(r"^(_ops\.\d+)\.(\d+\.)", r"\1.op.\2", op_name)
    return op_name if op_name.startswith(_NO_PREFIX) else f"cells.{cell}.{op_name}"


def _read_meta(path: Path, split: str) -> tuple[list[str], dict[int, str], dict[int, str]]:
    """Return the networks' arguments (each as JSON, a tenth of the objects' memory) and the names of both numberings."""

    def compact(data: dict[str, Any]) -> Any:
        return json.dumps(data, separators=(",", ":")) if "genotype" in data else data

    try:
        content = json.loads(path.read_bytes(), object_hook=compact)
    except OSError as error:
        raise InputError(f"can not read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: it is not JSON ({error}); get it anew") from error
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise DataError(f"{path} is no DeepNets-1M description: it must map splits to nets and meta")
    if split not in content:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(content) or 'none'}")
    try:
        part = content[split]
        nets, meta = part["nets"], part["meta"]
        names = [{int(key): str(name) for key, name in meta[k].items()} for k in ("primitives_ext", "unique_op_names")]
        if not isinstance(nets, list) or not all(isinstance(net, str) for net in nets):
            raise TypeError("nets is not a list of networks")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}, split {split!r}: it is damaged or of another kind ({error}); get it anew") from error
    return nets, names[0], names[1]
