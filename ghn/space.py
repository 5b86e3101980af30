"""The DeepNets-1M generator: sampling rules for every split (paper, appendix A; rules and figures from the published code).

Architecture ``index`` of (split, seed) is drawn from a random stream of its own, so it does not depend on how many
architectures are drawn, in which order, or by how many processes.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghn.errors import InputError
from ghn.genotype import IMAGENET_IMAGE_SIZE, OPS, PARAMETER_FREE_OPS, ArchitectureSpec, Edge, Genotype
from ghn.layout import is_connected, layout
from ghn.parameter_count import count_parameters

GENERATOR_VERSION = 1
"""Raised whenever the same (split, seed, index) would give another specification; stored in shard manifests."""

SAMPLED_SPLITS = ("train", "val", "test", "wide", "deep", "dense", "bnfree")
SPLITS = (*SAMPLED_SPLITS, "predefined")
EVALUATED_SPLITS = SPLITS[1:]

_CAP_C = 32
_CAP_FC_DIM = 256
_CAP_CLASSES = 10
_CIFAR_IMAGE_SIZE = 32
_MAX_TRIES = 10_000


@dataclass(frozen=True, kw_only=True)
class SplitRules:
    """Ranges (inclusive) that differ between splits; see the sampling table of the reference.

    Attributes:
        cells: fewest and most cells.
        thresholds: the range from which the "this is a deep network" number of cells is drawn.
        steps: fewest and most steps in a cell.
        deep_steps: most steps when the number of cells exceeds the threshold.
        max_parameters: cap at C=32, fc_dim=256, 10 classes, for 32-pixel and 224-pixel images alike.
        norm_free: never any normalization.
        widen: factor on C for (32-pixel, 224-pixel) images.

    """

    cells: tuple[int, int] = (4, 18)
    thresholds: tuple[int, int] = (7, 10)
    steps: tuple[int, int] = (1, 4)
    deep_steps: int = 2
    max_parameters: int = 10_000_000
    norm_free: bool = False
    widen: tuple[int, int] = (1, 1)

    def widening(self, large_images: bool) -> int:
        """Return the factor on the initial channels."""
        return self.widen[large_images]


RULES = {
    "train": SplitRules(),
    "val": SplitRules(),
    "test": SplitRules(),
    "wide": SplitRules(widen=(4, 2)),
    "deep": SplitRules(cells=(10, 36), thresholds=(18, 18), max_parameters=100_000_000),
    "dense": SplitRules(steps=(2, 10), deep_steps=6, max_parameters=100_000_000),
    "bnfree": SplitRules(norm_free=True),
}


def sample_spec(
    split: str,
    seed: int,
    index: int,
    *,
    num_classes: int = 10,
    image_size: int = 32,
    channels: Sequence[int] | None = None,
    fc_dims: Sequence[int] | None = None,
) -> ArchitectureSpec:
    """Draw one architecture by the rules of its split.

    Args:
        split: one of :data:`SAMPLED_SPLITS`.
        seed: stream of the whole sample (>= 0).
        index: position in the sample (>= 0); (split, seed, index) determines the result.
        num_classes: width of the classifier.
        image_size: image height and width in pixels.
        channels: initial channel counts to draw from (multiples of 8), instead of the published rule; ``wide`` still
            multiplies them.
        fc_dims: hidden classifier widths to draw from, instead of the published rule.

    Raises:
        InputError: for an unknown split or a width that is out of range.

    """
    if split not in RULES:
        raise InputError(f"unknown split {split!r}; sampled splits are {', '.join(SAMPLED_SPLITS)}")
    rules = RULES[split]
    rng = np.random.default_rng([zlib.crc32(split.encode()), seed, index])
    for _ in range(_MAX_TRIES):
        base = _draw(rng, rules)
        if _acceptable(base, rules.max_parameters):
            break
    else:
        raise RuntimeError(f"no acceptable {split} architecture in {_MAX_TRIES} tries: the rules contradict each other")
    C, fc_dim = _draw_width(rng, base, channels, fc_dims)
    factor = rules.widening(image_size >= IMAGENET_IMAGE_SIZE)
    spec = dataclasses.replace(base, C=C * factor, fc_dim=fc_dim, num_classes=num_classes, image_size=image_size)
    spec.validate()
    return spec


def _draw(rng: np.random.Generator, rules: SplitRules) -> ArchitectureSpec:
    """Draw everything but the widths, at the widths that the parameter cap is defined for."""
    n_cells = int(rng.integers(rules.cells[0], rules.cells[1] + 1))
    threshold = int(rng.integers(rules.thresholds[0], rules.thresholds[1] + 1))
    is_deep = n_cells > threshold
    steps = int(rng.integers(rules.steps[0], (rules.deep_steps if is_deep else rules.steps[1]) + 1))
    genotype = _draw_genotype(rng, steps)
    is_vit = "msa" in genotype.ops
    C_mult = int(rng.integers(1, 3))
    stem_type = int(rng.integers(2))
    preproc = steps > 1 or C_mult > 1 or not is_vit or rng.random() < 0.2
    glob_avg = is_vit or is_deep or rng.random() < 0.9
    shallow = n_cells <= rules.cells[0] + 1 and steps <= rules.deep_steps
    norm_free = rules.norm_free or (shallow and rng.random() < 0.5)
    return ArchitectureSpec(
        genotype=genotype,
        n_cells=n_cells,
        C=_CAP_C,
        C_mult=C_mult,
        norm=None if norm_free else "bnorm",
        preproc=bool(preproc),
        ks=int(rng.choice([3, 5, 7])),
        stem_type=stem_type,
        stem_pool=stem_type == 0 and bool(rng.random() < 0.5),
        glob_avg=bool(glob_avg),
        fc_layers=int(rng.integers(1, 3)),
        fc_dim=_CAP_FC_DIM,
        num_classes=_CAP_CLASSES,
    )


def _draw_genotype(rng: np.random.Generator, steps: int) -> Genotype:
    ops = OPS if steps > 1 else tuple(op for op in OPS if op != "none")
    plain_reduce = rng.random() < 0.5
    reduce_ops = tuple(op for op in ops if op in PARAMETER_FREE_OPS) if plain_reduce else ops
    concat = list(range(2, 2 + steps))
    if steps > 1 and rng.random() < 0.5:
        concat = [state for state in concat[:-1] if rng.random() < 0.5] + concat[-1:]
    return Genotype(
        normal=_draw_cell(rng, steps, ops),
        normal_concat=tuple(concat),
        reduce=_draw_cell(rng, steps, reduce_ops),
        reduce_concat=tuple(concat),
    )


def _draw_cell(rng: np.random.Generator, steps: int, ops: Sequence[str]) -> tuple[Edge, ...]:
    """Score every (input, op) pair at random; keep the two best inputs of each step and the best op on each."""
    edges: list[Edge] = []
    for step in range(steps):
        scores = rng.random((2 + step, len(ops)))
        best = np.argsort(-scores.max(axis=1), kind="stable")[:2]
        edges += [(ops[int(scores[source].argmax())], int(source)) for source in best]
    return tuple(edges)


def _acceptable(spec: ArchitectureSpec, cap: int) -> bool:
    genotype = spec.genotype
    if not any("conv" in op or op in ("cse", "msa") for op in genotype.ops):
        return False
    if "cse" in genotype.ops and not any("conv" in op for op in genotype.ops):
        return False
    for edges in (genotype.normal, genotype.reduce):
        names = [op for op, _ in edges]
        if names.count("cse") > 1 or names.count("conv_5x5") + names.count("conv_7x7") > 1:
            return False
    if not is_connected(spec):
        return False
    return max(_cap_count(spec), _cap_count(dataclasses.replace(spec, image_size=IMAGENET_IMAGE_SIZE))) <= cap


def _cap_count(spec: ArchitectureSpec) -> int:
    """Parameters as the published cap counts them: dead operations included."""
    return count_parameters(layout(spec, prune=False))


def _draw_width(
    rng: np.random.Generator, spec: ArchitectureSpec, channels: Sequence[int] | None, fc_dims: Sequence[int] | None
) -> tuple[int, int]:
    """Draw C and fc_dim; large and deep networks stay narrow (the published rule)."""
    count = _cap_count(spec)
    large_kernels = {"conv_5x5", "conv_7x7"} & spec.genotype.ops
    smallest_class = False
    if count > 0.8e6 or not spec.glob_avg or large_kernels or spec.n_cells > 12:
        published = [32]
    elif count > 0.4e6 or spec.n_cells > 10:
        published = [32, 48]
    elif count > 0.2e6 or spec.n_cells > 8:
        published = [32, 48, 64]
    else:
        published = list(range(32, 129, 16))
        smallest_class = True
    C = int(rng.choice(list(channels) if channels else published))
    published_fc = list(range(64, (513 if smallest_class and C <= 64 else 257), 64))
    return C, int(rng.choice(list(fc_dims) if fc_dims else published_fc))


def redraw_widths(
    spec: ArchitectureSpec,
    rng: np.random.Generator,
    channels: Sequence[int] | None = None,
    fc_dims: Sequence[int] | None = None,
) -> ArchitectureSpec:
    """Return the specification with C and fc_dim drawn anew, as meta-training does each time a network is used.

    What counts as large is decided at the image size that the specification is for.
    """
    size = IMAGENET_IMAGE_SIZE if spec.large_images else _CIFAR_IMAGE_SIZE
    base = dataclasses.replace(spec, C=_CAP_C, fc_dim=_CAP_FC_DIM, num_classes=_CAP_CLASSES, image_size=size)
    C, fc_dim = _draw_width(rng, base, channels, fc_dims)
    return dataclasses.replace(spec, C=C, fc_dim=fc_dim)
