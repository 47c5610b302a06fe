"""Which similarity tells related networks from unrelated ones?

A seed draws `references` networks (ReLU, `width` units before the head and twice as many before
those, trained on half of the pictures) and, for each, `copies` of every relation:

- related: "other_seed" (the same data from other weights), "other_width" (three quarters as wide),
  "other_data" (the other half of the pictures), "fine_tuned" (the reference itself, trained on with
  the other half under noise), "permuted" (its units in another order) and "rotated" (its last
  hidden layer turned by a random rotation; the network computes the same in both);
- unrelated: "untrained", "random_labels" (trained to memorise shuffled labels) and "other_task"
  (the same pictures, to be told apart by how much ink they have and on which side).

A method gives a number for a reference and another network, the larger the more alike. `auc` of a
relation is the chance that a related pair gets a larger one than an unrelated pair of the same
reference, ties counting half; `auc` is the mean over the six relations. `lineage` asks for more: to
tell what was made of the reference itself ("fine_tuned", "permuted", "rotated") from networks that
learned the same task apart ("other_seed", "other_width", "other_data").

Methods of the field. From what enters the head, where it varies, for `pictures` pictures that no
network was trained on: "cka", "cka_debiased", "procrustes", "rsa", "svcca", "pwcca"; "relative"
(distance of relative representations, relreps) and "neighbours" (shared neighbours there);
"matching" (mean correlation of units matched one to one, convergent) and "prediction" (what a few
units of one say of the other's units); "codes" (do samples have the same nearest anchor as code,
codebook); "collapse" (distance of the metrics of neural collapse). From weights alone: "complexity"
(distance of the layers' feature complexities, ifm). From answers alone: "knowledge" (cosine of what
a network says its classes and their boundaries are, know2vec). None is tuned. A method is
`method(a, b, probe) -> float` with two `View`s and a `Probe`, see there.

`lineage`, few pictures and the present other task were added after a look at one development seed,
on which nearly all methods had an `auc` of 1; claims on `lineage` were written then.

Your own two networks, or more: `--set zoo=FOLDER`, a `ModelZoo` folder of networks that take these
pictures (`--set data=...`) and end with a linear layer. `auc_yours` then says how many unrelated
pairs a pair of yours is above, in the mean over your pairs, and `yours` how alike they are. The
folder is known by its name: give a changed one another.

This study belongs to no paper. Relations are the catalogue's, numbers and networks are ours.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.common import collect_activations
from paperworks.representation import (
    IterativeFeatureMerging,
    ModelZoo,
    SparsePrediction,
    cka,
    collapse_metrics,
    correlation,
    latent_similarity,
    match_units,
    nearest_codes,
    probe_knowledge,
    procrustes_distance,
    pwcca,
    relative_anchor_distance,
    relative_projection,
    rsa,
    svcca,
)
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    UserError,
    drawn,
    grid,
    higher,
    lower,
    report,
)
from paperworks.study.run import Streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

RELATED = ("other_seed", "other_width", "other_data", "fine_tuned", "permuted", "rotated")
DERIVED, APART = RELATED[3:], RELATED[:3]
UNRELATED = ("untrained", "random_labels", "other_task")

# --- what methods see -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """What networks are asked about: pictures (n, ...) with classes (n,), none trained on."""

    x: Tensor
    y: Tensor
    num_classes: int
    anchors: Tensor
    """Positions of the pictures that serve as anchors."""


@dataclass(eq=False)
class View:
    """A network under comparison."""

    model: nn.Module
    probe: Probe

    @cached_property
    def latents(self) -> Tensor:
        """What enters the last linear layer, (n, width)."""
        name = [name for name, m in self.model.named_modules() if isinstance(m, nn.Linear)][-1]
        return collect_activations(self.model, self.probe.x.split(500), [name], of="input")[name]

    @cached_property
    def alive(self) -> Tensor:
        """Those of its columns that vary."""
        return self.latents[:, self.latents.amax(0) > self.latents.amin(0)]

    @cached_property
    def head(self) -> Tensor:
        """The last linear layer's weight."""
        return [m.weight for m in self.model.modules() if isinstance(m, nn.Linear)][-1].detach()

    @cached_property
    def knowledge(self) -> Tensor:
        """What the network's answers say of its classes and their boundaries."""
        with torch.no_grad():
            found = probe_knowledge(
                self.model,
                self.probe.x,
                self.probe.num_classes,
                lambda x: x.flatten(1),
                generator=torch.Generator().manual_seed(0),
            )
        return found.features.flatten() - self.probe.x.flatten(1).mean(0).repeat(
            self.probe.num_classes**2
        )

    @cached_property
    def complexity(self) -> list[float]:
        """The share of each layer's features that are no near duplicates."""
        merged = IterativeFeatureMerging(beta=0.3).merge(self.model, self.probe.x[:1])
        return list(merged.relative_complexity.values())


