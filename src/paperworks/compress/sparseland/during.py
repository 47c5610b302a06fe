"""Sparsity that changes during training, and what such a training costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from paperworks.common.activations import Batch
from paperworks.compress.cost import layer_macs, macs
from paperworks.compress.sparseland.densities import check_count, check_density
from paperworks.compress.sparseland.masks import Density, Masks, largest, make_masks


@dataclass(frozen=True)
class Phase:
    """Steps of training at one set of densities; `training_macs` adds them up.

    Args:
        steps: how many.
        densities: kept fraction of each masked parameter by name.
        dense_gradient: whether these steps need the gradient of dropped weights, too.
    """

    steps: int
    densities: Mapping[str, float]
    dense_gradient: bool = False


class GradualPruning:
    """Dense-to-sparse training: prunes the smallest magnitudes bit by bit, fast at first.

    The sparsity at step t is, between the steps t0 and t1,

        `s_t = s_f - (s_f - s_0) * (1 - (t - t0) / (t1 - t0))^3`

    Zhu and Gupta 2017, arXiv 1710.01878 (GMP). Call `step()` after each step of the optimizer.

    Args:
        masks: attached to the optimizer; their density now is `1 - s_0`.
        optimizer: whose momenta of pruned weights are cleared.
        density: `1 - s_f`, for all layers or one for each by name.
        stop: t1, the step that prunes last.
        start: t0.
        every: steps from one pruning to the next.
        scope: "global" ranks all layers together, "layer" prunes each to `density`.

    Attributes:
        history: what was trained at which densities, for `training_macs`.

    Raises:
        ValueError: a density outside (0, 1] or above that of the masks, steps out of order, a
            count that is no positive integer, or as `make_masks`.

    >>> model = nn.Sequential(nn.Linear(10, 10))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> masks = Masks(model)
    >>> handle, pruning = masks.attach(optimizer), GradualPruning(masks, optimizer, 0.1, stop=4)
    >>> for _ in range(4):
    ...     model(torch.ones(1, 10)).sum().backward()
    ...     optimizer.step()
    ...     changed = pruning.step()
    >>> round(masks.density(), 2)
    0.1
    """

    def __init__(
        self,
        masks: Masks,
        optimizer: Optimizer,
        density: Density,
        *,
        stop: int,
        start: int = 0,
        every: int = 1,
        scope: Literal["layer", "global"] = "global",
    ) -> None:
        check_count(every=every, stop=stop)
        if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < stop:
            raise ValueError(f"start must be an integer in [0, stop={stop}), got {start!r}")
        by_layer = isinstance(density, Mapping)
        final = dict(density) if isinstance(density, Mapping) else {"density": density}
        initial = masks.densities() if by_layer else {"density": masks.density()}
        for name, value in final.items():
            check_density(value, name)
            if value > initial.get(name, 1.0) + 1e-12:
                raise ValueError(f"{name} {value:g} is above that of masks, {initial[name]:g}")
        if by_layer and (scope == "global" or final.keys() != masks.keys()):
            raise ValueError("densities by layer need scope='layer' and one for each mask")
        self.masks, self.optimizer, self.scope = masks, optimizer, scope
        self.start, self.stop, self.every = start, stop, every
        self._initial, self._final, self._by_layer = initial, final, by_layer
        self._history = _History(masks)

    @property
    def history(self) -> list[Phase]:
        return self._history.phases

    def density(self, step: int) -> Density:
        """`1 - s_t`, for all layers or by name."""
        past = min(max(step - self.start, 0) / (self.stop - self.start), 1.0)
        at = {
            name: final + (self._initial[name] - final) * (1 - past) ** 3
            for name, final in self._final.items()
        }
        return at if self._by_layer else at["density"]

    def step(self) -> bool:
        """To be called after the optimizer's step; True when weights were pruned."""
        self._history.add()
        t = self._history.steps
        due = (t - self.start) % self.every == 0 or t == self.stop
        if not (self.start < t <= self.stop and due):
            return False
        ranked = {
            name: weight.detach().abs().masked_fill(~self.masks[name], -math.inf)
            for name, weight in self.masks.parameters.items()
        }
        self.masks.assign(make_masks(ranked, self.density(t), self.scope))
        self.masks.apply()
        self.masks.apply_to_state(self.optimizer)
        return True


