"""Initialising a network at criticality, and telling how an initialised one will fare."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from paperworks.wide.kernels import Activation, gaussian_dual, out_of_place_
from paperworks.wide.pdlt.critical import (
    criticality,
    edge_of_chaos,
    moments_of,
    no_criticality,
)

if TYPE_CHECKING:
    from pandas import DataFrame

Step = Callable[[Tensor], Tensor]

_EXPECTED = "module: expects a chain of Linear and elementwise activations"

_NO_ACTIVATION = (nn.Flatten, nn.Identity, nn.Dropout, nn.AlphaDropout)
"""What stands between layers and changes no value in evaluation mode."""

_NO_FUNCTION = (torch.flatten, "flatten", F.dropout)
"""The same, as functions and methods."""

_QUANTILES = 32
"""By so many lengths the inputs are represented in predictions."""

_GRID = torch.logspace(-10, 3, 521, dtype=torch.float64)
"""Kernels at which the long run of a layer is looked up: K is at home somewhere in there."""


class Link(NamedTuple):
    """A linear layer of a chain, and what its input has gone through since the one before."""

    name: str
    linear: nn.Linear
    activation: Activation


def init_critical_(
    module: nn.Module,
    activation: Activation | None = None,
    *,
    strict: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Draws weights and biases of every `nn.Linear` at the criticality of the activation, in place.

    W ~ N(0, C_W/fan_in), b ~ N(0, C_b) with the variances of `criticality`. Reach for it where
    `kaiming_*` and `xavier_*` have no gain for an activation, or networks are deep: signals and
    gradients then neither vanish nor explode. `diagnose` says whether the depth suits the width.

    Args:
        module: a network. It keeps dtype, device and everything that is no `nn.Linear`.
        activation: elementwise σ. By default the one in the network, which has to be a chain of
            linear layers with one kind of activation between them.
        strict: whether an activation without criticality (sigmoid) is refused. Otherwise it gets
            C_b = 0 and the C_W with which gradients keep their size where K settles, χ_⊥ = 1
            (our choice).
        generator: draws the values; by default a new one with seed 0.

    Returns:
        The module.

    Raises:
        ValueError: there is no criticality for the activation; the module has no `nn.Linear`, or,
            without `activation`, is no chain with one kind of activation.

    Source: arXiv 2106.10165, chapter 5.

    >>> net = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256))
    >>> weight = init_critical_(net)[2].weight
    >>> round(256 * weight.var().item(), 1)  # 1.98
    2.0
    """
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise ValueError("module: has no nn.Linear")
    if activation is None:
        activation = _only_activation(_chain(module)[1])
    critical = criticality(activation)
    C_W, C_b = critical.C_W, critical.C_b
    if critical.kind == "none":
        if strict:
            raise no_criticality(activation)
        C_W, C_b = edge_of_chaos(activation)
    for layer in linears:
        _draw_(layer, C_W, C_b, generator := generator or torch.Generator().manual_seed(0))
    return module


