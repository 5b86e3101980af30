"""Networks named on the command line: ``torchvision:NAME``, ``timm:NAME`` or ``FILE.py:FACTORY``.

Names are looked up in the libraries' own lists and files are imported by path; nothing is ever evaluated.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ghn.compat import import_torchvision
from ghn.errors import EnvironmentSetupError, InputError
from ghn.networks import NoInitialization


def load_model(name: str, *, num_classes: int) -> nn.Module:
    """Build a network without initializing it, on the meta device where it allows that.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME`` or ``FILE.py:FACTORY``; a factory that has a parameter ``num_classes`` gets
            it.
        num_classes: width of the classifier.

    Raises:
        InputError: for an unknown name, a file that does not import, or a factory that fails or returns no module.
        EnvironmentSetupError: if the library is not installed.

    """
    source, colon, rest = name.rpartition(":")
    if not colon or not rest:
        raise InputError(f"model {name!r}: write torchvision:NAME, timm:NAME or FILE.py:FACTORY")
    if source == "torchvision":
        models = import_torchvision().models
        _known(rest, models.list_models(module=models), "torchvision")
        extra = {"init_weights": False} if rest in ("googlenet", "inception_v3") else {}
        return _build(lambda: models.get_model(rest, weights=None, num_classes=num_classes, **extra))
    if source == "timm":
        try:
            import timm
        except ImportError as error:
            raise EnvironmentSetupError(f"model {name!r} needs timm: install it with `pip install timm`") from error
        _known(rest, timm.list_models(), "timm")
        return _build(lambda: timm.create_model(rest, pretrained=False, num_classes=num_classes))
    return _from_file(Path(source), rest, num_classes)


def _known(name: str, known: Iterable[str], library: str) -> None:
    names = list(known)
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, names, n=3))
        raise InputError(
            f"{library} has no classification model {name!r}" + (f"; did you mean {near}?" if near else "")
        )


def _build(make: Callable[[], nn.Module]) -> nn.Module:
    """Build without random initialization; a few models compute with tensors while they are built and need real ones."""
    for device in ("meta", "cpu"):
        with contextlib.suppress(NotImplementedError, RuntimeError), torch.device(device), NoInitialization():
            return make()
    return make()


def _from_file(path: Path, factory: str, num_classes: int) -> nn.Module:
    where = f"{path}:{factory}"
    if not path.is_file():
        raise InputError(f"no model file {path}: write torchvision:NAME, timm:NAME or FILE.py:FACTORY")
    spec = importlib.util.spec_from_file_location(f"_ghn_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"model file {path} is no Python file")
    file = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = file
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(file)
    except Exception as error:
        raise InputError(f"model file {path} does not import: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    make: Any = getattr(file, factory, None)
    if not callable(make):
        raise InputError(f"model file {path} has no function {factory!r}")
    try:
        takes_classes = "num_classes" in inspect.signature(make).parameters
        module = make(num_classes=num_classes) if takes_classes else make()
    except Exception as error:
        raise InputError(f"{where} fails: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{where} returns {type(module).__name__}, not a torch module")
    return module
