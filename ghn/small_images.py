"""Let well-known networks for 224-pixel images work on small ones: the first layers keep the resolution.

The changes are those that the published system makes for 32-pixel images, for the same families of torchvision.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ghn.compat import import_torchvision
from ghn.errors import InputError


def adjust_for_small_images(module: nn.Module) -> nn.Module:
    """Change the first layers of a torchvision model, in place, and return it.

    Raises:
        InputError: for a model of another family; the message lists those that are known.
        EnvironmentSetupError: without torchvision.

    Examples:
        >>> adjust_for_small_images(import_torchvision().models.resnet18(num_classes=10)).conv1.kernel_size
        (3, 3)

    """
    models = import_torchvision().models
    families: dict[type, Any] = {
        models.ResNet: _resnet,
        models.DenseNet: _densenet,
        models.MobileNetV2: _mobilenet,
        models.MobileNetV3: _mobilenet,
        models.VGG: _vgg,
        models.AlexNet: _alexnet,
        models.MNASNet: lambda net: _set_stride(net.layers[0]),
        models.ShuffleNetV2: _shufflenet,
        models.GoogLeNet: _googlenet,
        models.ConvNeXt: lambda net: _set_stride(net.features[0][0]),
    }
    for family, adjust in families.items():
        if isinstance(module, family):
            adjust(module)
            return module
    known = ", ".join(family.__name__ for family in families)
    raise InputError(f"{type(module).__name__} has no adjustment for small images; known are {known}")


def _set_stride(convolution: nn.Conv2d) -> None:
    convolution.stride = (1, 1)


def _small_stem(convolution: nn.Conv2d) -> nn.Conv2d:
    """A 3x3 convolution with stride 1 in place of a large one with stride 2."""
    weight = convolution.weight
    return nn.Conv2d(3, convolution.out_channels, 3, padding=1, bias=False, device=weight.device, dtype=weight.dtype)


def _resnet(net: Any) -> None:
    net.conv1, net.maxpool = _small_stem(net.conv1), nn.Identity()


def _densenet(net: Any) -> None:
    net.features.conv0, net.features.pool0 = _small_stem(net.features.conv0), nn.Identity()


def _mobilenet(net: Any) -> None:
    for layer in net.features[:5].modules():
        if isinstance(layer, nn.Conv2d):
            _set_stride(layer)


def _vgg(net: Any) -> None:
    for i, layer in enumerate(net.features[:10]):
        if isinstance(layer, nn.MaxPool2d):
            net.features[i] = nn.Identity()


def _alexnet(net: Any) -> None:
    _set_stride(net.features[0])
    net.features[2] = nn.Identity()


def _shufflenet(net: Any) -> None:
    _set_stride(net.conv1[0])
    net.maxpool = nn.Identity()


def _googlenet(net: Any) -> None:
    _set_stride(net.conv1.conv)
    net.maxpool1 = nn.Identity()
