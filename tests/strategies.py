"""Random architectures for property-based tests."""

from __future__ import annotations

from hypothesis import strategies as st

from ghn import Architecture, sample_architectures
from ghn.space import SAMPLED_SPLITS


@st.composite
def architectures(draw: st.DrawFn, splits: tuple[str, ...] = SAMPLED_SPLITS, image_size: int = 16) -> Architecture:
    """Draw an architecture of a split, with narrow layers."""
    split = draw(st.sampled_from(splits))
    index = draw(st.integers(0, 10_000))
    return sample_architectures(split, 1, 7, image_size=image_size, channels=(8, 16), fc_dims=(32,), start=index)[0]
