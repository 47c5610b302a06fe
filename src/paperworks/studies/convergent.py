"""Convergent learning: do networks that differ in their initial weights learn the same units?

Two networks a seed are trained apart, on the same pictures, from different initial weights. Layers
are read after their ReLU, on the test pictures; in convolutions every position counts as an
observation. Dead units, of which an observation never differs from another, are left out of means
and reported (`dead`).

- `matching`: which unit of B goes with which of A? "random" pairs at random, "semi" gives every
  unit of A its most correlated one, "bipartite" is the best one-to-one pairing, "greedy" pairs the
  most correlated first, and "mutual_information" gives every unit of A the one that tells most
  about it. `weights` says whether the networks were trained; `layer="convs"` pools all
  convolutions. A method is `method(x, y, generator)`, which gives a `Matching` of the units of
  activations x (rows, p) and y (rows, q).
- `prediction`: how well are units of B predicted from those of A? From the "one_to_one" best, from
  few ("sparse"), from all ("dense"). Half of the test pictures serve to fit and choose, the other
  half to score: half the mean squared error of units in their own deviations, 0.5 for predicting
  the mean. A method is `method()`, an estimator with `fit(X, Y)` and `predict(X)`; where it has
  `coef_` (q, p), the units that it uses are counted.
- `penalties`: the same for the few, by strength of the penalty.
- `maps`: correlations among matched units, for a picture.

Nothing is tuned on the pictures that score. "sparse" takes the weakest of five penalties that uses
6 units or fewer in the mean; "dense" chooses a ridge for each unit, of four, by leaving one
observation out; "one_to_one" chooses the unit of the largest squared correlation, which gives
½(1 - c²) where it is fitted.

Metrics of `matching`: mean correlation of the pairs, its 90th less its 10th percentile (`spread`),
its quantiles from the highest down, the mean of its size whatever its sign (`magnitude`), and, as a
control, the mean correlation of A's units with the most alike other unit of A (`within`).

Differences from the paper. Desk: digits, a small convolutional network of three convolutions and a
linear layer. Full: the recipe of the four AlexNets (rates, drops, crops) is from memory of what was
usual; positions are sampled; activations are maximised and shown nowhere, and the 40 clusters of
conv1 are not claimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.common import collect_activations, unit_rows
from paperworks.representation import (
    CorrelationAccumulator,
    Matching,
    SparsePrediction,
    correlation,
    match_units,
    mutual_information,
)
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    all_of,
    bars,
    drawn,
    grid,
    higher,
    lines,
    lower,
    report,
    within,
)
from paperworks.study.contract import Grid
from paperworks.study.figures import COLOURS
from paperworks.study.run import Streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Parts = dict[str, dict[str, Tensor]]

# --- networks -------------------------------------------------------------------------------------

LAYERS = {
    "convnet": ("first", "middle", "last", "fc"),
    "alexnet": ("first", "second", "middle", "fourth", "last", "fc6", "fc7"),
}
"""Names of the layers of a network, by the order of their ReLUs."""


def untrained(network: str, pictures: data.DataSet) -> nn.Module:
    channels, *size = pictures.train[:1].tensors()[0].shape[1:]
    classes = len(pictures.classes)
    if network == "alexnet":
        return alexnet(classes)
    shape: dict[str, Any] = {"num_classes": classes, "image_size": tuple(size)}
    return nets.ConvNet(
        channels, [16, 32, 32], [0, 2], norm=None, head="flatten", hidden=[64], **shape
    )


def alexnet(classes: int, hidden: int = 4096) -> nn.Module:
    """AlexNet without groups, for pictures of 227 x 227."""
    return nn.Sequential(
        Centred(),
        *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.LocalResponseNorm(5)),
        nn.MaxPool2d(3, 2),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten()),
        *(nn.Dropout(), nn.Linear(9216, hidden), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)),
    )


class Centred(nn.Module):
    """Pictures in [0, 1] in the units of ImageNet."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


RECIPE = ("data", "train", "test", "network", "batch", "lr", "drops", "crop")
"""The settings on which trained networks depend, beside the number of epochs."""


def load(frun: Streams, recipe: dict[str, Any]) -> data.DataSet:
    sizes = (recipe["train"], 0.0, recipe["test"])
    return data.load(recipe["data"], sizes=sizes, generator=frun.rng("split"))


