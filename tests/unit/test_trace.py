"""Tracing modules that are not from the search space."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ghn import GHN, GHNConfig, predict, trace
from ghn.errors import InputError


class SmallNet(nn.Module):
    """Residual convolutions with a squeeze-and-excitation gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.gate = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        y = x + self.depthwise(x)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        return self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


def test_rules_give_the_expected_nodes() -> None:
    graph = trace(SmallNet(), torch.empty(2, 3, 16, 16))
    assert [node.primitive for node in graph.nodes] == [
        *("input", "conv", "bias", "bn", "sep_conv", "sum"),
        *("conv", "bias", "cse", "glob_avg", "conv", "bias"),
    ]
    assert graph.parameters[-2].role == "class_weight" and graph.parameters[-1].role == "class_bias"


def test_tracing_changes_nothing_and_is_deterministic() -> None:
    module = SmallNet()
    before = copy.deepcopy(module.state_dict())
    first, second = (trace(module, torch.empty(2, 3, 16, 16)) for _ in range(2))
    assert first == second
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert module.first.weight.device.type == "cpu"


def test_prediction_for_a_users_module_runs() -> None:
    module, hypernet = SmallNet(), GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    parameters = predict(hypernet, trace(module, torch.empty(2, 3, 16, 16)))
    assert {name: tuple(t.shape) for name, t in parameters.items()} == {
        name: tuple(p.shape) for name, p in module.named_parameters()
    }
    logits = torch.func.functional_call(module, parameters, (torch.randn(2, 3, 16, 16),))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in hypernet.decoder.parameters())


def test_unused_parameters_are_refused_unless_allowed() -> None:
    module = SmallNet()
    module.spare = nn.Parameter(torch.zeros(3))
    graph = trace(module, torch.empty(2, 3, 16, 16))
    assert graph.kept == (("spare", "not between input and output"),)
    hypernet = GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    with pytest.raises(InputError, match="spare"):
        predict(hypernet, graph)
    assert "spare" not in predict(hypernet, graph, strict=False)


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.view(2, 10)


class _Strange(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,oc->no", self.first(x), self.head.weight)


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.ReLU(), "no trainable parameters"),
        (nn.Conv2d(4, 8, 3), "Conv2d can not be traced"),
        (nn.Conv2d(3, 8, 3), "logits"),
        (_Strange(), "'einsum' applied to parameter 'head.weight'"),
    ],
)
def test_what_can_not_be_traced_is_named(module: nn.Module, named: str) -> None:
    with pytest.raises(InputError, match=named):
        trace(module, torch.empty(2, 3, 16, 16))


def test_an_output_that_ignores_the_input_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no tracing rule|does not depend"):
        trace(_Constant(), torch.empty(2, 3, 16, 16))


def test_torchvision_imports_after_ghn() -> None:
    import torchvision

    assert torchvision.models.resnet18(num_classes=10) is not None
