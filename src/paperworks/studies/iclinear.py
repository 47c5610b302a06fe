"""Which algorithm does a transformer run that learns linear regression from its context?

- `constructed`: transformers with written-down weights, `algorithm` "sgd" or "ridge", against the
  textbook algorithm in float64. `error` is the largest difference over 64 tasks and all positions.
- `learners`: transformers trained on fresh tasks, "shallow" or "deep", without noise or with it,
  against candidate algorithms on 3,000 new tasks. `spd` is the squared prediction difference, the
  mean over tasks and over contexts of 1 to n − 1 examples; a context of as many examples as
  dimensions is left out for everybody, since least squares has no variance there. `spd_curve` is by
  context. `implicit_weight_difference` compares the linear functions that both implement after the
  longest context, `linearity` is the R² of that fit for the learner.
- `probes`: what can be read off the hidden states of the deep learner without noise, after the
  first and the last layer: w and Xᵀy. R² on sequences that the probe has not seen.

A method of `learners` is a candidate, `candidate(x (B, n, d), y (B, n)) -> (B, n)`, which predicts
each y from the examples before it; a method of `probes` is `probe(states, targets,
generator=…, steps=…)`, R² by layer. Each learner is trained once a seed and shared by all methods.
Nothing is tuned: candidates have rates and ridges in a grid, and the nearest of a family counts.

Gradient descent takes the mean over examples, which here is nearer to every learner than the sum;
its rates are those of the brief for the desk, and SGD's are the same.

Differences from the paper. Desk: 2 dimensions and 8 examples, width 48, 1,500 steps, so that the
learner ends above the Bayes risk. Full: 8 dimensions, 40 examples, up to 16 layers and width 512,
500,000 steps, and tasks shifted away from those of training; blocks are GPT-2's at both scales, not
the official code's (see `InContextRegressor`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from paperworks.common import collect_activations
from paperworks.incontext import (
    InContextRegressor,
    LinearTasks,
    OnlinePredictor,
    RidgeTransformer,
    SGDTransformer,
    implicit_weights,
    interleave,
    online_gd,
    online_knn,
    online_ridge,
    online_sgd,
    probe_hidden_states,
    squared_prediction_difference,
    train_in_context,
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
)
from paperworks.study.figures import COLOURS, MARKERS, STYLES
from paperworks.study.run import Streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Candidate = Callable[[Tensor, Tensor], Tensor]
Probe = Callable[..., dict[str, float]]

# ---- transformers with written-down weights


def constructed(setting: Setting, run: Run) -> dict[str, float]:
    n = setting.examples
    x, y, _ = LinearTasks(setting.dim).sample(64, n, run.rng("split"), dtype=torch.float64)
    run.witness(split={"x": x, "y": y})
    if setting.algorithm == "ridge":
        model: Any = RidgeTransformer(setting.dim, n, setting.alpha)
        expected = online_ridge(x, y, setting.alpha)
    else:
        model = SGDTransformer(setting.dim, n, setting.lr, setting.alpha)
        expected = online_sgd(x, y, setting.lr, setting.alpha)
    with torch.no_grad():
        error = (model(interleave(x, y)) - expected).abs().max()
    return {"error": error.item()}


# ---- trained learners against candidates

LEARNER = ("dim", "examples", "layers", "width", "heads", "noise", "steps", "batch", "lr")
SHIFTS: dict[str, dict[str, float]] = {
    "none": {},
    "larger_w": {"w_scale": 2.5},
    "shifted_w": {"w_mean": 2.5},
    "shifted_x": {"x_mean": 2.5},
}


def learners(setting: Setting, run: Run) -> dict[str, Any]:
    candidate: Candidate = run.methods[setting.method]
    args = {key: setting[key] for key in (*LEARNER, "tasks", "shift")}
    seen = run.fixture(answers, seed=run.seed, **args)
    run.witness(split={"x": seen["x"], "y": seen["y"]}, weights=seen["weights_digest"])
    x, y = seen["x"].double(), seen["y"].double()
    curve = squared_prediction_difference(seen["answers"].double(), candidate(x, y))
    sizes = [i for i in range(1, setting.examples) if i != setting.dim]
    few = x[:200, :-1], y[:200, :-1]
    rival = implicit_weights(OnlinePredictor(candidate), few, x_probe=seen["x_probe"].double())
    learnt = seen["implicit_weights"].double()
    return {
        "spd": curve[sizes].mean().item(),
        "spd_curve": curve[1:].tolist(),
        "implicit_weight_difference": (learnt - rival.weights).square().sum(1).mean().item(),
        "linearity": seen["linearity"],
        "excess_risk": seen["excess_risk"],
    }


def learner(frun: Streams, **args: Any) -> dict[str, Tensor]:
    """Weights of a trained learner."""
    with frun.seeded("weights"):
        model = network(**args).to(frun.device)
    train_in_context(
        model,
        LinearTasks(args["dim"], args["noise"]),
        args["steps"],
        num_examples=args["examples"],
        batch_size=args["batch"],
        lr=args["lr"],
        generator=frun.rng("batches"),
    )
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def trained(streams: Streams, **args: Any) -> InContextRegressor:
    """The learner of this seed, trained at most once."""
    model = network(**args)
    model.load_state_dict(streams.fixture(learner, seed=streams.seed, **args))
    return model.to(streams.device).eval()


def network(**args: Any) -> InContextRegressor:
    names = ("dim", "width", "layers", "heads", "examples")
    return InContextRegressor(*(args[name] for name in names))


def answers(frun: Streams, *, tasks: int, shift: str, **args: Any) -> dict[str, Any]:
    """What the learner of this seed says on new tasks, and the linear function that it implements.

    200 tasks and 25 probes each are enough for the latter.
    """
    model = trained(frun, **args)
    generator = frun.rng("split")
    drawn_from = LinearTasks(args["dim"], args["noise"], **SHIFTS[shift])
    x, y, _ = drawn_from.sample(tasks, args["examples"], generator)
    few, probes = min(200, tasks), drawn_from.sample(min(200, tasks), 25, generator)[0]
    with torch.no_grad():
        said = torch.cat([model(interleave(*part)) for part in zip(x.split(500), y.split(500))])
    fit = implicit_weights(model.predict, (x[:few, :-1], y[:few, :-1]), x_probe=probes)
    best = online_ridge(x, y, args["noise"] ** 2)
    return {
        "x": x,
        "y": y,
        "answers": said.cpu(),
        "x_probe": probes,
        "implicit_weights": fit.weights,
        "linearity": fit.r2.mean().item(),
        "excess_risk": ((said.cpu() - y).square().mean() - (best - y).square().mean()).item(),
        "weights_digest": model.head.weight.detach().cpu(),
    }


# ---- probes


def probes(setting: Setting, run: Run) -> dict[str, Any]:
    probe: Probe = run.methods[setting.method]
    model = trained(run, **{key: setting[key] for key in LEARNER})
    tasks = LinearTasks(setting.dim, setting.noise)
    x, y, w = tasks.sample(setting.tasks, setting.examples, run.rng("split"))
    run.witness(split={"x": x, "y": y})
    layers = [f"blocks.{i}" for i in range(setting.layers)]
    states = collect_activations(model, interleave(x, y).to(run.device).split(500), layers)
    moment = (x * y[..., None]).sum(1)
    target = w if setting.target == "w" else moment
    scores = probe(states, target, generator=run.rng("method"), steps=setting.probe_steps)
    r2 = list(scores.values())
    return {"first_r2": r2[0], "last_r2": r2[-1], "r2_curve": r2}


# ---- figures

FAMILIES = {
    "OLS": ["ols"],
    "ridge, Bayes' λ for σ = 0.5": ["ridge_0.25"],
    "nearest GD": [f"gd_{rate}x{steps}" for rate in (0.1, 0.25, 0.4) for steps in (1, 2)],
    "nearest SGD": [f"sgd_{rate}" for rate in (0.1, 0.25, 0.4)],
    "nearest k-NN": ["knn", "knn_distance"],
    "zero": ["zero"],
}


def learners_of(frame: DataFrame) -> dict[str, DataFrame]:
    """Rows of `learners` that were tried on tasks like those of training, a title each."""
    rows = frame[frame["experiment"] == "learners"]
    if rows.empty:
        return {}
    rows = rows[rows["learner"].isin(["shallow", "deep"]) & (rows["shift"] == "none")]
    groups: Any = rows.groupby(["layers", "noise"])
    return {
        f"{layers:.0f} layer{'s' * (layers > 1)}, σ = {noise:g}": group
        for (layers, noise), group in groups
    }


def by_context(frame: DataFrame) -> Figure:
    """Distance of each learner to the candidates as the context grows."""
    from matplotlib.figure import Figure as Canvas

    panels = learners_of(frame)
    canvas = Canvas(figsize=(9, 3.6), dpi=140, layout="constrained")
    places = canvas.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(places, panels.items()):
        for i, (family, methods) in enumerate(FAMILIES.items()):
            means = rows[rows["method"].isin(methods)].groupby("method")["spd"].mean()
            if means.empty:
                continue
            curves = rows.loc[rows["method"] == means.idxmin(), "spd_curve"].tolist()
            style: Any = {"color": COLOURS[i], "linestyle": STYLES[i % 5], "marker": MARKERS[i]}
            curve = np.exp(np.mean(np.log(curves), 0))
            axes.plot(range(1, len(curve) + 1), curve, label=family, markersize=4, **style)
        axes.set_title(title, fontsize=10)
        axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    places[0].set_ylabel("Squared prediction difference")
    places[0].set_ylim(top=10)  # least squares has no variance on as many noisy rows as dimensions
    handles, names = places[0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    note = f"examples in the context; geometric means over {frame['seed'].nunique()} seeds"
    note += "; least squares may leave the top"
    canvas.supxlabel(note, fontsize=8, color="0.35")
    return canvas


def by_ridge(frame: DataFrame) -> Figure:
    """Distance of each learner to ridge regression, for every λ."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(5, 3.6), dpi=140, layout="constrained")
    axes = canvas.add_subplot(xlabel="λ of the ridge regression")
    axes.set_ylabel("Squared prediction difference")
    for i, (title, rows) in enumerate(learners_of(frame).items()):
        spds = rows.astype({"spd": float}).groupby("method")["spd"]
        means = spds.agg(lambda cell: np.exp(np.log(cell).mean())).reindex(RIDGES)
        style: Any = {"color": COLOURS[i], "linestyle": STYLES[i], "marker": MARKERS[i]}
        axes.plot(range(len(RIDGES)), means, label=title, **style)
    axes.set_xticks(range(len(RIDGES)), [name.removeprefix("ridge_") for name in RIDGES])
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    note = f"geometric means over {frame['seed'].nunique()} seeds"
    canvas.supxlabel(note, fontsize=8, color="0.35")
    return canvas