Method = Callable[[View, View, Probe], float]


def of_latents(similarity: Callable[[Tensor, Tensor], Any]) -> Method:
    return lambda a, b, probe: float(similarity(a.alive, b.alive))


def relative(a: View, b: View, probe: Probe) -> float:
    r_a, r_b = (
        relative_projection(v.latents[probe.anchors], v.latents[probe.anchors]) for v in (a, b)
    )
    return -relative_anchor_distance(r_a, r_b)


def neighbours(a: View, b: View, probe: Probe) -> float:
    r_a, r_b = (relative_projection(v.latents, v.latents[probe.anchors]) for v in (a, b))
    return latent_similarity(r_a, r_b)["jaccard"]


def matching(a: View, b: View, probe: Probe) -> float:
    return float(match_units(correlation(a.alive, b.alive)).score.mean())


def prediction(a: View, b: View, probe: Probe) -> float:
    half = len(a.alive) // 2
    x, y = (((v.alive - v.alive.mean(0)) / v.alive.std(0)).double().numpy() for v in (a, b))
    fitted = SparsePrediction(alpha=0.1).fit(x[:half], y[:half])
    return 1 - float(np.square(fitted.predict(x[half:]) - y[half:]).mean())


def codes(a: View, b: View, probe: Probe) -> float:
    chosen = [nearest_codes(v.latents, v.latents[probe.anchors], k=1).flatten() for v in (a, b)]
    return float((chosen[0] == chosen[1]).double().mean())


def collapse(a: View, b: View, probe: Probe) -> float:
    profiles = [profile(v, probe) for v in (a, b)]
    return -math.dist(*profiles)


def complexity(a: View, b: View, probe: Probe) -> float:
    shared = zip(a.complexity, b.complexity, strict=False)  # layers that both have, from the input
    return -statistics.fmean(abs(s - t) for s, t in shared)


def knowledge(a: View, b: View, probe: Probe) -> float:
    return float(F.cosine_similarity(a.knowledge, b.knowledge, dim=0))


def profile(view: View, probe: Probe) -> list[float]:
    metrics = collapse_metrics(view.latents, probe.y, view.head)
    return [math.log1p(min(metrics.pop("nc1"), 1e6)), *metrics.values()]


METHODS: dict[str, Method] = {
    "cka": of_latents(cka),
    "cka_debiased": of_latents(partial(cka, debiased=True)),
    "procrustes": of_latents(lambda x, y: -procrustes_distance(x, y)),
    "rsa": of_latents(rsa),
    "svcca": of_latents(svcca),
    "pwcca": of_latents(pwcca),
    "relative": relative,
    "neighbours": neighbours,
    "matching": matching,
    "prediction": prediction,
    "codes": codes,
    "collapse": collapse,
    "complexity": complexity,
    "knowledge": knowledge,
}

# --- networks with planted relations --------------------------------------------------------------


