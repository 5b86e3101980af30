"""Loops compiled with numba, at their first call or from the cache on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled for the types that it is called with."""
    loop: Callable[..., Any] = njit(cache=True, nogil=True, error_model="numpy")(function)
    return loop
