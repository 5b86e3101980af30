"""The report of an evaluation: a table, ``report.json`` and a self-contained ``report.html``."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ghn.draw import draw_graph
from ghn.errors import DataError, InputError
from ghn.evaluation import PREDICTED, RANDOM
from pipelines.evaluation.comparison import SCHEMA_VERSION
from pipelines.evaluation.inputs import open_splits
from pipelines.evaluation.methods import SGD
from pipelines.storage import LocalStore
from pipelines.training.run_folder import RECIPE_NAME, read_metrics

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111827; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .9rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tbody tr { border-top: 1px solid #e5e7eb; }
figure { margin: 1.5rem 0; overflow-x: auto; } figcaption { color: #4b5563; font-size: 13px; }
pre { background: #f3f4f6; padding: .8rem; overflow-x: auto; font-size: 12px; }
svg { max-width: 100%; height: auto; }
"""
_DRAWN_SPLITS = ("test", "predefined")
_METRIC = {"top1": "top-1", "top5": "top-5"}
_PUBLISHED_NAMES = {"ghn2": "GHN-2", "ghn1": "GHN-1", "mlp": "MLP", "sgd": "SGD"}


def rows(content: Mapping[str, Any]) -> list[list[str]]:
    """Return the results as cells: a head, and one row for each split, accuracies in percent by the main metric."""
    metric = content["metric"]
    others = [name for name in content["methods"] if name not in (PREDICTED, RANDOM, SGD)]
    shown = content["published"]
    head = ["split", "networks", f"{_METRIC[metric]} ± stderr", "best", "random init", *others]
    if SGD in content["methods"]:
        head.append("worth SGD steps")
    if shown:
        head.append("published GHN-2")
    cells = [[*head, "failed"]]
    for split, row in content["splits"].items():
        scores = {name: values[metric] for name, values in row["scores"].items()}
        mine = scores[PREDICTED]
        line = [split, str(row["networks"]), f"{mine['mean']:.1f} ± {mine['stderr']:.1f}", f"{mine['best']:.1f}"]
        line += [f"{scores[name]['mean']:.1f}" for name in (RANDOM, *others)]
        if SGD in content["methods"]:
            line.append(_worth(row.get(SGD)))
        if shown:
            published = shown["splits"].get(split)
            line.append(f"{published['ghn2']['mean']:.1f}" if published else "")
        cells.append([*line, str(row["failed"])])
    return cells


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text: one row per split, and below it how they were measured and what they compare with."""
    cells = rows(content)
    widths = [max(len(row[i]) for row in cells) + 2 for i in range(len(cells[0]))]
    lines = [
        row[0].ljust(widths[0]) + "".join(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)) for row in cells
    ]
    return "\n".join([*lines, *_notes(content)])


def _notes(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on the measure, SGD, the published table, and the champion."""
    images = content["images"]
    yield (
        f"{_METRIC[content['metric']]} accuracy in percent on {images['count']} {images['split']} images; chance "
        f"{content['chance']:g}; batch normalization with {content['batchnorm']}"
    )
    if SGD in content["methods"]:
        known = content["published"]
        least = min(row[SGD]["networks"] for row in content["splits"].values() if SGD in row)
        yield (
            f"worth SGD steps: after so many steps trained networks are as accurate, on average ({least} networks or more)"
            + (f"; published: about {known['sgd_steps_worth']}" if known else "")
        )
    if content["published"] and content["published"]["differences"]:
        yield "published results: " + "; ".join(content["published"]["differences"])
    for key, what in (("champion", "champion"), ("previous", "the same version, evaluated before,")):
        if other := content[key]:
            if "not_compared" in other:
                yield f"not compared with {what} (version {other['version']}): {other['not_compared']}"
            for difference in other.get("differences", []):
                yield f"against {what} (version {other['version']}): {difference['text']}"


def _worth(sgd: Mapping[str, Any] | None) -> str:
    if sgd is None:
        return ""
    return f"> {sgd['steps'][-1]}" if sgd["steps_worth"] is None else f"{sgd['steps_worth']:.0f}"


