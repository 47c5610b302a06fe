"""Random numbers of code that only knows torch's global generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def following(generator: torch.Generator | None) -> Iterator[None]:
    """Inside, torch's global generator follows this one; afterwards it is as it was before.

    For initial weights and `torch.distributions`, which take no generator of their own. One number
    of `generator` is used.

    Args:
        generator: of any device; with None the global generator goes on as ever.

    >>> with following(torch.Generator().manual_seed(0)):
    ...     first = torch.nn.Linear(2, 2).weight
    >>> with following(torch.Generator().manual_seed(0)):
    ...     torch.equal(torch.nn.Linear(2, 2).weight, first)
    True
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        yield