# ---- the study

ALPHAS = (1e-6, 0.0625, 0.25, 0.5, 1.0, 2.0, 4.0)
RIDGES = [f"ridge_{alpha:g}" for alpha in ALPHAS]
GD, SGD, KNN = FAMILIES["nearest GD"], FAMILIES["nearest SGD"], FAMILIES["nearest k-NN"]
CANDIDATES: dict[str, Candidate] = {
    "ols": online_ridge,
    **{f"ridge_{alpha:g}": partial(online_ridge, alpha=alpha) for alpha in ALPHAS},
    **{
        f"gd_{rate}x{steps}": partial(online_gd, lr=rate, steps=steps, reduction="mean")
        for rate in (0.1, 0.25, 0.4)
        for steps in (1, 2)
    },
    **{f"sgd_{rate}": partial(online_sgd, lr=rate) for rate in (0.1, 0.25, 0.4)},
    "knn": online_knn,
    "knn_distance": partial(online_knn, weights="distance"),
    "zero": lambda x, y: torch.zeros_like(y),
}
PROBES: dict[str, Probe] = {
    "mlp": probe_hidden_states,
    "linear": partial(probe_hidden_states, nonlinear=False),
}


def learner_grid(recipe: dict[str, Any], deep: int, **more: Any) -> Any:
    """One layer and many without noise, many with it."""
    return (
        grid(learner="shallow", layers=1, noise=0.0, shift="none", **recipe, **more)
        + grid(learner="deep", layers=deep, noise=0.0, shift="none", **recipe, **more)
        + grid(learner="deep", layers=deep, noise=0.5, shift="none", **recipe, **more)
    )