def write_report(evaluation_file: Path, run: Path | None, out: Path) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html`` into ``out`` and return the former's content.

    Args:
        evaluation_file: of ``ghn evaluate``.
        run: folder of the training run behind it, for curve and recipe, if it is there.
        out: folder.

    Raises:
        InputError: if the evaluation or the training run is not there.
        DataError: if the evaluation can not be read.

    """
    try:
        evaluation = json.loads(evaluation_file.read_text())
        content = {**evaluation, "schema_version": SCHEMA_VERSION}
        if evaluation["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"{evaluation_file} is of schema {evaluation['schema_version']}; make it again with `ghn evaluate`"
            )
        rows(content)
    except OSError as error:
        raise InputError(
            f"no evaluation at {evaluation_file} ({error.strerror}); make one with `ghn evaluate`"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{evaluation_file} is damaged: {error}; make it again with `ghn evaluate`") from error
    metrics = read_metrics(run) if run else []
    if run and not (metrics and (run / RECIPE_NAME).is_file()):
        raise InputError(f"no metrics and recipe in {run}; give the folder of the `ghn train` behind the evaluation")
    if metrics:
        content["training"] = {
            "steps": metrics[-1]["step"],
            "sessions": metrics[-1]["session"],
            "final_loss": metrics[-1]["loss"],
            "skipped": sum(row["skipped"] for row in metrics),
        }
    store = LocalStore(str(out))
    recipe = (run / RECIPE_NAME).read_text() if run else ""
    store.write("report.html", _page(content, metrics, recipe).encode())
    store.write("report.json", (json.dumps(content, indent=1) + "\n").encode())
    return content


def _page(content: Mapping[str, Any], metrics: list[dict[str, Any]], recipe: str) -> str:
    figures = "".join(
        f"<figure>{svg}<figcaption>{html.escape(text)}</figcaption></figure>"
        for svg, text in _figures(content, metrics)
    )
    model = content["model"]
    name = f"{model['name']} version {model['version']}" if "version" in model else model["uri"]
    told = "".join(f"<p>{html.escape(note)}.</p>" for note in _notes(content))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(name)}</h1>"
        "<p>All parameters were predicted in one forward pass; <em>random init</em> is the same networks with their ordinary "
        f"initialization. Failed networks count as 0%.</p>{_html_table(rows(content))}{told}{_html_published(content)}{figures}"
        + (f"<h2>Recipe</h2><pre>{html.escape(recipe)}</pre>" if recipe else "")
        + "</body></html>\n"
    )


def _figures(content: Mapping[str, Any], metrics: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield pictures with their captions."""
    from pipelines.evaluation.drawing import draw_curve, draw_distribution, draw_sgd, draw_sizes, draw_splits

    metric = content["metric"]
    yield draw_splits(content), "Accuracy of networks that were never trained, by split."
    yield (
        draw_distribution(content["networks"], metric, content["chance"]),
        "Every network of each split; crosses failed.",
    )
    yield draw_sizes(content["networks"], metric), "Accuracy against the size of the networks; crosses failed."
    if any(SGD in row for row in content["splits"].values()):
        yield (
            draw_sgd(content["splits"], metric),
            "Networks trained with SGD, on average; dots: the same networks, predicted.",
        )
    if metrics:
        yield draw_curve(metrics), "Meta-training: every point is the mean over the networks of a step."
    chosen = [split for split in _DRAWN_SPLITS if split in content["splits"]] or list(content["splits"])[:2]
    for architecture in _first_networks(content["architectures"]["url"], chosen, content["images"]):
        svg = draw_graph(architecture.graph, architecture.label)
        yield svg, f"The computational graph of {architecture.label}, as the hypernetwork sees it."


def _first_networks(url: str, splits: Sequence[str], images: Mapping[str, Any]) -> list[Any]:
    found = open_splits(url, splits, networks=1, num_classes=images["classes"], image_size=images["size"])
    return [split.architectures[0] for split in found.values()]


def _html_table(cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in cells[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells[1:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_published(content: Mapping[str, Any]) -> str:
    """Return the published table of the same splits: mean and best."""
    known = content["published"]
    if not known:
        return ""
    columns = list(next(iter(known["splits"].values())))
    cells = [["split", *(_PUBLISHED_NAMES[column] for column in columns)]]
    for split, row in known["splits"].items():
        cells.append([split, *(f"{row[column]['mean']:.1f} / {row[column]['best']:.1f}" for column in columns)])
    return f"<h2>Published ({_METRIC[known['metric']]}, mean / best)</h2>{_html_table(cells)}"
