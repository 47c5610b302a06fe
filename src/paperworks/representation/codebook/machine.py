"""Sequences whose hidden states are known, and how far two predictions lie apart."""

from __future__ import annotations

import torch
from torch import Tensor


class FiniteStateMachine:
    """A random walk over states that are written as digits: text with a hidden state to be found.

    Each of N states has E distinct successors, drawn at random, and goes to each with probability
    1/E. A state is written as so many digits as its largest number needs, the first state is
    uniform, and every sequence starts with a token of its own, number `base`. A model that reads
    the digits must know which state they are to tell the next ones: 1/E of guesses at random among
    all states would be legal by chance E/N. arXiv 2310.17230, section 3 (TokFSM).

    Args:
        n_states: N.
        n_edges: E, at most N.
        base: of the digits, 2 or more.
        generator: a CPU generator, for the successors; without one, the same machine every time.

    Attributes:
        successors: LongTensor (N, E).
        digits: digits of a state.
        vocab_size: base + 1.

    Raises:
        ValueError: a size that is no integer or out of range.

    >>> machine = FiniteStateMachine(n_states=64, n_edges=6, base=8)
    >>> states = machine.sample(100, length=8)
    >>> tokens = machine.encode(states)
    >>> tokens.shape, machine.legal_fraction(tokens)
    (torch.Size([100, 17]), 1.0)
    """

    def __init__(
        self,
        n_states: int = 100,
        n_edges: int = 10,
        base: int = 10,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = (("n_states", n_states, 1), ("n_edges", n_edges, 1), ("base", base, 2))
        for name, size, least in sizes:
            if isinstance(size, bool) or not isinstance(size, int) or size < least:
                raise ValueError(f"{name} must be an integer from {least}, got {size!r}")
        if n_edges > n_states:
            raise ValueError(f"n_edges must be at most n_states {n_states}, got {n_edges}")
        self.n_states, self.n_edges, self.base = n_states, n_edges, base
        self.digits = 1
        while base**self.digits < n_states:
            self.digits += 1
        generator = generator or torch.Generator().manual_seed(0)
        ranks = torch.rand(n_states, n_states, generator=generator)
        self.successors = ranks.argsort(1)[:, :n_edges].clone()

    @property
    def vocab_size(self) -> int:
        return self.base + 1

    def sample(self, n: int, length: int, generator: torch.Generator | None = None) -> Tensor:
        """n walks of so many states: LongTensor (n, length).

        Args:
            n: walks.
            length: states of each.
            generator: a CPU generator; without one, the same walks every time.
        """
        generator = generator or torch.Generator().manual_seed(0)
        edges = torch.randint(self.n_edges, (n, length), generator=generator)
        states = torch.empty(n, length, dtype=torch.long)
        states[:, 0] = torch.randint(self.n_states, (n,), generator=generator)
        for t in range(1, length):
            states[:, t] = self.successors[states[:, t - 1], edges[:, t]]
        return states

    def encode(self, states: Tensor) -> Tensor:
        """Tokens (..., 1 + digits · length) of states (..., length), the highest digit first."""
        powers = self.base ** torch.arange(self.digits - 1, -1, -1, device=states.device)
        digits = (states.unsqueeze(-1) // powers % self.base).flatten(-2)
        start = torch.full_like(digits[..., :1], self.base)
        return torch.cat([start, digits], -1)

    def decode(self, tokens: Tensor) -> Tensor:
        """States (..., length) of tokens (..., 1 + digits · length); -1 where digits say none.

        A last state that was cut off is left out.
        """
        whole = (tokens.shape[-1] - 1) // self.digits * self.digits
        digits = tokens[..., 1 : 1 + whole].unflatten(-1, (-1, self.digits))
        powers = self.base ** torch.arange(self.digits - 1, -1, -1, device=tokens.device)
        states = (digits * powers).sum(-1)
        bad = (digits >= self.base).any(-1) | (states >= self.n_states)
        return states.masked_fill(bad, -1)

    def legal_fraction(self, tokens: Tensor) -> float:
        """The share of transitions that the machine can make.

        Args:
            tokens: (..., length), as `encode` gives them, of at least two states.

        Raises:
            ValueError: fewer than two states.
        """
        states = self.decode(tokens)
        if states.shape[-1] < 2:
            raise ValueError(
                f"two states need {1 + 2 * self.digits} tokens, got {tokens.shape[-1]}"
            )
        before, after = states[..., :-1], states[..., 1:].unsqueeze(-1)
        legal = (self.successors.to(tokens.device)[before] == after).any(-1)
        return (legal & (before >= 0)).double().mean().item()

    def next_digit(self, states: Tensor) -> Tensor:
        """Probabilities of the digit that follows each state: (..., base)."""
        first = self.successors // self.base ** (self.digits - 1)
        counts = torch.zeros(self.n_states, self.base)
        counts.scatter_add_(1, first, torch.ones(first.shape))
        return (counts / self.n_edges)[states]


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions, in nats: 0 for equal, ln 2 for disjoint ones.

        JSD(p, q) = (KL(p ‖ m) + KL(q ‖ m)) / 2,   m = (p + q) / 2

    Args:
        p, q: probabilities over the last dimension, of shapes that broadcast.

    Returns:
        One number for each distribution.

    Raises:
        ValueError: the last dimensions differ.

    >>> js_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(0.6931)
    """
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(f"p and q must be over equally many outcomes, got {p.shape} and {q.shape}")
    m = (p + q) / 2
    terms = torch.xlogy(p, p) + torch.xlogy(q, q) - 2 * torch.xlogy(m, m)
    return terms.sum(-1).clamp(min=0) / 2