DESK: dict[str, Any] = {
    "dim": 2, "examples": 8, "width": 48, "heads": 4, "steps": 1500, "batch": 64, "lr": 2e-3,
}  # fmt: skip
TINY = DESK | {"examples": 4, "width": 8, "heads": 2, "steps": 3, "batch": 4}
FULL = DESK | {"dim": 8, "examples": 40, "width": 512, "steps": 500_000, "lr": 1e-4}
TARGETS = ["w", "moment"]

weights = Experiment(
    constructed,
    smoke=grid(algorithm="ridge", dim=2, examples=3, alpha=0.5)
    + grid(algorithm="sgd", dim=2, examples=3, alpha=0.1, lr=0.05),
    desk=grid(algorithm="ridge", dim=3, examples=8, alpha=0.5)
    + grid(algorithm="ridge", dim=8, examples=20, alpha=0.1)
    + grid(algorithm="sgd", dim=3, examples=8, alpha=0.1, lr=0.05)
    + grid(algorithm="sgd", dim=8, examples=20, alpha=0.1, lr=0.02),
    full=grid(algorithm="ridge", dim=8, examples=40, alpha=0.1)
    + grid(algorithm="sgd", dim=8, examples=40, alpha=0.1, lr=0.02),
)
compared = Experiment(
    learners,
    methods=CANDIDATES,
    smoke=learner_grid(TINY, 2, tasks=50),
    desk=learner_grid(DESK, 3, tasks=3000),
    full=learner_grid(FULL, 16, tasks=3000)
    + grid(learner="layers", layers=[2, 4, 8, 12], noise=0.0, shift="none", **FULL, tasks=3000)
    + grid(
        learner="widths",
        layers=16,
        noise=0.0,
        shift="none",
        **(FULL | {"width": [16, 32, 64, 128, 256]}),
        tasks=3000,
    )
    + grid(
        learner="deep",
        layers=16,
        noise=0.0,
        shift=["larger_w", "shifted_w", "shifted_x"],
        **FULL,
        tasks=3000,
    ),
)
read = Experiment(
    probes,
    methods=PROBES,
    smoke=grid(target=TARGETS, layers=2, noise=0.0, tasks=60, probe_steps=5, **TINY),
    desk=grid(target=TARGETS, layers=3, noise=0.0, tasks=2000, probe_steps=300, **DESK),
    full=grid(target=TARGETS, layers=16, noise=0.0, tasks=2000, probe_steps=2000, **FULL),
)

