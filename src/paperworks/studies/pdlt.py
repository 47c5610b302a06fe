"""Criticality: does theory foretell the signals, gradients and fluctuations of deep networks?

- `fluctuations`: real multilayer perceptrons at the criticality of their activation, without
  training: each of `draws` networks of width n draws its weights anew and sees one input with
  K¹ = 1. Measured layer by layer over the draws: K = E[z²] and the covariance of z_i² and z_j² of
  two neurons, as V = n·Cov, beside `vertex_flow`. ReLU is taken to depth 6 only, where its heavy
  tails still let averages be measured, the others to depth 10; networks of one seed and activation
  share nothing with those of another width.
- `phases`: the same for variances that are not critical, from K¹ = 0.01; the slope of log K over
  the last third of the layers beside log χ_∥ of the end of the flow.
- `training` (momentum SGD) and `training_adam`: 30 hidden layers learn to classify pictures from
  each initialisation, the same split and batches for all of a seed. Accuracy on test pictures. A
  loss that is not finite ends the training; the network is scored as it is then.

A method is a function `method(network, activation, generator)` that initialises a chain of linear
layers in place; `activation` is the name of its activation. Every method tunes the rate of SGD
among three values by the accuracy on validation pictures; with Adam all have 1e-3.

Differences from the paper. The book is theory with small simulations. The baselines are Xavier's
initialisation with gain 5/3 for tanh (1 for GELU), Kaiming's with gain √2, PyTorch's default. Desk:
digits, 30 layers of width 96, 150 steps. Full: CIFAR-10, width 125 to 500 and depth 5 to 200, with
steps and batch of our choice, where the best depth can be looked at as a function of width
(exploratory: no claim is made about it, or about the optimal aspect ratio).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperworks import data, nets
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    Tune,
    all_of,
    bars,
    drawn,
    grid,
    higher,
    lines,
    lower,
    within,
)
from paperworks.study.figures import COLOURS, MARKERS
from paperworks.wide import criticality, init_critical_, susceptibilities, vertex_flow

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Metrics = dict[str, float | list[float]]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "gelu": F.gelu,
}

START = 0.01
"""K¹ of networks that are not critical: near the fixed point 0, where log χ_∥ is a constant."""

# --- networks that are only drawn -----------------------------------------------------------------


def networks(
    activation: str,
    x: Tensor,
    width: int,
    depth: int,
    draws: int,
    C_W: float,
    C_b: float,
    generator: torch.Generator,
) -> Iterator[list[Tensor]]:
    """Batches of `draws` networks in all: the preactivations of each layer, shape (batch, n)."""
    batch = max(1, 2**20 // width**2)  # networks whose weights of one layer stay in the cache
    options: dict[str, Any] = {"generator": generator, "device": x.device}
    for start in range(0, draws, batch):
        size = min(batch, draws - start)
        layers, seen = [], x.expand(size, -1)
        for _ in range(depth):
            n_in = seen.shape[1]
            W = torch.randn(size, width, n_in, **options).mul_(math.sqrt(C_W / n_in))
            z = torch.bmm(W, seen.unsqueeze(2)).squeeze(2)
            if C_b:
                z += math.sqrt(C_b) * torch.randn(size, width, **options)
            layers.append(z)
            seen = FUNCTIONS[activation](z)
        yield layers


def measure(batches: Iterator[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """K = E[z²], and E[z_i² z_j²] of different neurons, layer by layer over all networks."""
    sums: Any = 0
    count = 0
    for layers in batches:
        squares = torch.stack(layers).double().square()  # (layers, networks, neurons)
        total, n = squares.sum(2), squares.shape[2]
        pairs = (total.square() - squares.square().sum(2)) / (n * (n - 1))
        sums = sums + torch.stack([(total / n).sum(1), pairs.sum(1)])
        count += squares.shape[1]
    kernel, pair = (sums / count).cpu()
    return kernel, pair


def one_input(run: Run, width: int, K1: float, C_W: float, C_b: float = 0.0) -> Tensor:
    """An input with C_b + C_W|x|²/n_0 = K¹."""
    return torch.full((width,), math.sqrt((K1 - C_b) / C_W), device=run.device)


def weights_of(run: Run) -> torch.Generator:
    return torch.Generator(run.device).manual_seed(run.random_state("weights"))


def fluctuations(setting: Setting, run: Run) -> Metrics:
    critical = criticality(FUNCTIONS[setting.activation])
    C_W, C_b, n, depth = critical.C_W, critical.C_b, setting.width, setting.depth
    x = one_input(run, n, 1.0, C_W, C_b)
    run.witness(split=x.cpu())
    drawn_networks = networks(
        setting.activation, x, n, depth, setting.draws, C_W, C_b, weights_of(run)
    )
    K, pair = measure(drawn_networks)
    relative = pair / K.square() - 1  # Cov(z_i², z_j²)/K²
    theory_K, theory_V = vertex_flow(FUNCTIONS[setting.activation], 1.0, [n] * depth, C_W, C_b)
    ratio = theory_V / theory_K.square()
    layer = np.arange(1, depth + 1)
    late = slice(min(4, depth - 2), depth)
    exact = (1 + 5 / n) ** torch.arange(1, depth) - 1  # of ReLU
    return {
        "kernel_error": (K / theory_K - 1).abs().max().item(),
        "slope": slope(layer[1:], n * relative[1:]),
        "predicted_slope": slope(layer[1:], ratio[1:]),
        "late_slope": slope(layer[late], n * relative[late]),
        "exact_law_error": (relative[1:] / exact - 1).abs().max().item(),
        "fluctuation": relative[setting.compared - 1].item(),
        "kernel": K.tolist(),
        "kernel_theory": theory_K.tolist(),
        "vertex": (n * relative).tolist(),
        "vertex_theory": ratio.tolist(),
    }


def phases(setting: Setting, run: Run) -> Metrics:
    C_W, depth, sigma = setting.C_W, setting.depth, FUNCTIONS[setting.activation]
    x = one_input(run, setting.width, START, C_W)
    run.witness(split=x.cpu())
    generator = weights_of(run)
    K, _ = measure(
        networks(setting.activation, x, setting.width, depth, setting.draws, C_W, 0.0, generator)
    )
    last = np.arange(depth - max(2, depth // 3), depth)
    theory_K, _ = vertex_flow(sigma, START, [setting.width] * depth, C_W)
    chi_par, _ = susceptibilities(sigma, theory_K[-1], C_W)
    return {
        "slope_ratio": slope(last, K.log()[last]) / math.log(chi_par.item()),
        "log10_kernel": K.log10().tolist(),
    }


def slope(x: np.ndarray, y: Tensor) -> float:
    return float(np.polyfit(x, y.numpy(), 1)[0])


# --- networks that are trained --------------------------------------------------------------------


def critical(network: nn.Module, activation: str, generator: torch.Generator) -> None:
    init_critical_(network, FUNCTIONS[activation], generator=generator)


def xavier(network: nn.Module, activation: str, generator: torch.Generator) -> None:
    gain = 5 / 3 if activation == "tanh" else 1.0
    for layer in linears(network):
        nn.init.xavier_normal_(layer.weight, gain, generator)
        nn.init.zeros_(layer.bias)


def kaiming(network: nn.Module, activation: str, generator: torch.Generator) -> None:
    for layer in linears(network):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)


def default(network: nn.Module, activation: str, generator: torch.Generator) -> None:
    for layer in linears(network):  # what `nn.Linear` does itself
        bound = 1 / math.sqrt(layer.in_features)
        nn.init.uniform_(layer.weight, -bound, bound, generator)
        nn.init.uniform_(layer.bias, -bound, bound, generator)


def linears(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


METHODS = {"critical": critical, "xavier": xavier, "kaiming": kaiming, "default": default}


def training(setting: Setting, run: Run) -> Metrics:
    sizes = (setting.train, setting.val, setting.test)
    loaded = data.load(setting.data, sizes=sizes, generator=run.rng("split"))
    parts = [part.tensors() for part in (loaded.train, loaded.val, loaded.test)]
    (x, y), validation, test = [(x.to(run.device), y.to(run.device)) for x, y in parts]
    run.witness(split={"train": loaded.train.ids, "test": loaded.test.ids})
    sizes_of_layers = [x[0].numel(), *[setting.width] * setting.hidden, len(loaded.classes)]
    with run.seeded("build"):
        chain = nets.MLP(sizes_of_layers, FUNCTIONS[setting.activation])
    run.methods[setting.method](chain, setting.activation, run.rng("weights"))
    network = nn.Sequential(nn.Flatten(), chain).to(run.device)
    optimizer: torch.optim.Optimizer
    if setting.optimizer == "adam":
        optimizer = torch.optim.Adam(network.parameters(), setting.lr)
    else:
        optimizer = torch.optim.SGD(network.parameters(), setting.lr, momentum=0.9)
    history = nets.fit(
        network,
        data.batches(data.Split(x, y), setting.batch, run.rng("batches")),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        optimizer=optimizer,
        steps=setting.steps,
    )
    return {
        "accuracy": accuracy_of(network, *test),
        "validation_accuracy": accuracy_of(network, *validation),
        "diverged": float(history.diverged),
    }


@torch.no_grad()
def accuracy_of(network: nn.Module, x: Tensor, y: Tensor) -> float:
    right = [
        network(rows).argmax(1) == labels for rows, labels in zip(x.split(1000), y.split(1000))
    ]
    return torch.cat(right).double().mean().item()


# --- figure ---------------------------------------------------------------------------------------


def theory_and_networks(frame: DataFrame) -> Figure:
    """Lines of theory and dots of real networks: fluctuations and kernel along the layers."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9, 4), dpi=140, layout="constrained")
    left, right = canvas.subplots(1, 2)
    rows = frame[frame["experiment"] == "fluctuations"]
    widest = rows[rows["width"] == rows["width"].max()]
    for i, activation in enumerate(FUNCTIONS):
        some = widest[widest["activation"] == activation]
        if some.empty:
            continue
        for axes, metric in ((left, "vertex"), (right, "kernel")):
            measured = np.array(some[metric].tolist())
            layers = np.arange(1, measured.shape[1] + 1)
            axes.plot(layers, some[f"{metric}_theory"].iloc[0], color=COLOURS[i])
            axes.errorbar(
                layers,
                measured.mean(0),
                measured.std(0, ddof=1) if len(measured) > 1 else None,
                color=COLOURS[i],
                marker=MARKERS[i],
                markersize=5,
                linestyle="",
                label=activation,
            )
    left.set(xlabel="layer", ylabel="V / K²", title="fluctuations from network to network")
    right.set(xlabel="layer", ylabel="K", title="mean square of preactivations", yscale="log")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
    handles, labels = left.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    note = f"lines: theory; dots: networks of width {widest['width'].max():.0f}, mean and "
    canvas.supxlabel(
        f"{note}deviation over {rows['seed'].nunique()} seeds", fontsize=8, color="0.35"
    )
    return canvas


