"""Make ``import torchvision`` work beside a CPU-only torch.

The registry's torchvision wheel is linked to CUDA; without CUDA its compiled operators can not load, and the import
stops where torchvision registers fake kernels for operators that do not exist. Declaring the two schemas it asks for is
enough: its models and transforms never call them. Nothing here imports torchvision.
"""

from __future__ import annotations

import torch

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
