"""Iterative feature merging: how narrow can a trained network be made without data or training?

One network a seed is trained; its features are merged at rising thresholds beta, and rivals narrow
the same network to the same widths. None of them trains afterwards.

- `narrowing`: "ifm" is the method as published; "ifm_exact" gives merged channels the running
  variance that is right for duplicates (the widths are the same, since norms do not count); "l1"
  keeps the rows of largest L1 norm, "random" any, and "neuron_merging" folds the channels that l1
  drops into those that it keeps. It chooses its threshold, for each beta, on validation accuracy;
  the others have nothing to choose, so the choice is in its favour. A method is
  `method(model, job)`, which gives a narrower model. `job` has the threshold `beta`, the `widths`
  that "ifm" comes to by layer, an `example`, a `generator`, and `validate(model)`.
- `complexity`: the share of channels that each layer keeps at each threshold, of the network and of
  one twice as wide.

Metrics of `narrowing`, at the thresholds `betas` in order: `accuracies` on test data, and
`kept_shares` of the parameters; the same accuracies one by one (`at_1`, ...). `budget_accuracy` is
that at the largest beta whose share lies between 60 and 90 % (where there is none, at the one
nearest to 75 %). `chosen_accuracy` and `chosen_share` belong to the fewest parameters, of those
with at least 10 % less, at which validation accuracy is within 2 points of the original's (where
there is none, to the highest validation accuracy). `complexity` gives `relative_complexity`, the
mean over layers of the share kept, the channels `kept` by layer, those of the first and last layer
and of the one between them that keeps most, and the merges in the layer that merges most.

Differences from the paper. Desk: handwritten digits and a network of five convolutions. Of the
pictures held out a third is for choosing, two thirds are for scoring. Full: VGG and ResNet on
CIFAR-10, trained as in the paper with the usual crops and mirroring; ImageNet with checkpoints of
`transformers` (torchvision's are the paper's). As in the authors' code the stem and the first stage
of ResNets are left alone. INN pruning, the paper's rival, is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.compress import channel_groups, remove_channels, scores
from paperworks.data.names import require
from paperworks.representation import IterativeFeatureMerging, neuron_merging
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    UserError,
    all_of,
    drawn,
    grid,
    higher,
    lines,
    lower,
    report,
)
from paperworks.study.contract import Grid
from paperworks.study.figures import COLOURS, MARKERS
from paperworks.study.run import Streams

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

THRESHOLDS = [0.0, 0.3, 0.45, 0.6, 0.8]
"""Cosines among which neuron merging chooses."""
BUDGET = (0.6, 0.9)
TOLERANCE = 0.02

# --- networks -------------------------------------------------------------------------------------

VGG = {
    "vgg11": "64,M,128,M,256,256,M,512,512,M,512,512,M",
    "vgg13": "64,64,M,128,128,M,256,256,M,512,512,M,512,512,M",
    "vgg16": "64,64,M,128,128,M,256,256,256,M,512,512,512,M,512,512,512,M",
    "vgg19": "64,64,M,128,128,M,256,256,256,256,M,512,512,512,512,M,512,512,512,512,M",
}
RESNET: dict[str, Any] = {
    "resnet18": {"blocks": [2, 2, 2, 2]},
    "resnet34": {"blocks": [3, 4, 6, 3]},
    "resnet50": {"blocks": [3, 4, 6, 3], "block": "bottleneck"},
}


def make_network(name: str, width: int, channels: int, classes: int) -> nn.Module:
    """A network so many times as wide as it is by its name, or a checkpoint for ImageNet."""
    if "/" in name:
        return pretrained_resnet(name, classes)
    if name in RESNET:
        widths = [width * 2**stage for stage in (6, 7, 8, 9)]
        return nets.ResNet(channels, widths, **RESNET[name], num_classes=classes)
    widths, pools = [], []
    for layer in VGG.get(name, name).split(","):
        if layer == "M":
            pools.append(len(widths) - 1)
        else:
            widths.append(width * int(layer))
    return nets.ConvNet(channels, widths, pool_after=pools, num_classes=classes)


def pretrained_resnet(name: str, classes: int) -> nn.Module:
    """A ResNet of `transformers` as a chain, which can be traced; pictures come in [0, 1]."""
    require("transformers", "language", what=name)
    from transformers import ResNetForImageClassification

    model: Any = ResNetForImageClassification.from_pretrained(name)
    if model.config.num_labels != classes:
        raise UserError(f"{name} knows {model.config.num_labels} classes, the data have {classes}")
    stem, stages = model.resnet.embedder, model.resnet.encoder.stages
    blocks = [
        nn.Sequential(nets.Residual(block.layer, block.shortcut), block.activation)
        for stage in stages
        for block in stage.layers
    ]
    pool = [nn.AdaptiveAvgPool2d(1), *model.classifier]
    return nn.Sequential(ImageNetUnits(), stem.embedder, stem.pooler, *blocks, *pool)


class ImageNetUnits(nn.Module):
    """Pictures in [0, 1] to mean 0 and deviation 1 over ImageNet."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


