"""From a specification to the layers that a network really has: strides, channels, map sizes, and what is dead.

The network (:mod:`ghn.networks`), its graph (:mod:`ghn.build`) and its parameter count (:mod:`ghn.space`) are all read
off the one :class:`Layout` computed here, so they can not disagree about which operation exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ghn.errors import InputError
from ghn.genotype import ArchitectureSpec

_VIT_MAP_SIZE_LARGE = 14
Preprocess = Literal["conv", "factorized_reduce", "slice", "identity"]
_StemKind = Literal["plain", "double", "vit"]


class OpLayout(NamedTuple):
    """One operation of a cell: number in the genotype, name, input state and stride (1 or 2)."""

    number: int
    op: str
    source: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class CellLayout:
    """One cell.

    Attributes:
        reduction: whether the reduction cell's genotype applies.
        C: channels of every operation and of every state.
        in_channels: channels of the outputs of the cell before the previous one and of the previous one.
        preprocess: what happens to each input; ``None`` where the input is not used.
        ops: the operations that exist, in genotype order.
        concat: states that are concatenated, zeros where one is missing.
        missing: concatenated states that no operation makes.
        live: whether the cell does anything at all.

    """

    reduction: bool
    C: int
    in_channels: tuple[int, int]
    preprocess: tuple[Preprocess | None, Preprocess | None]
    ops: tuple[OpLayout, ...]
    concat: tuple[int, ...]
    missing: frozenset[int]
    live: bool

    @property
    def out_channels(self) -> int:
        """Channels of the concatenated output."""
        return self.C * len(self.concat)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything that exists in one network; see :func:`layout`."""

    spec: ArchitectureSpec
    stem: _StemKind
    stem_channels: int
    stem_second_live: bool
    pos_enc_size: int
    cells: tuple[CellLayout, ...]
    features: int

    @property
    def head(self) -> tuple[int, ...]:
        """Widths along the classifier: input features, (hidden,) classes."""
        hidden = (self.spec.fc_dim,) if self.spec.fc_layers == 2 else ()
        return (self.features, *hidden, self.spec.num_classes)


def layout(spec: ArchitectureSpec, *, prune: bool = True) -> Layout:
    """Lay a specification out.

    Args:
        spec: a valid specification.
        prune: leave out dead operations, as networks and graphs do; ``False`` keeps every operation except ``none``
            (what the published parameter cap counts).

    Raises:
        InputError: if nothing reaches the classifier.

    """
    present = _present(spec)
    if not present[-1][-1]:
        raise InputError("architecture is invalid: no operation connects its input to its output")
    stem: _StemKind = "vit" if spec.is_vit else ("double" if spec.stem_type == 1 else "plain")
    stem_channels = 3 * spec.C if stem == "plain" and spec.preproc and not spec.large_images else spec.C
    existing = _needed(spec, present) if prune else [_not_none(spec, i in spec.reductions) for i in range(spec.n_cells)]

    cells = []
    kinds: dict[tuple[object, ...], CellLayout] = {}  # most cells of a network are alike
    C, out_channels, reduced = spec.C, (stem_channels, stem_channels), stem == "double"
    for i in range(spec.n_cells):
        reduction = i in spec.reductions
        C *= spec.C_mult if reduction else 1
        kind = (reduction, C, out_channels, reduced, existing[i])
        if kind not in kinds:
            kinds[kind] = _cell(spec, reduction, C, out_channels, reduced, existing[i], prune)
        cells.append(kinds[kind])
        out_channels = (out_channels[1], kinds[kind].out_channels)
        reduced = reduction
    map_size = _final_map_size(spec)
    return Layout(
        spec=spec,
        stem=stem,
        stem_channels=stem_channels,
        stem_second_live=not prune or _uses_second_stem(cells),
        pos_enc_size=_vit_map_size(spec) if stem == "vit" else 0,
        cells=tuple(cells),
        features=out_channels[1] * (1 if spec.glob_avg else map_size**2),
    )


def is_connected(spec: ArchitectureSpec) -> bool:
    """Return whether anything connects a specification's input to its output; :func:`layout` needs that."""
    return _present(spec)[-1][-1]


