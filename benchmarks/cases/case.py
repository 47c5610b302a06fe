"""What a case is, and what all of them use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Side = Callable[[], Any]
"""Prepares, and gives the function that is measured; that gives an array."""


@dataclass(frozen=True)
class Case:
    """One thing that ours and a peer do.

    Attributes:
        quality: says in a few words how our output compares with the peer's.
    """

    what: str
    peer: str
    sides: dict[str, Callable[[], Callable[[], Any]]]
    quality: Callable[[np.ndarray, np.ndarray], str]
    repeats: int = 3


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def largest_difference(ours: np.ndarray, peer: np.ndarray) -> str:
    return f"relative difference {np.abs(ours - peer).max() / np.abs(peer).max():.0e}"