def diagnose(
    module: nn.Module,
    x: Tensor,
    n_draws: int = 0,
    *,
    generator: torch.Generator | None = None,
) -> DataFrame:
    """Whether signals and gradients survive the depth of a network, before it is trained.

    Measures variances, signals and gradients layer by layer, sets the theory's predictions for
    these variances beside them, and says in words what they mean. A network is

    - ordered, if small differences between inputs, and gradients, vanish exponentially with depth
      (χ_⊥ < 1 where the kernel K ends up; with K → 0 the signal goes as well);
    - chaotic, if they explode (χ_⊥ > 1);
    - critical, if neither happens within its depth; K and gradients may change by powers of depth;
    - too deep for its width, if V/(nK²) comes near 1: it then depends on the draw of the weights
      whether there is a signal.

    Args:
        module: a chain of `nn.Linear` and elementwise activations, which may differ from layer to
            layer; nested `nn.Sequential`, a network's own class with such a `forward`, `nn.Flatten`
            and dropout (in evaluation mode) are understood. It is not changed.
        x: inputs, shape (N, ...), the data or a sample of them.
        n_draws: measure averages over so many redrawn copies, with Gaussian weights of the
            variances that the network has, and how these copies differ. 0 measures the network.
        generator: draws the copies; by default a new one with seed 0.

    Returns:
        A row a linear layer, in order:
        layer (name), width (n_ℓ), C_W and C_b (fan_in·mean W² and mean b²),
        K and K_predicted (mean square of its preactivations),
        chi_par and chi_perp (predicted, of the step from the layer before),
        gradient_ratio (‖∂/∂z^{ℓ−1}‖²/‖∂/∂z^ℓ‖², to be compared with chi_perp),
        fluctuation (predicted V/(nK²), n the width before), fluctuation_measured (with n_draws),
        verdict. What does not exist in the first layer, or in one of width 1, is nan.

    Raises:
        ValueError: the module is no such chain, x does not fit or is not finite, n_draws is
            negative or 1.

    Source: arXiv 2106.10165, chapters 3 to 5; the verdicts' thresholds are ours: an e-fold takes
    more layers than there are; fluctuations below 0.3, or 1.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    >>> deep = nn.Sequential(*[copy.deepcopy(net) for _ in range(10)], nn.Linear(64, 10))
    >>> x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    >>> diagnose(init_critical_(deep), x).verdict[10]
    'critical: signal and gradients survive this depth (K falls, but only by a power of depth)'
    """
    import pandas

    if not isinstance(n_draws, int) or n_draws < 0 or n_draws == 1:
        raise ValueError(f"n_draws must be 0, or an integer of at least 2, got {n_draws!r}")
    if not isinstance(x, Tensor) or not x.is_floating_point() or not len(x):
        raise ValueError("x must be a floating-point tensor of inputs, shape (N, ...)")
    module = copy.deepcopy(module).eval()
    out_of_place_(module)
    prefix, chain = _chain(module)
    inputs = _inputs(prefix, chain[0].linear, x)
    variances = [_variances(link.linear) for link in chain]
    measured = _measure(chain, inputs, n_draws, variances, generator)
    predicted = _predict(chain, inputs, variances)
    columns = {
        "C_W": [C_W for C_W, _ in variances],
        "C_b": [C_b for _, C_b in variances],
        "K": measured["K"],
        "K_predicted": predicted["K"],
        "chi_par": predicted["chi_par"],
        "chi_perp": predicted["chi_perp"],
        "gradient_ratio": measured["gradient_ratio"],
        "fluctuation": predicted["fluctuation"],
        "fluctuation_measured": measured["fluctuation"],
    }
    names, widths = zip(*((link.name, link.linear.out_features) for link in chain))
    return pandas.DataFrame(
        {"layer": names, "width": widths, **columns, "verdict": _verdicts(chain, columns)}
    )


# ---------------------------------------------------------------------------------------------
# Private: reading a network
# ---------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Opens `nn.Sequential` and what contains linear layers; the rest is taken as one piece."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Linear | nn.Sequential):
            return isinstance(m, nn.Linear)
        return not any(isinstance(part, nn.Linear) for part in m.modules())


def _chain(module: nn.Module) -> tuple[Step, list[Link]]:
    """What comes before the first linear layer, and the links; what follows the last is left out.

    Raises:
        ValueError: the module is no chain.
    """
    if isinstance(module, nn.Linear):
        return _composed([]), [Link("", module, nn.Identity())]
    steps = list(_steps(module))
    places = [i for i, (_, step) in enumerate(steps) if isinstance(step, nn.Linear)]
    if not places:
        raise ValueError(f"{_EXPECTED}; it has no Linear")
    chain: list[Link] = []
    for before, place in zip([-1, *places], places):
        name, linear = steps[place]
        between = [step for _, step in steps[before + 1 : place]]
        if any(linear is link.linear for link in chain):
            raise ValueError(f"{_EXPECTED}; {name!r} is used more than once")
        if chain and chain[-1].linear.out_features != linear.in_features:
            raise ValueError(f"{_EXPECTED}; {name!r} does not take what {chain[-1].name!r} gives")
        chain.append(Link(name, linear, _activation(between, name) if chain else nn.Identity()))
    return _composed([step for _, step in steps[: places[0]]]), chain


