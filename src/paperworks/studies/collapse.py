"""Neural collapse: do networks tend to the geometry that their class counts and decays decide?

- `free`: linear heads of `depth` layers over features that are free variables, minimised by L-BFGS
  to the precision of float64 from N(0, 0.1²). `task` is "imbalanced" (mean squared error, no bias;
  the optimum is a general orthogonal frame, GOF), "bias" (mean squared error, balanced classes, a
  bias; a simplex, ETF), or "cross_entropy" (balanced, no bias; a simplex too, the paper says). The
  lowest of `starts` counts: decided on development seeds, where under cross entropy with three
  layers some starts end in the simplex and some below it, and the claim is about the lowest.
  `excess` is f/f* - 1, how far the objective ends above the closed form, `gap` its absolute value.
- `networks`: multilayer perceptrons with a bias-free linear head of `depth` layers on pictures in
  unequal numbers a class, with mean squared error; only features and head are regularised. At the
  first layer of the head NC1 (spread within classes), NC2 and NC3 (distance to a geometry, `_gof`,
  `_of` or `_etf`), at the start and over training; `length_order` is Spearman's correlation of the
  classes' numbers and the lengths of their rows of the head.

There is nothing to tune and no rival: the baselines are geometries that do not know the counts.

Differences from the paper. Desk: digits and a small network, trained with Adam on full batches, in
place of CIFAR-10; free features are minimised by L-BFGS and not by 30,000 steps of gradient descent
(full scale does that too). Full: the paper's counts, decays and epochs; its batch sizes, the width
of the balanced perceptron and the rate on imbalanced data are our guesses.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.linalg import helmert
from scipy.stats import spearmanr
from torch import Tensor, nn

from paperworks import data, nets
from paperworks.representation import (
    ETF,
    GOF,
    UnconstrainedFeatures,
    ce_etf_point,
    gof_optimum,
    layerwise_collapse,
    mse_bias_optimum,
    peeled_decay_loss,
)
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    all_of,
    drawn,
    grid,
    higher,
    lower,
    report,
    within,
)
from paperworks.study.figures import COLOURS, STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Metrics = dict[str, float | list[float]]

# --- free features --------------------------------------------------------------------------------


def free(setting: Setting, run: Run) -> Metrics:
    counts, decay = numbers(setting.counts), setting.decay
    decays = [decay] * setting.depth
    models = [
        UnconstrainedFeatures(
            counts,
            setting.width,
            setting.depth,
            loss="ce" if setting.task == "cross_entropy" else "mse",
            bias=setting.task == "bias",
            weight_decays=decays,
            feature_decay=decay,
            generator=run.rng("weights"),
        ).to(run.device)
        for _ in range(setting.starts)
    ]
    run.witness(weights=models[0].state_dict())
    for model in models:
        model.fit(setting.optimizer, steps=setting.steps)
    model = min(models, key=lambda model: model.objective().item())
    n, k = counts[0], len(counts)
    optima: dict[str, Callable[[], GOF | ETF]] = {
        "imbalanced": lambda: gof_optimum(counts, decays, decay),
        "bias": lambda: mse_bias_optimum(n, k, decays, decay),
        "cross_entropy": lambda: ce_etf_point(n, k, decays, decay),
    }
    excess = model.objective().item() / optima[setting.task]().objective - 1
    return {
        "excess": excess,
        "gap": abs(excess),
        "rows": rows_of_head(model),
    }


@torch.no_grad()
def rows_of_head(model: UnconstrainedFeatures) -> list[float]:
    """Rows of W in three dimensions, one after the other: a simplex of four is seen undistorted.

    The root of their Gram matrix holds the rows in coordinates that belong to the classes; those
    are seen along the direction that they have in common.
    """
    w = product([*model.weights.parameters()]).cpu()
    values, vectors = torch.linalg.eigh(w @ w.T)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    seen = root.numpy() @ helmert(len(w))[:3].T
    return np.pad(seen, ((0, 0), (0, 3 - seen.shape[1]))).ravel().tolist()


# --- networks -------------------------------------------------------------------------------------


def networks(setting: Setting, run: Run) -> Metrics:
    pictures = data.load(
        setting.data, sizes=(setting.train, 0.0, 1 - setting.train), generator=run.rng("split")
    )
    part = pictures.train
    if setting.counts:
        part = data.take_per_class(part, numbers(setting.counts), run.rng("counts"))
    x, y = part.tensors()
    assert y is not None
    x, y = x.to(run.device), y.to(run.device)
    with run.seeded("weights"):
        model: Any = network(setting, tuple(x.shape[1:]), len(pictures.classes)).to(run.device)
    run.witness(split=part.ids, weights=model.state_dict())
    counts = y.bincount().tolist()
    head = [f"head.{m}" for m in range(setting.depth)]
    weights = [layer.weight for layer in model.head]
    decays = [setting.decay] * setting.depth
    targets: dict[str, Any] = {
        "gof": gof_optimum(counts, decays, setting.decay),
        "of": "of",
        "etf": "etf",
    }
    chunks = list(zip(x.split(1000), y.split(1000), strict=True))
    curves: dict[str, list[float]] = {}

    def measure(model: nn.Module) -> float:
        """Adds a point to each curve."""
        for name, target in targets.items():
            values = layerwise_collapse(model, head, chunks, target)[head[0]]
            nc1 = values.pop("nc1")  # the same for every target
            for metric, value in values.items():
                curves.setdefault(f"{metric}_{name}", []).append(value)
        curves.setdefault("nc1", []).append(nc1)
        return nc1

    def loss(model: Any, batch: Any) -> Tensor:
        features = model.body(batch[0])
        logits = model.head(features)
        return peeled_decay_loss(
            logits, batch[1], features, weights, decays, setting.decay, num_samples=len(y)
        )

    measure(model.eval())
    batch = setting.batch or len(y)
    steps = setting.epochs * -(-len(y) // batch)
    nets.fit(
        model,
        data.batches(data.Split(x, y), batch, run.rng("batches")),
        loss,
        optimizer=torch.optim.Adam(model.parameters(), lr=setting.lr),
        steps=steps,
        schedule="cosine" if setting.schedule == "cosine" else halfway(steps),
        validate=measure,
        every=max(1, steps // setting.points),
    )
    lengths = product(weights).detach().norm(dim=1).tolist()
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) == labels for part, labels in chunks])
    order = spearmanr(lengths, counts).statistic if len(set(counts)) > 1 else 0.0
    return {
        "accuracy": right.double().mean().item(),
        "nc1_start": curves["nc1"][0],
        "length_order": float(order),
        **{name: values[-1] for name, values in curves.items()},
        **{f"{name}_curve": values for name, values in curves.items()},
    }


def network(setting: Setting, shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """A body that ends with features, and a bias-free linear head."""
    body: nn.Module
    d = setting.features
    if setting.network == "mlp":
        pixels = int(np.prod(shape))
        sizes = [pixels, *[setting.width] * setting.hidden, d]
        body = nn.Sequential(nn.Flatten(), nets.MLP(sizes, norm=setting.norm or None))
    elif setting.network == "resnet18":
        body = nets.ResNet(shape[0], [64, 128, 256, 512], [2, 2, 2, 2], num_classes=d)
    else:
        widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
        body = nets.ConvNet(shape[0], widths, pool_after=(1, 3, 6, 9, 12), num_classes=d)
    heights = [d] * (setting.depth - 1) + [num_classes]
    head = nn.Sequential(*(nn.Linear(d, height, bias=False) for height in heights))
    return nn.Sequential(OrderedDict(body=body, head=head))


def halfway(steps: int) -> Any:
    """A tenth of the rate in the second half."""
    return lambda step: 1.0 if step < steps / 2 else 0.1


def product(weights: list[Tensor]) -> Tensor:
    """W_M ... W_1."""
    return torch.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0]


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]


# --- figures --------------------------------------------------------------------------------------


def geometry(frame: DataFrame) -> Figure:
    """The head over free features: the row of each class, in space."""
    from matplotlib.figure import Figure as Canvas

    panels = {
        "balanced, bias": ("bias", 1),
        "imbalanced": ("imbalanced", 1),
        "cross entropy, 3 layers": ("cross_entropy", 3),
    }
    canvas = Canvas(figsize=(9, 3.4), dpi=140, layout="constrained")
    for place, (title, (task, depth)) in enumerate(panels.items(), start=1):
        axes: Any = canvas.add_subplot(1, 3, place, projection="3d")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
        axes.view_init(elev=24, azim=-70)
        rows = frame[(frame["task"] == task) & (frame["depth"] == depth)]
        if not len(rows):
            continue
        ends = np.reshape(rows.iloc[0]["rows"], (-1, 3))
        ends = ends / np.linalg.norm(ends, axis=1).max()
        for end, count, colour in zip(ends, rows.iloc[0]["counts"].split(), COLOURS, strict=False):
            axes.plot(*np.stack([0 * end, end], 1), color=colour, marker="o", markevery=[1])
            axes.text(*(1.2 * end), count, color=colour, fontsize=9, ha="center", va="center")
        for a, b in itertools.combinations(ends, 2):
            axes.plot(*np.stack([a, b], 1), color="0.75", linewidth=0.8, linestyle=":")
        axes.set(xlim=(-0.7, 0.7), ylim=(-0.7, 0.7), zlim=(-0.7, 0.7))
        axes.set_box_aspect((1, 1, 1), zoom=1.15)
    note = "rows of the head in one seed; numbers: samples of the class"
    canvas.supxlabel(note, fontsize=8, color="0.35")
    return canvas


def collapse(frame: DataFrame) -> Figure:
    """NC1 and the distances to three geometries while networks train."""
    from matplotlib.figure import Figure as Canvas

    rows = frame[frame["experiment"] == "networks"]
    depths = sorted(rows["depth"].unique())
    names = {"nc2_w": "NC2, head", "nc2_h": "NC2, features", "nc3": "NC3"}
    canvas = Canvas(figsize=(9, 2.4 * max(1, len(depths))), dpi=140, layout="constrained")
    grid_of_axes = canvas.subplots(max(1, len(depths)), 4, squeeze=False, sharex=True)
    for line, depth in zip(grid_of_axes, depths, strict=False):
        some = rows[rows["depth"] == depth]
        share = np.linspace(0, 1, len(some.iloc[0]["nc1_curve"]))
        nc1 = np.exp(np.mean(np.log(some["nc1_curve"].tolist()), 0))
        line[0].semilogy(share, nc1, color="black")
        line[0].set_ylabel(f"{depth:.0f} linear layer{'s' if depth > 1 else ''}")
        line[0].set_title("NC1", fontsize=10)
        for axes, (metric, title) in zip(line[1:], names.items(), strict=True):
            axes.set_title(title, fontsize=10)
            for i, target in enumerate(("gof", "of", "etf")):
                mean = np.mean(some[f"{metric}_{target}_curve"].tolist(), 0)
                axes.semilogy(
                    share, mean, color=COLOURS[i], linestyle=STYLES[i], label=target.upper()
                )
        for axes in line:
            axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid_of_axes[0, 1].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    canvas.supxlabel(
        f"share of training; means over {frame['seed'].nunique()} seeds", fontsize=8, color="0.35"
    )
    return canvas


# --- the study ------------------------------------------------------------------------------------

FREE: dict[str, Any] = {"width": 32, "decay": 5e-4, "optimizer": "lbfgs", "steps": 20_000}
UNEQUAL, EQUAL = "40 20 10 10", "20 20 20 20"


def tasks(
    recipe: dict[str, Any], unequal: str, equal: str, depths: list[Any], starts: int = 20
) -> Any:
    return (
        grid(task="imbalanced", counts=unequal, depth=depths, starts=1, **recipe)
        + grid(task="bias", counts=equal, depth=depths, starts=1, **recipe)
        + grid(task="cross_entropy", counts=equal, depth=[1, 3], starts=starts, **recipe)
    )


DIGITS: dict[str, Any] = {
    "data": "digits",
    "train": 0.7234,
    "counts": "20 20 40 40 60 60 80 80 100 100",
    "network": "mlp",
    "hidden": 2,
    "width": 256,
    "norm": "",
    "features": 64,
    "decay": 1e-4,
    "lr": 1e-3,
    "batch": 0,
    "schedule": "cosine",
    "epochs": 2000,
    "points": 40,
}
CIFAR: dict[str, Any] = DIGITS | {
    "data": "hub:uoft-cs/cifar10",
    "train": 1.0,
    "counts": "",
    "hidden": 6,
    "width": 2048,
    "norm": "batch",
    "features": 512,
    "lr": 1e-4,
    "batch": 128,
    "schedule": "halfway",
    "epochs": 200,
}
IMBALANCED: dict[str, Any] = CIFAR | {
    "counts": "500 500 400 400 300 300 200 200 100 100",
    "norm": "",
    "features": 2048,
    "decay": 1e-5,
    "batch": 0,
    "epochs": 12_000,
}

unconstrained = Experiment(
    free,
    smoke=tasks(FREE | {"width": 5, "steps": 20}, "4 2 1 1", "2 2 2 2", [1, 3], starts=2),
    desk=tasks(FREE, UNEQUAL, EQUAL, [1, 2, 3]),
    full=tasks(FREE, UNEQUAL, EQUAL, [1, 2, 3, 6])
    + tasks(
        FREE | {"width": 64, "optimizer": "sgd", "steps": 30_000},
        "200 100 50 50",
        "100 100 100 100",
        [1, 3, 6],
    ),
)
trained = Experiment(
    networks,
    smoke=grid(depth=[1, 3], **(DIGITS | {"width": 32, "epochs": 4, "points": 2})),
    desk=grid(depth=[1, 3], **DIGITS),
    full=grid(depth=[1, 3, 6, 9], **(CIFAR | {"network": ["mlp", "resnet18", "vgg16"]}))
    + grid(depth=[1, 3, 6, 9], **IMBALANCED),
)

excess, gap = (unconstrained.metric(name, resolution=1e-9) for name in ("excess", "gap"))
nc1, nc1_start = (trained.metric(name, log=True) for name in ("nc1", "nc1_start"))
order = trained.metric("length_order")
distance = {
    f"{metric}_{target}": trained.metric(f"{metric}_{target}")
    for metric in ("nc2_w", "nc2_h", "nc3")
    for target in ("gof", "of", "etf")
}

study = Study(
    "collapse",
    experiments=[unconstrained, trained],
    claims=[
        Claim(
            "C1",
            "Free features under mean squared error end within a relative 1e-6 of the closed-form "
            "optimum, imbalanced and balanced with a bias, at every depth",
            lower(gap.max(task=["imbalanced", "bias"], optimizer="lbfgs"), 1e-6),
            margin="ours",
        ),
        Claim(
            "C2",
            "Free features under cross entropy and one linear layer end within a relative 1e-6 of "
            "the simplex's value",
            lower(gap.max(task="cross_entropy", depth=1, optimizer="lbfgs"), 1e-6),
            margin="ours",
        ),
        Claim(
            "C3",
            "In trained networks NC1 falls by a factor of at least 1,000",
            lower(nc1.mean(), nc1_start.mean(), factor=1e-3),
            margin="ours",
        ),
        Claim(
            "C4",
            "In trained networks NC2 is nearer to the general orthogonal frame than to an "
            "orthogonal frame or a simplex, for head and features",
            all_of(
                *(
                    lower(distance[f"{part}_gof"].mean(), distance[f"{part}_{other}"].mean())
                    for part in ("nc2_w", "nc2_h")
                    for other in ("of", "etf")
                )
            ),
        ),
        Claim(
            "C5",
            "The lengths of the head's rows follow the classes' numbers: Spearman's correlation is "
            "above 0.9",
            higher(order.mean(), 0.9),
            margin="ours",
        ),
        Claim(
            "C6",
            "Free features under cross entropy and three linear layers end within a relative 1e-4 "
            "of the simplex's value, which the paper says is the lowest",
            within(excess(task="cross_entropy", depth=3, optimizer="lbfgs"), 0, 1e-4),
            margin="ours",
            note="Solutions of lower rank are lower: the paper's theorem does not hold here, see "
            "arXiv 2410.23169. The simplex is a stationary point, in which single starts may end.",
        ),
        Claim(
            "C7",
            "Distance of head times class means (NC3) to the general orthogonal frame, in trained "
            "networks",
            report(distance["nc3_gof"].mean()),
        ),
    ],
    figures=[drawn(geometry), drawn(collapse)],
    data=data.Accepts("image", min_classes=2),
    demo=["C2"],
)