error = weights.metric("error", log=True)
spd = compared.metric("spd", log=True)
first, last = read.metric("first_r2"), read.metric("last_r2")
shallow: dict[str, Any] = {"learner": "shallow", "noise": 0.0, "shift": "none"}
deep: dict[str, Any] = {"learner": "deep", "noise": 0.0, "shift": "none"}
noisy: dict[str, Any] = {"learner": "deep", "noise": 0.5, "shift": "none"}
SMALL, BAYES, LARGE = RIDGES[:2], ["ridge_0.25", "ridge_0.5"], RIDGES[4:]

study = Study(
    "iclinear",
    experiments=[weights, compared, read],
    claims=[
        Claim(
            "C1",
            "Transformers with written-down weights do SGD and ridge regression to within 1e-5 at "
            "every position",
            lower(error.max(), 1e-5),
            margin="ours",
        ),
        Claim(
            "C2",
            "The deep learner, without noise, is less than half as far from ridge regression with "
            "λ ≤ 0.0625 as from every gradient descent and k-NN",
            lower(spd.min(SMALL, **deep), spd.min([*GD, *KNN], **deep), factor=0.5),
            margin="ours",
            note="The margin was set after a pilot on seed 0.",
        ),
        Claim(
            "C3",
            "One layer is nearer to the nearest GD or SGD than to least squares; the deep learner "
            "is nearer to least squares",
            all_of(
                lower(spd.min([*GD, *SGD], **shallow), spd("ols", **shallow)),
                lower(spd("ols", **deep), spd.min([*GD, *SGD], **deep)),
            ),
        ),
        Claim(
            "C4",
            "With noise σ = 0.5 the nearest ridge has λ = 0.25, which is Bayes', or 0.5; without "
            "noise a smaller λ",
            all_of(
                lower(spd.min(BAYES, **noisy), spd.min([*SMALL, *LARGE], **noisy)),
                lower(spd.min(SMALL, **deep), spd.min([*BAYES, *LARGE], **deep)),
            ),
        ),
        Claim(
            "C5",
            "A probe reads w off the last layer of the deep learner better than off the first",
            higher(last("mlp", target="w"), first("mlp", target="w")),
        ),
        Claim(
            "C6",
            "R² of a probe for Xᵀy, in the last layer less in the first",
            report(last("mlp", target="moment") - first("mlp", target="moment")),
        ),
    ],
    figures=[
        drawn(by_context),
        drawn(by_ridge),
    ],
    demo=["C1"],
)
