"""From what models know, and what tasks ask for, to vectors of one space."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pool = Literal["last", "states"]
Aggregate = Literal["lstm", "mean", "concat"]


class UnitEncoder(nn.Module):
    """An encoder whose vectors have length 1: o / ‖o‖ of what `embed` gives."""

    dim: int

    def embed(self, x: Tensor) -> Tensor:
        """o, (n, dim), before it is normalised."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.embed(x), dim=-1)


class ModelEncoder(UnitEncoder):
    """A vector for a model, from its knowledge M: rows to summaries, summaries to a vector.

        s_i = BiLSTM_i(M_i1, ..., M_iK),   o = LSTM(s_1, ..., s_K),   v = o / ‖o‖

    Each source class i has weights of its own. Initial states are zeros, in training too; the
    released code draws them anew on every call, in evaluation as well, so that no vector repeats.
    Its unused layers are left out. arXiv 2412.16251, retrieval; "mean" and "concat" are the
    released ablations, with a linear layer behind (our reading).

    Args:
        in_features: f, width of the reference encoder; 1,000 in the paper.
        num_classes: K; 4 in the paper.
        hidden: h, width of each direction.
        dim: width of v.
        aggregate: how v comes from s: "lstm", or a linear layer on their "mean" or "concat".
        pool: what is kept of a bidirectional LSTM: its output at the "last" step (the paper's), of
            which the backward half has seen one element only, or the final "states" of both
            directions.

    Shapes: input (n, K, K, f), as `probe_knowledge` draws; output (n, dim).

    Raises:
        ValueError: sizes that are no positive integers, an unknown choice, or another input.

    >>> encoder = ModelEncoder(32, num_classes=4, hidden=64, dim=16)
    >>> v = encoder(torch.rand(5, 4, 4, 32))
    >>> v.shape, bool((v.norm(dim=1) - 1).abs().max() < 1e-6)
    (torch.Size([5, 16]), True)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden: int = 500,
        dim: int = 256,
        aggregate: Aggregate = "lstm",
        pool: Pool = "last",
    ) -> None:
        check_sizes(in_features=in_features, num_classes=num_classes, hidden=hidden, dim=dim)
        _check_choice("aggregate", aggregate, ("lstm", "mean", "concat"))
        _check_choice("pool", pool, ("last", "states"))
        super().__init__()
        self.in_features, self.num_classes, self.hidden = in_features, num_classes, hidden
        self.dim, self.aggregate, self.pool = dim, aggregate, pool
        self.rows = nn.ModuleList(_bilstm(in_features, hidden) for _ in range(num_classes))
        self.head = (
            nn.LSTM(2 * hidden, dim, batch_first=True)
            if aggregate == "lstm"
            else nn.Linear(2 * hidden * (num_classes if aggregate == "concat" else 1), dim)
        )

    def embed(self, x: Tensor) -> Tensor:
        check_input(x, (self.num_classes, self.num_classes, self.in_features))
        rows = zip(self.rows, x.unbind(1), strict=True)
        s = torch.stack([pooled(lstm, row, self.pool) for lstm, row in rows], 1)
        if self.aggregate == "lstm":
            o: Tensor = self.head(s)[0][:, -1]
            return o
        o = self.head(s.mean(1) if self.aggregate == "mean" else s.flatten(1))
        return o

    def extra_repr(self) -> str:
        return f"aggregate={self.aggregate!r}, pool={self.pool!r}"


class QueryEncoder(UnitEncoder):
    """A vector for a task, from the mean vectors of its classes.

        u = W BiLSTM(q_1, ..., q_K) + b, normalised to length 1

    About initial states and `pool` see `ModelEncoder`. arXiv 2412.16251, retrieval.

    Args:
        in_features: f, width of the reference encoder.
        hidden: width of each direction.
        dim: width of u, that of the models' vectors.
        pool: "last" or "states".

    Shapes: input (n, K, f), as `query_knowledge` gives for one task; output (n, dim).

    Raises:
        ValueError: sizes that are no positive integers, an unknown choice, or another input.

    >>> QueryEncoder(32, hidden=64, dim=16)(torch.rand(5, 4, 32)).shape
    torch.Size([5, 16])
    """

    def __init__(
        self, in_features: int, hidden: int = 1000, dim: int = 256, pool: Pool = "last"
    ) -> None:
        check_sizes(in_features=in_features, hidden=hidden, dim=dim)
        _check_choice("pool", pool, ("last", "states"))
        super().__init__()
        self.in_features, self.hidden, self.dim, self.pool = in_features, hidden, dim, pool
        self.lstm = _bilstm(in_features, hidden)
        self.head = nn.Linear(2 * hidden, dim)

    def embed(self, x: Tensor) -> Tensor:
        check_input(x, (None, self.in_features))
        u: Tensor = self.head(pooled(self.lstm, x, self.pool))
        return u

    def extra_repr(self) -> str:
        return f"pool={self.pool!r}"


class TaskClassifier(nn.Sequential):
    """Which task a model or a query is of, from its o: Linear-LeakyReLU-Linear.

    Beside the ranking loss it is trained on the models' o, so that models of a task stay together.
    arXiv 2412.16251.

    >>> sum(p.numel() for p in TaskClassifier(256, num_tasks=58).parameters())
    40378
    """

    def __init__(self, dim: int, num_tasks: int, hidden: int = 128) -> None:
        check_sizes(dim=dim, num_tasks=num_tasks, hidden=hidden)
        super().__init__(nn.Linear(dim, hidden), nn.LeakyReLU(), nn.Linear(hidden, num_tasks))


def pooled(lstm: nn.LSTM | nn.Module, x: Tensor, pool: Pool) -> Tensor:
    """What is kept of a bidirectional LSTM's outputs, (n, 2h)."""
    outputs, (states, _) = lstm(x)
    last: Tensor = outputs[:, -1]
    return last if pool == "last" else torch.cat([states[-2], states[-1]], 1)


def check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_input(x: Tensor, sizes: tuple[int | None, ...]) -> None:
    """Raise unless x is (n, *sizes); None stands for any size."""
    fits = x.dim() == len(sizes) + 1 and all(
        want in (None, got) for want, got in zip(sizes, x.shape[1:])
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(f"input must have shape (n, {wanted}), got {tuple(x.shape)}")


def _bilstm(in_features: int, hidden: int) -> nn.LSTM:
    return nn.LSTM(in_features, hidden, batch_first=True, bidirectional=True)


def _check_choice(name: str, given: str, valid: tuple[str, ...]) -> None:
    if given not in valid:
        raise ValueError(f"{name} must be one of {', '.join(valid)}, got {given!r}")
