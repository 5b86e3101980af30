"""Model checkpoints: a folder with ``model.safetensors`` and ``config.json``, and import of official ``.pt`` files.

Nothing is ever unpickled into arbitrary objects: safetensors holds tensors only, and ``.pt`` files are read with
``weights_only=True``. ``config.json`` is written last, so a folder without it is not a checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ghn.errors import DataError, InputError
from ghn.graph import GRAPH_REVISION
from ghn.hypernet import GHN, GHNConfig

_FORMAT = "ghn-model"
_SCHEMA_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_OFFICIAL_KEYS = {"state_dict", "config"}
_OFFICIAL_IMAGES: dict[int, dict[str, Any]] = {
    10: {"size": 32, "mean": [0.49139968, 0.48215827, 0.44653124], "std": [0.24703233, 0.24348505, 0.26158768]},
    1000: {"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
}
"""Images that the published models were trained on, by number of classes: CIFAR-10, ImageNet."""


def save_checkpoint(hypernet: GHN, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a hypernetwork to the folder ``path`` (made if missing) and return the folder.

    Args:
        hypernet: any device; weights are stored as they are.
        path: the folder.
        metadata: JSON-ready facts to keep beside it (recipe hash, manifest hashes, steps).

    Raises:
        InputError: if ``path`` is a file, or ``metadata`` is not JSON-ready; nothing is written then.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = save_checkpoint(GHN(), Path(place, "model"), {"steps": 0})
        ...     print(sorted(file.name for file in folder.iterdir()))
        ['config.json', 'model.safetensors']

    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: a checkpoint is a folder")
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in hypernet.state_dict().items()})
    config = {
        "format": _FORMAT,
        "schema_version": _SCHEMA_VERSION,
        "graph_revision": GRAPH_REVISION,
        "config": hypernet.config.to_json(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "metadata": dict(metadata or {}),
    }
    try:
        text = (json.dumps(config, indent=1) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"the metadata for {folder} are not JSON-ready: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).unlink(missing_ok=True)  # until it is written again, this is no checkpoint
    _write_atomically(folder / WEIGHTS_NAME, weights)
    _write_atomically(folder / CONFIG_NAME, text)
    return folder


def load_checkpoint(path: str | os.PathLike[str]) -> GHN:
    """Load a hypernetwork, on the CPU, in evaluation mode.

    Args:
        path: a folder from :func:`save_checkpoint`, or an official ``.pt`` file (GHN-2, GHN-1 or MLP baseline).

    Raises:
        InputError: if there is no checkpoint at ``path`` or it is of another kind.
        DataError: if it is damaged, or its tensors do not fit its configuration; the message names the tensor.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     print(load_checkpoint(save_checkpoint(GHN(), place)).config == GHNConfig())
        True

    """
    location = Path(path)
    if location.is_dir():
        config, weights = _read_folder(location)
    elif location.is_file():
        config, weights = _read_official(location)
    else:
        raise InputError(f"no checkpoint at {location}: give a folder written by `ghn train`, or an official .pt file")
    hypernet = GHN(config)
    _check_tensors(hypernet, weights, location)
    hypernet.load_state_dict(weights)
    return hypernet.eval()


def convert_checkpoint(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> GHN:
    """Write an official ``.pt`` file as a checkpoint folder of this project, and return its hypernetwork.

    Args:
        source: the official file.
        folder: where to write; nothing that is there is overwritten.

    Raises:
        InputError, DataError: as :func:`load_checkpoint`; InputError also if ``folder`` holds something already.

    """
    if not Path(source).is_file():
        raise InputError(f"no official checkpoint at {source}: give a .pt file such as ghn2_cifar10.pt")
    if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise InputError(f"{folder} is not empty; choose another folder for the converted checkpoint")
    hypernet = load_checkpoint(source)
    save_checkpoint(hypernet, folder, read_metadata(source))
    return hypernet


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the facts stored with a checkpoint folder, or what is known of an official file.

    For official files these are its name, SHA-256 and epoch, and the size and normalization of the images that models
    with 10 (CIFAR-10) or 1000 classes (ImageNet) were published for. Raises as :func:`load_checkpoint`.
    """
    location = Path(path)
    if not location.is_file():
        return dict(_read_config(location)["metadata"])
    data = _open_official(location)
    facts = {
        "official": location.name,
        "official_sha256": hashlib.sha256(location.read_bytes()).hexdigest(),
        "epoch": data["epoch"] if isinstance(data.get("epoch"), int) else None,
    }
    images = _OFFICIAL_IMAGES.get(GHNConfig.from_json(data["config"]).num_classes)
    return {**facts, "recipe": {"images": images}} if images else facts


