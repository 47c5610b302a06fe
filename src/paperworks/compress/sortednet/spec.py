"""Which sub-models a sorted network has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Size = int | float
Config = dict[str, Size]
"""One sub-model: a size for each dimension."""

DIMENSIONS = ("width", "hidden", "depth", "heads")


@dataclass(frozen=True)
class SortedSpec:
    """The sub-models B of a sorted network: every combination of the sizes of its dimensions.

    A sub-model b takes the first b_t units of each dimension t, so that one is inside another when
    none of its sizes is larger.

    Args:
        dims: for each dimension its sizes, increasing. The largest is the whole network: give
            counts up to what it has, or fractions up to 1.0. Dimensions are
            "width", the channels of all layers, each in proportion to its own;
            "hidden", the channels that stay inside one block, which "width" then leaves alone;
            "depth", the number of blocks;
            "heads", the attention heads of each layer.

    Attributes:
        configs: B, the largest sub-model last.
        size: |B|.
        smallest, largest: the ends of B.

    Raises:
        ValueError: no dimension, an unknown one, no size, a size that is not positive, sizes that
            are not increasing.

    >>> spec = SortedSpec({"width": [32, 64], "depth": [1, 2]})
    >>> spec.size, spec.smallest, spec.largest
    (4, {'width': 32, 'depth': 1}, {'width': 64, 'depth': 2})
    """

    dims: Mapping[str, Sequence[Size]]

    def __post_init__(self) -> None:
        if not self.dims:
            raise ValueError("dims must name at least one dimension, got none")
        for name, sizes in self.dims.items():
            if name not in DIMENSIONS:
                raise ValueError(f"dims must be among {', '.join(DIMENSIONS)}, got {name!r}")
            if not len(sizes) or not all(_is_size(size) for size in sizes):
                raise ValueError(f"sizes of {name!r} must be positive numbers, got {list(sizes)}")
            if any(a >= b for a, b in itertools.pairwise(sizes)):
                raise ValueError(f"sizes must be increasing, got {name!r}: {list(sizes)}")
        object.__setattr__(self, "dims", {name: tuple(s) for name, s in self.dims.items()})

    @property
    def configs(self) -> list[Config]:
        return [dict(zip(self.dims, sizes)) for sizes in itertools.product(*self.dims.values())]

    @property
    def size(self) -> int:
        return math.prod(map(len, self.dims.values()))

    @property
    def smallest(self) -> Config:
        return {name: sizes[0] for name, sizes in self.dims.items()}

    @property
    def largest(self) -> Config:
        return {name: sizes[-1] for name, sizes in self.dims.items()}

    def check(self, b: Mapping[str, Size]) -> None:
        """Raise `ValueError` unless b is one of the sub-models."""
        if not isinstance(b, Mapping):
            raise TypeError(f"b must map dimensions to sizes, like {self.largest}, got {b!r}")
        if set(b) != set(self.dims) or any(b[name] not in self.dims[name] for name in b):
            raise ValueError(f"config not in spec: {dict(b)}; sizes are {dict(self.dims)}")


def _is_size(size: Any) -> bool:
    number = isinstance(size, int | float) and not isinstance(size, bool)
    return number and math.isfinite(size) and size > 0
