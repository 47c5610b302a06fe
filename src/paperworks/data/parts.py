"""Cutting a source into training, validation and test parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

PARTS = ("train", "val", "test")
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
"""How a source in one piece is shared out by default."""

Cut = Callable[..., list[Tensor]]
"""`cut` with its sizes and generator filled in: what a loader is handed."""


def cut(
    counts: Mapping[str, int],
    y: Tensor | None = None,
    *,
    sizes: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Positions of the training, validation and test samples, drawn at random.

    A part that the source brings is drawn from there, a part that it lacks from the source's
    training part; none overlap. With class labels the draw is stratified: every part, and every
    prefix of a part, holds the classes in the proportions of where it is drawn (up to rounding).

    Args:
        counts: how many samples of each part the source has, in the order of their positions;
            only "train" for a source in one piece.
        y: targets (n,); integers are taken for classes.
        sizes: for training, validation and test three counts (integers), or three shares (floats)
            of where each is drawn. By default 10 % for validation and 20 % for test where the
            source lacks them, and all of what it has.
        generator: a source of random numbers; without one, the same split is drawn every time.

    Raises:
        ValueError: sizes are not three counts or shares, ask for more than there is, or leave
            nothing for training.

    >>> [len(part) for part in cut({"train": 10}, sizes=(6, 1, 3))]
    [6, 1, 3]
    >>> [part.tolist() for part in cut({"train": 2, "test": 1}, sizes=(0.5, 0.5, 1.0))]
    [[0], [1], [2]]
    """
    if sizes is not None:
        sizes = _checked(sizes)
    generator = generator or torch.Generator().manual_seed(0)
    parts: dict[str, Tensor] = {}
    pools = torch.arange(sum(counts.values())).split(list(counts.values()))
    for name, pool in zip(counts, pools):
        drawn = [p for p in PARTS if p == name or (name == "train" and p not in counts)]
        taken = _sizes(name, len(pool), drawn, sizes)
        order = pool[_order(len(pool), None if y is None else y[pool], generator)]
        parts.update(zip(drawn, order[: sum(taken)].split(taken)))
    if not len(parts["train"]):
        raise ValueError(f"sizes {sizes} leave nothing of {counts['train']} samples for training")
    return [parts[part] for part in PARTS]


def _checked(sizes: Sequence[float]) -> tuple[float, ...]:
    sizes = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
    shares = any(isinstance(size, float) for size in sizes)
    if (
        len(sizes) != len(PARTS)
        or any(isinstance(s, bool) or not isinstance(s, int | float) for s in sizes)
        or not all(size >= 0 for size in sizes)
        or (shares and any(size > 1 for size in sizes))
    ):
        raise ValueError(
            f"sizes must be three counts or three shares in [0, 1] (train, val, test), got {sizes}"
        )
    return tuple(map(float, sizes)) if shares else sizes


def _sizes(name: str, n: int, drawn: list[str], sizes: Sequence[float] | None) -> list[int]:
    """How many of the n samples of the source's part `name` go to each of the parts `drawn`."""
    if sizes is None:
        wanted = {part: SHARES[part] for part in drawn if part != name}
        wanted[name] = 1.0 - sum(wanted.values())
    else:
        wanted = {part: size for part, size in zip(PARTS, sizes) if part in drawn}
    if isinstance(wanted[name], float):
        # the nudge makes 0.29 * 100 the 29 that it means
        taken = {part: int(share * n + 1e-9) for part, share in wanted.items()}
        if abs(sum(wanted.values()) - 1) < 1e-9:
            taken[name] += n - sum(taken.values())
    else:
        taken = {part: int(size) for part, size in wanted.items()}
    if sum(taken.values()) > n:
        raise ValueError(f"sizes {sizes} ask for {sum(taken.values())} samples of {n}")
    return [taken[part] for part in drawn]


def _order(n: int, y: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random order; with class labels one in which every stretch is stratified.

    The j-th sample of a class of m gets the place (j + U) / m, U uniform on [0, 1): sorting by
    place spreads each class evenly.
    """
    shuffled = torch.randperm(n, generator=generator)
    if y is None or y.is_floating_point():
        return shuffled
    by_class = shuffled[y[shuffled].argsort(stable=True)]
    m = torch.unique_consecutive(y[by_class], return_counts=True)[1]
    j = torch.arange(n) - (m.cumsum(0) - m).repeat_interleave(m)
    place = (j + torch.rand(n, generator=generator, dtype=torch.float64)) / m.repeat_interleave(m)
    return by_class[place.argsort()]
