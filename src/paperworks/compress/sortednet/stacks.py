"""Stacks of blocks of which only the first may be active."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch import nn


class SortedStack(nn.Module):
    """What stacks have in common: whoever iterates or indexes sees the first blocks only."""

    _modules: dict[str, Any]
    active_blocks: int
    recorded: dict[int, Any] | None

    @classmethod
    def of(cls, stack: nn.Module) -> nn.Module:
        """The sorted stack of the same blocks, all of them active."""
        made: Any = cls.__new__(cls)
        made.__dict__.update(stack.__dict__)
        made.active_blocks = len(made._modules)
        made.recorded = None
        return made

    def blocks(self) -> dict[str, nn.Module]:
        """The active blocks by name."""
        return dict(islice(self._modules.items(), self.active_blocks))

    def shown(self) -> dict[str, nn.Module]:
        """The active blocks, or what stands in for them inside `recording`."""
        if self.recorded is not None and self.active_blocks in self.recorded:
            first = next(iter(self._modules.values()))
            return {"0": _Given(self.recorded[self.active_blocks], first)}
        return self.blocks()

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.shown().values())

    def __len__(self) -> int:
        return len(self.shown())

    def __getitem__(self, index: Any) -> Any:
        named = list(self.shown().items())[index]
        return self.plain(dict(named)) if isinstance(index, slice) else named[1]

    def plain(self, blocks: dict[str, nn.Module]) -> nn.Module:
        """An unsorted stack of these blocks."""
        raise NotImplementedError

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The first forward inside keeps what each block returns.

        Later ones at fewer blocks start behind the last of them.
        """
        self.recorded = {}
        kept = self.recorded
        handles = [
            block.register_forward_hook(
                lambda block, args, output, n=n: kept.__setitem__(n, output)
            )
            for n, block in enumerate(self.blocks().values(), start=1)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.recorded = None


class SortedSequential(SortedStack, nn.Sequential):
    """A chain of blocks that ends after the first `active_blocks`."""

    def plain(self, blocks: dict[str, nn.Module]) -> nn.Module:
        return nn.Sequential(OrderedDict(blocks))

    def forward(self, x: Any) -> Any:
        for block in self:
            x = block(x)
        return x


class SortedModuleList(SortedStack, nn.ModuleList):
    """A list of blocks of which the model that owns it sees the first `active_blocks`."""

    def plain(self, blocks: dict[str, nn.Module]) -> nn.Module:
        return nn.ModuleList(blocks.values())


class _Given(nn.Module):
    """A block that returns what is known already, whatever comes in."""

    def __init__(self, output: Any, block: nn.Module) -> None:
        super().__init__()
        self.known = (output, block)  # in a tuple, so that the block is no submodule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.known[0]

    def __getattr__(self, name: str) -> Any:
        """Models ask their blocks for an attention mask's kind and the like."""
        return getattr(self.known[1], name)
