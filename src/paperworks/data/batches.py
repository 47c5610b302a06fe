"""Batches of a part, in an order drawn from a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from paperworks.data.datasets import MapSplit, Split

Augment = Callable[[Tensor, torch.Generator], Tensor]


def batches(
    part: Split | MapSplit,
    size: int,
    generator: torch.Generator,
    *,
    replace: bool = False,
    drop_last: bool = False,
    augment: Augment | None = None,
) -> Batches:
    """Mini-batches `(x, y)` of a part; each iteration is one epoch in a fresh order.

    Args:
        part: a `Split`, or a `MapSplit`, of which only the batch at hand is decoded.
        size: samples in a batch.
        generator: draws the order and what `augment` asks for; it advances.
        replace: draw each batch with replacement from the whole part, without end.
        drop_last: leave out the last batch of an epoch when it is smaller than `size`.
        augment: `augment(x, generator) -> x`, applied to the inputs of a batch.

    Returns:
        An iterable that may be iterated again; `len` counts the batches of an epoch.

    Raises:
        ValueError: size is not positive, the part is empty, or `drop_last` leaves no batch.
        TypeError: the part is neither a `Split` nor a `MapSplit`.

    >>> generator = torch.Generator().manual_seed(0)
    >>> epoch = batches(Split(torch.arange(5.0)), 2, generator)
    >>> [len(x) for x, y in epoch], len(epoch)
    ([2, 2, 1], 3)
    """
    if not isinstance(part, Split | MapSplit):
        raise TypeError(f"part must be a Split or a MapSplit, got {type(part).__name__}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a positive integer, got {size!r}")
    if len(part) < (size if drop_last and not replace else 1):
        raise ValueError(f"no batch of {size} to be had from {len(part)} samples")
    return Batches(part, size, generator, replace, drop_last, augment)


class Batches:
    """An iterable of batches; `batches` makes it and says what its arguments mean."""

    def __init__(
        self,
        part: Split | MapSplit,
        size: int,
        generator: torch.Generator,
        replace: bool,
        drop_last: bool,
        augment: Augment | None,
    ) -> None:
        self.part = part
        self.size = size
        self.generator = generator
        self.replace = replace
        self.drop_last = drop_last
        self.augment = augment

    def __len__(self) -> int:
        if self.replace:
            raise TypeError("batches drawn with replacement have no end, and so no length")
        whole, rest = divmod(len(self.part), self.size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for index in self._draws() if self.replace else self._epoch():
            x, y = self.part[index].tensors()
            yield (x if self.augment is None else self.augment(x, self.generator)), y

    def _epoch(self) -> Iterator[Tensor]:
        g = self.generator
        order = torch.randperm(len(self.part), generator=g, device=g.device)
        yield from order.split(self.size)[: len(self)]

    def _draws(self) -> Iterator[Tensor]:
        g = self.generator
        while True:
            yield torch.randint(len(self.part), (self.size,), generator=g, device=g.device)
