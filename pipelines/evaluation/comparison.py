"""Is one model better than another? Paired over the same networks and images, with the noise between networks.

Which networks a split holds is chance, so a mean counts only as far as it would hold for other networks of its kind:
differences between two models, network by network, are resampled (Efron, 1979), and a difference is real if 95% of the
resampled means agree. Images are taken as fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ghn.errors import DataError, InputError
from ghn.evaluation import PREDICTED, RANDOM, Metric

SCHEMA_VERSION: Literal[2] = 2
_CHOOSING_SPLIT = "val"
_RESAMPLED = 10_000
_CONFIDENCE = 0.95
_FEWEST = 20
"""Networks of a split that is to choose; with fewer, the bounds are narrower than they should be."""
_FEWEST_FOR_VETO = 10

Verdict = Literal["better", "worse", "no difference beyond noise", "too few networks"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Model(_Part):
    name: str | None = None
    version: int | None = None
    run_id: str | None = None


class _Images(_Part):
    split: str
    count: int = Field(ge=1)
    manifest: str


class _Architectures(_Part):
    manifests: dict[str, str]


class _Score(_Part):
    top1: float = Field(ge=0, le=100)
    top5: float = Field(ge=0, le=100)


class _Network(_Part):
    split: str
    index: int
    scores: dict[str, _Score]


class _Mean(_Part):
    mean: float = Field(ge=0, le=100)


class _Split(_Part):
    networks: int = Field(ge=1)
    scores: dict[str, dict[str, _Mean]]


class Evaluation(_Part):
    """What an evaluation (``ghn evaluate``) has to hold for a comparison."""

    schema_version: Literal[2]
    model: _Model
    metric: Metric
    batchnorm: str
    images: _Images
    architectures: _Architectures
    splits: dict[str, _Split]
    networks: list[_Network]

    @model_validator(mode="after")
    def _is_whole(self) -> Evaluation:
        named = {network.split for network in self.networks}
        if not named == set(self.splits) == set(self.architectures.manifests):
            raise ValueError("splits, networks and manifests do not name the same splits")
        for name, split in self.splits.items():
            found = [network for network in self.networks if network.split == name]
            if len(found) != split.networks or len({network.index for network in found}) != len(found):
                raise ValueError(f"split {name} has results of {len(found)} networks, not of {split.networks}")
            for method in (PREDICTED, RANDOM):
                if method not in split.scores or any(method not in network.scores for network in found):
                    raise ValueError(f"split {name} lacks scores of {method}")
                mean = sum(getattr(network.scores[method], self.metric) for network in found) / len(found)
                if self.metric not in split.scores[method]:
                    raise ValueError(f"split {name} lacks {self.metric}")
                if abs(mean - split.scores[method][self.metric].mean) > 1e-6:
                    raise ValueError(f"the mean of split {name} is not that of its networks")
        return self

    @property
    def label(self) -> str:
        """Name and version, for messages."""
        return f"{self.model.name} version {self.model.version}"

    def accuracies(self, split: str, method: str = PREDICTED) -> dict[int, float]:
        """Return accuracies by the evaluation's metric, in percent, by the index of the network."""
        return {
            network.index: getattr(network.scores[method], self.metric)
            for network in self.networks
            if network.split == split
        }


def read_evaluation(content: Any, place: str) -> Evaluation:
    """Check an evaluation.

    Raises:
        DataError: if it is broken or incomplete.

    """
    try:
        return Evaluation.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "evaluation"
        raise DataError(
            f"{place} is broken or incomplete: {where}: {first['msg']}; make it again with `ghn evaluate`"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better a model is on one split, in percent of accuracy.

    Attributes:
        split: the split.
        networks: how many both were evaluated on.
        mean: mean difference.
        low, high: one-sided 95% bounds of the mean.
        verdict: what that says.

    """

    split: str
    networks: int
    mean: float
    low: float
    high: float
    verdict: Verdict

    def __str__(self) -> str:
        return (
            f"{self.split}: {self.mean:+.2f} percent on {self.networks} networks "
            f"(95% bounds {self.low:+.2f}, {self.high:+.2f}): {self.verdict}"
            + (f", at least {_fewest(self.split)} decide" if self.verdict == "too few networks" else "")
        )


def difference(split: str, mine: Sequence[float], others: Sequence[float]) -> Difference:
    """Compare accuracies of the same networks, pair by pair (at least one)."""
    pairs = np.asarray(mine, dtype=float) - np.asarray(others, dtype=float)
    chosen = np.random.default_rng(0).integers(len(pairs), size=(_RESAMPLED, len(pairs)))
    low, high = np.quantile(pairs[chosen].mean(axis=1), [1 - _CONFIDENCE, _CONFIDENCE]).tolist()
    verdict: Verdict = "no difference beyond noise"
    if len(pairs) < _fewest(split):
        verdict = "too few networks"
    elif low > 0:
        verdict = "better"
    elif high < 0:
        verdict = "worse"
    return Difference(split=split, networks=len(pairs), mean=float(pairs.mean()), low=low, high=high, verdict=verdict)


def _fewest(split: str) -> int:
    """Return how many networks of a split it takes to say anything."""
    return _FEWEST if split == _CHOOSING_SPLIT else _FEWEST_FOR_VETO


def compare(candidate: Evaluation, champion: Evaluation | None, splits: Sequence[str]) -> list[Difference]:
    """Compare a candidate with the champion on every split; without a champion, with random initialization.

    Args:
        candidate: evaluated on as many splits as you like.
        champion: evaluated on the same ones.
        splits: which of them must be there; ``val`` in any case.

    Raises:
        InputError: if they were not evaluated on the same networks and images, or not on all splits.

    """
    if missing := [split for split in dict.fromkeys((_CHOOSING_SPLIT, *splits)) if split not in candidate.splits]:
        raise InputError(
            f"{candidate.label} was not evaluated on {', '.join(missing)}; run `ghn evaluate` for all splits together"
        )
    if champion is not None:
        _check_alike(candidate, champion)
    found = []
    for split in candidate.splits:
        mine = candidate.accuracies(split)
        others = champion.accuracies(split) if champion else candidate.accuracies(split, RANDOM)
        indices = sorted(mine)
        found.append(difference(split, [mine[i] for i in indices], [others[i] for i in indices]))
    return found


def is_improvement(differences: Sequence[Difference]) -> bool:
    """Say whether a candidate should replace the champion: better on ``val``, worse on no other split, both beyond noise."""
    verdicts = {item.split: item.verdict for item in differences}
    return verdicts[_CHOOSING_SPLIT] == "better" and "worse" not in verdicts.values()


def _check_alike(candidate: Evaluation, champion: Evaluation) -> None:
    """Refuse to compare what was measured in other ways."""
    facts: dict[str, tuple[Any, Any]] = {
        name: (getattr(candidate, name), getattr(champion, name)) for name in ("metric", "batchnorm")
    }
    for name in ("split", "count", "manifest"):
        facts[f"images {name}"] = (getattr(candidate.images, name), getattr(champion.images, name))
    facts["architectures"] = (candidate.architectures.manifests, champion.architectures.manifests)
    mine, others = (sorted((n.split, n.index) for n in e.networks) for e in (candidate, champion))
    facts["networks"] = (mine, others)
    for name, (one, other) in facts.items():
        if one != other:
            raise InputError(
                f"{candidate.label} and {champion.label} were evaluated with other {name}; run `ghn evaluate` for both "
                "with the same splits, networks and images"
            )