class DynamicSparsity:
    """Sparse-to-sparse training: drops and grows as many weights of each layer, again and again.

    Every `every` steps until `T_end = stop * total_steps`, in each layer, the fraction

        `zeta_t = alpha / 2 * (1 + cos(pi * t / T_end))`

    of kept weights that has the smallest magnitudes is dropped (rounded down), and as many grow
    among all that are then dropped: those of largest gradient (RigL, Evci et al. 2020, arXiv
    1911.11134), or any (SET, Mocanu et al. 2018, arXiv 1707.04780). New weights start at zero with
    zero momentum; one dropped just now may come back as it was. Counts never change.

    Call `step()` after the backward pass and before the optimizer's step; with `nets.fit` it is an
    `after_backward`. Several backward passes a step should leave the mean gradient.

    Args:
        masks: attached to the optimizer (`masks.attach`); usually random ones of "erk" densities.
        optimizer: whose momenta of dropped weights are cleared.
        growth: "gradient" (RigL) or "random" (SET).
        alpha: the fraction at first.
        every: steps from one change to the next.
        stop: share of training after which the masks stay.
        total_steps: of training.
        skip_step: whether a change of masks takes the place of the optimizer's step, as in RigL's
            code; otherwise that step is taken with the new masks (ours; the ITOP code, arXiv
            2102.02887, takes it with the old ones).
        generator: for "random"; a fresh one with seed 0 by default.

    Attributes:
        history: what was trained at which densities, for `training_macs`.

    Raises:
        ValueError: an unknown growth, alpha or stop outside their ranges, a count that is no
            positive integer; at a step: a missing gradient.

    Liu and Wang 2023, arXiv 2302.02596.

    >>> model = nn.Sequential(nn.Linear(20, 20))
    >>> start = {"0.weight": torch.eye(20, dtype=torch.bool)}
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> masks = Masks(model, start)
    >>> handle = masks.attach(optimizer)
    >>> rigl = DynamicSparsity(masks, optimizer, every=10, total_steps=100)
    >>> for _ in range(100):
    ...     model(torch.rand(8, 20)).square().mean().backward()
    ...     if not rigl.step():
    ...         optimizer.step()
    ...     optimizer.zero_grad()
    >>> masks.density(), rigl.in_time_rate > masks.density()
    (0.05, True)
    """

    def __init__(
        self,
        masks: Masks,
        optimizer: Optimizer,
        growth: Literal["gradient", "random"] = "gradient",
        alpha: float = 0.3,
        every: int = 100,
        stop: float = 0.75,
        *,
        total_steps: int,
        skip_step: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if growth not in ("gradient", "random"):
            raise ValueError(f"growth must be 'gradient' or 'random', got {growth!r}")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {alpha!r}")
        if not 0 < stop <= 1:
            raise ValueError(f"stop must be in (0, 1], got {stop!r}")
        check_count(every=every, total_steps=total_steps)
        self.masks, self.optimizer, self.growth = masks, optimizer, growth
        self.alpha, self.every, self.T_end = alpha, every, stop * total_steps
        self.skip_step = skip_step
        self.generator = generator or torch.Generator().manual_seed(0)
        self._ever = masks.state_dict()
        self._history = _History(masks)

    @property
    def history(self) -> list[Phase]:
        return self._history.phases

    @property
    def in_time_rate(self) -> float:
        """Share of all positions that were ever active (Liu et al. 2021, arXiv 2102.02887)."""
        total = sum(ever.numel() for ever in self._ever.values())
        return sum(int(ever.sum()) for ever in self._ever.values()) / total

    def fraction(self, step: float) -> float:
        """`zeta_t`; 0 after `T_end`."""
        t = min(step, self.T_end)
        return self.alpha / 2 * (1 + math.cos(math.pi * t / self.T_end))

    @torch.no_grad()
    def step(self) -> bool:
        """To be called before the optimizer's step, which is to be left out when it gives True."""
        t = self._history.steps + 1
        due = t % self.every == 0 and t < self.T_end
        if due and self.growth == "gradient":
            for name, weight in self.masks.parameters.items():
                if weight.grad is None:
                    raise ValueError(f"{name} has no gradient: call step() after backward()")
        self._history.add(dense_gradient=due and self.growth == "gradient")
        if not due:
            return False
        self.masks.assign({name: self._changed(name, t) for name in self.masks})
        for name, mask in self.masks.items():
            self._ever[name] |= mask
        self.masks.apply()
        self.masks.apply_to_state(self.optimizer)
        return self.skip_step

    def _changed(self, name: str, t: int) -> Tensor:
        """The layer's next mask: the kept part of this one, and as many new as were dropped."""
        mask, weight = self.masks[name], self.masks.parameters[name]
        active = int(mask.sum())
        dropped = math.floor(self.fraction(t) * active)
        magnitude = weight.abs().masked_fill(~mask, -math.inf)
        kept = largest(magnitude, active - dropped)
        return kept | largest(self._wanted(weight).masked_fill(kept, -math.inf), dropped)

    def _wanted(self, weight: Tensor) -> Tensor:
        """What decides which weights grow."""
        if self.growth == "gradient":
            assert weight.grad is not None  # checked before
            return weight.grad.abs()
        g = self.generator
        return torch.rand(weight.shape, generator=g, device=g.device).to(weight.device)


def training_macs(model: nn.Module, example: Batch, history: Sequence[Phase]) -> float:
    """Multiply-adds of a sparse training, if hardware skipped what is dropped.

    A forward costs `f = sum_l d_l f_l`. A step costs `3 f`: forward, gradients of activations and
    gradients of weights; where dropped weights' gradients are needed, `2 f + f_dense` (Evci et al.
    2020, arXiv 1911.11134, appendix). So "the same number of epochs" is not the same cost:
    dense-to-sparse training is dense most of the time. Masked training on ordinary hardware costs
    what dense training costs.

    Args:
        model: the network.
        example: a batch as in training: one step's cost is for all of it.
        history: of `GradualPruning` or `DynamicSparsity`, or `[Phase(steps, masks.densities())]`
            for masks that stay.

    Returns:
        Multiply-adds of all steps. Layers without a mask count as dense.

    Raises:
        ValueError: a phase names a parameter that the model does not have.

    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> training_macs(model, torch.rand(1, 8), [Phase(10, {"0.weight": 0.25})])
    480.0
    """
    dense, total = layer_macs(model, example), macs(model, example)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    cost = 0.0
    for phase in history:
        for name in phase.densities:
            if name not in parameters:
                raise ValueError(f"history: the model has no parameter {name!r}")
        saved = sum((1 - d) * dense[n.rpartition(".")[0]] for n, d in phase.densities.items())
        forward = total - saved
        cost += phase.steps * (2 * forward + (total if phase.dense_gradient else forward))
    return cost


class _History:
    """Counts steps, and joins those at the same densities."""

    def __init__(self, masks: Masks) -> None:
        self.masks = masks
        self.phases: list[Phase] = []
        self.steps = 0
        self._seen: tuple[Mapping[str, Tensor], dict[str, float]] = ({}, {})

    def add(self, dense_gradient: bool = False) -> None:
        """A step at the densities that the masks have now."""
        current = dict(self.masks)
        if any(self._seen[0].get(name) is not mask for name, mask in current.items()):
            self._seen = current, self.masks.densities()
        phase = Phase(1, self._seen[1], dense_gradient)
        if self.phases and self._same(self.phases[-1], phase):
            phase = Phase(self.phases.pop().steps + 1, phase.densities, dense_gradient)
        self.phases.append(phase)
        self.steps += 1

    def _same(self, a: Phase, b: Phase) -> bool:
        return a.dense_gradient == b.dense_gradient and a.densities == b.densities
