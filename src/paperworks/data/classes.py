"""Which classes a part of a data set has, and how many samples of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from paperworks.data.datasets import MapSplit, Split, TextSplit

Part = TypeVar("Part", Split, MapSplit, TextSplit)


def take_per_class(part: Part, counts: Sequence[int], generator: torch.Generator) -> Part:
    """A random selection with so many samples of each class, classes in order.

    Args:
        part: what to select from; its targets are classes.
        counts: for class k how many samples to take, 0 leaves it out.
        generator: draws them.

    Raises:
        ValueError: the part has no classes, a count is negative, or larger than the class.

    >>> part = Split(torch.rand(6, 2), torch.tensor([0, 1, 0, 1, 1, 0]))
    >>> take_per_class(part, [1, 2], torch.Generator()).y
    tensor([0, 1, 1])
    """
    if part.y is None or part.y.dim() != 1 or part.y.is_floating_point():
        raise ValueError("part must have class labels y, integers of shape (N,)")
    order = torch.randperm(len(part), generator=generator, device=generator.device).cpu()
    labels = part.y.cpu()[order]
    chosen = []
    for label, count in enumerate(counts):
        of_class = order[labels == label]
        if not 0 <= count <= len(of_class):
            raise ValueError(f"counts[{label}] must be in 0..{len(of_class)}, got {count}")
        chosen.append(of_class[:count])
    return part[torch.cat(chosen)]