def population(
    frun: Streams, *, data_name: str, references: int, copies: int, width: int, epochs: int
) -> list[dict[str, Any]]:
    """For each reference its own weights and, by relation, those of its relatives; a fixture."""
    train = load(frun, data_name).train
    x, y = train.x.to(frun.device), train.y.to(frun.device)
    halves = torch.randperm(len(x), generator=frun.rng("halves")).chunk(2)
    pixels = x[0].numel()
    num_classes = int(y.max()) + 1
    rng = frun.rng("batches")

    def trained(model: nn.Module, x: Tensor, y: Tensor, std: float = 0.0) -> nn.Module:
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        augment = (lambda x, rng: data.noise(x, std, rng)) if std else None
        batches = data.batches(data.Split(x, y), 64, rng, augment=augment)
        steps = epochs * -(-len(x) // 64)
        nets.fit(model, batches, cross_entropy, optimizer=optimizer, steps=steps)
        return model

    def relative_of(reference: nn.Module, relation: str) -> nn.Module:
        half = x[halves[0]], y[halves[0]]
        other = x[halves[1]], y[halves[1]]
        size = round(0.75 * width) if relation == "other_width" else width
        with frun.seeded("weights"):
            fresh = network(pixels, size, num_classes).to(frun.device)
        if relation == "untrained":
            return fresh
        if relation == "fine_tuned":
            fresh.load_state_dict(reference.state_dict())
            return trained(fresh, *other, std=0.2)
        if relation == "permuted":
            return permuted(reference, fresh, frun.rng("orders"))
        if relation == "rotated":
            return rotated(reference, frun.rng("orders"))
        if relation == "other_data":
            return trained(fresh, *other)
        if relation == "random_labels":
            order = torch.randperm(len(half[1]), generator=frun.rng("orders"))
            return trained(fresh, half[0], half[1][order])
        if relation == "other_task":
            return trained(fresh, half[0], ink(half[0]))
        return trained(fresh, *half)  # other_seed, other_width

    found = []
    for _ in range(references):
        with frun.seeded("weights"):
            fresh = network(pixels, width, num_classes).to(frun.device)
        reference = trained(fresh, x[halves[0]], y[halves[0]])
        relatives = {
            relation: [relative_of(reference, relation).state_dict() for _ in range(copies)]
            for relation in (*RELATED, *UNRELATED)
        }
        found.append({"reference": reference.state_dict(), "relatives": relatives})
    return found


def network(pixels: int, width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *nets.MLP([pixels, 2 * width, width, num_classes]))


def rebuilt(state: Mapping[str, Tensor]) -> nn.Sequential:
    """The network of these weights; the rotated ones have one linear layer more."""
    layers: list[nn.Module] = [nn.Flatten()]
    weights = {name: value for name, value in state.items() if name.endswith("weight")}
    for name, weight in weights.items():
        while len(layers) < int(name.split(".")[0]):
            layers.append(nn.ReLU())
        bias = name.replace("weight", "bias") in state
        layers.append(nn.Linear(weight.shape[1], weight.shape[0], bias=bias))
    model = nn.Sequential(*layers)
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def permuted(reference: Any, model: Any, generator: torch.Generator) -> nn.Module:
    """The reference with the units of both hidden layers in another order."""
    model.load_state_dict(reference.state_dict())
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    for before, after in itertools.pairwise(linear):
        order = torch.randperm(len(before.weight), generator=generator).to(before.weight.device)
        before.weight.copy_(before.weight[order])
        before.bias.copy_(before.bias[order])
        after.weight.copy_(after.weight[:, order])
    return model


@torch.no_grad()
def rotated(reference: Any, generator: torch.Generator) -> nn.Module:
    """The reference with a rotation before its head, and the head turned back."""
    *body, head = reference
    normal = torch.randn(head.in_features, head.in_features, generator=generator)
    turn = nn.Linear(head.in_features, head.in_features, bias=False).to(head.weight.device)
    turn.weight.copy_(torch.linalg.qr(normal).Q)
    turned = nn.Linear(head.in_features, head.out_features).to(head.weight.device)
    turned.weight.copy_(head.weight @ turn.weight.T)
    turned.bias.copy_(head.bias)
    return nn.Sequential(*body, turn, turned)


def ink(x: Tensor) -> Tensor:
    """Classes 0 to 9: the fifth that a picture is in by its ink, twice, by the side with more."""
    amount, sides = x.flatten(1).sum(1), x.sum((1, 2)).chunk(2, dim=1)
    fifth = 5 * amount.argsort().argsort() // len(x)
    return 2 * fifth + (sides[0].sum(1) > sides[1].sum(1)).long()


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def load(frun: Streams, name: str) -> data.DataSet:
    return data.load(name, generator=frun.rng("split"))


# --- ranking --------------------------------------------------------------------------------------


def ranking(setting: Setting, run: Run) -> dict[str, float]:
    method: Method = run.methods[setting.method]
    keys = ("references", "copies", "width", "epochs")
    recipe = {key: setting[key] for key in keys} | {"data_name": setting.data}
    groups = run.fixture(population, seed=run.seed, **recipe)
    pictures = load(run, setting.data)
    x, y = pictures.test[: setting.pictures].tensors()
    assert y is not None
    anchors = torch.randperm(len(x), generator=run.rng("anchors"))[: setting.anchors]
    probe = Probe(x, y, len(pictures.classes), anchors)
    run.witness(split=pictures.test.ids, weights=[group["reference"] for group in groups])

    def view(state: Mapping[str, Tensor]) -> View:
        return View(rebuilt(state), probe)

    found: dict[str, list[float]] = {}
    unrelated: list[float] = []
    for group in groups:
        reference = view(group["reference"])
        scores = {
            relation: [method(reference, view(state), probe) for state in states]
            for relation, states in group["relatives"].items()
        }
        below = [score for relation in UNRELATED for score in scores[relation]]
        unrelated += below
        apart = [score for relation in APART for score in scores[relation]]
        for relation in RELATED:
            found.setdefault(f"auc_{relation}", []).append(auc(scores[relation], below))
        for relation in DERIVED:
            found.setdefault(f"lineage_{relation}", []).append(auc(scores[relation], apart))
    metrics = {name: statistics.fmean(values) for name, values in found.items()}
    metrics["auc"] = statistics.fmean(metrics[f"auc_{relation}"] for relation in RELATED)
    metrics["lineage"] = statistics.fmean(metrics[f"lineage_{relation}"] for relation in DERIVED)
    if setting.zoo:
        yours = [method(a, b, probe) for a, b in itertools.combinations(own(setting.zoo, probe), 2)]
        metrics |= {"auc_yours": auc(yours, unrelated), "yours": statistics.fmean(yours)}
    return metrics


def own(folder: str, probe: Probe) -> list[View]:
    """The networks of a reader's zoo."""
    zoo = ModelZoo(Path(folder))
    if len(zoo.names) < 2:
        raise UserError(f"zoo={folder} must hold two networks or more, it holds {len(zoo.names)}")
    return [View(zoo.load(name), probe) for name in zoo.names]


def auc(above: Iterable[float], below: Iterable[float]) -> float:
    """The chance that one of the first is larger than one of the second; ties count half."""
    a, b = np.array([*above])[:, None], np.array([*below])
    return float(((a > b) + 0.5 * (a == b)).mean())


# --- the figure -----------------------------------------------------------------------------------


def by_relation(frame: DataFrame) -> Figure:
    """How often each method ranks each relation above the unrelated pairs."""
    from matplotlib.figure import Figure as Canvas

    columns = [f"auc_{name}" for name in RELATED] + [f"lineage_{name}" for name in DERIVED]
    columns += ["auc_yours"] if "auc_yours" in frame else []
    means = frame.groupby("method")[columns].mean()
    means = means.loc[means.mean(axis=1).sort_values(ascending=False).index]
    canvas = Canvas(figsize=(8, 0.34 * len(means) + 1.3), dpi=140, layout="constrained")
    axes = canvas.add_subplot()
    shown = axes.imshow(means, vmin=0, vmax=1, cmap="RdYlBu", aspect="auto")
    names = [column.partition("_")[2].replace("_", "\n") for column in columns]
    axes.set_xticks(range(len(columns)), names, fontsize=8)
    axes.axvline(len(RELATED) - 0.5, color="white", linewidth=4)
    above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "fontsize": 9}
    axes.text(len(RELATED) / 2 - 0.5, 1.01, "against unrelated networks", **above)
    axes.text(len(RELATED) + 1, 1.01, "against the same task", **above)
    axes.set_yticks(range(len(means)), [str(name).replace("_", " ") for name in means.index])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(means.to_numpy()):
        dark = not 0.2 < value < 0.85
        axes.text(
            j,
            i,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    canvas.colorbar(shown, label="AUC", pad=0.01)
    canvas.supxlabel(
        f"means over {frame['seed'].nunique()} seeds; 0.5 is chance", fontsize=8, color="0.35"
    )
    return canvas


# --- the study ------------------------------------------------------------------------------------

DIGITS: dict[str, Any] = {
    "data": "digits",
    "anchors": 64,
    "references": 2,
    "copies": 3,
    "width": 48,
    "epochs": 15,
    "zoo": "",
}

ranked = Experiment(
    ranking,
    METHODS,
    smoke=grid(pictures=60, **(DIGITS | {"references": 1, "copies": 1, "epochs": 1, "width": 8})),
    desk=grid(pictures=[30, 300], **DIGITS),
    full=grid(
        pictures=[30, 300, 2000],
        **(
            DIGITS
            | {"data": ["digits", "hub:ylecun/mnist?size=28", "hub:uoft-cs/cifar10"]}
            | {"anchors": 256, "references": 5, "copies": 5, "width": 256}
        ),
    ),
)


def said(name: str) -> str:
    return name.replace("_", " ")


COMPARED = 2 * 3 * 9  # references, copies of a relation, networks to be ranked above
total = ranked.metric("auc", resolution=1 / (COMPARED * len(RELATED)))
lineage = ranked.metric("lineage", resolution=1 / (COMPARED * len(DERIVED)))
derived = {
    relation: ranked.metric(f"lineage_{relation}", resolution=1 / COMPARED) for relation in DERIVED
}

study = Study(
    "representation_faceoff",
    experiments=[ranked],
    claims=[
        Claim(
            "C1",
            "CKA ranks related networks above unrelated ones with an AUC above 0.9",
            higher(total.mean("cka"), 0.9),
            margin="ours",
        ),
        Claim(
            "C2",
            "Matching units one to one tells permuted copies from networks of the same task with "
            "an AUC at least 0.1 above that for rotated copies",
            higher(
                derived["permuted"].mean("matching"), derived["rotated"].mean("matching"), by=0.1
            ),
            margin="ours",
        ),
        Claim(
            "C3",
            "SVCCA, which forgives every linear map, has a lower AUC than CKA",
            lower(total.mean("svcca"), total.mean("cka")),
            margin="ours",
        ),
        Claim(
            "C4",
            "What a black box says of its classes ranks networks with an AUC within 0.1 of CKA's, "
            "or higher",
            higher(total.mean("knowledge"), total.mean("cka"), by=-0.1),
            margin="ours",
        ),
        Claim(
            "C5",
            "Feature complexity, from weights alone, tells permuted copies from networks of the "
            "same task with an AUC above 0.95",
            higher(derived["permuted"].mean("complexity"), 0.95),
            margin="ours",
        ),
        Claim(
            "C6",
            "Matching units tells fine-tuned copies from networks of the same task with a higher "
            "AUC than CKA",
            higher(derived["fine_tuned"].mean("matching"), derived["fine_tuned"].mean("cka")),
            margin="ours",
        ),
        Claim(
            "C7",
            "With 30 pictures, fewer than units, debiased CKA has a higher AUC than CKA",
            higher(total.mean("cka_debiased", pictures=30), total.mean("cka", pictures=30)),
            margin="ours",
        ),
        *(
            Claim(
                f"C{number}",
                f"AUC of {said(name)}, against unrelated networks",
                report(total.mean(name)),
            )
            for number, name in enumerate(METHODS, start=8)
        ),
        *(
            Claim(
                f"C{number}",
                f"AUC of {said(name)}, of copies against networks of the same task",
                report(lineage.mean(name)),
            )
            for number, name in enumerate(METHODS, start=8 + len(METHODS))
        ),
    ],
    figures=[drawn(by_relation)],
    data=data.Accepts("image", min_classes=2),
    demo=["C2"],
)
