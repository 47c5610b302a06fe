"""Which algorithm does an in-context predictor run? Distances, implicit weights, probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from paperworks.incontext.iclinear.learner import Tasks
from paperworks.incontext.iclinear.predictors import Predict, at_every_position
from paperworks.incontext.iclinear.tasks import check_counts, check_examples

if TYPE_CHECKING:
    from pandas import DataFrame


def squared_prediction_difference(p: Tensor, q: Tensor) -> Tensor:
    """How differently two algorithms predict on the same tasks.

    SPD(A₁, A₂) = E_{D, x} (A₁(D)(x) − A₂(D)(x))², the mean over tasks.

    Args:
        p, q: predictions (B, …) of both for the same B tasks.

    Returns:
        The mean over the first dimension; for (B, n) a value for each position.

    Raises:
        ValueError: unequal shapes, or no tasks.

    Source: arXiv 2211.15661, section 4.1.

    >>> p, q = torch.tensor([[1.0, 2.0], [1.0, 4.0]]), torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    >>> squared_prediction_difference(p, q)
    tensor([0., 1.])
    """
    if p.shape != q.shape or p.ndim == 0 or not len(p):
        raise ValueError(f"p and q must be of one shape, got {tuple(p.shape)} and {tuple(q.shape)}")
    return (p - q).square().mean(0)


class ImplicitWeights(NamedTuple):
    """The linear function that a predictor implements after a context.

    Args:
        weights: ŵ_D (B, d).
        r2: (B,), the share of the predictions' square that ŵ_D explains; 1 for a linear function.
    """

    weights: Tensor
    r2: Tensor


def implicit_weights(
    predict: Predict,
    context: tuple[Tensor, Tensor],
    num_probe: int = 100,
    generator: torch.Generator | None = None,
    *,
    x_probe: Tensor | None = None,
) -> ImplicitWeights:
    """Fit a linear function to what a predictor says about fresh x after each context.

    ŵ_D = argmin_w Σ_j (A(D)(x′_j) − wᵀx′_j)², x′_j ~ N(0, I). Look at `r2` before believing in ŵ.

    Args:
        predict: (x (B, n, d), y (B, n), x_query (B, q, d)) → (B, q); for models of sequences see
            `OnlinePredictor`.
        context: x (B, n, d) and y (B, n).
        num_probe: number of x′ a context, at least d.
        generator: draws x′; one with seed 0 by default.
        x_probe: your own x′ (B, q, d), where x is not from N(0, I).

    Raises:
        ValueError: shapes that do not fit, or fewer x′ than dimensions.

    Source: arXiv 2211.15661, section 4.1.

    >>> x, y = torch.eye(2).double()[None], torch.tensor([[3.0, 4.0]]).double()
    >>> from paperworks.incontext import OnlinePredictor, online_ridge
    >>> fit = implicit_weights(OnlinePredictor(online_ridge), (x, y))
    >>> fit.weights.round(decimals=6).tolist(), fit.r2.round(decimals=6).tolist()
    ([[3.0, 4.0]], [1.0])
    """
    x, y = context
    check_examples(x, y)
    batch, _, d = x.shape
    if x_probe is None:
        check_counts(num_probe=num_probe)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        shape = (batch, num_probe, d)
        x_probe = torch.randn(shape, generator=generator, device=generator.device).to(x)
    if x_probe.ndim != 3 or len(x_probe) != batch or x_probe.shape[2] != d or x_probe.shape[1] < d:
        wanted = f"({batch}, at least {d}, {d})"
        raise ValueError(f"the x′ must be {wanted}, got {tuple(x_probe.shape)}")
    with torch.no_grad():
        answers = predict(x, y, x_probe)
    if answers.shape != x_probe.shape[:2]:
        wrong = tuple(answers.shape)
        raise ValueError(f"predict must return {tuple(x_probe.shape[:2])}, got {wrong}")
    probes, answers = x_probe.double(), answers.to(x_probe.device).double()
    weights = torch.linalg.lstsq(probes, answers[..., None]).solution
    residual = (answers - (probes @ weights)[..., 0]).square().sum(1)
    total = answers.square().sum(1)
    r2 = torch.where(total > 0, 1 - residual / total, 1.0)
    return ImplicitWeights(weights[..., 0].to(x), r2.to(x))


def implicit_weight_difference(
    p: Predict,
    q: Predict,
    context: tuple[Tensor, Tensor],
    num_probe: int = 100,
    generator: torch.Generator | None = None,
) -> float:
    """Distance of the linear functions that two predictors implement, on the same x′.

    ILWD(A₁, A₂) = E_D ‖ŵ₁ − ŵ₂‖² with ŵ of `implicit_weights`, whose arguments these are.

    Source: arXiv 2211.15661, section 4.1.

    >>> from paperworks.incontext import OnlinePredictor, online_ridge
    >>> x, y = torch.eye(2)[None], torch.tensor([[3.0, 4.0]])
    >>> ols = OnlinePredictor(online_ridge)
    >>> ridge = OnlinePredictor(lambda x, y: online_ridge(x, y, alpha=1.0))
    >>> round(implicit_weight_difference(ols, ridge, (x, y)), 4)  # ridge halves w
    6.25
    """
    check_examples(*context)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    shape = (len(context[0]), num_probe, context[0].shape[2])
    x_probe = torch.randn(shape, generator=generator, device=generator.device).to(context[0])
    first, second = (implicit_weights(a, context, x_probe=x_probe).weights for a in (p, q))
    return (first - second).square().sum(1).mean().item()


def nearest_algorithm(
    predict: Predict,
    tasks: Tasks,
    candidates: Mapping[str, Predict],
    *,
    num_examples: int = 10,
    num_tasks: int = 1000,
    skip: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> DataFrame:
    """Squared prediction difference of a predictor to each candidate, by the size of the context.

    Args:
        predict: (x (B, n, d), y (B, n), x_query (B, q, d)) → (B, q); for models of sequences see
            `OnlinePredictor`.
        tasks: `LinearTasks`, or your own.
        candidates: the algorithms that it may be, by name.
        num_examples: examples a task; contexts have 1 … num_examples − 1.
        num_tasks: how many tasks.
        skip: contexts to leave out of the mean. Least squares without a ridge has no variance with
            as many noisy examples as dimensions: leave that one out.
        generator: draws the tasks; one with seed 0 by default.

    Returns:
        A frame with a row a candidate, nearest first, a column for each size of the context, and
        their `mean`.

    Raises:
        ValueError: no candidates, fewer than two examples, or every context skipped.

    Source: arXiv 2211.15661, section 4.2.

    >>> from paperworks.incontext import LinearTasks, OnlinePredictor, online_knn, online_ridge
    >>> ridge = OnlinePredictor(lambda x, y: online_ridge(x, y, alpha=0.1))
    >>> rivals = {"k-NN": OnlinePredictor(online_knn), "OLS": OnlinePredictor(online_ridge)}
    >>> nearest_algorithm(ridge, LinearTasks(2), rivals, num_examples=6).index[0]
    'OLS'
    """
    from pandas import DataFrame

    check_counts(num_tasks=num_tasks, num_examples=num_examples)
    sizes = list(range(1, num_examples))
    kept = [size for size in sizes if size not in skip]
    if not candidates or not kept:
        raise ValueError("candidates must not be empty, and a context must be left to compare on")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    x, y, *_ = tasks.sample(num_tasks, num_examples, generator)
    with torch.no_grad():
        answers = at_every_position(predict, x, y).to(y.device).double()
        rows = {
            name: squared_prediction_difference(
                answers, at_every_position(candidate, x, y).to(answers)
            )[1:].tolist()
            for name, candidate in candidates.items()
        }
    frame = DataFrame.from_dict(rows, orient="index", columns=sizes)
    frame.columns.name = "examples"
    frame["mean"] = frame[kept].mean(axis=1)
    return frame.sort_values("mean")


def probe_hidden_states(
    states: Mapping[str, Tensor] | Sequence[Tensor],
    targets: Tensor,
    nonlinear: bool = True,
    *,
    test_size: float = 0.25,
    steps: int = 500,
    lr: float = 1e-2,
    hidden: int = 64,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """How well a quantity can be read off the hidden states of each layer of a frozen model.

    For each layer a probe is trained from pooled states Σ_t a_t h_t, with a = softmax of a learned
    score for each position (our reading of the paper's attention pooling), to the target: linear,
    or an MLP with one hidden layer. Values are R² = 1 − Σ(ŝ − s)²/Σ(s − s̄)² on sequences that the
    probe has not seen, the mean over the entries of the target.

    A high value says that the quantity can be computed from the states, not that the model uses it.
    Compare with layers, models or targets for which you expect none.

    Args:
        states: by layer (B, T, E), as `paperworks.common.collect_activations` gives them, or (B, E)
            for one position, such as `states[:, -1]` (the official code probes the last token).
        targets: (B,) or (B, k).
        nonlinear: an MLP; a linear map if not.
        test_size: share of the sequences that are held out.
        steps: steps of Adam on all other sequences, with a rate that falls to 0 along half a
            cosine.
        lr: the first rate. The code has 1e-3, for many more steps.
        hidden: width of the MLP.
        generator: draws the split and the probes' weights; one with seed 0 by default.

    Returns:
        R² by layer; layers of a list are "0", "1", …

    Raises:
        ValueError: no layers, shapes that do not fit, values that are not finite, a target that is
            constant, or too few sequences to split.

    Source: arXiv 2211.15661, section 4.4.

    >>> h = torch.randn(400, 3, 4, generator=torch.Generator().manual_seed(1))
    >>> r2 = probe_hidden_states({"all": h, "none": torch.zeros(400, 3, 1)}, h[:, 1, 0], steps=200)
    >>> r2["all"] > 0.9, r2["none"] < 0.1
    (True, True)
    """
    layers = dict(states) if isinstance(states, Mapping) else {
        str(i): layer for i, layer in enumerate(states)
    }  # fmt: skip
    s = targets.detach().float().reshape(len(targets), -1)
    check_counts(steps=steps, hidden=hidden)
    held_out = round(test_size * len(s))
    if not layers or not 0 < test_size < 1 or min(held_out, len(s) - held_out) < 2:
        raise ValueError(
            f"states need a layer, and test_size={test_size} of {len(s)} sequences must leave two "
            "to train and two to test on"
        )
    for name, h in {"targets": s, **layers}.items():
        if h.ndim not in (2, 3) or len(h) != len(s) or not h.isfinite().all():
            wanted = f"finite, ({len(s)}, E) or ({len(s)}, T, E)"
            raise ValueError(f"states of layer {name!r} must be {wanted}, got {tuple(h.shape)}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    order = torch.randperm(len(s), generator=generator, device=generator.device).to(s.device)
    test, train = order[:held_out], order[held_out:]
    if not (s[train].std(0) > 0).all() or not (s[test].std(0) > 0).all():
        raise ValueError("targets are constant, there is nothing to read")
    s = _standardized(s, train)
    scores = {}
    for name, h in layers.items():
        h = _standardized(h.detach().float().to(s.device), train)
        h = h[None] if h.ndim == 2 else h.transpose(0, 1)  # positions first: pooled in one product
        sizes = [h.shape[2], *[hidden] * nonlinear, s.shape[1]]
        probe = _Probe(len(h), sizes, generator).to(h)
        answers = _fit_probe(probe, h[:, train], s[train], steps, lr)(h[:, test]).detach()
        spread = (s[test] - s[test].mean(0)).square().sum(0)
        scores[name] = (1 - (answers - s[test]).square().sum(0) / spread).mean().item()
    return scores


class _Probe(nn.Module):
    """Position-weighted mean of states, then a linear map or an MLP."""

    def __init__(self, positions: int, sizes: list[int], generator: torch.Generator) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.zeros(positions))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n_in, n_out in pairwise(sizes):
            draw = torch.randn(n_in, n_out, generator=generator, device=generator.device)
            self.weights.append(draw / n_in**0.5)
            self.biases.append(torch.zeros(n_out))

    def forward(self, h: Tensor) -> Tensor:
        """(T, B, E) → (B, k)."""
        pooled = (self.score.softmax(0) @ h.flatten(1)).view(h.shape[1:])
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            pooled = (nn.functional.gelu(pooled) if i else pooled) @ weight + bias
        return pooled


def _fit_probe(probe: _Probe, h: Tensor, s: Tensor, steps: int, lr: float) -> _Probe:
    with torch.enable_grad():
        optimizer = torch.optim.Adam(probe.parameters(), lr=lr, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            (probe(h) - s).square().mean().backward()
            optimizer.step()
            schedule.step()
    return probe


def _standardized(values: Tensor, train: Tensor) -> Tensor:
    """Mean 0 and deviation 1 on the training rows, entry by entry; constants become 0."""
    mean, std = values[train].mean(0), values[train].std(0)
    return (values - mean) / torch.where(std > 1e-6 * (1e-6 + mean.abs()), std, torch.inf)
