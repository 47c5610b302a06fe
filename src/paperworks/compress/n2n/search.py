"""Searching a small network by policy gradient, and by chance."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperworks.common.activations import evaluating
from paperworks.common.generators import following
from paperworks.common.losses import distillation_loss
from paperworks.compress.n2n.children import (
    KERNEL,
    PADDING,
    STRIDE,
    WIDTH,
    Frozen,
    apply_removal,
    apply_shrinkage,
    architecture,
    default_frozen,
    describe_layers,
    leaves,
)
from paperworks.compress.n2n.policies import (
    PAPER_RATIOS,
    Reinforce,
    RemovalPolicy,
    ShrinkagePolicy,
)
from paperworks.nets.training import fit

Stage = Literal["removal", "shrinkage"]
RATES: dict[Stage, float] = {"removal": 0.003, "shrinkage": 0.01}
"""Adam's, of each stage's policy."""
Worth = tuple[bool, float]
"""Whether a child meets the constraints, and its reward without them."""
NOTHING: Worth = (False, -math.inf)


def compression_reward(
    acc: float,
    acc_teacher: float,
    params: int,
    params_teacher: int,
    *,
    max_params: int | None = None,
    min_acc: float | None = None,
    iteration: int = 0,
    anneal: int = 15,
) -> float:
    """What a child is worth: small and nearly as good as the teacher.

    `R = C (2 - C) A / A_teacher` with `C = 1 - params / params_teacher`. Where a constraint is
    violated it is `(eps - 1) + eps R` with `eps = max(0, 1 - e / anneal)^4` at iteration e: nearly
    R at first, -1 from iteration `anneal` on. Ashok et al. 2018, arXiv 1709.06030.

    Args:
        acc: A, the child's accuracy.
        acc_teacher: the teacher's, positive.
        params: the child's parameters.
        params_teacher: those of the original teacher, whatever the stage.
        max_params: the child must not have more.
        min_acc: the child must not be worse.
        iteration: e, counted from 0.
        anneal: iterations until a violation costs everything.

    Raises:
        ValueError: an accuracy of the teacher or a number of its parameters that is not positive,
            `anneal` that is not.

    >>> compression_reward(acc=0.9, acc_teacher=0.9, params=50, params_teacher=100)
    0.75
    """
    if not acc_teacher > 0 or not params_teacher > 0 or not anneal > 0:
        raise ValueError(
            "acc_teacher, params_teacher and anneal must be positive, got "
            f"{acc_teacher!r}, {params_teacher!r}, {anneal!r}"
        )
    c = 1 - params / params_teacher
    reward = c * (2 - c) * acc / acc_teacher
    too_large = max_params is not None and params > max_params
    too_bad = min_acc is not None and acc < min_acc
    if not (too_large or too_bad):
        return reward
    eps = max(0.0, 1 - iteration / anneal) ** 4
    return (eps - 1) + eps * reward


def distill(
    teacher: nn.Module,
    student: nn.Module,
    loader: Iterable[Any],
    epochs: int = 5,
    lr: float = 5e-4,
    weight_decay: float = 5e-4,
) -> nn.Module:
    """Train a student in place to give the teacher's logits: mean squared error, no labels.

    Args:
        teacher: a trained network; it works in evaluation mode and is not changed.
        student: a network of the same outputs.
        loader: batches of inputs, or tuples with the inputs first; gone through again each epoch.
        epochs: how often.
        lr, weight_decay: of Adam.

    Returns:
        The student, in evaluation mode.

    Raises:
        ValueError: the loader gives nothing, or epochs is not a positive integer.

    Ashok et al. 2018, arXiv 1709.06030: logits without softmax or temperature.

    >>> teacher, x = nn.Linear(4, 2), torch.rand(32, 4)
    >>> student = distill(teacher, nn.Linear(4, 2), [x], epochs=300, lr=0.05, weight_decay=0.0)
    >>> torch.allclose(student(x), teacher(x), atol=0.1)
    True
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs must be a positive integer, got {epochs!r}")
    batches = loader if hasattr(loader, "__len__") else list(loader)
    if not len(batches):  # type: ignore[arg-type]
        raise ValueError("loader is empty")
    device = next(teacher.parameters()).device

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x = _inputs(batch).to(device)
        with torch.no_grad():
            target = teacher(x)
        return distillation_loss(model(x), target, kind="mse")

    optimizer = torch.optim.Adam(  # fused: half the time for networks as small as these
        student.parameters(), lr=lr, weight_decay=weight_decay, fused=True
    )
    with evaluating(teacher):
        steps = epochs * len(batches)  # type: ignore[arg-type]
        fit(student, batches, loss, optimizer=optimizer, steps=steps)
    return student