# --- the study ------------------------------------------------------------------------------------

NOT_CRITICAL = {"relu": [1.0, 3.0], "tanh": [0.5], "sin": [0.5], "gelu": [2.0]}


def drawn_at(width: list[int], draws: int, deep: int, heavy: int) -> Any:
    """ReLU to the depth `heavy`. L/n is compared in the last layer where ν is 2/3, in the third
    where it is near 5: beyond V/(nK²) = 0.3 theory needs its next order."""
    return (
        grid(activation=["tanh", "sin"], width=width, depth=deep, compared=deep, draws=draws)
        + grid(activation="gelu", width=width, depth=deep, compared=3, draws=draws)
        + grid(activation="relu", width=width, depth=heavy, compared=3, draws=draws)
    )


def off_critical(**constants: Any) -> Any:
    cells = grid(activation="relu", C_W=NOT_CRITICAL["relu"], **constants)
    for activation in ("tanh", "sin", "gelu"):
        cells += grid(activation=activation, C_W=NOT_CRITICAL[activation], **constants)
    return cells


DIGITS: dict[str, Any] = {
    "data": "digits",
    "train": 1257,
    "val": 180,
    "test": 360,
    "width": 96,
    "hidden": 30,
    "steps": 150,
    "batch": 128,
}
SMALL: dict[str, Any] = DIGITS | {"train": 100, "val": 50, "width": 8, "hidden": 2, "steps": 2}
CIFAR: dict[str, Any] = DIGITS | {
    "data": "hub:uoft-cs/cifar10",
    "train": 0.9,
    "val": 0.1,
    "test": 1.0,
    "width": [125, 250, 500],
    "hidden": [5, 10, 20, 50, 100, 200],
    "steps": 20_000,
}
SGD: dict[str, Any] = {"optimizer": "sgd"}
ADAM: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3}