def weights_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 that tells a checkpoint's weights from others'; raises as :func:`load_checkpoint`."""
    location = Path(path)
    if location.is_file():
        return hashlib.sha256(location.read_bytes()).hexdigest()
    return str(_read_config(location)["weights_sha256"])


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise InputError(
            f"{folder} is not a GHN checkpoint: it has no {CONFIG_NAME}; give a folder written by `ghn train`"
        )
    try:
        data = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is damaged: {error}; restore the checkpoint") from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise InputError(
            f"{folder} holds another kind of checkpoint (its {CONFIG_NAME} does not say format={_FORMAT!r})"
        )
    if data.get("schema_version") != _SCHEMA_VERSION:
        raise InputError(
            f"{file} has schema version {data.get('schema_version')}; this program reads {_SCHEMA_VERSION}"
        )
    for key, kind in (("config", dict), ("weights_sha256", str), ("metadata", dict)):
        if not isinstance(data.get(key), kind):
            raise DataError(f"{file} is damaged: its {key} is missing or of another kind; restore the checkpoint")
    return data


def _read_folder(folder: Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    data = _read_config(folder)
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        raise DataError(f"{folder} has a {CONFIG_NAME} but no {WEIGHTS_NAME}; restore the checkpoint")
    if hashlib.sha256(file.read_bytes()).hexdigest() != data["weights_sha256"]:
        raise DataError(f"{file} is damaged: its SHA-256 is not the one in {CONFIG_NAME}; restore the checkpoint")
    try:
        return GHNConfig.from_json(data["config"]), load_file(file)
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{folder} is damaged: {error}; restore the checkpoint") from error


def _read_official(file: Path) -> tuple[GHNConfig, dict[str, Tensor]]:
    data = _open_official(file)
    state = data["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise DataError(f"{file}: its state_dict holds something else than tensors")
    return GHNConfig.from_json(data["config"]), state


def _open_official(file: Path) -> dict[str, Any]:
    try:
        data = torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise InputError(
            f"{file} can not be read as an official GHN checkpoint ({type(error).__name__}): it is damaged, was not written "
            "by torch.save, or holds more than tensors and plain values"
        ) from error
    if not isinstance(data, dict) or not data.keys() >= _OFFICIAL_KEYS:
        raise InputError(f"{file} holds another kind of checkpoint: an official one has the keys state_dict and config")
    keys = [field.name for field in dataclasses.fields(GHNConfig)]
    if not isinstance(data["config"], dict) or not data["config"].keys() >= set(keys):
        raise InputError(f"{file} is no official checkpoint: its config must say {', '.join(keys)}")
    return data


def _check_tensors(hypernet: GHN, weights: Mapping[str, Tensor], location: Path) -> None:
    expected = hypernet.state_dict()
    if missing := sorted(expected.keys() - weights.keys()):
        raise DataError(f"{location} lacks the tensor {missing[0]!r} ({len(missing)} in all)")
    if extra := sorted(weights.keys() - expected.keys()):
        raise DataError(f"{location} has an unexpected tensor {extra[0]!r} ({len(extra)} in all)")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise DataError(
                f"{location}: tensor {name!r} has shape {tuple(weights[name].shape)}, "
                f"its configuration asks for {tuple(tensor.shape)}"
            )


def _write_atomically(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
