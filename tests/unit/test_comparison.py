"""`pipelines.evaluation.comparison`: whether one model is better than another, over the same networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghn.errors import DataError, InputError
from pipelines.evaluation.comparison import compare, difference, is_improvement, read_evaluation
from tests.evaluations import evaluation, spread

ACCURACIES = st.lists(st.integers(0, 1000).map(lambda x: x / 10), min_size=20, max_size=40)


def verdicts(candidate: dict[str, Any], champion: dict[str, Any] | None) -> dict[str, str]:
    found = compare(
        read_evaluation(candidate, "candidate"), read_evaluation(champion, "champion") if champion else None, ()
    )
    return {item.split: item.verdict for item in found}


@given(ACCURACIES, st.randoms(use_true_random=False))
def test_a_comparison_is_the_opposite_of_the_other_way_round(accuracies: list[float], random: Any) -> None:
    others = random.sample(accuracies, len(accuracies))
    one, other = difference("val", accuracies, others), difference("val", others, accuracies)
    assert one.mean == pytest.approx(-other.mean, abs=1e-9)
    assert one.low == pytest.approx(-other.high, abs=1e-9) and one.low <= one.high
    opposite = {"better": "worse", "worse": "better"}
    assert other.verdict == opposite.get(one.verdict, one.verdict)


@given(ACCURACIES)
def test_a_model_is_not_better_than_itself(accuracies: list[float]) -> None:
    found = difference("val", accuracies, accuracies)
    assert (found.mean, found.verdict) == (0, "no difference beyond noise")


def test_a_small_gain_on_every_network_counts_and_a_large_one_on_a_single_network_does_not() -> None:
    before = spread(40)
    assert difference("val", [a + 0.2 for a in before], before).verdict == "better"
    lucky = [before[0] + 30, *(a - 0.1 for a in before[1:])]
    found = difference("val", lucky, before)
    assert found.mean > 1 and found.verdict == "no difference beyond noise"


def test_noise_makes_nobody_champion_more_often_than_said() -> None:
    """Of models that differ by chance alone, about one in twenty passes for better."""
    import numpy as np

    rng = np.random.default_rng(3)
    passed = sum(difference("val", *rng.normal(50, 5, (2, 50))).verdict == "better" for _ in range(400))
    assert passed < 400 * 0.10


def test_only_val_chooses_and_other_splits_veto() -> None:
    champion = evaluation(1, {"val": spread(40), "wide": spread(40)})
    better = {"val": spread(42), "wide": spread(40)}
    assert verdicts(evaluation(2, better), champion) == {"val": "better", "wide": "no difference beyond noise"}
    for val, wide, wanted in ((42, 40, True), (42, 43, True), (42, 39, False), (40, 60, False), (39, 60, False)):
        candidate = read_evaluation(evaluation(2, {"val": spread(val), "wide": spread(wide)}), "candidate")
        assert is_improvement(compare(candidate, read_evaluation(champion, "champion"), ("wide",))) is wanted


def test_the_first_champion_must_be_better_than_random_initialization() -> None:
    assert verdicts(evaluation(1, {"val": spread(40)}), None) == {"val": "better"}
    assert verdicts(evaluation(1, {"val": spread(40)}, baseline=41.0), None) == {"val": "no difference beyond noise"}


def test_few_networks_neither_choose_nor_veto() -> None:
    champion = evaluation(1, {"val": spread(40, 19), "predefined": [50, 50]})
    found = verdicts(evaluation(2, {"val": spread(60, 19), "predefined": [20, 20]}), champion)
    assert found == {"val": "too few networks", "predefined": "too few networks"}
    assert str(difference("val", [60] * 19, [40] * 19)).endswith("too few networks, at least 20 decide")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("splits", "val", "networks"), 21, "21"),
        (("splits", "val", "scores", "predicted", "top1", "mean"), 99.0, "mean"),
        (("networks", 3, "scores", "predicted", "top1"), float("nan"), "top1"),
        (("networks", 3, "scores", "random", "top5"), 101.0, "top5"),
        (("networks", 3, "index"), 4, "20 networks"),
        (("networks",), None, "networks"),
        (("images", "manifest"), None, "manifest"),
        (("networks", 3, "scores"), {}, "lacks scores of predicted"),
        (("schema_version",), 1, "schema_version"),
        (("networks", 3, "split"), "wide", "same splits"),
        (("architectures", "manifests"), {}, "same splits"),
    ],
)
def test_a_broken_evaluation_is_refused(path: tuple[Any, ...], value: Any, named: str) -> None:
    broken = copy.deepcopy(evaluation(2, {"val": spread(60)}))
    *way, last = path
    part: Any = broken
    for key in way:
        part = part[key]
    part[last] = value
    with pytest.raises(DataError, match=f"report.json is broken or incomplete.*{named}"):
        read_evaluation(broken, "report.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("images", "count"), 100),
        (("images", "manifest"), "other"),
        (("architectures", "manifests"), {"val": "other"}),
        (("batchnorm",), "running statistics"),
        (("metric",), "top5"),
    ],
)
def test_evaluations_made_in_other_ways_are_not_compared(path: tuple[Any, ...], value: Any) -> None:
    other = copy.deepcopy(evaluation(1, {"val": spread(40)}))
    *way, last = path
    part: Any = other
    for key in way:
        part = part[key]
    part[last] = value
    with pytest.raises(InputError, match="evaluated with other"):
        verdicts(evaluation(2, {"val": spread(60)}), other)


def test_other_networks_or_no_val_are_not_compared() -> None:
    with pytest.raises(InputError, match="other networks"):
        verdicts(evaluation(2, {"val": spread(60)}), evaluation(1, {"val": spread(40, 21)}))
    with pytest.raises(InputError, match="not evaluated on val"):
        verdicts(evaluation(2, {"test": spread(60)}), None)
    with pytest.raises(InputError, match="not evaluated on wide, deep;"):
        compare(read_evaluation(evaluation(2, {"val": spread(60)}), "candidate"), None, ("val", "wide", "deep"))
