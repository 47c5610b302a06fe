"""The two policies and how they learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from paperworks.compress.n2n.children import TYPE, check_ratios

PAPER_RATIOS = tuple(i / 10 for i in range(1, 11))
"""Tenths, as in the paper (from memory)."""
CODE_RATIOS = (0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""As the authors' code has them: five of eleven actions are one half."""
FORCED = -1
"""The action where there is no choice."""


class RemovalPolicy(nn.Module):
    """Which layers to keep: a bidirectional LSTM over the layers, one choice a layer.

    `pi(a_t | s) = softmax(A h_t + c)` with `h_t` the two directions' last hidden states at layer t.
    Ashok et al. 2018, arXiv 1709.06030, stage 1. Its weights do not depend on the number of layers:
    one that was trained on a small teacher can start the search on a large one.

    Args:
        hidden: width of the LSTM, each direction.
        layers: its depth.
        skips: whether descriptions have the two columns of skips.

    >>> from paperworks.compress import describe_layers
    >>> policy = RemovalPolicy()
    >>> layers = describe_layers(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> actions, log_prob = policy.sample(layers, torch.tensor([False, True, False]), rollouts=7)
    >>> actions.shape, log_prob.shape, set(actions[:, 0].tolist())
    (torch.Size([7, 3]), torch.Size([7]), {-1})
    """

    def __init__(self, hidden: int = 30, layers: int = 2, skips: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(7 if skips else 5, hidden, layers, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 2)

    def sample(
        self,
        layers: Tensor,
        free: Tensor,
        generator: torch.Generator | None = None,
        rollouts: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Draw what to do with each layer.

        Args:
            layers: from `describe_layers`, shape (L, 5) or (L, 7).
            free: bool, shape (L,): where there is a choice.
            generator: a source of random numbers. A fresh one with seed 0 by default.
            rollouts: K, how many to draw.

        Returns:
            actions, shape (K, L): 1 keep, 0 remove, -1 where there is no choice; and their
            log-probabilities, shape (K,), with a gradient. Forced layers add nothing to them.
        """
        _check_free(free, layers[:, 0])
        with torch.no_grad():
            probabilities = self._logits(layers).softmax(-1).expand(rollouts, -1, -1)
        actions = _drawn(probabilities, generator).masked_fill(~free, FORCED)
        return actions, self.log_prob(layers, actions)

    def log_prob(self, layers: Tensor, actions: Tensor) -> Tensor:
        """log pi of actions of shape (K, L) or (L,), summed over the layers with a choice."""
        logits = self._logits(layers)
        return _log_prob(logits.expand(*actions.shape, -1), actions).sum(-1)

    def _logits(self, layers: Tensor) -> Tensor:
        hidden, _ = self.lstm(layers.to(self.head.weight)[:, None])
        return self.head(hidden[:, 0])


class ShrinkagePolicy(nn.Module):
    """By how much to shrink: an LSTM over layers and, inside a layer, over its five attributes.

    After the ratio of an attribute is drawn, that entry of the layer's vector is multiplied by it
    before the next step (but for the type), so that later choices know of earlier ones. Ashok et
    al. 2018, arXiv 1709.06030, stage 2.

    Args:
        hidden, layers, skips: see `RemovalPolicy`.
        ratios: what an attribute can be multiplied by; actions are their indices.

    Raises:
        ValueError: ratios outside (0, 1].

    >>> from paperworks.compress import describe_layers
    >>> layers = describe_layers(nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU()))
    >>> free = torch.zeros(2, 5, dtype=torch.bool)
    >>> free[0, 3] = True  # the width of the convolution
    >>> actions, log_prob = ShrinkagePolicy().sample(layers, free, rollouts=4)
    >>> actions.shape, (actions >= 0).sum().item()
    (torch.Size([4, 2, 5]), 4)
    """

    def __init__(
        self,
        hidden: int = 30,
        layers: int = 2,
        skips: bool = False,
        ratios: Sequence[float] = PAPER_RATIOS,
    ) -> None:
        check_ratios(ratios)
        super().__init__()
        self.ratios = tuple(ratios)
        self.lstm = nn.LSTM(7 if skips else 5, hidden, layers)
        self.head = nn.Linear(hidden, len(ratios))

    def sample(
        self,
        layers: Tensor,
        free: Tensor,
        generator: torch.Generator | None = None,
        rollouts: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Draw a ratio for each attribute of each layer.

        Args:
            layers: from `describe_layers`, shape (L, 5) or (L, 7).
            free: bool, shape (L, 5): which attributes may change.
            generator, rollouts: see `RemovalPolicy.sample`.

        Returns:
            actions, shape (K, L, 5): indices of `ratios`, -1 where there is no choice; and their
            log-probabilities, shape (K,), with a gradient.
        """
        _check_free(free, layers[:, :5])
        generator = generator or torch.Generator().manual_seed(0)
        actions = torch.full((rollouts, *free.shape), FORCED)
        state = None
        with torch.no_grad():
            for layer, row in enumerate(layers.to(self.head.weight)):
                x = row.repeat(rollouts, 1)
                for j in range(5):
                    hidden, state = self.lstm(x[None], state)
                    if free[layer, j]:
                        probabilities = self.head(hidden[0]).softmax(-1)
                        actions[:, layer, j] = _drawn(probabilities, generator)
                        x = x * self._factors(actions[:, layer, j], j)
        return actions, self.log_prob(layers, actions)

    def log_prob(self, layers: Tensor, actions: Tensor) -> Tensor:
        """log pi of actions of shape (K, L, 5) or (L, 5), summed where there is a choice."""
        rows = layers.to(self.head.weight)
        rollouts = actions.reshape(-1, *actions.shape[-2:])
        factors = torch.stack([self._factors(rollouts[..., j], j) for j in range(5)], -2)
        factors = factors.cumprod(-2)  # after attribute j all entries up to j are multiplied
        before = torch.cat([torch.ones_like(factors[..., :1, :]), factors[..., :-1, :]], -2)
        sequence = (rows[:, None] * before).flatten(1, 2)  # (K, 5 L, columns)
        hidden, _ = self.lstm(sequence.transpose(0, 1))
        logits = self.head(hidden.transpose(0, 1))
        return _log_prob(logits, rollouts.flatten(1)).sum(-1).reshape(actions.shape[:-2])

    def _factors(self, actions: Tensor, j: int) -> Tensor:
        """What the columns of a layer's vector are multiplied by after attribute j is chosen."""
        table = torch.tensor([*self.ratios, 1.0]).to(self.head.weight)  # the last one is -1's
        factors = table.new_ones(*actions.shape, self.lstm.input_size)
        if j != TYPE:
            factors[..., j] = table[actions]
        return factors


class Reinforce:
    """REINFORCE: follow `mean_k log pi(a^k) (R_k - b)` upwards.

    The baseline b is the exponential moving average of the mean rewards of past iterations; in the
    first it is that iteration's own mean. Williams 1992; Ashok et al. 2018, arXiv 1709.06030.

    Args:
        policy: whose parameters learn, by Adam.
        lr: its rate.
        decay: of the moving average.
        credit: "rollout" rewards each rollout for itself; "batch_mean" gives each the mean of all,
            as the authors' code does, so that rollouts of an iteration are told apart no more.

    Raises:
        ValueError: an unknown credit, a decay outside [0, 1).

    >>> policy = RemovalPolicy()
    >>> reinforce = Reinforce(policy, lr=0.003)
    >>> layers, free = torch.ones(3, 5), torch.ones(3, dtype=torch.bool)
    >>> actions, log_prob = policy.sample(layers, free, rollouts=4)
    >>> reinforce.step(log_prob, rewards=actions.float().mean(1))  # for keeping layers
    """

    def __init__(
        self,
        policy: nn.Module,
        lr: float,
        decay: float = 0.9,
        credit: Literal["rollout", "batch_mean"] = "rollout",
    ) -> None:
        if credit not in ("rollout", "batch_mean"):
            raise ValueError(f"credit must be 'rollout' or 'batch_mean', got {credit!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}")
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
        self.decay, self.credit = decay, credit
        self.baseline: float | None = None

    def step(self, log_prob: Tensor, rewards: Tensor) -> None:
        """One step of the optimizer for K rollouts, both tensors of shape (K,)."""
        mean = rewards.mean()
        baseline = float(mean) if self.baseline is None else self.baseline
        self.baseline = self.decay * baseline + (1 - self.decay) * float(mean)
        if self.credit == "batch_mean":
            rewards = mean.expand_as(rewards)
        self.optimizer.zero_grad()
        if log_prob.requires_grad:  # not where everything was forced
            (-(log_prob * (rewards - baseline)).mean()).backward()
            self.optimizer.step()


def _drawn(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    generator = generator or torch.Generator().manual_seed(0)
    choices = probabilities.shape[-1]
    drawn = torch.multinomial(probabilities.reshape(-1, choices), 1, generator=generator)
    return drawn.reshape(probabilities.shape[:-1])


def _log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """The log-probability of each action, 0 of forced ones."""
    chosen = logits.log_softmax(-1).gather(-1, actions.clamp(min=0)[..., None])[..., 0]
    return chosen.masked_fill(actions == FORCED, 0.0)


def _check_free(free: Tensor, like: Tensor) -> None:
    if free.dtype != torch.bool or free.shape != like.shape:
        raise ValueError(
            f"free must be bool of shape {tuple(like.shape)}, got {free.dtype} of shape "
            f"{tuple(free.shape)}"
        )
