"""What `load` returns: a data set and its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from paperworks.data.listing import digest


@dataclass(eq=False)
class Split:
    """One part of a data set, held in memory.

    A slice or a LongTensor selects a `Split` again, and the `ids` go along, so that a sample can be
    recognised in whatever selection it appears; an integer gives one sample `(x, y)`.

    Args:
        x: inputs, shape (N, ...).
        y: targets, shape (N, ...): int64 for classes, floating point for regression; None without.
        ids: position of each sample in its source, LongTensor (N,); 0..N-1 by default.

    Raises:
        ValueError: x, y and ids differ in length.

    >>> part = Split(torch.rand(5, 3), torch.arange(5))
    >>> few = part[torch.tensor([4, 1])]
    >>> len(few), few.ids.tolist()
    (2, [4, 1])
    """

    x: Tensor
    y: Tensor | None = None
    ids: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.ids is None:
            self.ids = torch.arange(len(self.x))
        _check_lengths(len(self.x), y=self.y, ids=self.ids)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int | slice | Tensor) -> Any:
        if isinstance(index, int):
            return self.x[index], None if self.y is None else self.y[index]
        return Split(_take(self.x, index), _take(self.y, index), _take(self.ids, index))

    def to(self, *args: Any, **kwargs: Any) -> Split:
        """The same part on a device or in a dtype, arguments as for `torch.nn.Module.to`.

        A dtype applies to floating-point values only: class labels stay what they are.
        """
        return replace(self, x=_move(self.x, *args, **kwargs), y=_move(self.y, *args, **kwargs))

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Inputs and targets."""
        return self.x, self.y


@dataclass(eq=False)
class MapSplit:
    """One part of a data set whose inputs are decoded when they are asked for.

    An integer gives one sample `(x, y)`; a slice or a LongTensor selects a `MapSplit` and decodes
    nothing; `.tensors()` decodes all of it. It serves as a data set of a torch `DataLoader` too.

    Args:
        decode: turns a position in the source into an input, a tensor of one shape for all.
        ids: position of each sample in the source, LongTensor (N,).
        y: targets of these samples, shape (N, ...), or None.

    Raises:
        ValueError: ids and y differ in length.

    >>> part = MapSplit(lambda i: torch.full((2,), float(i)), torch.tensor([7, 3]))
    >>> part[0]
    (tensor([7., 7.]), None)
    >>> part[1:].tensors()
    (tensor([[3., 3.]]), None)
    """

    decode: Callable[[int], Tensor]
    ids: Tensor
    y: Tensor | None = None

    def __post_init__(self) -> None:
        _check_lengths(len(self.ids), y=self.y)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | slice | Tensor) -> Any:
        if isinstance(index, int):
            return self.decode(int(self.ids[index])), None if self.y is None else self.y[index]
        return replace(self, ids=_take(self.ids, index), y=_take(self.y, index))

    def to(self, *args: Any, **kwargs: Any) -> MapSplit:
        """The same part whose samples come on a device or in a dtype, as for `Split.to`."""
        decode = partial(_decode_to, self.decode, args, kwargs)
        return replace(self, decode=decode, y=_move(self.y, *args, **kwargs))

    def tensors(self, limit: int = 2**31) -> tuple[Tensor, Tensor | None]:
        """Inputs and targets, all decoded.

        Args:
            limit: how many bytes the inputs may fill.

        Raises:
            ValueError: the part is empty, or its inputs would fill more than `limit`.
        """
        if not len(self):
            raise ValueError("this part is empty: there is nothing to decode")
        first = self.decode(int(self.ids[0]))
        size = len(self) * first.numel() * first.element_size()
        if size > limit:
            raise ValueError(
                f"{len(self):,} samples of shape {tuple(first.shape)} would fill "
                f"{size / 2**30:.1f} GiB, the limit is {limit / 2**30:.1f} GiB: go through "
                "`batches`, select fewer samples (`sizes=`), or raise `limit`"
            )
        x = first.new_empty((len(self), *first.shape))
        x[0] = first
        for row, position in enumerate(self.ids[1:].tolist(), start=1):
            x[row] = self.decode(position)
        return x, self.y


@dataclass(eq=False)
class TextSplit:
    """One part of a data set of texts, in the order of the source.

    An integer gives one sample `(text, y)`, a slice or a LongTensor selects a `TextSplit`.

    Args:
        texts: one string a sample.
        ids: position of each sample in the source, LongTensor (N,).
        y: targets, shape (N,), or None.

    Raises:
        ValueError: texts, ids and y differ in length.

    >>> part = TextSplit(["a", "b", "c"], torch.arange(3))
    >>> part[1:].texts
    ['b', 'c']
    """

    texts: Sequence[str]
    ids: Tensor
    y: Tensor | None = None

    def __post_init__(self) -> None:
        _check_lengths(len(self.texts), ids=self.ids, y=self.y)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int | slice | Tensor) -> Any:
        if isinstance(index, int):
            return self.texts[index], None if self.y is None else self.y[index]
        rows = _take(torch.arange(len(self)), index).tolist()
        texts = [self.texts[row] for row in rows]
        return TextSplit(texts, _take(self.ids, index), _take(self.y, index))


@dataclass(eq=False)
class DataSet:
    """A data set and where it comes from.

    Args:
        name: what `load` was given.
        kind: "image", "table", "text" or "graph".
        train, val, test: the parts, each a `Split`, `MapSplit` or `TextSplit`; None for a part
            without samples. For a graph the three are one object with masks.
        classes: names of the classes in the order of their numbers; empty without classes.
        licence: under which terms the data may be used, as far as it is known.
    """

    name: str
    kind: str
    train: Any
    val: Any = None
    test: Any = None
    classes: Sequence[str] = ()
    licence: str = "unknown"

    @classmethod
    def from_whole(
        cls,
        name: str,
        kind: str,
        whole: Split | MapSplit | TextSplit,
        parts: Sequence[Tensor],
        classes: Sequence[str] = (),
        licence: str = "unknown",
    ) -> DataSet:
        """A data set whose parts are selected from a whole by three LongTensors of positions."""
        train, val, test = (whole[part] if len(part) else None for part in parts)
        return cls(name, kind, train, val, test, classes, licence)

    @cached_property
    def digest(self) -> str:
        """What identifies the content: see `Accepts.digest`."""
        return digest(self.name)


def _check_lengths(n: int, **values: Tensor | None) -> None:
    for name, value in values.items():
        if value is not None and len(value) != n:
            raise ValueError(f"{name} has {len(value)} entries for {n} samples")


def _take(values: Tensor | None, index: slice | Tensor) -> Any:
    if not isinstance(index, slice | Tensor):
        raise TypeError(f"index must be an int, a slice or a tensor, got {type(index).__name__}")
    if values is None:
        return None
    return values[index if isinstance(index, slice) else index.to(values.device)]


def _move(values: Tensor | None, *args: Any, **kwargs: Any) -> Any:
    if values is None or values.is_floating_point():
        return values if values is None else values.to(*args, **kwargs)
    return values.to(torch.empty(0, device=values.device).to(*args, **kwargs).device)


def _decode_to(
    decode: Callable[[int], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], position: int
) -> Tensor:
    return _move(decode(position), *args, **kwargs)
