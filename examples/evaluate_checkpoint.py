"""Score a hypernetwork on networks that it has not seen, and read the result.

`ghn evaluate` predicts all parameters of every network of the evaluation splits and measures their accuracy on test
images, beside the same networks with their ordinary initialization. It takes a checkpoint folder or an official `.pt`
file. Everything that it found is in one JSON file, from which this script prints a table.

    make demo
    .venv/bin/python examples/evaluate_checkpoint.py                    # the demo's checkpoint, images and networks
    .venv/bin/python examples/evaluate_checkpoint.py --checkpoint ghn2_cifar10.pt --images URL --deepnets URL --s3 ""

URL is a folder or `s3://bucket/prefix` with shards from `ghn shard images` and `ghn shard deepnets`. The demo's shards
lie in an S3 server of its own; `--s3` names its folder, and it runs only as long as the command. A minute on two CPU
cores; `--split val --networks 1 --image-limit 64` takes seconds. What was scored is kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

GHN = str(Path(sys.executable).with_name("ghn"))  # installed beside this Python


def rows(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Give the table's rows, the splits in the order in which they were evaluated."""
    metric = evaluation["metric"]  # top1; from 50 classes on top5
    yield "split", "networks", "failed", "mean ± std. error", "best", "random initialization"
    for name, split in evaluation["splits"].items():
        predicted, random = (split["scores"][method][metric] for method in ("predicted", "random"))
        # One network has no standard error.
        spread = "" if predicted["stderr"] is None else f" ± {predicted['stderr']:.1f}"
        scores = f"{predicted['mean']:.1f}{spread}", f"{predicted['best']:.1f}", f"{random['mean']:.1f}"
        yield name, str(split["networks"]), str(split["failed"]), *scores


def best_network(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the network with the highest accuracy of all splits; each network is listed with its facts and scores."""
    metric = evaluation["metric"]
    return max(evaluation["networks"], key=lambda network: network["scores"]["predicted"][metric])


def main() -> None:
    """Evaluate, then print what the file says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/demo/train/model"))
    parser.add_argument("--images", default="s3://ghn/demo/images")
    parser.add_argument("--deepnets", default="s3://ghn/demo/deepnets", help="shards, or an official .hdf5 file")
    parser.add_argument("--s3", default="runs/demo/s3", help="folder of the demo's S3 server; empty for none")
    parser.add_argument("--split", action="append", default=[], help="may be repeated (default: all but train)")
    parser.add_argument("--networks", type=int, default=4, help="of each split, at most")
    parser.add_argument("--image-limit", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("runs/examples/evaluation.json"))
    options = parser.parse_args()
    if not options.checkpoint.exists():
        parser.error(f"no checkpoint at {options.checkpoint}: run `make demo` first, or give --checkpoint")

    command = [GHN, "evaluate", "--model", str(options.checkpoint), "--out", str(options.out)]
    command += ["--images", options.images, "--deepnets", options.deepnets]
    command += ["--networks", str(options.networks), "--image-limit", str(options.image_limit)]
    command += [part for split in options.split for part in ("--split", split)]
    if options.s3:
        command = [GHN, "s3", "exec", options.s3, "--", *command]
    done = subprocess.run(command, stdout=subprocess.DEVNULL)  # progress and errors go to stderr
    if done.returncode:
        sys.exit(done.returncode)

    evaluation = json.loads(options.out.read_text())
    images, chance = evaluation["images"], evaluation["chance"]
    print(f"{evaluation['metric']} in percent on {images['count']} {images['split']} images (chance {chance:g})\n")
    for row in rows(evaluation):
        print("{:<12}{:>8}{:>8}{:>19}{:>8}{:>23}".format(*row))
    best = best_network(evaluation)
    facts = best["facts"]
    print(f"\nthe best is {best['split']}[{best['index']}]: {facts['nodes']} nodes, {facts['parameters']:,} parameters")
    print(f"everything else is in {options.out}, and a line for each network in {options.out.with_suffix('.jsonl')}")


if __name__ == "__main__":
    main()
