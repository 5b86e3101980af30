"""`ghn.tracing`: modules that are not from the search space."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ghn import GHN, GHNConfig, coverage, predict, trace
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
    assert "spare" not in predict(hypernet, graph, allow_default=True)


class _Distances(SmallNet):
    """Uses a parameter in a function without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(5, 8))
        self.head = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cdist(self.first(x).mean((2, 3)), self.centres))


def test_parameters_in_unknown_functions_are_reported() -> None:
    graph = trace(_Distances(), torch.empty(2, 3, 16, 16))
    report = coverage(graph)
    assert ("centres", "cdist combines it with data, which has no rule") in report.kept
    assert {name for name, _ in report.kept} | set(report.predicted) == {n for n, _ in _Distances().named_parameters()}
    assert "kept: centres (cdist" in str(report)
    hypernet = GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    with pytest.raises(InputError, match=r"centres.*cdist.*allow_default"):
        predict(hypernet, graph)
    unused = ["norm.*", "depthwise.*", "gate.*"]
    with pytest.raises(InputError, match="1 parameter"):
        predict(hypernet, graph, allow_default=unused)
    assert set(predict(hypernet, graph, allow_default=[*unused, "centres"])) == set(report.predicted)


class _Shared(nn.Module):
    """A layer used twice, tied weights, a frozen layer, a parametrized one, in-place calls and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(8, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.twice.weight
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 10)
        self.aux = nn.Linear(8, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.seen += 1
        x = self.twice(self.twice(x)).relu_()
        x = self.frozen(x)
        x += self.normed(x)
        x.mul_(self.scale)
        x = self.tied(x)
        outputs = {"logits": self.head(x)}
        return {**outputs, "aux": self.aux(x)} if self.training else outputs


def test_shared_frozen_and_parametrized_weights() -> None:
    module = _Shared().eval()
    graph = trace(module, torch.empty(2, 8))
    names = [parameter.name for parameter in graph.parameters]
    assert len(names) == len(set(names)) and not any("frozen" in name or name == "tied.weight" for name in names)
    assert {"twice.weight", "tied.bias", "scale", "normed.parametrizations.weight.original0"} <= set(names)
    assert (
        sum(node.shape == (8, 8) and node.primitive == "conv" for node in graph.nodes) == 5
    )  # used twice, tied, frozen
    assert [name for name, _ in graph.kept] == ["aux.bias", "aux.weight"]
    assert module.seen == 0


def test_the_modules_mode_decides_which_heads_exist() -> None:
    graph = trace(_Shared().train(), torch.empty(2, 8))
    roles = {parameter.name: parameter.role for parameter in graph.parameters}
    assert not graph.kept
    assert {name for name, role in roles.items() if role == "class_weight"} == {"head.weight", "aux.weight"}
    assert {name for name, role in roles.items() if role == "class_bias"} == {"head.bias", "aux.bias"}
    assert graph.nodes[-1].primitive == "concat"


def test_another_number_of_classes_is_allowed_only_when_asked() -> None:
    module = SmallNet()
    module.head = nn.Linear(8, 7)
    graph = trace(module, torch.empty(2, 3, 16, 16))
    hypernet = GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3)))
    with pytest.raises(InputError, match=r"7 classes .* 10"):
        predict(hypernet, graph)
    assert predict(hypernet, graph, allow_other_classes=True)["head.weight"].shape == (7, 8)


def test_a_convolution_may_be_the_classifier() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    graph = trace(module, torch.empty(2, 3, 16, 16))
    assert [p.role for p in graph.parameters] == ["weight", "bias", "class_weight", "class_bias"]
    predicted = predict(GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3))), graph)
    assert predicted["2.weight"].shape == (10, 8, 1, 1)


def test_inputs_may_be_several_and_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 10), nn.Linear(6, 10)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.first(a) + self.second(b)

    inputs = torch.empty(2, 4), torch.empty(2, 6)
    graphs = [trace(Two(), inputs), trace(Two(), {"a": inputs[0], "b": inputs[1]})]
    assert graphs[0] == graphs[1]
    assert [p.role for p in graphs[0].parameters].count("class_weight") == 2


def test_a_module_under_two_names_is_left_as_it_is() -> None:
    layer = nn.Linear(8, 8)
    module = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    constant = torch.ones(8)  # neither parameter nor buffer
    module.forward = lambda x: module["a"](module["b"](x) * constant)
    weights = [layer.weight, layer.bias]
    first = trace(module, torch.empty(2, 8))
    assert layer.weight is weights[0] and layer.bias is weights[1]
    assert trace(module, torch.empty(2, 8)) == first


def test_parameters_that_hold_no_real_numbers_are_reported() -> None:
    module = SmallNet()
    module.empty, module.complex = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    graph = trace(module, torch.empty(2, 3, 16, 16))
    assert graph.kept == (("complex", "it holds no real numbers"), ("empty", "it holds no real numbers"))


def test_a_failing_module_is_left_as_it_is() -> None:
    module = nn.LSTM(4, 4)
    before = dict(module.named_parameters())
    with pytest.raises(InputError):
        trace(module, torch.empty(2, 3, 5))
    assert all(parameter is before[name] for name, parameter in module.named_parameters())
    assert module(torch.zeros(2, 3, 4))[0].shape == (2, 3, 4)


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.view(2, 10)


class _Words(nn.Linear):
    def forward(self, x: Tensor) -> str:
        return "cat"


class _Total(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum()


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.ReLU(), "no trainable parameters"),
        (nn.Conv2d(3, 8, 3).requires_grad_(False), "no trainable parameters"),
        (nn.Conv2d(4, 8, 3), r"torch.nn.modules.conv.Conv2d can not be traced on an input of shape \(2, 3, 16, 16\)"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Linear(3, 3))), r"RuntimeError in 1\.0: "),
        (nn.Sequential(nn.LazyConv2d(8, 3)), "'0.weight' has no shape yet"),
        (_Constant(), "test_trace._Constant does not depend on its input"),
        (_Words(3, 3), "test_trace._Words returns str"),
        (_Total(3, 8, 3), "test_trace._Total is a single number"),
    ],
)
def test_what_can_not_be_traced_is_named(module: nn.Module, named: str) -> None:
    with pytest.raises(InputError, match=named):
        trace(module, torch.empty(2, 3, 16, 16))


def test_torchvision_imports_after_ghn() -> None:
    import torchvision

    assert torchvision.models.resnet18(num_classes=10) is not None


def test_one_pattern_may_be_given_as_a_text() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.aux = nn.Linear(4, 10), nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    graph = trace(Net(), torch.zeros(1, 4))
    hypernet = GHN(GHNConfig(hid=8, max_shape=(8, 8, 7, 7)))
    assert set(predict(hypernet, graph, allow_default="aux.*")) == {"head.weight", "head.bias"}
    with pytest.raises(InputError, match="aux"):
        predict(hypernet, graph, allow_default="*x")  # all of it, not each of its letters


def test_inputs_of_functions_may_be_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(input=torch.sigmoid(input=self.head(x)), other=1.0)

    assert [node.primitive for node in trace(Net(), torch.zeros(1, 4)).nodes] == ["input", "conv", "bias"]