@dataclass(frozen=True)
class Rollout:
    """One child that was tried.

    Attributes:
        stage: "removal" or "shrinkage".
        iteration: counted from 0 in each stage.
        actions: what the policy drew, see the policies' `sample`.
        architecture: the child's layers; "" for an invalid one, which is not trained.
        params: the child's parameters, 0 for an invalid one.
        accuracy: on the validation data, 0 for an invalid one.
        reward: -1 for an invalid one.
    """

    stage: Stage
    iteration: int
    actions: Tensor
    architecture: str
    params: int
    accuracy: float
    reward: float


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        best: the child with the largest reward of those that meet the constraints, trained to the
            end, in evaluation mode. Where none meets them, the best of the others (and a warning);
            where none is valid, a copy of the teacher.
        history: every rollout, in order.
        policies: the trained policies by stage, for another search.
        children: by stage the best child, as it was drawn, untrained.
        evaluated: how many different children were trained.
    """

    best: nn.Module
    history: list[Rollout] = field(default_factory=list)
    policies: dict[Stage, nn.Module] = field(default_factory=dict)
    children: dict[Stage, nn.Module] = field(default_factory=dict)
    evaluated: int = 0

    def rewards(self, stage: Stage) -> Tensor:
        """Mean reward of each iteration of a stage."""
        by_iteration: dict[int, list[float]] = {}
        for rollout in self.history:
            if rollout.stage == stage:
                by_iteration.setdefault(rollout.iteration, []).append(rollout.reward)
        return torch.tensor([sum(r) / len(r) for r in by_iteration.values()])


class N2N:
    """Search an ordinary, smaller architecture for a trained network, by reinforcement learning.

    Stage "removal" learns which layers to leave out, stage "shrinkage" by how much to shrink those
    of the best child so far. A child has fresh weights, learns the teacher's logits for a few
    epochs, and is worth `compression_reward`. Reach for it when you want fewer and thinner ordinary
    layers rather than masks or special kernels, and can afford to train some hundred children
    shortly. The same child is trained once. Ashok et al. 2018, arXiv 1709.06030.

    Args:
        teacher: a trained classifier of chains (`nn.Sequential`) and `nets.Residual` blocks; it is
            not changed.
        train: batches `(x, ...)` that children learn from, a list or a `DataLoader`.
        valid: batches `(x, y)` by which they are judged: not the test data.
        stages: which stages, in order.
        iterations: of each stage.
        rollouts: children an iteration.
        policies: by stage, to start from those of another search; they are not changed.
        frozen: `frozen(layer)` is true for what neither stage touches. The first layer is always
            kept.
        ratios: of the shrinkage stage; see `PAPER_RATIOS`, `CODE_RATIOS`.
        skips: whether policies are told of residual blocks.
        credit: see `Reinforce`.
        max_params, min_acc, anneal: constraints, see `compression_reward`.
        epochs: of each child's training.
        final_epochs: of the best child's.
        lr, weight_decay: of Adam in both.
        random_state: seeds rollouts, policies and weights.

    Raises:
        ValueError: a teacher with nothing to remove or that its data do not pass through, no data,
            unknown stages, counts that are not positive integers, ratios outside (0, 1], a
            constraint that not even nothing could meet.

    >>> teacher = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 2))
    >>> x, y = torch.rand(64, 8), torch.randint(2, (64,))
    >>> result = N2N(teacher, [(x, y)], [(x, y)], stages=["removal"], iterations=2).fit()
    >>> len(result.history), result.rewards("removal").shape
    (10, torch.Size([2]))
    """

    def __init__(
        self,
        teacher: nn.Module,
        train: Iterable[Any],
        valid: Iterable[Any],
        *,
        stages: Sequence[Stage] = ("removal", "shrinkage"),
        iterations: int = 100,
        rollouts: int = 5,
        policies: Mapping[Stage, nn.Module] | None = None,
        frozen: Frozen = default_frozen,
        ratios: Sequence[float] = PAPER_RATIOS,
        skips: bool = False,
        credit: Literal["rollout", "batch_mean"] = "rollout",
        max_params: int | None = None,
        min_acc: float | None = None,
        anneal: int = 15,
        epochs: int = 5,
        final_epochs: int = 50,
        lr: float = 5e-4,
        weight_decay: float = 5e-4,
        random_state: int = 0,
    ) -> None:
        counts = {
            "iterations": iterations,
            "rollouts": rollouts,
            "anneal": anneal,
            "epochs": epochs,
            "final_epochs": final_epochs,
        }
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a positive integer, got {count!r}")
        if not stages or not set(stages) <= set(RATES):
            raise ValueError(f"stages must be of {list(RATES)}, got {list(stages)}")
        if max_params is not None and max_params < 1:
            raise ValueError(f"max_params must be at least 1, got {max_params!r}")
        if min_acc is not None and not 0 <= min_acc <= 1:
            raise ValueError(f"min_acc must be in [0, 1], got {min_acc!r}")
        self.teacher, self.valid = teacher, list(valid)
        self.train = train if hasattr(train, "__len__") else list(train)
        if not len(self.train) or not self.valid:  # type: ignore[arg-type]
            raise ValueError("train and valid must give at least one batch each")
        self.stages, self.iterations, self.rollouts = tuple(stages), iterations, rollouts
        self.frozen, self.ratios, self.skips, self.credit = frozen, tuple(ratios), skips, credit
        self.max_params, self.min_acc, self.anneal = max_params, min_acc, anneal
        self.epochs, self.final_epochs = epochs, final_epochs
        self.lr, self.weight_decay = lr, weight_decay
        self.example = _inputs(next(iter(self.train)))[:1]
        self.generator = torch.Generator().manual_seed(random_state)
        self.policies = {stage: self._policy(stage, policies or {}) for stage in self.stages}
        if "removal" in self.stages and not self._free(teacher, "removal").any():
            raise ValueError("teacher has no removable layer")
        whole = torch.ones(len(leaves(teacher)))
        if apply_removal(teacher, whole, self.example) is None:
            raise ValueError("teacher cannot be built anew from its layers")

    def fit(self) -> SearchResult:
        """Run all stages, and train the best child to the end."""
        return self._search(learn=True)

    def _search(self, learn: bool) -> SearchResult:
        result = SearchResult(copy.deepcopy(self.teacher).eval(), policies=dict(self.policies))
        self._accuracies: dict[str, float] = {}
        self._accuracy_teacher = self._accuracy(self.teacher)
        best = parent = self.teacher
        highest = NOTHING
        for stage in self.stages:
            worth, child = self._stage(stage, parent, result, learn)
            if child is not None:
                parent = result.children[stage] = child
                if worth > highest:
                    best, highest = child, worth
        result.evaluated = len(self._accuracies)
        if not highest[0]:
            warnings.warn(
                "the search found no smaller child with "
                f"max_params={self.max_params} and min_acc={self.min_acc}",
                stacklevel=3,
            )
        if best is not self.teacher:
            result.best = self._distilled(best, self.final_epochs)
        return result

    def _stage(
        self, stage: Stage, parent: nn.Module, result: SearchResult, learn: bool
    ) -> tuple[Worth, nn.Module | None]:
        """The best child of a stage, untrained."""
        policy: Any = self.policies[stage]
        reinforce = Reinforce(policy, RATES[stage], credit=self.credit)
        layers = describe_layers(parent, self.skips)
        free = self._free(parent, stage)
        highest, best = NOTHING, None
        for iteration in range(self.iterations):
            actions, log_prob = policy.sample(layers, free, self.generator, self.rollouts)
            rewards = []
            for row in actions:
                child = self._child(stage, parent, row)
                rollout = self._rollout(stage, iteration, row, child)
                result.history.append(rollout)
                rewards.append(rollout.reward)
                if child is not None and self._worth(rollout) > highest:
                    highest, best = self._worth(rollout), child
            if learn:
                reinforce.step(log_prob, torch.tensor(rewards).to(log_prob))
        return highest, best

    def _worth(self, rollout: Rollout) -> Worth:
        """What ranks children: early on, the reward alone forgives a violated constraint."""
        meets = (self.max_params is None or rollout.params <= self.max_params) and (
            self.min_acc is None or rollout.accuracy >= self.min_acc
        )
        reward = compression_reward(
            rollout.accuracy, self._accuracy_teacher, rollout.params, _size(self.teacher)
        )
        return meets, reward

    def _child(self, stage: Stage, parent: nn.Module, actions: Tensor) -> nn.Module | None:
        """What the actions make of the parent; None where they make no smaller network of it."""
        if stage == "removal":
            child = apply_removal(parent, actions != 0, self.example, self.generator)
        else:
            ratios = self.ratios
            child = apply_shrinkage(parent, actions, ratios, self.example, self.generator)
        return child if child is not None and _size(child) < _size(parent) else None

    def _rollout(
        self, stage: Stage, iteration: int, actions: Tensor, child: nn.Module | None
    ) -> Rollout:
        if child is None:
            return Rollout(stage, iteration, actions, "", 0, 0.0, -1.0)
        name, params = architecture(child), _size(child)
        if name not in self._accuracies:
            self._accuracies[name] = self._accuracy(self._distilled(child, self.epochs))
        accuracy = self._accuracies[name]
        reward = compression_reward(
            accuracy,
            self._accuracy_teacher,
            params,
            _size(self.teacher),
            max_params=self.max_params,
            min_acc=self.min_acc,
            iteration=iteration,
            anneal=self.anneal,
        )
        return Rollout(stage, iteration, actions, name, params, accuracy, reward)

    def _distilled(self, child: nn.Module, epochs: int) -> nn.Module:
        """A trained copy: the child keeps the weights that it was drawn with."""
        student = copy.deepcopy(child)
        return distill(self.teacher, student, self.train, epochs, self.lr, self.weight_decay)

    @torch.no_grad()
    def _accuracy(self, model: nn.Module) -> float:
        device = next(self.teacher.parameters()).device
        right = total = 0
        with evaluating(model):
            for x, y in self.valid:
                right += int((model(x.to(device)).argmax(-1).cpu() == y.cpu()).sum())
                total += y.numel()
        return right / total

    def _free(self, model: nn.Module, stage: Stage) -> Tensor:
        layers = [leaf.layer for leaf in leaves(model)]
        changeable = torch.tensor([not self.frozen(layer) for layer in layers])
        if stage == "removal":
            changeable[:1] = False
            return changeable
        return changeable[:, None] & _shrinkable(model)

    def _policy(self, stage: Stage, given: Mapping[Stage, nn.Module]) -> nn.Module:
        kind = RemovalPolicy if stage == "removal" else ShrinkagePolicy
        if stage in given:
            if not isinstance(given[stage], kind):
                raise TypeError(
                    f"policies[{stage!r}] must be a {kind.__name__}, got "
                    f"{type(given[stage]).__name__}"
                )
            return copy.deepcopy(given[stage])
        with following(self.generator):
            if stage == "removal":
                return RemovalPolicy(skips=self.skips)
            return ShrinkagePolicy(skips=self.skips, ratios=self.ratios)


def random_architectures(
    teacher: nn.Module, train: Iterable[Any], valid: Iterable[Any], **options: Any
) -> SearchResult:
    """The search of `N2N` with uniformly random actions: what a policy must beat.

    Args:
        teacher, train, valid: see `N2N`.
        options: its other arguments; `policies` and `credit` say nothing here.

    Raises:
        ValueError: as `N2N`.

    >>> teacher = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 2))
    >>> x, y = torch.rand(64, 8), torch.randint(2, (64,))
    >>> options = {"stages": ["removal"], "iterations": 2, "rollouts": 3}
    >>> len(random_architectures(teacher, [(x, y)], [(x, y)], **options).history)
    6
    """
    search = N2N(teacher, train, valid, **options)
    for policy in search.policies.values():
        nn.init.zeros_(policy.head.weight)  # type: ignore[arg-type, union-attr]
        nn.init.zeros_(policy.head.bias)  # type: ignore[arg-type, union-attr]
    return search._search(learn=False)


def _shrinkable(model: nn.Module) -> Tensor:
    """Attributes that a ratio may change, bool (L, 5): a layer has them, and they are its own."""
    layers = describe_layers(model)
    free = torch.zeros(layers.shape, dtype=torch.bool)
    for column, least in ((KERNEL, 1), (STRIDE, 1), (WIDTH, 10), (PADDING, 0)):
        free[:, column] = layers[:, column] > least
    blocks: set[str] = set()
    for i, leaf in enumerate(leaves(model)):
        if leaf.block is not None:  # there only the first convolution's width is free
            first = bool(layers[i, 0] == 1) and leaf.block not in blocks
            free[i] &= torch.tensor([False, False, False, first, False])
            blocks |= {leaf.block} if layers[i, 0] == 1 else set()
    return free


def _inputs(batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(x, Tensor):
        raise TypeError(f"batches must be tensors or tuples (x, y), got {type(batch).__name__}")
    return x


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
