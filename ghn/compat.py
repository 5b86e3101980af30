"""Make ``import torchvision`` work beside a CPU-only torch.

The registry's torchvision wheel is linked to CUDA; without CUDA its compiled operators can not load, and the import
stops where torchvision registers fake kernels for operators that do not exist. Declaring the two schemas it asks for is
enough: its models and transforms never call them.
"""

from __future__ import annotations

from typing import Any

import torch

from ghn.errors import EnvironmentSetupError

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None


def declare_torchvision_operators() -> None:
    """Declare torchvision's ``nms`` operators if this torch has no CUDA and nobody declared them yet."""
    global _library
    if _library is not None or torch.version.cuda is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        _library.define(schema)


def import_torchvision() -> Any:
    """Return torchvision, which only its own models and transforms need; :class:`EnvironmentSetupError` without it."""
    try:
        import torchvision
    except ImportError as error:
        raise EnvironmentSetupError(f"torchvision is not installed ({error}): pip install torchvision") from error
    return torchvision