def _cell(
    spec: ArchitectureSpec,
    reduction: bool,
    C: int,
    in_channels: tuple[int, int],
    after_reduction: bool,
    existing: frozenset[int],
    prune: bool,
) -> CellLayout:
    edges, concat = spec.genotype.cell(reduction)
    strides = reduction and not spec.is_vit
    ops = tuple(
        [
            OpLayout(k, op, source, 2 if strides and source < 2 else 1)
            for k, (op, source) in enumerate(edges)
            if k in existing
        ]
    )
    used, made = {op.source for op in ops}, {2 + op.number // 2 for op in ops}
    return CellLayout(
        reduction=reduction,
        C=C,
        in_channels=in_channels,
        preprocess=(
            _preprocess(spec, after_reduction=after_reduction and not spec.is_vit) if 0 in used or not prune else None,
            _preprocess(spec, after_reduction=False) if 1 in used or not prune else None,
        ),
        ops=ops,
        concat=concat,
        missing=frozenset(concat) - made,
        live=bool(ops),
    )


def _present(spec: ArchitectureSpec) -> list[tuple[bool, ...]]:
    """For each cell, whether each state exists (inputs, steps) and, last, whether the cell has an output."""
    rows: list[tuple[bool, ...]] = []
    known: dict[tuple[bool, bool, bool], tuple[bool, ...]] = {}
    previous = current = True
    for i in range(spec.n_cells):
        kind = (i in spec.reductions, previous, current)
        if kind not in known:
            edges, concat = spec.genotype.cell(kind[0])
            states = [previous, current]
            for (op0, source0), (op1, source1) in zip(edges[::2], edges[1::2], strict=True):
                states.append((op0 != "none" and states[source0]) or (op1 != "none" and states[source1]))
            known[kind] = (*states, any(states[state] for state in concat))
        rows.append(known[kind])
        previous, current = current, known[kind][-1]
    return rows


def _needed(spec: ArchitectureSpec, present: list[tuple[bool, ...]]) -> list[frozenset[int]]:
    """For each cell, the positions of the operations whose result exists and reaches the output."""
    needed = [frozenset[int]()] * spec.n_cells
    known: dict[tuple[bool, tuple[bool, ...]], frozenset[int]] = {}
    wanted = [False] * (spec.n_cells + 2)  # outputs that somebody reads, shifted by the two stem outputs
    wanted[-1] = True
    for i in reversed(range(spec.n_cells)):
        if not wanted[i + 2]:
            continue
        kind = (i in spec.reductions, present[i])
        edges, concat = spec.genotype.cell(kind[0])
        if kind not in known:
            states, positions = {state for state in concat if present[i][state]}, set()
            for k in reversed(range(len(edges))):
                op, source = edges[k]
                if 2 + k // 2 in states and op != "none" and present[i][source]:
                    positions.add(k)
                    states.add(source)
            known[kind] = frozenset(positions)
        needed[i] = known[kind]
        for k in needed[i]:
            if edges[k][1] < 2:
                wanted[i + edges[k][1]] = True
    return needed


def _not_none(spec: ArchitectureSpec, reduction: bool) -> frozenset[int]:
    return frozenset(k for k, (op, _) in enumerate(spec.genotype.cell(reduction)[0]) if op != "none")


def _uses_second_stem(cells: list[CellLayout]) -> bool:
    """Whether any live cell reads the second stem output (input 1 of cell 0, input 0 of cell 1)."""
    return any(op.source == 1 for op in cells[0].ops) or (len(cells) > 1 and any(op.source == 0 for op in cells[1].ops))


def _preprocess(spec: ArchitectureSpec, *, after_reduction: bool) -> Preprocess:
    if spec.preproc:
        return "factorized_reduce" if after_reduction else "conv"
    return "slice" if after_reduction else "identity"


def _vit_map_size(spec: ArchitectureSpec) -> int:
    return _VIT_MAP_SIZE_LARGE * spec.image_size // 224 if spec.large_images else (spec.image_size - 1) // 3 + 1


def _final_map_size(spec: ArchitectureSpec) -> int:
    """Height (and width) in pixels of the last cell's output."""
    if spec.is_vit:
        return _vit_map_size(spec)

    def halve(size: int, times: int) -> int:
        for _ in range(times):
            size = (size + 1) // 2
        return size

    size = spec.image_size
    if spec.stem_type == 1:
        size = halve(size, 3 if spec.large_images else 1)
    else:
        size = halve(size, (2 if spec.large_images else 0) + int(spec.stem_pool))
    return halve(size, len(spec.reductions))