monte_carlo = Experiment(
    fluctuations,
    smoke=drawn_at([8], 100, deep=4, heavy=4),
    desk=drawn_at([32, 64], 7000, deep=10, heavy=6),
    full=drawn_at([32, 64, 128, 256, 512], 30_000, deep=10, heavy=6),
)
off = Experiment(
    phases,
    smoke=grid(activation="relu", C_W=1.0, width=8, depth=6, draws=50),
    desk=off_critical(width=64, depth=30, draws=1000),
    full=off_critical(width=500, depth=30, draws=1000),
)
trained = Experiment(
    training,
    METHODS,
    smoke=grid(activation="tanh", lr=0.01, **SMALL, **SGD),
    desk=grid(activation=["tanh", "gelu"], **DIGITS, **SGD),
    full=grid(activation=list(FUNCTIONS), **CIFAR, **SGD),
    tune=Tune(by="validation_accuracy", higher=True, lr=[0.003, 0.01, 0.03]),
)
trained_by_adam = Experiment(
    training,
    METHODS,
    smoke=grid(activation="tanh", **SMALL, **ADAM),
    desk=grid(activation=["tanh", "gelu"], **DIGITS, **ADAM),
    full=grid(activation=list(FUNCTIONS), **CIFAR, **ADAM),
    name="training_adam",
)