# --- a task ---------------------------------------------------------------------------------------

TRAINING = (
    *("data", "train", "val", "test", "network", "width"),
    *("epochs", "batch", "decay", "schedule", "augment"),
)
"""The settings on which a trained network depends."""
MERGING = (*TRAINING, "untouched", "betas")


class Task:
    """A seed's pictures and its network."""

    def __init__(self, setting: Setting, run: Streams) -> None:
        self.setting, self.run = setting, run
        sizes = (setting.train, setting.val, setting.test)
        self.data = data.load(setting.data, sizes=sizes, generator=run.rng("split"))
        self.example = self.data.test[:1].tensors()[0].to(run.device)
        with run.seeded("weights"):
            channels, classes = self.example.shape[1], len(self.data.classes)
            self.model = make_network(setting.network, setting.width, channels, classes)
        self.model.to(run.device).eval()

    def train(self) -> nn.Module:
        setting, run = self.setting, self.run
        batches = data.batches(
            self.data.train,
            setting.batch,
            run.rng("batches"),
            augment=crop_flip if setting.augment else None,
        )
        steps = setting.epochs * len(batches)
        rate: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": setting.decay}
        nets.fit(
            self.model,
            batches,
            partial(cross_entropy, run.device),
            optimizer=torch.optim.SGD(self.model.parameters(), **rate),
            steps=steps,
            schedule="cosine" if setting.schedule == "cosine" else partial(stairs, steps=steps),
        )
        return self.model

    def trained(self) -> nn.Module:
        """The network after its training, if it does not come trained."""
        if self.setting.epochs:
            settings = {key: self.setting[key] for key in TRAINING}
            self.model.load_state_dict(self.run.fixture(trained, seed=self.run.seed, **settings))
        return self.model

    def merging(self, beta: float, **options: Any) -> IterativeFeatureMerging:
        """Merging that leaves the first layers of the chain alone."""
        groups = channel_groups(self.model, self.example)
        names = [name for group in groups for name in group.producers]
        skip = [name for name in names if int(name.split(".")[0]) < self.setting.untouched]
        return IterativeFeatureMerging(beta, skip=skip, **options)

    @torch.no_grad()
    def accuracy(self, model: nn.Module, part: str) -> float:
        right, split = 0, getattr(self.data, part)
        pairs: Any = data.batches(split, 500, torch.Generator())
        for x, y in pairs:
            predicted = model(x.to(self.run.device)).argmax(1).cpu()
            right += int((predicted == y).sum())
        return right / len(split)


def cross_entropy(device: torch.device, model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x.to(device)), y.to(device))


def crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    return data.crop_flip(x, x.shape[-1] // 8, generator)


def stairs(step: int, steps: int) -> float:
    """A tenth from half of the steps on, a hundredth in the last quarter."""
    return 0.1 ** ((step >= steps / 2) + (step >= 3 * steps / 4))


def trained(run: Streams, **settings: Any) -> dict[str, Tensor]:
    """Fixture: the weights of a trained network."""
    return Task(Setting(settings), run).train().state_dict()


def merged_widths(run: Streams, **settings: Any) -> list[dict[str, int]]:
    """Fixture: the channels that every layer keeps, for each threshold."""
    task = Task(Setting(settings), run)
    model = task.trained()
    results = [task.merging(beta).merge(model, task.example) for beta in thresholds(task.setting)]
    return [{name: kept for name, (kept, _) in r.complexity.items()} for r in results]


def thresholds(setting: Setting) -> list[float]:
    return [float(beta) for beta in setting.betas.split(",")]


# --- methods --------------------------------------------------------------------------------------


@dataclass
class Job:
    """What a method is told besides the network."""

    beta: float
    widths: dict[str, int]
    example: Tensor
    generator: torch.Generator
    validate: Callable[[nn.Module], float]
    merging: Callable[..., IterativeFeatureMerging]


def merge(model: nn.Module, job: Job, **options: Any) -> nn.Module:
    return job.merging(job.beta, **options).merge(model, job.example).model


def prune(model: nn.Module, job: Job, score: Any) -> nn.Module:
    """Keeps the rows whose weights have the largest scores in sum."""
    found = scores(model, score, generator=job.generator)
    masks = {}
    for group in channel_groups(model, job.example):
        weights = [f"{name}.weight" for name in group.producers]
        total = sum(found[name].reshape(group.size, -1).sum(1) for name in weights)
        assert isinstance(total, Tensor)
        keep = torch.zeros(group.size, dtype=torch.bool)
        keep[total.topk(job.widths[group.name]).indices] = True
        for name in weights:
            masks[name] = keep.repeat_interleave(len(found[name]) // group.size)
    return remove_channels(model, masks, job.example)


def fold(model: nn.Module, job: Job) -> nn.Module:
    """Neuron merging with the threshold of highest validation accuracy."""
    _, best = nets.pick(
        THRESHOLDS,
        lambda threshold: neuron_merging(model, job.example, job.widths, threshold),
        lambda small: -job.validate(small),
    )
    return best


METHODS = {
    "ifm": merge,
    "ifm_exact": partial(merge, bn="exact"),
    "l1": partial(prune, score="magnitude"),
    "random": partial(prune, score="random"),
    "neuron_merging": fold,
}


# --- trials ---------------------------------------------------------------------------------------


def narrowing(setting: Setting, run: Run) -> dict[str, Any]:
    """Narrow the trained network at every threshold with one method."""
    task = Task(setting, run)
    model = task.trained()
    run.witness(split=task.data.test.ids, weights=model.state_dict())
    settings = {key: setting[key] for key in MERGING}
    widths = run.fixture(merged_widths, seed=run.seed, **settings)
    betas, size = thresholds(setting), count(model)
    shares, accuracies, validated = [], [], []
    for i, beta in enumerate(betas):
        job = Job(
            beta,
            widths[i],
            task.example,
            run.rng("method"),
            validate=lambda small: task.accuracy(small, "val"),
            merging=task.merging,
        )
        small = run.methods[setting.method](model, job)
        shares.append(count(small) / size)
        accuracies.append(task.accuracy(small, "test"))
        validated.append(task.accuracy(small, "val"))
        run.progress(i + 1, len(betas))
    enough = task.accuracy(model, "val") - TOLERANCE
    chosen = choose(shares, validated, enough)
    return {
        "original_accuracy": task.accuracy(model, "test"),
        "accuracies": accuracies,
        "kept_shares": shares,
        "threshold": betas,
        "budget_accuracy": accuracies[in_budget(shares)],
        "chosen_accuracy": accuracies[chosen],
        "chosen_share": shares[chosen],
    } | {f"at_{number}": value for number, value in enumerate(accuracies, start=1)}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def in_budget(shares: Sequence[float]) -> int:
    """The last whose share is in the budget; where there is none, the nearest to its middle."""
    low, high = BUDGET
    inside = [i for i, share in enumerate(shares) if low <= share <= high]
    return inside[-1] if inside else int(np.argmin(np.abs(np.array(shares) - (low + high) / 2)))


def choose(shares: Sequence[float], validated: Sequence[float], enough: float) -> int:
    """The narrowest that is good enough on validation data, or else the best of those narrower."""
    narrower = [i for i, share in enumerate(shares) if share <= 0.9] or [len(shares) - 1]
    good = [i for i in narrower if validated[i] >= enough]
    if good:
        return min(good, key=lambda i: shares[i])
    return max(narrower, key=lambda i: validated[i])


def complexity(setting: Setting, run: Run) -> dict[str, Any]:
    """Merge the trained network at one threshold, and look at its layers."""
    task = Task(setting, run)
    model = task.trained()
    run.witness(weights=model.state_dict())
    result = task.merging(setting.beta).merge(model, task.example)
    names = list(result.complexity)
    kept, sizes = (list(numbers) for numbers in zip(*result.complexity.values()))
    tree = int(np.argmax(np.subtract(sizes, kept)))
    merges = [merge for merge in result.history if merge.layer == names[tree]]
    return {
        "relative_complexity": float(np.mean(np.divide(kept, sizes))),
        "kept": kept,
        "sizes": sizes,
        "first_kept": kept[0],
        "between_kept": max(kept[1:-1]),
        "last_kept": kept[-1],
        "tree_layer": tree + 1,
        "tree_first": [merge.first[0] for merge in merges],
        "tree_second": [merge.second[0] for merge in merges],
        "tree_relative": [merge.relative for merge in merges],
    }


# --- figures --------------------------------------------------------------------------------------


def canvas_and_axes(**labels: Any) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(5, 3.6), dpi=140, layout="constrained")
    axes = canvas.add_subplot(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    return canvas, axes


def complexity_by_beta(frame: DataFrame) -> Figure:
    """The share of channels that each layer of a network keeps, and of one twice as wide."""
    canvas, axes = canvas_and_axes(xlabel="Beta", ylabel="Relative complexity")
    axes.grid(axis="y", color="0.9")
    rows = frame[frame["experiment"] == "complexity"]
    rows = rows[rows["network"] == rows["network"].iloc[0]] if len(rows) else rows
    for width, line in ((1, "-"), (2, ":")):
        ours = rows[rows["width"] == width]
        shares: dict[Any, Any] = {
            beta: np.mean(np.divide(cell["kept"].tolist(), cell["sizes"].tolist()), 0)
            for beta, cell in ours.groupby("beta")
        }
        for i, y in enumerate(np.array(list(shares.values())).T):
            style: dict[str, Any] = {"color": COLOURS[i % 7], "marker": MARKERS[i % 8]}
            label = f"layer {i + 1}" if width == 1 else None
            axes.plot(list(shares), y, linestyle=line, markersize=4, label=label, **style)
    if len(rows):
        canvas.legend(loc="outside upper center", ncols=3, frameon=False)
    seeds = rows["seed"].nunique()
    canvas.supxlabel(f"means over {seeds} seeds; dotted: twice as wide", fontsize=8, color="0.35")
    return canvas


def merge_tree(frame: DataFrame) -> Figure:
    """Which channels became one in the layer that merges most, in the order of the merges."""
    canvas, axes = canvas_and_axes(xlabel="Channels", ylabel="Merges")
    axes.spines["left"].set_visible(False)
    rows = frame[(frame["experiment"] == "complexity") & (frame["width"] == 1)]
    rows = rows[rows["beta"] <= TREE_BETA].sort_values(["beta", "seed"])
    rows = rows[rows["beta"] == rows["beta"].max()]
    if not len(rows):
        axes.text(0.5, 0.5, "not run at this scale", transform=axes.transAxes, ha="center")
        return canvas
    row = rows.iloc[0]
    layer = int(row["tree_layer"])
    pairs = [(int(i), int(j)) for i, j in zip(row["tree_first"], row["tree_second"])]
    places = leaves(pairs, int(row["sizes"][layer - 1]))
    relative = np.array(row["tree_relative"])
    lowest = relative.min() if len(relative) else 0.0
    scale = axes.scatter([], [], c=[], cmap="viridis", vmax=float(row["beta"]), vmin=lowest)
    tops = {channel: (float(place), 0) for channel, place in places.items()}
    for height, ((i, j), share) in enumerate(zip(pairs, relative), start=1):
        (x, y), (u, v) = tops[i], tops.pop(j)
        axes.plot([x, x, u, u], [y, height, height, v], color=scale.to_rgba(share), linewidth=1.2)
        tops[i] = ((x + u) / 2, height)
    alone = [x for x, height in tops.values() if height == 0]
    axes.plot(alone, np.zeros(len(alone)), "|", color="0.4", markersize=8)
    axes.set_xticks([])
    canvas.colorbar(scale, label="Share of the largest distance")
    note = (
        f"layer {layer} at beta = {row['beta']:g}, seed {row['seed']}: {len(places)} channels, "
        f"{len(tops)} left"
    )
    canvas.supxlabel(note, fontsize=8, color="0.35")
    return canvas


def leaves(pairs: Sequence[tuple[int, int]], size: int) -> dict[int, int]:
    """A place for each channel such that no two branches cross: trees first, the largest first.

    A pair names either side by its lowest channel, the lower one first.
    """
    trees = {channel: [channel] for channel in range(size)}
    for i, j in pairs:
        trees[i] += trees.pop(j)
    order = [channel for tree in sorted(trees.values(), key=len, reverse=True) for channel in tree]
    return {channel: place for place, channel in enumerate(order)}


# --- the study ------------------------------------------------------------------------------------

TREE_BETA = 0.3
DIGITS: dict[str, Any] = {
    "data": "digits",
    "train": 0.7233,
    "val": 0.0919,
    "test": 0.1848,  # 1,300, 165 and 332 pictures
    "network": "32,32,M,64,64,M,64",
    "epochs": 25,
    "batch": 64,
    "decay": 5e-4,
    "schedule": "cosine",
    "augment": False,
    "untouched": 0,
}
SMALL = DIGITS | {"network": "4,6,M,8", "epochs": 1, "batch": 256}
CIFAR: dict[str, Any] = {
    "data": "hub:uoft-cs/cifar10",
    "train": 0.95,
    "val": 0.05,
    "test": 1.0,
    "epochs": 160,
    "batch": 128,
    "decay": 1e-4,
    "schedule": "stairs",
    "augment": True,
}
IMAGENET = CIFAR | {
    "data": "hub:ILSVRC/imagenet-1k?size=224&channels=3",
    "train": 0.001,
    "val": 0.005,
    "epochs": 0,
    "augment": False,
}
BETAS = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4]
VGG_BETAS = [0.001, 0.01, 0.05, 0.1, 0.15, 0.2, 0.3]
RESNET_BETAS = [0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
IMAGENET_BETAS = [0.01, 0.02, 0.05, 0.08, 0.1, 0.15, 0.2]
UNTOUCHED = {"resnet18": 7, "resnet34": 9, "resnet50": 9}
"""Where the second stage of a chain begins."""
CHECKPOINTS = {"microsoft/resnet-18": 5, "microsoft/resnet-34": 6, "microsoft/resnet-50": 6}


def curve(recipe: dict[str, Any], betas: Sequence[float], **keys: Any) -> Grid:
    return grid(**(recipe | keys), width=1, betas=",".join(map(str, betas)))


narrow = Experiment(
    narrowing,
    METHODS,
    smoke=curve(SMALL, [0.4, 0.8]),
    desk=curve(DIGITS, BETAS),
    full=Grid(
        curve(CIFAR, VGG_BETAS, network=list(VGG), untouched=0)
        + [
            cell
            for recipe, betas, starts in (
                (CIFAR, RESNET_BETAS, UNTOUCHED),
                (IMAGENET, IMAGENET_BETAS, CHECKPOINTS),
            )
            for network, start in starts.items()
            for cell in curve(recipe, betas, network=network, untouched=start)
        ]
    ),
)
layers = Experiment(
    complexity,
    smoke=grid(**SMALL, width=[1, 2], beta=[0.2, 0.3]),
    desk=grid(**DIGITS, width=[1, 2], beta=BETAS),
    full=grid(**(CIFAR | {"network": list(VGG)}), untouched=0, width=[1, 2], beta=VGG_BETAS),
)

ONE = 1 / 332
accuracy = narrow.metric("budget_accuracy", resolution=ONE)
original = narrow.metric("original_accuracy", resolution=ONE)
chosen = narrow.metric("chosen_accuracy", resolution=ONE)
chosen_share = narrow.metric("chosen_share")
at = {n: narrow.metric(f"at_{n}", resolution=ONE) for n in range(1, 8)}
relative = layers.metric("relative_complexity")
first, between, last = (
    layers.metric(f"{place}_kept", resolution=1) for place in ("first", "between", "last")
)

study = Study(
    "ifm",
    experiments=[narrow, layers],
    claims=[
        Claim(
            "C1",
            "At the largest beta that keeps 60 to 90 % of the parameters, feature merging is more "
            "accurate than L1 pruning to the same widths",
            higher(accuracy.mean("ifm"), accuracy.mean("l1")),
        ),
        Claim(
            "C2",
            "With a beta chosen on validation data, feature merging is within 2 points of the "
            "original network with at least 10 % fewer parameters",
            all_of(
                higher(chosen.mean("ifm"), original.mean("ifm"), by=-TOLERANCE),
                lower(chosen_share.mean("ifm"), 0.9),
            ),
            margin="ours",
        ),
        Claim(
            "C3",
            "At every beta at which something is merged (0.15 and up), feature merging is more "
            "accurate than random pruning to the same widths",
            all_of(*(higher(at[n].mean("ifm"), at[n].mean("random")) for n in range(3, 8))),
            note="At 0.15 and 0.2 an eighth of the parameters goes or less, and on development "
            "seeds random pruning loses nothing by it. That nothing is merged below 0.15 was read "
            "off the parameters left on development seeds.",
        ),
        Claim(
            "C4",
            "At beta = 0.2 the relative complexity of a network twice as wide is lower",
            lower(relative.mean(width=2, beta=0.2), relative.mean(width=1, beta=0.2)),
            note="On development seeds the smallest distances of the wider layers are a larger "
            "share of the largest: at 0.2 nothing is merged. At 0.3 its first and last layer keep "
            "a smaller share than those of the network; see C4b.",
        ),
        Claim(
            "C4b",
            "Relative complexity at beta = 0.3 of a network twice as wide less that of the network",
            report(relative.mean(width=2, beta=0.3) - relative.mean(width=1, beta=0.3)),
        ),
        Claim(
            "C5",
            "At beta = 0.3 a layer in between keeps more channels than the first and than the last",
            all_of(
                higher(between.mean(width=1, beta=0.3), first.mean(width=1, beta=0.3)),
                higher(between.mean(width=1, beta=0.3), last.mean(width=1, beta=0.3)),
            ),
        ),
        Claim(
            "C6",
            "Accuracy of feature merging less that of neuron merging, at the same widths as in C1",
            report(accuracy.mean("ifm") - accuracy.mean("neuron_merging")),
        ),
    ],
    figures=[
        lines(x="threshold", y="accuracies", by="method", experiment=narrow),
        drawn(complexity_by_beta),
        drawn(merge_tree),
    ],
    data=data.Accepts("image", min_classes=2),
    demo=["C1"],
)
