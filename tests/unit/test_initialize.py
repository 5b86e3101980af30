"""`ghn.initialize`: predicted parameters in a module, loaded, calibrated, trained on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ghn import (
    GHN,
    GHNConfig,
    adjust_for_small_images,
    calibrate_batchnorm,
    initialize,
    predict,
    sample_architectures,
    trace,
)
from ghn.errors import InputError
from ghn.networks import NoInitialization


@pytest.fixture
def hypernet() -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3))).eval()


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def test_a_module_is_initialized_and_can_be_trained(hypernet: GHN) -> None:
    module = network()
    parameters = list(module.parameters())
    report = initialize(module, hypernet, torch.empty(1, 3, 16, 16))
    assert len(report.predicted) == 5 and not report.kept
    wanted = predict(hypernet, trace(module, torch.empty(1, 3, 16, 16)))
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in module.named_parameters())
    assert list(module.parameters()) == parameters and all(p.is_leaf and p.requires_grad for p in parameters)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()(torch.randn(4, 3, 16, 16)).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(parameter, wanted[name]) for name, parameter in module.named_parameters())


def test_prediction_is_not_random(hypernet: GHN) -> None:
    modules = [network(), copy.deepcopy(network())]
    for seed, module in enumerate(modules):
        torch.manual_seed(seed)
        initialize(module, hypernet)
    one, other = (dict(module.named_parameters()) for module in modules)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_usual_image_sizes_are_tried(hypernet: GHN) -> None:
    flat = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * 15 * 15, 10)
    )  # takes 32 pixels alone
    assert not initialize(flat, hypernet).kept
    with pytest.raises(InputError, match=r"pass example_input.*Linear can not be traced"):
        initialize(nn.Linear(7, 10), hypernet)


def test_what_can_hold_no_values_is_refused(hypernet: GHN) -> None:
    with torch.device("meta"):
        module = network()
    with pytest.raises(InputError, match=r"'0.weight' is on the meta device"):
        initialize(module, hypernet)


@pytest.mark.parametrize("tracked", [True, False])
def test_calibrated_networks_do_not_depend_on_the_batch(hypernet: GHN, tracked: bool) -> None:
    module = network()
    if not tracked:
        module[1] = nn.BatchNorm2d(8, track_running_stats=False)
    initialize(module, hypernet)
    images = torch.randn(96, 3, 16, 16) * 3 + 1
    momentum = module[1].momentum
    assert calibrate_batchnorm(module.eval(), images, batch_size=32) is module and not module.training
    features = module[0](images)
    torch.testing.assert_close(module[1].running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    parts = [part.var((0, 2, 3)) for part in features.split(32)]
    torch.testing.assert_close(module[1].running_var, torch.stack(parts).mean(0), rtol=1e-4, atol=1e-5)
    assert module[1].momentum == momentum and not module[1].training
    with torch.no_grad():
        torch.testing.assert_close(module(images)[:1], module(images[:1]), rtol=1e-4, atol=1e-5)
    other = copy.deepcopy(module)
    calibrate_batchnorm(other, iter(images.split(32)))
    torch.testing.assert_close(other[1].running_mean, module[1].running_mean)


def test_calibration_needs_images(hypernet: GHN) -> None:
    with pytest.raises(InputError, match="no images"):
        calibrate_batchnorm(network(), [])


def test_sampled_networks_are_calibrated_too(hypernet: GHN) -> None:
    nets = sample_architectures("test", 30, 0, image_size=16, channels=(8,), fc_dims=(32,))
    module = next(a for a in nets if a.spec.norm and len(a.graph) < 150).network().eval()
    initialize(module, hypernet, torch.empty(1, 3, 16, 16))
    calibrate_batchnorm(module, torch.randn(64, 3, 16, 16))
    with torch.no_grad():
        assert torch.isfinite(module(torch.randn(1, 3, 16, 16))).all()


FAMILIES = (
    "resnet18", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "vgg11_bn", "alexnet", "mnasnet0_5",
    "shufflenet_v2_x0_5", "googlenet", "convnext_tiny",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_known_families_keep_small_images_large(name: str) -> None:
    from torchvision import models

    def last_map(small: bool) -> int:
        """Height of the last map in front of the global pooling (or the largest stride's), for 64-pixel images."""
        with torch.device("meta"), NoInitialization():
            extra = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
            module = models.get_model(name, weights=None, **extra).eval()
        if small:
            with torch.device("meta"):
                assert adjust_for_small_images(module) is module
        sizes = []
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
        with torch.no_grad():
            module(torch.empty(2, 3, 64, 64, device="meta"))
        return sizes[-1] if name not in ("mobilenet_v3_small",) else max(sizes[-4:])

    assert last_map(small=True) >= 2 * last_map(small=False)


def test_other_families_are_refused() -> None:
    with pytest.raises(InputError, match=r"Linear has no adjustment.*ResNet"):
        adjust_for_small_images(nn.Linear(3, 3))
