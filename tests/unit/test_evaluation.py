"""`ghn.evaluation` and `ghn.sgd`: scores of single networks, predicted, random or trained for a few steps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ghn import GHN, GHNConfig, sample_architectures
from ghn.evaluation import (
    Score,
    network_facts,
    random_parameters,
    score_predicted,
    score_random,
    summarize,
    top_k,
)
from ghn.sgd import SGDSettings, sgd_scores, step_grid, steps_worth
from pipelines.evaluation.published import published


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(8, 3, 16, 16), torch.randint(10, (8,))


@pytest.fixture
def hypernet() -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig(hid=8, max_shape=(8, 8, 7, 7))).eval()


def architectures(count: int):
    small = sample_architectures("train", 60, 0, image_size=16, channels=(8,), fc_dims=(32,))
    return [a for a in small if a.spec.fc_layers == 1 and len(a.graph) < 120][:count]


def scores(*values: float) -> list[Score]:
    return [Score(top1=value, top5=min(100.0, 2 * value)) for value in values]


def test_evaluation_counts_and_is_deterministic(hypernet: GHN, batch) -> None:
    for net in architectures(2):
        scores = [score_predicted(hypernet, net, [batch]), score_random(net, [batch], 3)]
        assert scores == [score_predicted(hypernet, net, [batch]), score_random(net, [batch], 3)]
        assert all(0 <= score.top1 <= score.top5 <= 100 and not score.failure for score in scores)
        facts = network_facts(net)
        assert facts.parameters == sum(p.numel() for p in net.network(device="meta").parameters())
        assert facts.nodes == len(net.graph)


def test_random_initialization_is_the_ordinary_one(batch) -> None:
    net = architectures(1)[0]
    torch.manual_seed(5)
    network = net.network().eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        expected = 100.0 * top_k(network(batch[0]), batch[1], 1) / 8
    assert score_random(net, [batch], 5).top1 == expected
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are left alone


def test_failed_networks_count_as_zero(hypernet: GHN, batch) -> None:
    with torch.no_grad():
        hypernet.decoder.conv[2].bias.fill_(float("nan"))
    assert score_predicted(hypernet, architectures(1)[0], [batch]) == Score(
        top1=0.0, top5=0.0, failure="non-finite parameters"
    )
    logits = torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])
    assert top_k(logits, torch.tensor([0, 0]), 1) == 1


def test_top5_counts_the_five_largest() -> None:
    logits = torch.arange(10.0).repeat(10, 1)
    assert top_k(logits, torch.arange(10), 5) == 5 and top_k(logits, torch.arange(10), 1) == 1


def test_summary_statistics() -> None:
    summary = summarize(scores(20, 30, 40))
    assert (summary.mean, summary.best) == (30, 40) and summary.stderr == pytest.approx(10 / math.sqrt(3))
    assert summarize(scores(20, 30, 40), "top5").mean == 60
    assert summarize(scores(20)).stderr == 0


def test_sizes_are_those_of_the_network() -> None:
    """ResNet-50 has 50 layers with weights in a row and its well-known parameters; a norm layer is a node of its own."""
    resnet = sample_architectures("predefined", 1, 0, num_classes=1000, image_size=224)[0]
    facts = network_facts(resnet)
    network = resnet.network(device="meta")
    assert facts.parameters == 25_557_032
    weights = [p for p in network.parameters() if p.ndim > 1 and p.shape[0] != 1000]
    assert facts.width == pytest.approx(sum(p.shape[0] for p in weights) / len(weights), abs=0.01)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    shortcuts = 4
    assert facts.depth == (49 + norms - shortcuts) + 2  # the classifier's weight and bias


def test_the_grid_of_steps_begins_at_zero_and_ends_where_it_should() -> None:
    assert step_grid(1) == (0, 1) and step_grid(30) == (0, 1, 2, 5, 10, 20, 30)
    assert step_grid(1000)[-3:] == (200, 500, 1000)


def test_sgd_makes_the_steps_of_torch(batch) -> None:
    net, settings = architectures(1)[0], SGDSettings(lr=0.05)
    torch.manual_seed(4)
    network = net.network()
    network.eval()  # no dropout; batch normalization has no running statistics here
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=3e-4)
    expected = []
    for step in range(6):
        if step in (0, 1, 2, 5):
            with torch.no_grad():
                expected.append(100 * top_k(network(batch[0]), batch[1], 1) / 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch[0]), batch[1]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    found = sgd_scores(net, itertools.repeat(batch), [batch], step_grid(5), seed=4, settings=settings)
    assert [item.top1 for item in found] == expected and expected[-1] > expected[0]


def test_training_that_diverges_is_a_failure_from_there_on(batch) -> None:
    net = architectures(1)[0]
    broken = (batch[0] * float("nan"), batch[1])
    found = sgd_scores(net, itertools.chain([batch], itertools.repeat(broken)), [batch], step_grid(5), seed=0)
    assert [bool(item.failure) for item in found] == [False, False, True, True]
    assert found[-1].failure == "non-finite loss at step 1" and found[-1].top1 == 0
    assert random_parameters(net, 0).keys() == dict(net.network(device="meta").named_parameters()).keys()


def test_steps_that_a_prediction_is_worth() -> None:
    steps = (0, 10, 20, 40)
    curves = [scores(10, 20, 40, 50), scores(10, 40, 60, 70)]  # on average 10, 30, 50, 60
    assert steps_worth(scores(40, 40), curves, steps) == 15
    assert steps_worth(scores(30, 30), curves, steps) == 10
    assert steps_worth(scores(50, 60), curves, steps) == 30
    assert steps_worth(scores(5, 5), curves, steps) == 0
    assert steps_worth(scores(70, 70), curves, steps) is None
    assert steps_worth(scores(20, 20), curves, steps, "top5") == 5  # 40 between 20 and 60


@given(st.lists(st.floats(0, 100), min_size=3, max_size=3), st.floats(0, 100))
def test_more_accuracy_is_never_worth_fewer_steps(levels: list[float], goal: float) -> None:
    curve, steps = [scores(*sorted(levels))], (0, 7, 20)
    low, high = (steps_worth(scores(value), curve, steps) for value in (goal / 2, goal))
    assert high is None or (low is not None and low <= high)


def test_published_results_are_shown_only_where_they_compare() -> None:
    sizes = {"val": 500, "predefined": 2}
    found = published("cifar10", sizes, whole_image_set=True, official=True)
    assert found["differences"] == [] and found["splits"] == {
        "val": {
            "ghn2": {"mean": 67.5, "best": 78.6},
            "ghn1": {"mean": 51.5, "best": 60.8},
            "mlp": {"mean": 43.8, "best": 62.3},
            "sgd": {"mean": 88.5, "best": 93.5},
        }
    }
    assert published(None, sizes, whole_image_set=True, official=True) is None
    assert published("cifar10", {"predefined": 2}, whole_image_set=True, official=True) is None
    other = published("imagenet", {"val": 20}, whole_image_set=False, official=False)
    assert other["metric"] == "top5" and len(other["differences"]) == 3
