"""Load predicted parameters into a module, and make it ready for evaluation and fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn.errors import InputError
from ghn.hypernet import GHN
from ghn.prediction import Coverage, coverage, predict
from ghn.tracing.trace import trace

_USUAL_IMAGE_SIZES = (224, 32, 64, 96, 128, 160, 192, 256, 288, 299, 384)


def initialize(
    module: nn.Module,
    hypernet: GHN,
    example_input: Any = None,
    *,
    allow_default: bool | Sequence[str] = False,
    allow_other_classes: bool = False,
) -> Coverage:
    """Predict the parameters of a module and copy them into it.

    The parameters stay the module's own (ordinary leaves, on their device, in their type), so training can go on at once.
    Batch normalization has no running statistics yet: run in training mode, or call :func:`calibrate_batchnorm` first.

    Args:
        module: any module; its current mode is followed.
        hypernet: predicts for as many classes as the module has.
        example_input: what the module takes, see :func:`ghn.trace`; ``None`` tries colour images of the usual sizes.
        allow_default: see :func:`ghn.predict`.
        allow_other_classes: see :func:`ghn.predict`.

    Returns:
        Which parameters were set, and which kept their values and why.

    Raises:
        InputError: as :func:`ghn.trace` and :func:`ghn.predict`, or if the module is on the meta device.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        >>> print(initialize(network, GHN(), torch.zeros(1, 3, 32, 32)))
        4 of 4 parameter tensors predicted (314 values)

    """
    named = dict(module.named_parameters())
    if on_meta := next((name for name, parameter in named.items() if parameter.is_meta), None):
        raise InputError(
            f"parameter {on_meta!r} is on the meta device and can hold no values; build the module elsewhere"
        )
    graph = trace(module, _usual_input(module) if example_input is None else example_input)
    with torch.no_grad():
        predicted = predict(hypernet, graph, allow_default=allow_default, allow_other_classes=allow_other_classes)
        for name, tensor in predicted.items():
            named[name].copy_(tensor)
    return coverage(graph)


def _usual_input(module: nn.Module) -> Tensor:
    """Return the first colour image of a usual size (on the meta device, batch of 1) that a module can be traced on.

    Raises:
        InputError: if there is none; the message gives the reason for the first size.

    """
    first: InputError | None = None
    for size in _USUAL_IMAGE_SIZES:
        image = torch.empty(1, 3, size, size, device="meta")
        try:
            trace(module, image)
        except InputError as error:
            first = first or error
        else:
            return image
    raise InputError(
        f"no usual image size fits; pass example_input. With {_USUAL_IMAGE_SIZES[0]} pixels: {first}"
    ) from first


def calibrate_batchnorm(module: nn.Module, images: Tensor | Iterable[Tensor], *, batch_size: int = 64) -> nn.Module:
    """Fill the running statistics of all batch normalization layers with the averages over some images.

    Afterwards the module can be used in evaluation mode with any batch size. Layers without running statistics get them.

    Args:
        module: with predicted (or any) parameters; its mode is left as it is.
        images: (N, ...) in one tensor, or batches of them; a few hundred images do.
        batch_size: of the batches that one tensor is cut into.

    Returns:
        The module itself.

    Raises:
        InputError: if there are no images.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> before = network[1].running_mean.clone()
        >>> network = calibrate_batchnorm(network, torch.randn(16, 3, 8, 8))
        >>> bool((network[1].running_mean != before).all())
        True

    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.momentum, layer.training) for layer in layers]
    training = module.training
    batches = images.split(batch_size) if isinstance(images, Tensor) else images
    count = 0
    module.eval()
    try:
        for layer in layers:
            _reset(layer)
            layer.train()
        with torch.no_grad():
            for batch in batches:
                module(batch)
                count += len(batch)
    finally:
        module.train(training)
        for layer, (momentum, mode) in zip(layers, before, strict=True):
            layer.momentum, layer.training = momentum, mode
    if not count:
        raise InputError("no images given: batch normalization needs some to take its statistics from")
    return module


def _reset(layer: _BatchNorm) -> None:
    """Start a plain average over batches (momentum ``None``), also in layers without running statistics."""
    like = next((p for p in (layer.weight, layer.bias) if p is not None), torch.empty(0))
    layer.track_running_stats = True
    layer.running_mean = torch.zeros(layer.num_features, device=like.device, dtype=like.dtype)
    layer.running_var = torch.ones(layer.num_features, device=like.device, dtype=like.dtype)
    layer.num_batches_tracked = torch.tensor(0, device=like.device)
    layer.momentum = None