def pair(frun: Streams, *, epochs: int, **recipe: Any) -> dict[str, Any]:
    """Fixture: weights and test accuracy of two networks; untrained ones after no epochs."""
    pictures = load(frun, recipe)
    made: dict[str, Any] = {"a": {}, "b": {}, "ids": pictures.test.ids}
    for name in ("a", "b"):
        with frun.seeded(f"weights of {name}"):
            model = untrained(recipe["network"], pictures)
        train(model.to(frun.device), pictures.train, epochs, frun, recipe)
        made[name] = {
            "weights": model.state_dict(),
            "accuracy": accuracy(model, pictures.test, frun),
        }
    return made


def train(
    model: nn.Module, part: data.Split | data.MapSplit, epochs: int, frun: Streams, recipe: Any
) -> None:
    """SGD with momentum, at a rate that falls to a tenth `drops` times, at equal distances."""

    def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
        return data.crop_flip(x, recipe["crop"], generator) if recipe["crop"] else x

    batches = data.batches(part, recipe["batch"], frun.rng("batches"), augment=augmented)
    steps = epochs * len(batches)
    if not steps:
        return
    nets.fit(
        model,
        batches,
        lambda model, batch: F.cross_entropy(
            model(batch[0].to(frun.device)), batch[1].to(frun.device)
        ),
        optimizer=torch.optim.SGD(
            model.parameters(), recipe["lr"], momentum=0.9, weight_decay=5e-4
        ),
        steps=steps,
        schedule=lambda step: 0.1 ** (min(step, steps - 1) * (recipe["drops"] + 1) // steps),
    )


def pictures_of(part: data.Split | data.MapSplit, rows: Tensor) -> Any:
    """Pictures and labels in batches, in the order of the rows."""
    return (part[some].tensors() for some in rows.split(256))


@torch.no_grad()
def accuracy(model: nn.Module, part: data.Split | data.MapSplit, frun: Streams) -> float:
    model.eval()
    right = sum(
        int((model(x.to(frun.device)).argmax(1).cpu() == y).sum())
        for x, y in pictures_of(part, torch.arange(len(part)))
    )
    return right / len(part)


def observations(
    frun: Streams, *, layer: str, epochs: int, most_rows: int, **recipe: Any
) -> dict[str, Any]:
    """Fixture: activations of A (x) and of B (y) on each half of the test pictures."""
    made = frun.fixture(pair, seed=frun.seed, epochs=epochs, **recipe)
    pictures = load(frun, recipe)
    parts: Parts = {"fit": {}, "score": {}}
    for side, name in (("x", "a"), ("y", "b")):
        with frun.seeded("unused"):
            model = untrained(recipe["network"], pictures)
        model.load_state_dict(made[name]["weights"])
        relus = [n for n, module in model.named_modules() if isinstance(module, nn.ReLU)]
        place = relus[LAYERS[recipe["network"]].index(layer)]
        model.to(frun.device)
        for half, part in enumerate(parts.values()):
            rows = torch.arange(half, len(pictures.test), 2)
            same_rows = torch.Generator().manual_seed(frun.random_state("rows"))
            found = collect_activations(
                model,
                pictures_of(pictures.test, rows),
                [place],
                transform=unit_rows,
                early_stop=True,
                max_rows=most_rows,
                generator=same_rows,
            )
            part[side] = found[place]
    return parts | {
        "ids": made["ids"],
        "accuracy": (made["a"]["accuracy"] + made["b"]["accuracy"]) / 2,
    }


def observed(setting: Setting, run: Run, layer: str, weights: str = "trained") -> dict[str, Any]:
    recipe: dict[str, Any] = {key: setting[key] for key in (*RECIPE, "most_rows")}
    epochs = setting.epochs if weights == "trained" else 0
    seen: dict[str, Any] = run.fixture(
        observations, seed=run.seed, layer=layer, epochs=epochs, **recipe
    )
    run.witness(split=seen["ids"], weights=[seen["fit"]["x"], seen["fit"]["y"]])
    return seen


# --- methods --------------------------------------------------------------------------------------


def random(x: Tensor, y: Tensor, generator: torch.Generator) -> Matching:
    return match_units(torch.rand(x.shape[1], y.shape[1], generator=generator))


def semi(x: Tensor, y: Tensor, generator: torch.Generator) -> Matching:
    return match_units(correlation(x, y), "semi")


def bipartite(x: Tensor, y: Tensor, generator: torch.Generator) -> Matching:
    return match_units(correlation(x, y))


def greedy(x: Tensor, y: Tensor, generator: torch.Generator) -> Matching:
    return match_units(correlation(x, y), "greedy")


def by_information(x: Tensor, y: Tensor, generator: torch.Generator) -> Matching:
    return match_units(mutual_information(x, y), "semi")


PAIRINGS = {
    "random": random,
    "semi": semi,
    "bipartite": bipartite,
    "greedy": greedy,
    "mutual_information": by_information,
}


class OneToOne:
    """The unit that predicts best by itself."""

    coef_: NDArray[Any]

    def fit(self, X: NDArray[Any], Y: NDArray[Any]) -> OneToOne:
        c = correlation(torch.from_numpy(X), torch.from_numpy(Y)).numpy()
        best, units = np.square(c).argmax(0), np.arange(Y.shape[1])
        deviation = np.where(X.std(0) > 0, X.std(0), 1)
        self.coef_ = np.zeros((Y.shape[1], X.shape[1]))
        self.coef_[units, best] = c[best, units] * Y.std(0) / deviation[best]
        self.intercept_ = Y.mean(0) - self.coef_ @ X.mean(0)
        return self

    def predict(self, X: NDArray[Any]) -> NDArray[Any]:
        predicted: NDArray[Any] = X @ self.coef_.T + self.intercept_
        return predicted


ALPHAS: list[Any] = [0.02, 0.05, 0.1, 0.2, 0.4]
FEW = 6


class FewToOne:
    """The weakest penalty that uses no more than six units in the mean: the best fit of those."""

    def fit(self, X: NDArray[Any], Y: NDArray[Any]) -> FewToOne:
        for alpha in ALPHAS:
            self.best_ = SparsePrediction(alpha).fit(X, Y)
            if np.delete(self.best_.n_nonzero_, self.best_.dead_).mean() <= FEW:
                break
        self.coef_ = self.best_.coef_
        return self

    def predict(self, X: NDArray[Any]) -> NDArray[Any]:
        return self.best_.predict(X)


def dense() -> Any:
    """Least squares from all units, with a ridge for each target."""
    return make_pipeline(StandardScaler(), RidgeCV([1e-2, 1, 1e2, 1e4], alpha_per_target=True))


PREDICTORS = {"one_to_one": OneToOne, "sparse": FewToOne, "dense": dense}


# --- trials ---------------------------------------------------------------------------------------


def matching(setting: Setting, run: Run) -> dict[str, Any]:
    """Pair the units of a layer, or of all convolutions, and see how correlated the pairs are."""
    names = LAYERS[setting.network]
    convolutions = [name for name in names if not name.startswith("fc")]
    layers = convolutions if setting.layer == "convs" else [setting.layer]
    scores, others, dead = [], [], []
    for layer in layers:
        seen = observed(setting, run, layer, setting.weights)
        x, y = whole(seen, "x"), whole(seen, "y")
        between = CorrelationAccumulator(x.shape[1], y.shape[1]).update(x, y)
        alive_a, alive_b = alive(between)
        found = run.methods[setting.method](x, y, run.rng("method"))
        kept = alive_a[found.index_a] & alive_b[found.index_b]
        scores.append(between.compute()[found.index_a, found.index_b][kept])
        others.append(correlation(x).fill_diagonal_(-1).amax(1)[alive_a])
        dead.append(1 - torch.cat([alive_a, alive_b]).double())
    pooled = torch.cat(scores)
    quantiles = pooled.quantile(torch.linspace(1, 0, 33, dtype=torch.float64))
    return {
        "correlation": pooled.mean().item(),
        "magnitude": pooled.abs().mean().item(),
        "spread": (pooled.quantile(0.9) - pooled.quantile(0.1)).item(),
        "quantiles": [round(value, 4) for value in quantiles.tolist()],
        "within": torch.cat(others).mean().item(),
        "dead": torch.cat(dead).mean().item(),
        "accuracy": seen["accuracy"],
    }


def whole(seen: dict[str, Any], side: str) -> Tensor:
    """Activations on both halves of the pictures."""
    return torch.cat([seen["fit"][side], seen["score"][side]])


def alive(between: CorrelationAccumulator) -> list[Tensor]:
    """Which units vary, of A and of B."""
    flags = [torch.ones(n, dtype=torch.bool) for n in (between.p, between.q)]
    for flag, dead in zip(flags, between.dead):
        flag[dead] = False
    return flags


MAP = 16


def maps(setting: Setting, run: Run) -> dict[str, list[float]]:
    """Correlations among 16 of the pairs, from the best to the worst: `cells`, row by row."""
    seen = observed(setting, run, setting.layer, setting.weights)
    c = correlation(whole(seen, "x"), whole(seen, "y"))
    found = match_units(c)
    order = found.score.argsort(descending=True)
    few = order[torch.linspace(0, len(order) - 1, MAP).round().long()]
    cells = c[found.index_a[few]][:, found.index_b[few]]
    return {"cells": [round(value, 2) for value in cells.flatten().tolist()]}


def prediction(setting: Setting, run: Run) -> dict[str, float]:
    """Predict the units of B with one method."""
    return predicted(run.methods[setting.method](), setting, run)


def penalties(setting: Setting, run: Run) -> dict[str, float]:
    """Predict them from few, with one penalty: an "alpha", or what the paper calls "decay"."""
    if setting.kind == "alpha":
        return predicted(SparsePrediction(setting.penalty), setting, run)
    units = observed(setting, run, setting.layer)["fit"]["y"].shape[1]
    return predicted(SparsePrediction.from_paper_decay(setting.penalty, units), setting, run)


def predicted(estimator: Any, setting: Setting, run: Run) -> dict[str, float]:
    seen = observed(setting, run, setting.layer)
    (x, y), (x_new, y_new) = (
        (seen[half]["x"].double().numpy(), seen[half]["y"].double().numpy())
        for half in ("fit", "score")
    )
    estimator.fit(x, y)
    variance = np.concatenate([y, y_new]).var(0)
    units = np.ptp(y, axis=0) > 0
    scored = units & (np.ptp(y_new, axis=0) > 0)
    error = np.square(estimator.predict(x_new) - y_new).mean(0)[scored] / variance[scored]
    coef = getattr(estimator, "coef_", np.ones((y.shape[1], x.shape[1])))
    return {
        "half_mse": float(error.mean() / 2),
        "nonzeros": float(np.count_nonzero(coef[units], axis=1).mean()),
        "accuracy": seen["accuracy"],
    }


# --- the study ------------------------------------------------------------------------------------


ARMS = {
    ("trained", "bipartite"): ("-", "trained, matched"),
    ("untrained", "bipartite"): ("--", "untrained, matched"),
    ("trained", "random"): (":", "trained, paired at random"),
}


def matched_units(frame: DataFrame) -> Figure:
    """Correlations of matched units from the best pair down, layer by layer."""
    from matplotlib.figure import Figure as Canvas

    rows = frame[(frame["experiment"] == "matching") & (frame["layer"] != "convs")]
    layers = list(dict.fromkeys(rows["layer"]))
    canvas = Canvas(figsize=(5, 3.6), dpi=140, layout="constrained")
    panels = canvas.subplots(1, max(1, len(layers)), sharey=True, squeeze=False)[0]
    for axes, layer in zip(panels, layers):
        axes.set_title(layer, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
        axes.set_xticks([])
        for colour, ((weights, method), (style, label)) in zip(COLOURS, ARMS.items()):
            arm = (rows["weights"] == weights) & (rows["method"] == method)
            curves = rows[arm & (rows["layer"] == layer)]["quantiles"].tolist()
            if curves:
                curve = np.mean(curves, axis=0)
                axes.plot(np.linspace(0, 1, len(curve)), curve, style, color=colour, label=label)
    panels[0].set_ylabel("Correlation of a pair")
    handles, names = panels[0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    note = f"pairs from the best to the worst, means over {frame['seed'].nunique()} seeds"
    canvas.supxlabel(note, fontsize=8, color="0.35")
    return canvas


def map_of_units(frame: DataFrame) -> Figure:
    """Every unit of A against every unit of B, matched ones on the diagonal, of one seed."""
    from matplotlib.figure import Figure as Canvas

    rows = frame[(frame["experiment"] == "maps") & (frame["seed"] == frame["seed"].min())]
    layers = list(dict.fromkeys(rows["layer"]))
    states = ["trained", "untrained"]
    canvas = Canvas(figsize=(5, 2.8), dpi=140, layout="constrained")
    panels = canvas.subplots(2, max(1, len(layers)), squeeze=False)
    for i, state in enumerate(states):
        panels[i, 0].set_ylabel(f"{state}\nunits of A")
        for axes, layer in zip(panels[i], layers):
            mine = rows[(rows["weights"] == state) & (rows["layer"] == layer)]["cells"]
            picture = np.reshape(mine.iloc[0], (MAP, MAP))
            shown = axes.imshow(picture, vmin=-1, vmax=1, cmap="RdBu_r")
            axes.set_xticks([])
            axes.set_yticks([])
            if not i:
                axes.set_title(layer, fontsize=10)
    if layers:
        canvas.colorbar(shown, ax=panels, label="Correlation", shrink=0.8)
    canvas.supxlabel(
        "units of B, the best pair top left; dead units are blank; one seed", fontsize=8
    )
    return canvas


# 1,300 and 497 pictures
DIGITS: dict[str, Any] = {
    "data": "digits",
    "train": 0.7234,
    "test": 0.2766,
    "network": "convnet",
    "epochs": 15,
    "batch": 64,
    "lr": 0.05,
    "drops": 0,
    "crop": 0,
    "most_rows": 50_000,
}
SMALL = DIGITS | {"epochs": 1, "train": 0.1, "test": 0.1}
IMAGENET: dict[str, Any] = {
    "data": "hub:ILSVRC/imagenet-1k?size=227&channels=3",
    "train": 1.0,
    "test": 1.0,
    "network": "alexnet",
    "epochs": 90,
    "batch": 256,
    "lr": 0.01,
    "drops": 3,
    "crop": 16,
    "most_rows": 200_000,
}
FOUR: list[Any] = list(LAYERS["convnet"])
SEVEN: list[Any] = list(LAYERS["alexnet"])
DECAYS: list[Any] = [0.0, 1e-5, 1e-4, 1e-3, 10**-2.6, 1e-2, 1e-1]


def pairings(layers: list[Any], recipe: dict[str, Any]) -> Grid:
    """All methods on trained networks; two on untrained ones, and on all convolutions at once."""
    two: dict[str, Any] = {"method": ["random", "bipartite"], **recipe}
    return (
        grid(weights="trained", layer=layers, **recipe)
        + grid(weights="untrained", layer=layers, **two)
        + grid(weights=["trained", "untrained"], layer="convs", **two)
    )


paired = Experiment(
    matching,
    PAIRINGS,
    smoke=pairings(["first"], SMALL),
    desk=pairings(FOUR, DIGITS),
    full=pairings(SEVEN, IMAGENET),
)
mapped = Experiment(
    maps,
    smoke=grid(weights=["trained", "untrained"], layer="first", **SMALL),
    desk=grid(weights=["trained", "untrained"], layer=FOUR, **DIGITS),
    full=grid(weights=["trained", "untrained"], layer=SEVEN[:5], **IMAGENET),
)
fitted = Experiment(
    prediction,
    PREDICTORS,
    smoke=grid(layer="first", **SMALL),
    desk=grid(layer=FOUR, **DIGITS),
    full=grid(layer=SEVEN[:5], **IMAGENET),
)
swept = Experiment(
    penalties,
    smoke=grid(layer="first", penalty=ALPHAS[-2:], kind="alpha", **SMALL),
    desk=grid(layer=FOUR, penalty=ALPHAS, kind="alpha", **DIGITS),
    full=grid(layer=SEVEN[:5], penalty=DECAYS, kind="decay", **IMAGENET),
)

score = paired.metric("correlation")
magnitude = paired.metric("magnitude")
spread = paired.metric("spread")
alone = paired.metric("within")
half_mse = fitted.metric("half_mse", log=True)
nonzeros = fitted.metric("nonzeros")

study = Study(
    "convergent",
    experiments=[paired, fitted, swept, mapped],
    claims=[
        Claim(
            "C1",
            "In every layer the one-to-one pairs of trained networks are more correlated than "
            "random pairs, by at least 0.2 in the mean",
            all_of(
                *(
                    higher(
                        score("bipartite", layer=layer, weights="trained"),
                        score("random", layer=layer, weights="trained"),
                        by=0.2,
                    )
                    for layer in FOUR
                )
            ),
            margin="ours",
        ),
        Claim(
            "C2",
            "Some units match closely and others have no partner: over all convolutions, the 90th "
            "percentile of matched correlation is at least 0.3 above the 10th",
            higher(spread("bipartite", layer="convs", weights="trained"), 0.3),
            margin="ours",
        ),
        Claim(
            "C3",
            "In every layer all units of A together predict those of B with a half-MSE at least "
            "20 % below that of the best single one",
            all_of(
                *(
                    lower(
                        half_mse("dense", layer=layer),
                        half_mse("one_to_one", layer=layer),
                        factor=0.8,
                    )
                    for layer in FOUR
                )
            ),
            margin="ours",
        ),
        Claim(
            "C4",
            "In every layer, with six units or fewer in the mean, the half-MSE is lower than with "
            "the best single one and higher than with all",
            all_of(
                *(
                    form
                    for layer in FOUR
                    for form in (
                        lower(nonzeros("sparse", layer=layer), FEW),
                        lower(half_mse("sparse", layer=layer), half_mse("one_to_one", layer=layer)),
                        higher(half_mse("sparse", layer=layer), half_mse("dense", layer=layer)),
                    )
                )
            ),
        ),
        Claim(
            "C5",
            "One-to-one pairs are more correlated in the first convolution than in the middle one",
            higher(
                score("bipartite", layer="first", weights="trained"),
                score("bipartite", layer="middle", weights="trained"),
            ),
        ),
        Claim(
            "C5b",
            "Mean correlation of one-to-one pairs in the last convolution less that in the middle "
            "one (in the paper it recovers)",
            report(
                score("bipartite", layer="last", weights="trained")
                - score("bipartite", layer="middle", weights="trained")
            ),
        ),
        Claim(
            "C6",
            "In every layer the partners that mutual information chooses are, in the mean, within "
            "0.1 as correlated as those that correlation chooses",
            all_of(
                *(
                    within(
                        score("mutual_information", layer=layer, weights="trained"),
                        score("semi", layer=layer, weights="trained"),
                        0.1,
                    )
                    for layer in FOUR
                )
            ),
            margin="ours",
            note="Information does not see the sign: on development seeds a fifth of the partners "
            "that it chooses have a negative correlation. See C6b.",
        ),
        Claim(
            "C6b",
            "Size of the correlation with the partners that mutual information chooses, whatever "
            "its sign, less the correlation with those that correlation chooses",
            report(
                magnitude.mean("mutual_information", layer=FOUR, weights="trained")
                - score.mean("semi", layer=FOUR, weights="trained")
            ),
        ),
        Claim(
            "C7",
            "In the linear layer the one-to-one pairs of trained networks are more correlated than "
            "those of untrained ones",
            higher(
                score("bipartite", layer="fc", weights="trained"),
                score("bipartite", layer="fc", weights="untrained"),
            ),
            note="Our control: with enough units to choose from, any network has pairs.",
        ),
        Claim(
            "C7b",
            "Mean correlation of one-to-one pairs over all convolutions, trained networks less "
            "untrained ones",
            report(
                score("bipartite", layer="convs", weights="trained")
                - score("bipartite", layer="convs", weights="untrained")
            ),
        ),
        Claim(
            "C8",
            "Mean correlation of a unit with the most alike of the other network, less that with "
            "the most alike other unit of its own",
            report(
                score.mean("semi", layer=FOUR, weights="trained")
                - alone.mean("semi", layer=FOUR, weights="trained")
            ),
        ),
    ],
    figures=[
        drawn(matched_units),
        drawn(map_of_units),
        bars(
            x="layer",
            y="correlation",
            experiment=paired,
            where={"weights": "trained", "layer": SEVEN + FOUR[3:]},
        ),
        bars(x="layer", y="half_mse", experiment=fitted),
        lines(
            x="penalty",
            y="half_mse",
            by="layer",
            experiment=swept,
            where={"penalty": [*ALPHAS, *DECAYS[1:]]},  # a logarithm has no place for 0
            logx=True,
        ),
    ],
    data=data.Accepts("image", min_classes=2),
    demo=["C1", "C7"],
)