def _steps(module: nn.Module) -> Iterator[tuple[str, Any]]:
    try:
        tracer = _Tracer()
        graph = tracer.trace(module)
    except Exception as error:  # whatever a user's forward raises on proxies
        raise ValueError(f"{_EXPECTED}; torch.fx cannot follow {type(module).__name__}") from error
    previous = None
    for node in graph.nodes:
        if node.op == "placeholder" and previous is None:
            previous = node
            continue
        if node.op == "output" and node.args[0] is previous:
            return
        if node.op == "placeholder" or node.op == "output" or node.all_input_nodes != [previous]:
            raise ValueError(f"{_EXPECTED}; at {node.name!r} it branches or joins")
        previous = node
        if node.op == "call_module":
            yield str(node.target), module.get_submodule(str(node.target))
        elif node.target in _NO_FUNCTION:
            yield node.name, nn.Flatten()
        else:
            yield node.name, _called(node)


def _called(node: fx.Node) -> Step:
    """A function or method of the graph, with its other arguments, as a function of one tensor."""
    (source,) = node.all_input_nodes
    if node.op == "call_function" and node.args == (source,) and not node.kwargs:
        return node.target  # type: ignore[return-value]  # kernels know torch.relu

    def call(z: Tensor) -> Tensor:
        z = z.clone()  # relu_
        args = [z if arg is source else arg for arg in node.args]
        kwargs = {key: z if arg is source else arg for key, arg in node.kwargs.items()}
        if node.op == "call_method":
            return getattr(z, str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    call.__name__ = str(getattr(node.target, "__name__", node.target))
    return call


def _activation(steps: list[Any], name: str) -> Activation:
    """What stands before the linear layer of this name, as one elementwise function."""
    acting = [step for step in steps if not isinstance(step, _NO_ACTIVATION)]
    if not acting:
        return nn.Identity()
    sigma = acting[0] if len(acting) == 1 else _composed(acting)
    try:
        gaussian_dual(sigma)
    except ValueError as error:
        raise ValueError(f"{_EXPECTED}; before {name!r} it has {acting[0]}: {error}") from error
    return sigma


def _composed(steps: list[Any]) -> Step:
    def apply(z: Tensor) -> Tensor:
        for step in steps:
            z = step(z)
        return z

    return apply


def _only_activation(chain: list[Link]) -> Activation:
    kinds = {_values(link.activation): link.activation for link in chain[1:]}
    if len(kinds) != 1:
        names = (getattr(kind, "__name__", str(kind)) for kind in kinds.values())
        found = ", ".join(names) or "none"
        raise ValueError(f"activation: the network has {found}; say for which one to initialise")
    return next(iter(kinds.values()))


def _values(activation: Activation) -> tuple[float, ...]:
    """What tells activations apart, be they modules or functions: their values."""
    z = torch.linspace(-4, 4, 17, dtype=torch.float64)
    return tuple(gaussian_dual(activation).activation(z).detach().tolist())


def _inputs(prefix: Step, first: nn.Linear, x: Tensor) -> Tensor:
    """x as the first layer sees it, shape (N, n_0)."""
    if not torch.isfinite(x).all():
        raise ValueError("x must be finite")
    with torch.no_grad():
        seen = prefix(x.to(first.weight))
    if seen.ndim != 2 or seen.shape[1] != first.in_features:
        expected = f"(N, {first.in_features})"
        raise ValueError(f"x: the first layer takes {expected}, gets {tuple(seen.shape)}")
    return seen


# ---------------------------------------------------------------------------------------------
# Private: measuring
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def _variances(linear: nn.Linear) -> tuple[float, float]:
    C_W = linear.in_features * linear.weight.double().square().mean().item()
    C_b = 0.0 if linear.bias is None else linear.bias.double().square().mean().item()
    return C_W, C_b


@torch.no_grad()
def _draw_(linear: nn.Linear, C_W: float, C_b: float, generator: torch.Generator) -> None:
    def normal(like: Tensor, variance: float) -> Tensor:
        values = torch.randn(like.shape, generator=generator, device=generator.device)
        return values * math.sqrt(variance)

    linear.weight.copy_(normal(linear.weight, C_W / linear.in_features))
    if linear.bias is not None:
        linear.bias.copy_(normal(linear.bias, C_b))


def _measure(
    chain: list[Link],
    inputs: Tensor,
    n_draws: int,
    variances: list[tuple[float, float]],
    generator: torch.Generator | None,
) -> dict[str, list[float]]:
    """Means over inputs, and over draws if there are any; the chain's copy may be redrawn."""
    generator = generator or torch.Generator().manual_seed(0)
    squares, pairs, gradients = [], [], []
    for _ in range(max(1, n_draws)):
        if n_draws:
            for link, (C_W, C_b) in zip(chain, variances):
                _draw_(link.linear, C_W, C_b, generator)
        layers = _forward(chain, inputs)
        # ∂/∂z of the sum of all outputs: examples do not mix, and each has its own gradient
        slopes = torch.autograd.grad(layers[-1].sum(), layers)
        gradients.append(torch.stack([s.double().square().sum() for s in slopes]))
        z2 = [z.detach().double().square() for z in layers]
        squares.append(torch.stack([s.mean(1) for s in z2]))
        pairs.append(torch.stack([_pair_products(s) for s in z2]))
    mean, pair = torch.stack(squares).mean(0), torch.stack(pairs).mean(0)  # (layers, inputs)
    covariance = pair / mean.square() - 1 if n_draws else torch.full_like(mean, math.nan)
    size = torch.stack(gradients).mean(0)
    return {
        "K": mean.mean(1).tolist(),
        "gradient_ratio": [math.nan, *(size[:-1] / size[1:]).tolist()],
        "fluctuation": covariance.mean(1).tolist(),
    }


def _forward(chain: list[Link], inputs: Tensor) -> list[Tensor]:
    z, layers = inputs, []
    with torch.enable_grad():
        for link in chain:
            z = link.linear(link.activation(z)).requires_grad_()  # type: ignore[operator]
            layers.append(z)
    return layers


def _pair_products(z2: Tensor) -> Tensor:
    """Mean of z_i² z_j² over pairs of different neurons; nan for a single one."""
    n = z2.shape[1]
    different = z2.sum(1).square() - z2.square().sum(1)
    return different / (n * (n - 1)) if n > 1 else torch.full_like(different, math.nan)


# ---------------------------------------------------------------------------------------------
# Private: predicting
# ---------------------------------------------------------------------------------------------


def _predict(
    chain: list[Link], inputs: Tensor, variances: list[tuple[float, float]]
) -> dict[str, list[float]]:
    """Means of the flows that start from `_QUANTILES` lengths of inputs."""
    lengths = inputs.detach().double().square().mean(1).cpu()
    levels = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    K = variances[0][1] + variances[0][0] * torch.quantile(lengths, levels)
    fluctuation = torch.zeros_like(K)  # V/n: with the widths of this network no ratio is needed
    rows = [[K.mean().item(), math.nan, math.nan, 0.0]]
    for link, (C_W, C_b) in zip(chain[1:], variances[1:]):
        moments = moments_of(link.activation)(K)
        chi_par, chi_perp = C_W * moments.g_prime, C_W * moments.h
        fluctuation = (
            chi_par.square() * fluctuation + C_W**2 * moments.spread / link.linear.in_features
        )
        K = C_b + C_W * moments.g
        relative = fluctuation / K.square()
        rows.append([part.mean().item() for part in (K, chi_par, chi_perp, relative)])
    names = ("K", "chi_par", "chi_perp", "fluctuation")
    return {name: list(column) for name, column in zip(names, zip(*rows))}


class _Behaviour:
    """What an activation does at all kernels of a grid, and which variances it asks for."""

    def __init__(self, activation: Activation) -> None:
        self.moments = moments_of(activation)(_GRID)
        self.critical = criticality(activation)
        self.log_K = _GRID.log().numpy()
        self.log_gain = (
            (self.moments.g / _GRID).clamp(min=1e-300).log().numpy()
        )  # beyond the grid it is constant

    def long_run(self, K: float, C_W: float, C_b: float, layers: int) -> tuple[float, float]:
        """After many layers, from K: the change of log K a layer, and log χ_⊥."""
        change = 0.0
        for _ in range(layers):
            before = math.log(min(max(K, 1e-250), 1e250))
            K = C_b + C_W * math.exp(before + np.interp(before, self.log_K, self.log_gain))
            change = math.log(max(K, 1e-300)) - before
        chi_perp = C_W * np.interp(before + change, self.log_K, self.moments.h.numpy())
        return change, math.log(max(chi_perp, 1e-300))

    def verdict(self, K: float, C_W: float, C_b: float, depth: int, noise: float) -> str:
        """What more layers with these variances do to a signal of size K."""
        signal, gradient = self.long_run(K, C_W, C_b, 3 * depth)
        if abs(gradient) <= 1 / depth + noise:
            slow = " (K falls, but only by a power of depth)" * (self.critical.kind == "K*=0")
            return "critical: signal and gradients survive this depth" + slow
        phase, verb = ("chaotic", "grow") if gradient > 0 else ("ordered", "fall")
        said = f"{phase}: gradients {verb} e-fold every {1 / abs(gradient):.2g} layers, "
        if abs(signal) > 1 / depth + noise:
            said += f"the signal (K) every {1 / abs(signal):.2g}"
        else:
            said += "like inputs part" if gradient > 0 else "all inputs come to look alike"
        C_W, C_b, *_ = self.critical
        return said if math.isnan(C_W) else f"{said} (critical: C_W = {C_W:.4g}, C_b = {C_b:.4g})"


def _verdicts(chain: list[Link], columns: dict[str, list[float]]) -> list[str]:
    kinds = [_values(link.activation) for link in chain]
    behaviours: dict[tuple[float, ...], _Behaviour] = {}
    verdicts = ["first layer: sees the input itself"]
    for layer in range(1, len(chain) - 1):
        kind, linear = kinds[layer], chain[layer].linear
        if kind not in behaviours:
            behaviours[kind] = _Behaviour(chain[layer].activation)
        like = [other for other in range(1, len(chain) - 1) if kinds[other] == kind]
        variances = np.array([[columns["C_W"][other], columns["C_b"][other]] for other in like])
        C_W, C_b = columns["C_W"][layer], columns["C_b"][layer]
        noise = 3 * math.sqrt(2 / linear.weight.numel())  # standard errors of log C_W
        middle = np.median(variances, axis=0)
        if abs(C_W - middle[0]) <= noise * C_W:  # as the others, which say it more exactly
            C_W, C_b = middle.tolist()
        K = columns["K_predicted"][layer]
        verdict = behaviours[kind].verdict(K, C_W, C_b, len(chain), noise)
        verdicts.append(verdict + _width(verdict, columns["fluctuation"][layer], linear))
    if len(chain) > 1:
        ratio = math.sqrt(math.prod(columns["gradient_ratio"][1:]))
        readout = f"readout: gradients reach the first layer {ratio:.2g} times as large"
        width = _width(verdicts[-1], columns["fluctuation"][-1], chain[-1].linear)
        verdicts.append(readout + width)
    return verdicts


def _width(verdict: str, fluctuation: float, linear: nn.Linear) -> str:
    """Whether the width is enough, which is worth knowing once the variances are right."""
    if not fluctuation > 0.3 or verdict.startswith(("ordered", "chaotic")):
        return ""
    share = f"the squared signal differs by {100 * fluctuation**0.5:.0f} % between draws"
    if fluctuation > 1:
        needed = math.ceil(linear.in_features * fluctuation / 0.3 / 10) * 10
        return f"; too deep for its width: {share}, widen to {needed} or use fewer layers"
    return f"; deep for its width: {share}"
