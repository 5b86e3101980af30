"""Loops compiled with numba where it is installed; otherwise the same functions run as they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from numba import njit
except ImportError:  # pragma: no cover - every loop has a form that is quick without it
    njit = None

AVAILABLE = njit is not None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call (or read it from the cache on disk)."""
    return njit(cache=True, nogil=True, error_model="numpy")(function) if AVAILABLE else function
