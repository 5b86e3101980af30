"""`ghn.trace` and `ghn.predict` on every classification model of torchvision and a sample of timm's.

All are traced, predicted or reported, none forgotten.
"""

from __future__ import annotations

import gc

import pytest
import torch

from ghn import GHN, GHNConfig, coverage, predict, trace
from pipelines.named_networks import load_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


TWICE = ("torchvision:resnet18", "torchvision:swin_t", "torchvision:googlenet")  # a cheap look at determinism


def report(hypernet: GHN, name: str, size: tuple[int, ...]) -> list[str]:
    """Trace and predict; return the reasons of what was kept, after checking that nothing is missing."""
    module = load_model(name, num_classes=1000).eval()
    graph = trace(module, torch.empty(1, *size, device="meta"))
    if name in TWICE:
        assert graph == trace(module, torch.empty(1, *size, device="meta")), name
    with torch.no_grad():
        predicted = predict(hypernet, graph, allow_default=True)
    shapes = {key: p.shape for key, p in module.named_parameters() if p.requires_grad}
    found = coverage(graph)
    assert {*found.predicted, *(key for key, _ in found.kept)} == shapes.keys(), name
    assert {key: tensor.shape for key, tensor in predicted.items()} == {key: shapes[key] for key in found.predicted}, (
        name
    )
    assert all(torch.isfinite(tensor).all() for tensor in predicted.values()), name
    assert any(parameter.role == "class_weight" for parameter in graph.parameters), name
    return [f"{key}: {why}" for key, why in found.kept]


@pytest.fixture(scope="module")
def hypernet() -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig(num_classes=1000, hid=16, max_shape=(64, 64, 11, 11))).eval()


def test_all_torchvision_classifiers(hypernet: GHN) -> None:
    from torchvision import models

    names = models.list_models(module=models)
    assert len(names) == 80
    kept = {}
    for name in names:
        size = (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
        if reasons := report(hypernet, f"torchvision:{name}", size):
            kept[name] = reasons
        gc.collect()
    # In evaluation mode the auxiliary heads of these two take no part; nothing else is left out.
    assert set(kept) == {"googlenet", "inception_v3"}
    reasons = [reason for found in kept.values() for reason in found]
    assert all(reason.lower().startswith("aux") and "not between" in reason for reason in reasons)


def test_a_sample_of_timm(hypernet: GHN) -> None:
    import timm

    names = [name for name in timm.list_models()[::30] if "gigantic" not in name and "7b" not in name.lower()]
    failed = {}
    for name in names:
        try:
            size = timm.models.get_pretrained_cfg(name).input_size
            if reasons := report(hypernet, f"timm:{name}", size):
                failed[name] = reasons[0]
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
        gc.collect()
    assert len(names) > 40 and len(failed) <= 0.05 * len(names), failed
