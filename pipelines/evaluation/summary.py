"""From scores of single networks to what an evaluation says about each split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from ghn.evaluation import PREDICTED, Metric, Score, summarize
from ghn.sgd import steps_worth
from pipelines.evaluation.methods import SGD, Method

_Results = Mapping[tuple[str, str, int], Mapping[str, Any]]
"""What the processes returned, by method, split and position."""


def networks_of(results: _Results, methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Return one record for each network, in order of split and index: facts, and scores by method."""
    records: dict[tuple[str, int], dict[str, Any]] = {}
    names = {method.name: method for method in methods}
    for name, method in names.items():
        for (found, split, position), result in results.items():
            if found != name:
                continue
            record = records.setdefault(
                (split, position),
                {"split": split, "index": result["index"], "facts": result["facts"], "scores": {}},
            )
            if method.kind == "sgd":
                record[SGD] = {"steps": list(method.steps), "scores": result["scores"]}
            else:
                record["scores"][name] = result["scores"][0]
    order = list(dict.fromkeys(split for _, split, _ in results))
    return [records[key] for key in sorted(records, key=lambda key: (order.index(key[0]), key[1]))]


def summary_of(networks: Sequence[Mapping[str, Any]], metric: Metric) -> dict[str, Any]:
    """Return for each split: networks, failures, and mean, standard error and best of every method and metric; percent."""
    splits: dict[str, Any] = {}
    for split in dict.fromkeys(network["split"] for network in networks):
        members = [network for network in networks if network["split"] == split]
        methods = {name: [_score(member["scores"][name]) for member in members] for name in members[0]["scores"]}
        splits[split] = {
            "networks": len(members),
            "failed": sum(bool(score.failure) for score in methods[PREDICTED]),
            "scores": {
                name: {kind: dataclasses.asdict(summarize(scores, kind)) for kind in get_args(Metric)}
                for name, scores in methods.items()
            },
        }
        if trained := [member for member in members if SGD in member]:
            splits[split][SGD] = _sgd(trained, metric)
    return splits


def _sgd(members: Sequence[Mapping[str, Any]], metric: Metric) -> dict[str, Any]:
    """Return the mean curve of trained networks and how many steps the predictions for these networks are worth."""
    steps = members[0][SGD]["steps"]
    curves = [[_score(item) for item in member[SGD]["scores"]] for member in members]
    predicted = [_score(member["scores"][PREDICTED]) for member in members]
    return {
        "networks": len(members),
        "steps": steps,
        **{kind: [summarize(column, kind).mean for column in zip(*curves, strict=True)] for kind in get_args(Metric)},
        "predicted": summarize(predicted, metric).mean,
        "steps_worth": steps_worth(predicted, curves, steps, metric),
    }


def _score(record: Mapping[str, Any]) -> Score:
    return Score(**record)