kernel_error, exact_law_error = (
    monte_carlo.metric(name) for name in ("kernel_error", "exact_law_error")
)
rise, predicted_rise, late_rise = (
    monte_carlo.metric(name) for name in ("slope", "predicted_slope", "late_slope")
)
fluctuation = monte_carlo.metric("fluctuation", log=True)
slope_ratio = off.metric("slope_ratio")
accuracy = trained.metric("accuracy", resolution=1 / 360)
adam_accuracy = trained_by_adam.metric("accuracy", resolution=1 / 360)

study = Study(
    "pdlt",
    experiments=[monte_carlo, off, trained, trained_by_adam],
    claims=[
        Claim(
            "C1",
            "At criticality the measured kernel of every layer equals the predicted one within 3 % "
            "(width 64, four activations)",
            lower(kernel_error.max(width=64), 0.03),
            margin="ours",
            note="The prediction is that of infinite width: the error is of order L/n, twice as "
            "large at width 32, and largest for GELU in its last layers.",
        ),
        Claim(
            "C2",
            "V/K² rises with depth by as much as predicted within 15 %, for tanh and for sin, and "
            "from layer 5 on equally for both within 15 %: universality",
            all_of(
                *(
                    within(
                        rise(activation=a, width=64) / predicted_rise(activation=a, width=64),
                        1,
                        0.15,
                    )
                    for a in ("tanh", "sin")
                ),
                within(
                    late_rise(activation="tanh", width=64) / late_rise(activation="sin", width=64),
                    1,
                    0.15,
                ),
            ),
            margin="ours",
        ),
        Claim(
            "C3",
            "For ReLU, Cov(z_i², z_j²)/K² is nearer to the exact law (1 + 5/n)^(ℓ−1) − 1 than 10 % "
            "in every layer (width 64)",
            lower(exact_law_error(activation="relu", width=64), 0.1),
            margin="ours",
        ),
        Claim(
            "C4",
            "Half the ratio of depth to width gives half of V/(nK²), within 15 %, for every "
            "activation",
            all_of(
                *(
                    within(
                        fluctuation(activation=a, width=64) / fluctuation(activation=a, width=32),
                        0.5,
                        0.075,
                    )
                    for a in FUNCTIONS
                )
            ),
            margin="ours",
            note="GELU and ReLU are compared in layer 3: at layer 10 their V/(nK²) is beyond the "
            "first order. For GELU that was chosen after a look at development seeds.",
        ),
        Claim(
            "C5",
            "Deep tanh networks trained by SGD are at criticality more accurate than with "
            "PyTorch's default by at least 0.3, and than with Xavier's initialisation and gain 5/3",
            all_of(
                higher(
                    accuracy.mean("critical", activation="tanh"),
                    accuracy.mean("default", activation="tanh"),
                    by=0.3,
                ),
                higher(
                    accuracy.mean("critical", activation="tanh"),
                    accuracy.mean("xavier", activation="tanh"),
                ),
            ),
            margin="ours",
            note="The margin was set after a pilot on a split that no seed repeats.",
        ),
        Claim(
            "C6",
            "Deep GELU networks trained by SGD are at criticality more accurate than with "
            "Kaiming's initialisation by at least 0.3",
            higher(
                accuracy.mean("critical", activation="gelu"),
                accuracy.mean("kaiming", activation="gelu"),
                by=0.3,
            ),
            margin="ours",
            note="The margin was set after a pilot on a split that no seed repeats.",
        ),
        Claim(
            "C7",
            "Where the variances are not critical, log K changes from layer to layer by log χ_∥, "
            "within 5 %",
            all_of(
                *(
                    within(slope_ratio(activation=a, C_W=C_W), 1, 0.05)
                    for a, values in NOT_CRITICAL.items()
                    for C_W in values
                )
            ),
            margin="ours",
            note="Networks start near K = 0, where χ_∥ is a constant; chosen after a look at "
            "development seeds, where GELU from K = 1 on passed through several.",
        ),
    ],
    figures=[
        drawn(theory_and_networks),
        lines(x="layer", y="log10_kernel", by="C_W", experiment=off),
        bars(x="activation", y="accuracy", by="method", experiment=trained),
        bars(
            x="activation",
            y="accuracy",
            by="method",
            experiment=trained_by_adam,
            name="accuracy_with_adam",
        ),
    ],
    data=data.Accepts("image", min_classes=2),
    demo=["C3"],
)
