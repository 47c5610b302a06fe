"""Stitchable networks: three trained networks joined into one with dozens of costs between them.

Three anchors of one depth and rising width are trained a seed, each at the rate with the lowest
validation loss. They are stitched and fine-tuned together, at a tenth of the rate that each was
trained at, for fewer epochs than one of them took.

- `stitching`: "snnet" is the method: stitching layers by least squares on 100 training pictures,
  from the cheaper anchor to the dearer, neighbours only, everything trained. "random_init" leaves
  the layers as drawn, "slow_to_fast" begins in the dearer anchor, "all_pairs" also stitches the
  smallest to the largest, "frozen" trains the stitching layers alone. A method is
  `method(anchors, pictures, generator)`, which gives a `StitchableNetwork` ready to be fine-tuned.
- `alone`: four networks of widths in between, each trained by itself for a fourth of the epochs
  that anchors and fine-tuning took together ("share"), at a rate tuned for each on validation loss;
  what is stitched is not tuned. `ceiling`: the second and fourth of them with the whole budget for
  each, at a rate tuned on one. A method is `method(epochs, networks)`, and gives the epochs of one.

Metrics: means over all stitches, without the anchors, of test accuracy before fine-tuning
(`untrained_accuracy`) and after it (`accuracy`), and of what it lies above the straight line, in
multiply-adds, between the two fine-tuned anchors (`above_line`); each anchor's accuracy before and
after (`original_1`, `tuned_1`, ...); and, for the cost of each network in `alone`, the test
accuracy of the configuration that is best on validation among those no dearer (`at_1`, ...). The
curves `macs` and `accuracies` are over the configurations.

Differences from the paper. Desk: digits under pixel noise, fresh in each epoch of training and the
same for all in validation and test, where every picture comes under four draws; residual
perceptrons of 6 blocks in place of DeiT-Ti/S/B. Budgets are counted in epochs, and that the line in
`above_line` joins the fine-tuned anchors, not the original ones, is our reading. Full: the teacher
is DeiT-B itself in place of RegNetY-160; of the augmentations only mirroring is kept, and there is
no drop path. The paper's Swin and ResNet families are not in it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.compress import (
    AnchorAdapter,
    StitchableNetwork,
    macs,
    pareto_front,
    stitch_finetune,
)
from paperworks.data.names import require
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    Tune,
    UserError,
    all_of,
    drawn,
    grid,
    higher,
    report,
    within,
)
from paperworks.study.figures import COLOURS, MARKERS
from paperworks.study.run import Streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

# --- a task ---------------------------------------------------------------------------------------

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATES: list[Any] = [3e-3, 1e-2, 3e-2]
"""For anchors and for networks trained alone; 1e-1 is no better for widths of 8 to 13."""


class Task:
    """A seed's pictures, as the networks take them, and how networks are trained on them."""

    def __init__(self, setting: Setting, run: Streams) -> None:
        self.setting, self.run = setting, run
        self.data = data.load(setting.data, generator=run.rng("split"))
        noise = run.rng("noise")
        self.val, self.test = (
            copies(part, setting.noise, setting.draws, noise)
            for part in (self.data.val, self.data.test)
        )
        self.batches = data.batches(
            self.data.train,
            setting.batch,
            run.rng("batches"),
            augment=partial(augmented, setting.noise, setting.network == "deit"),
        )
        self.teacher = pretrained(setting.teacher, self.classes) if setting.teacher else None
        if self.teacher is not None:
            self.teacher.eval().requires_grad_(False).to(run.device)

    @property
    def classes(self) -> int:
        return len(self.data.classes)

    @property
    def example(self) -> Tensor:
        return self.view(self.test[:1].tensors()[0])

    def view(self, x: Tensor) -> Tensor:
        """Pictures as the networks take them: rows of pixels, or in the units of ImageNet."""
        x = x.to(self.run.device)
        if self.setting.network != "deit":
            return x.flatten(1)
        mean, std = (torch.tensor(v).reshape(3, 1, 1).to(x) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (x - mean) / std

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """An epoch: pictures, their labels, and what the teacher says they are."""
        pairs: Any = self.batches  # with labels, which `data=Accepts(...)` asks for
        for x, y in pairs:
            x, y = self.view(x), y.to(self.run.device)
            said = y if self.teacher is None else self.teacher(x).argmax(1)
            yield x, (y, said)

    def loss(self, z: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        """`(1 - alpha) CE(labels) + alpha CE(teacher)`, alpha a half with a teacher and else 0."""
        y, said = targets
        loss = F.cross_entropy(z, y, label_smoothing=self.setting.smoothing)
        return loss if self.teacher is None else (loss + F.cross_entropy(z, said)) / 2

    def schedule(self, step: int, epochs: int) -> float:
        """A linear warm-up from a thousandth, then half a cosine from 1 to a hundredth."""
        epoch, warmup = step / len(self.batches), self.setting.warmup
        if epoch < warmup:
            return max(epoch / warmup, 1e-3)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2

    def untrained(self, width: int) -> nn.Module:
        if self.setting.network == "deit":
            return deit(width, self.classes)
        return nets.ResidualMLP(self.example.shape[1], width, self.setting.depth, self.classes)

    def train(
        self, network: nn.Module, lr: float, epochs: int, after_step: Callable[[], Any] = int
    ) -> nn.Module:
        """The network after so many epochs by itself."""
        nets.fit(
            network.to(self.run.device),
            self,
            lambda model, batch: self.loss(model(batch[0]), batch[1]),
            optimizer=torch.optim.AdamW(network.parameters(), lr, weight_decay=0.05, fused=True),
            steps=epochs * len(self.batches),
            schedule=partial(self.schedule, epochs=epochs),
            after_step=[after_step],
        )
        return network

    @torch.no_grad()
    def outputs(self, network: nn.Module, part: Any) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(part)).split(2048 if self.setting.network != "deit" else 128)
        z = [network(self.view(part[some].tensors()[0])).cpu() for some in rows]
        return torch.cat(z), part.y

    def accuracy(self, network: nn.Module, part: Any) -> float:
        z, y = self.outputs(network, part)
        return (z.argmax(1) == y).double().mean().item()

    def accuracies(self, net: StitchableNetwork, part: Any) -> np.ndarray:
        """Of every configuration."""
        net.eval()
        found = []
        for id in range(len(net.configs)):
            net.set_stitch(id)
            found.append(self.accuracy(net, part))
        return np.array(found)


def copies(part: Any, noise: float, draws: int, generator: torch.Generator) -> Any:
    """Every picture under several draws of noise, or as it is without noise."""
    if not noise:
        return part
    x, y = part.tensors()
    several = data.noise(x.repeat(draws, *[1] * (x.dim() - 1)), noise, generator)
    return data.Split(several, y.repeat(draws), part.ids.repeat(draws))


def augmented(noise: float, mirror: bool, x: Tensor, generator: torch.Generator) -> Tensor:
    if mirror:
        flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
        x = torch.where(flip, x.flip(-1), x)
    return data.noise(x, noise, generator)


ANCHOR = (
    *("data", "noise", "draws", "batch", "network", "depth", "epochs"),
    *("warmup", "smoothing", "teacher"),
)
"""The settings on which a trained anchor depends."""


def anchor(run: Streams, width: int, **setting: Any) -> dict[str, Any]:
    """Fixture: a network of one width at the rate with the lowest validation loss, and the rate."""
    task = Task(Setting(setting), run)
    with run.seeded("weights"):
        start = task.untrained(width)
    lr, network = nets.pick(
        RATES,
        lambda lr: task.train(copy.deepcopy(start), lr, setting["epochs"]),
        lambda network: F.cross_entropy(*task.outputs(network, task.val)).item(),
    )
    return {"weights": network.state_dict(), "lr": lr}


def anchors_of(task: Task) -> tuple[list[nn.Module], list[float]]:
    """The trained networks, cheapest first, and the rates that they were trained at."""
    setting, run = task.setting, task.run
    names = setting.anchors.split(",")
    if setting.network == "deit":
        return [pretrained(name, task.classes) for name in names], [setting.lr] * len(names)
    networks, rates = [], []
    for width in map(int, names):
        made = run.fixture(
            anchor, seed=run.seed, width=width, **{key: setting[key] for key in ANCHOR}
        )
        with run.seeded("method"):
            network = task.untrained(width)
        network.load_state_dict(made["weights"])
        networks.append(network)
        rates.append(made["lr"])
    return networks, rates


def deit(width: int, classes: int) -> nn.Module:
    """An untrained DeiT of 12 layers, heads of 64 numbers."""
    require("transformers", "language", what="DeiT")
    from transformers import ViTConfig, ViTForImageClassification

    shape: dict[str, Any] = {"hidden_size": width, "num_attention_heads": width // 64}
    config = ViTConfig(**shape, intermediate_size=4 * width, num_labels=classes)  # type: ignore[call-arg]
    return AnchorAdapter.of(ViTForImageClassification(config))


def pretrained(name: str, classes: int) -> nn.Module:
    """A classifier of `transformers` that gives logits."""
    require("transformers", "language", what=name)
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(name)
    if model.config.num_labels != classes:
        raise UserError(f"{name} knows {model.config.num_labels} classes, the data have {classes}")
    return AnchorAdapter.of(model)


# --- methods --------------------------------------------------------------------------------------


def stitch(
    anchors: Sequence[nn.Module],
    pictures: Tensor,
    generator: torch.Generator,
    *,
    fitted: bool = True,
    frozen: bool = False,
    **options: Any,
) -> StitchableNetwork:
    net = StitchableNetwork(anchors, pictures[:1], generator=generator, **options)
    if fitted:
        net.initialize(pictures)
    net.anchors.requires_grad_(not frozen)
    return net


def share(epochs: int, networks: int) -> int:
    return epochs // networks


def full_budget(epochs: int, networks: int) -> int:
    return epochs


METHODS = {
    "snnet": stitch,
    "random_init": partial(stitch, fitted=False),
    "slow_to_fast": partial(stitch, direction="slow_to_fast"),
    "all_pairs": partial(stitch, nearest=False),
    "frozen": partial(stitch, frozen=True),
}


# --- trials ---------------------------------------------------------------------------------------


def stitching(setting: Setting, run: Run) -> dict[str, Any]:
    """Stitch the anchors with one method, and fine-tune what comes out."""
    task = Task(setting, run)
    anchors, rates = anchors_of(task)
    run.witness(
        split=[task.data.train.ids, task.val.ids, task.test.ids],
        weights=[network.state_dict() for network in anchors],
    )
    pictures = next(iter(data.batches(task.data.train, setting.pictures, run.rng("pictures"))))[0]
    pictures = task.view(data.noise(pictures, setting.noise, run.rng("pictures")))
    anchors = [network.to(run.device).eval() for network in anchors]
    net = run.methods[setting.method](anchors, pictures, run.rng("method")).to(run.device)
    untrained = task.accuracies(net, task.test)
    finetune(net, rates, task, run)
    test, val = task.accuracies(net, task.test), task.accuracies(net, task.val)
    costs = np.array([net.cost(id, task.example) for id in range(len(net.configs))])
    stitches = slice(len(anchors), None)
    metrics: dict[str, Any] = {
        "untrained_accuracy": untrained[stitches].mean(),
        "accuracy": test[stitches].mean(),
        "above_line": above_line(net, costs, test).mean(),
        "macs": costs.tolist(),
        "accuracies": test.tolist(),
    }
    for id in range(len(anchors)):
        metrics |= {f"original_{id + 1}": untrained[id], f"tuned_{id + 1}": test[id]}
    front = pareto_front(costs.tolist(), val.tolist())
    for number, cost in enumerate(target_costs(task), start=1):
        chosen = max((id for id in front if costs[id] <= cost), key=lambda id: costs[id])
        metrics[f"at_{number}"] = test[chosen]
    return metrics


def finetune(net: StitchableNetwork, rates: list[float], task: Task, run: Run) -> None:
    """Each anchor at a tenth of its own rate, the stitching layers at a tenth of the highest."""
    epochs: int = task.setting.finetune
    groups = [
        {"params": list(network.parameters()), "lr": rate / 10}
        for network, rate in zip(net.anchors, rates)
    ]
    groups.append({"params": list(net.stitches.parameters()), "lr": max(rates) / 10})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(task.schedule, epochs=epochs))
    steps = epochs * len(task.batches)
    done = iter(range(1, steps + 1))
    stitch_finetune(
        net,
        task,
        task.loss,
        optimizer,
        epochs,
        run.rng("paths"),
        schedule=schedule,
        after_step=lambda id, loss: run.progress(next(done), steps),
    )


def above_line(net: StitchableNetwork, costs: np.ndarray, accuracies: np.ndarray) -> np.ndarray:
    """How far each stitch lies above the straight line between its two anchors.

    Beyond the dearer one, whose repeated blocks may cost more than it does, the line is flat.
    """
    found = []
    for id in range(len(net.anchors), len(net.configs)):
        ends = sorted([net.configs[id].source, net.configs[id].target])
        line = np.interp(costs[id], costs[ends], accuracies[ends])
        found.append(accuracies[id] - line)
    return np.array(found)


def target_costs(task: Task) -> list[int]:
    """What the networks trained alone cost."""
    with task.run.seeded("method"):
        networks = [task.untrained(int(width)) for width in task.setting.targets.split(",")]
    return [macs(network.to(task.run.device), task.example) for network in networks]


def alone(setting: Setting, run: Run) -> dict[str, float]:
    """Train one network of a width in between."""
    task = Task(setting, run)
    widths = [int(width) for width in setting.targets.split(",")]
    total = setting.epochs * len(setting.anchors.split(",")) + setting.finetune
    with run.seeded("weights"):
        network = task.untrained(widths[setting.target - 1])
    run.witness(
        split=[task.data.train.ids, task.val.ids, task.test.ids], weights=network.state_dict()
    )
    epochs = run.methods[setting.method](total, len(widths))
    steps = epochs * len(task.batches)
    done = iter(range(1, steps + 1))
    task.train(network, setting.lr, epochs, lambda: run.progress(next(done), steps))
    return {
        "accuracy": task.accuracy(network, task.test),
        "validation_loss": F.cross_entropy(*task.outputs(network, task.val)).item(),
        "macs": macs(network, task.example),
        "epochs": epochs,
    }


# --- the study ------------------------------------------------------------------------------------


def accuracy_by_macs(frame: DataFrame) -> Figure:
    """Every configuration of the fine-tuned network, and the networks trained alone."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    canvas = Canvas(figsize=(5, 3.6), dpi=140, layout="constrained")
    axes = canvas.add_subplot(xlabel="Multiply-adds", ylabel="Accuracy", xscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    ours = frame[(frame["experiment"] == "stitching") & (frame["method"] == "snnet")]
    if len(ours):
        costs = np.mean(ours["macs"].tolist(), 0)
        means = np.mean(ours["accuracies"].tolist(), 0)
        axes.plot(costs, means, "o", color=COLOURS[0], alpha=0.6, label="stitchable")
        anchors = sum(str(column).startswith("tuned_") for column in frame)
        style: dict[str, Any] = {"color": "black", "fillstyle": "none", "markersize": 10}
        axes.plot(costs[:anchors], means[:anchors], "s", label="its anchors", **style)
    rivals = frame[frame["experiment"].isin(["alone", "ceiling"])]
    for number, (name, rows) in enumerate(rivals.groupby("method", sort=False), start=1):
        means = rows.astype({"macs": float}).groupby("macs")["accuracy"].mean()
        label = f"alone, {str(name).replace('_', ' ')}"
        axes.plot(means.index, means, f"{MARKERS[number]}--", color=COLOURS[number], label=label)
    handles, names = axes.get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    canvas.supxlabel(f"means over {frame['seed'].nunique()} seeds", fontsize=8, color="0.35")
    return canvas


DIGITS: dict[str, Any] = {
    "data": "digits",
    "noise": 0.35,
    "draws": 4,
    "batch": 64,
    "network": "mlp",
    "depth": 6,
    "anchors": "8,16,48",
    "targets": "10,13,24,36",
    "epochs": 30,
    "finetune": 20,
    "warmup": 0,
    "smoothing": 0.0,
    "teacher": "",
}
SMALL = DIGITS | {"depth": 2, "draws": 1, "batch": 256, "epochs": 1, "finetune": 1}
IMAGENET: dict[str, Any] = {
    "data": "hub:ILSVRC/imagenet-1k?size=224&channels=3",
    "noise": 0.0,
    "draws": 1,
    "batch": 1024,
    "network": "deit",
    "anchors": ",".join(f"facebook/deit-{size}-patch16-224" for size in ("tiny", "small", "base")),
    "targets": "256,320,512,640",
    "epochs": 300,
    "finetune": 50,
    "warmup": 5,
    "smoothing": 0.1,
    "teacher": "facebook/deit-base-patch16-224",
    "lr": 1e-3,
}
NUMBERS: list[Any] = [1, 2, 3, 4]
stitched = Experiment(
    stitching,
    METHODS,
    smoke=grid(pictures=100, **SMALL),
    desk=grid(pictures=100, **DIGITS),
    full=grid(pictures=100, **IMAGENET),
)
lone = Experiment(
    alone,
    {"share": share},
    smoke=grid(target=NUMBERS, **SMALL),
    desk=grid(target=NUMBERS, **DIGITS),
    full=grid(target=NUMBERS, **IMAGENET),
    tune=Tune(by="validation_loss", lr=RATES),
)
ceiling = Experiment(
    alone,
    {"full_budget": full_budget},
    name="ceiling",
    smoke=grid(target=[2, 4], **SMALL),
    desk=grid(target=[2, 4], **DIGITS),
    full=grid(target=[2, 4], **IMAGENET),
    tune=Tune(by="validation_loss", shared=["target"], lr=RATES),
)

ONE = 1 / (4 * 359)
untrained = stitched.metric("untrained_accuracy", resolution=ONE)
accuracy = stitched.metric("accuracy", resolution=ONE)
above = stitched.metric("above_line", resolution=ONE)
at = {number: stitched.metric(f"at_{number}", resolution=ONE) for number in NUMBERS}
original = {number: stitched.metric(f"original_{number}", resolution=ONE) for number in (1, 2, 3)}
tuned = {number: stitched.metric(f"tuned_{number}", resolution=ONE) for number in (1, 2, 3)}
lone_accuracy = lone.metric("accuracy", resolution=ONE)
highest = ceiling.metric("accuracy", resolution=ONE)

study = Study(
    "snnet",
    experiments=[stitched, lone, ceiling],
    claims=[
        Claim(
            "C1",
            "Before any fine-tuning, stitches by least squares are at least 10 points more "
            "accurate, in the mean over all, than random ones",
            higher(untrained("snnet"), untrained("random_init"), by=0.10),
            margin="ours",
        ),
        Claim(
            "C2",
            "After fine-tuning they are still more accurate",
            higher(accuracy("snnet"), accuracy("random_init")),
        ),
        Claim(
            "C3",
            "The stitches lie, in the mean, within a point below the straight line in "
            "multiply-adds between their two anchors, or above it",
            higher(above("snnet"), 0, by=-0.01),
            margin="ours",
            note="On development seeds a path is hardly more accurate than the anchor in which it "
            "begins, whatever it costs: the embedding of an anchor of width 8 leaves 8 numbers of "
            "64 pixels, and no later block can see more. It is the same with noise that stays from "
            "epoch to epoch.",
        ),
        Claim(
            "C4",
            "Stitches that begin in the cheaper anchor are more accurate, in the mean, than those "
            "that begin in the dearer",
            higher(accuracy("snnet"), accuracy("slow_to_fast")),
            note="Here the embedding is the narrowest place of a network, see C3, and a path that "
            "begins in the dearer anchor has the wider one.",
        ),
        Claim(
            "C5",
            "At each of four costs the best stitch is more accurate than a network trained alone "
            "with a fourth of the whole budget",
            all_of(
                *(higher(at[n]("snnet"), lone_accuracy("share", target=n)) for n in NUMBERS),
            ),
            note="See C3. A fourth of the budget is nearly what each anchor had (27 epochs of 30).",
        ),
        Claim(
            "C5b",
            "Accuracy at the second and fourth cost less that of networks trained alone, each with "
            "the whole budget (an upper bound)",
            report((at[2]("snnet") + at[4]("snnet")) / 2 - highest.mean("full_budget")),
        ),
        Claim(
            "C6",
            "Each of the three anchors is, after fine-tuning, within 2 points of its original",
            all_of(*(within(tuned[n]("snnet"), original[n]("snnet"), 0.02) for n in (1, 2, 3))),
            margin="ours",
        ),
        Claim(
            "C7",
            "Mean accuracy of stitches between neighbours less that with all pairs of anchors",
            report(accuracy("snnet") - accuracy("all_pairs")),
        ),
        Claim(
            "C8",
            "Mean accuracy with everything trained less that with frozen anchors",
            report(accuracy("snnet") - accuracy("frozen")),
        ),
    ],
    figures=[drawn(accuracy_by_macs)],
    data=data.Accepts("image", min_classes=2),
    demo=["C1"],
)
