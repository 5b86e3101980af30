"""The report of an evaluation: a table, ``report.json`` and a self-contained ``report.html``."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghn.errors import DataError, InputError
from pipelines.storage import LocalStore
from pipelines.training.state import RECIPE_NAME, read_metrics

SCHEMA_VERSION = 1
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111827; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .9rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tbody tr { border-top: 1px solid #e5e7eb; }
figure { margin: 1.5rem 0; overflow-x: auto; } figcaption { color: #4b5563; font-size: 13px; }
pre { background: #f3f4f6; padding: .8rem; overflow-x: auto; font-size: 12px; }
svg { max-width: 100%; height: auto; }
"""
_CHANCE_FOR_TOP5 = 2.0  # percent: with fewer than 50 classes, five answers say little
_DRAWN_SPLITS = ("test", "predefined")


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text: one row per split, accuracies in percent."""
    top5 = content["chance"] <= _CHANCE_FOR_TOP5
    head = f"{'split':<11}{'networks':>9}{'mean ± stderr':>16}{'best':>8}{'random init':>13}{'failed':>8}"
    lines = [head + (f"{'top-5':>8}" if top5 else "")]
    for split, row in content["splits"].items():
        mean = f"{row['mean']:.1f} ± {row['stderr']:.1f}"
        lines.append(
            f"{split:<11}{row['networks']:>9}{mean:>16}{row['best']:>8.1f}{row['baseline_mean']:>13.1f}{row['failed']:>8}"
            + (f"{row['top5_mean']:>8.1f}" if top5 else "")
        )
    images = content["images"]
    lines.append(
        f"{content['metric']} on {images['count']} {images['split']} images; chance {content['chance']:g}; "
        f"BatchNorm: {content['batchnorm']}"
    )
    return "\n".join(lines)


def write_report(evaluation_file: Path, run: Path, out: Path) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html`` into ``out`` and return the former's content.

    Raises:
        InputError: if the evaluation or the training run is not there.
        DataError: if the evaluation can not be read.

    """
    try:
        evaluation = json.loads(evaluation_file.read_text())
        content = {**evaluation, "schema_version": SCHEMA_VERSION}
        content["splits"] = dict(evaluation["splits"])
    except FileNotFoundError:
        raise InputError(f"no evaluation at {evaluation_file}; make one with `ghn evaluate`") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{evaluation_file} is damaged: {error}; make it again with `ghn evaluate`") from error
    rows = read_metrics(run)
    if not rows:
        raise InputError(f"no metrics in {run}; give the folder of the `ghn train` behind the evaluation")
    content["training"] = {
        "steps": rows[-1]["step"],
        "sessions": rows[-1]["session"],
        "final_loss": rows[-1]["loss"],
        "skipped": sum(row["skipped"] for row in rows),
    }
    store = LocalStore(str(out))
    store.write("report.html", _page(content, rows, (run / RECIPE_NAME).read_text()).encode())
    store.write("report.json", (json.dumps(content, indent=1) + "\n").encode())
    return content


def _page(content: Mapping[str, Any], rows: list[dict[str, Any]], recipe: str) -> str:
    from pipelines.drawing import draw_curve, draw_graph, draw_splits
    from pipelines.training.data import read_architectures

    figures = [
        (draw_splits(content["splits"], content["chance"]), "Accuracy of networks that were never trained, by split."),
        (draw_curve(rows), "Meta-training: every point is the mean over the networks of a step."),
    ]
    drawn = [split for split in _DRAWN_SPLITS if split in content["splits"]] or list(content["splits"])[:2]
    for split in drawn:
        architecture = read_architectures(content["architectures"]["url"], split)[0]
        svg = draw_graph(architecture.graph, architecture.label)
        figures.append((svg, f"The computational graph of {architecture.label}, as the hypernetwork sees it."))
    model = content["model"]
    name = f"{model['name']} version {model['version']}" if "version" in model else model["uri"]
    body = "".join(f"<figure>{svg}<figcaption>{html.escape(text)}</figcaption></figure>" for svg, text in figures)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(name)}</h1>"
        f"<p>{html.escape(table(content).splitlines()[-1])}. All parameters were predicted in one forward pass; "
        "<em>random init</em> is the same networks with their ordinary initialization. "
        f"Failed networks count as 0%.</p>{_html_table(content)}{body}"
        f"<h2>Recipe</h2><pre>{html.escape(recipe)}</pre></body></html>\n"
    )


def _html_table(content: Mapping[str, Any]) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("split", "networks", "mean ± stderr", "best", "random init", "failed")
    )
    rows = "".join(
        f"<tr><td>{html.escape(split)}</td><td>{row['networks']}</td><td>{row['mean']:.1f} ± {row['stderr']:.1f}</td>"
        f"<td>{row['best']:.1f}</td><td>{row['baseline_mean']:.1f}</td><td>{row['failed']}</td></tr>"
        for split, row in content["splits"].items()
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
