"""Sparse networks: which of the choices matter, before, during and after training?

One network a seed, with one split and one start, is made sparse in every way that the handbook
tells apart, at the same density (the kept fraction of weights) and the same number of epochs. Desk:
a perceptron on 600 digits under pixel noise, the same noisy pictures for all; test accuracy.

- `accuracy`: "dense"; "small_dense", a narrower dense network with as many weights; "uniform",
  "uniform_plus" and "erk", random masks that stay; before training "snip" and "synflow", and both
  "..._shuffled" inside layers; during training "rigl", "rigl_3x" (three times as long), "set"
  (random growth) and "gmp" (gradual pruning, all layers together); after training "magnitude" (in
  each layer, ERK densities, as many epochs again), "ticket" (rewound to 2 % of training) and
  "ticket_fresh" (its masks on other initial weights).
- `structure`: one trained dense network pruned to a quarter of its weights and trained again as
  long: single weights, one of every four inputs, or whole channels, which are removed.
- `updates`: RigL with masks that change every 50 to 400 steps.
- `collapse`: 0.5 % of the weights before any training; `emptied` is 1 where a layer keeps none.

`training_cost` is in trainings of the dense network, in multiply-adds of hardware that skips what
is dropped, everything that led to the network included. `in_time_rate` is the share of positions
that were ever active.

A method is a function `method(task)` that gives a trained network. `task.model` has the seed's
initial weights and `task.density` the kept fraction; `task.train(model, masks, rate="sparse")`
trains in place, `task.random_masks(model, scheme)` draws masks, `task.loader()` gives batches of
about ten samples a class.

What is tuned: the learning rate, among four, by validation accuracy on three draws of their own,
once for dense networks and once for static "erk" at density 0.03, which serves all that ends
sparse. Nothing else is.

Differences from the paper. The handbook gives no figures itself: claims follow the literature that
it summarises. Desk is a perceptron trained with Adam for 60 epochs, the lottery has five rounds,
rates follow half a cosine at both scales. Full: CIFAR and ImageNet, stochastic gradient descent at
the usual rate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.compress import (
    DynamicSparsity,
    GradualPruning,
    Masks,
    Phase,
    layer_densities,
    lottery_ticket,
    make_masks,
    prunable,
    prune_at_init,
    remove_channels,
    scores,
    training_macs,
)
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    all_of,
    bars,
    equals,
    falls,
    grid,
    higher,
    lines,
    lower,
    report,
    within,
)
from paperworks.study.run import Streams

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
TUNING_SEED = 90
TUNING_DENSITY = 0.03
REWIND = 0.02
"""Of the steps."""


# --- networks -------------------------------------------------------------------------------------


def make_network(name: str, width: int, shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network for pictures of a shape (channels, height, width)."""
    if name == "mlp":
        sizes = [math.prod(shape), width, width, classes]
        return nn.Sequential(nn.Flatten(), *nets.MLP(sizes))
    if name == "vgg19":
        return vgg19(shape[0], width, classes)
    blocks = {"resnet20": [3, 3, 3], "resnet50": [3, 4, 6, 3]}[name]
    return ResNet(shape, width, blocks, bottleneck=name == "resnet50", classes=classes)


def vgg19(channels: int, width: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i, repeats in enumerate((2, 2, 4, 4, 4)):
        for _ in range(repeats):
            layers += norm_conv(channels, out := width * min(2**i, 8), 3), nn.ReLU()
            channels = out
        layers.append(nn.MaxPool2d(2) if i < 4 else nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, classes))


class ResNet(nn.Module):
    """He et al. 2016: ResNet-20 as they have it for CIFAR, ResNet-50 with a stem for the size."""

    def __init__(
        self, shape: tuple[int, ...], width: int, blocks: list[int], bottleneck: bool, classes: int
    ) -> None:
        super().__init__()
        large = shape[-1] > 64
        self.stem = nn.Sequential(
            norm_conv(shape[0], width, 7 if large else 3, 1 + large), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        channels, stages = width, []
        for i, repeats in enumerate(blocks):
            for j in range(repeats):
                stages.append(Residual(channels, width * 2**i, 1 + (i > 0 and j == 0), bottleneck))
                channels = stages[-1].out_channels
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.pool(self.stem(x))).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.out_channels = width * (4 if bottleneck else 1)
        kernels = [(channels, width, 1), (width, width, 3), (width, self.out_channels, 1)]
        if not bottleneck:
            kernels = [(channels, width, 3), (width, width, 3)]
        layers: list[nn.Module] = []
        for i, (a, b, size) in enumerate(kernels):
            layers += norm_conv(a, b, size, stride if i == len(kernels) - 2 else 1), nn.ReLU()
        self.body = nn.Sequential(*layers[:-1])
        same = stride == 1 and channels == self.out_channels
        self.skip = nn.Identity() if same else norm_conv(channels, self.out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.body(x))


def norm_conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(channels, out, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


# --- a task ---------------------------------------------------------------------------------------

SHARED = [
    *("data", "train", "val", "test", "noise", "augment"),
    *("network", "width", "batch", "epochs", "optimizer"),
]
"""The settings on which a trained dense network depends."""


class Task:
    """The pictures and the untrained network of a seed, and how networks are trained on them."""

    def __init__(self, setting: Setting, run: Streams) -> None:
        self.setting, self.run = setting, run
        self.density: float = setting.get("density", 1.0)  # type: ignore[assignment]
        self.data = data.load(
            setting.data,
            sizes=(setting.train, setting.val, setting.test),
            generator=run.rng("split"),
        )
        noises = run.rng("noise")
        self.parts = {
            name: noisy(getattr(self.data, name), setting.noise, noises)
            for name in ("train", "val", "test")
        }
        self.batches = data.batches(
            self.parts["train"],
            setting.batch,
            run.rng("batches"),
            augment=crop_flip if setting.augment else None,
        )
        self.steps = setting.epochs * len(self.batches)
        self.model = self.network()
        self.cost = 0.0
        self.in_time_rate: float | None = None

    def network(self, width: int = 0, stream: str = "weights") -> nn.Module:
        """An untrained network, of the setting's width by default."""
        with self.run.seeded(stream):
            return self._make(width or self.setting.width).to(self.run.device)

    def weights(self, width: int) -> int:
        """How many prunable weights a network of this width has."""
        with torch.device("meta"):
            return sum(weight.numel() for weight in prunable(self._make(width)).values())

    def _make(self, width: int) -> nn.Module:
        shape = tuple(self.example.shape[1:])
        return make_network(self.setting.network, width, shape, len(self.data.classes))

    @cached_property
    def example(self) -> Tensor:
        return self.parts["train"][:1].tensors()[0].to(self.run.device)

    def loader(self) -> Iterable[Any]:
        """Batches of about ten samples a class."""
        size = min(10 * len(self.data.classes), len(self.parts["train"]))
        return data.batches(self.parts["train"], size, self.run.rng("method"))

    def random_masks(self, model: nn.Module, scheme: Any = "erk") -> Masks:
        drawn = scores(model, "random", generator=self.run.rng("method"))
        return Masks(model, make_masks(drawn, layer_densities(model, self.density, scheme)))

    def rate(self, kind: str) -> float:
        """The learning rate that was chosen for "dense" or for "sparse" training."""
        if "lr" in self.setting:
            return self.setting.lr
        return self.run.fixture(choose_rate, seed=TUNING_SEED, kind=kind, **shared(self.setting))

    def train(
        self,
        model: nn.Module,
        masks: Masks | None = None,
        *,
        rate: str | float,
        steps: int = 0,
        start: int = 0,
        stop: int | None = None,
        grow: Callable[..., DynamicSparsity] | None = None,
        prune: Callable[..., GradualPruning] | None = None,
    ) -> nn.Module:
        """Trains in place, from one step to another of a schedule of `steps`."""
        steps = steps or self.steps
        stop = stop or steps
        optimizer = self.optimizer(model, rate if isinstance(rate, float) else self.rate(rate))
        if masks is not None or prune is not None:
            masks = masks or Masks(model)
            masks.attach(optimizer)
        growing = grow(masks, optimizer, total_steps=steps) if grow else None
        pruning = prune(masks, optimizer) if prune else None
        loss = partial(cross_entropy, self.run.device)
        nets.fit(
            model,
            self.batches,
            loss,
            optimizer=optimizer,
            steps=stop - start,
            schedule=lambda step: (1 + math.cos(math.pi * (start + step) / steps)) / 2,
            after_backward=[growing.step] if growing else [],
            after_step=[pruning.step] if pruning else [],
        )
        history = [Phase(stop - start, masks.densities() if masks else {})]
        if pruning is not None:
            history = pruning.history
        if growing is not None:
            history, self.in_time_rate = growing.history, growing.in_time_rate
        self.cost += training_macs(model, self.example, history)
        return model

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        if self.setting.optimizer == "adam":
            return torch.optim.Adam(model.parameters(), lr=lr, fused=True)  # half the time
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)

    def trained(self) -> nn.Module:
        """The dense network after its training."""
        state = self.run.fixture(
            train_dense, seed=self.run.seed, lr=self.rate("dense"), **shared(self.setting)
        )
        self.cost += self.dense_cost
        model = copy.deepcopy(self.model)
        model.load_state_dict(state)
        return model

    @cached_property
    def dense_cost(self) -> float:
        return training_macs(self.model, self.example, [Phase(self.steps, {})])

    @torch.no_grad()
    def accuracy(self, model: nn.Module, part: str) -> float:
        right = 0
        for x, y in data.batches(self.parts[part], 500, torch.Generator()):
            predicted = model(x.to(self.run.device)).argmax(1).cpu()
            right += int((predicted == y).sum())
        return right / len(self.parts[part])


def shared(setting: Setting) -> dict[str, Any]:
    return {key: setting[key] for key in SHARED}


def noisy(part: Any, deviation: float, generator: torch.Generator) -> Any:
    """Pictures with noise that stays the same from epoch to epoch."""
    if not deviation:
        return part
    x, y = part.tensors()
    return data.Split(data.noise(x, deviation, generator), y, part.ids)


def crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts by up to an eighth of the width, and mirrors half of the pictures."""
    return data.crop_flip(x, x.shape[-1] // 8, generator)


def cross_entropy(device: torch.device, model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x.to(device)), y.to(device))


# --- fixtures -------------------------------------------------------------------------------------


def choose_rate(run: Streams, kind: str, **settings: Any) -> float:
    """Fixture: the best of `RATES` by validation accuracy over three draws of everything."""
    accuracies = dict.fromkeys(RATES, 0.0)
    for _ in range(3):
        task = Task(Setting(settings, density=TUNING_DENSITY), run)
        masks = task.random_masks(task.model) if kind == "sparse" else None
        for lr in RATES:
            model, its_masks = copy.deepcopy((task.model, masks))
            task.train(model, its_masks, rate=lr)
            accuracies[lr] += task.accuracy(model, "val")
    return max(accuracies, key=lambda lr: accuracies[lr])


def train_dense(run: Streams, lr: float, **settings: Any) -> dict[str, Tensor]:
    """Fixture: the weights of the trained dense network."""
    task = Task(Setting(settings), run)
    return task.train(task.model, rate=lr).state_dict()


def find_ticket(
    run: Streams, lr: float, density: float, rounds: int, **settings: Any
) -> dict[str, Any]:
    """Fixture: early weights and masks of a lottery ticket, and what the search cost."""
    task = Task(Setting(settings, density=density), run)

    def train_fn(model: nn.Module, masks: Masks, start: int, stop: int | None) -> None:
        task.train(model, masks, rate=lr, start=start, stop=stop)

    rewind = int(REWIND * task.steps)
    model, masks = lottery_ticket(train_fn, task.model, density, rewind, rounds)
    return {"weights": model.state_dict(), "masks": masks.state_dict(), "cost": task.cost}


# --- methods --------------------------------------------------------------------------------------


def dense(task: Task) -> nn.Module:
    return task.trained()


def small_dense(task: Task) -> nn.Module:
    """The widest dense network with at most as many weights."""
    budget = task.density * task.weights(task.setting.width)
    width = max(w for w in range(1, task.setting.width + 1) if w == 1 or task.weights(w) <= budget)
    return task.train(task.network(width), rate="dense")


def static(task: Task, scheme: str) -> nn.Module:
    return task.train(task.model, task.random_masks(task.model, scheme), rate="sparse")


def dynamic(task: Task, growth: Any, times: int = 1) -> nn.Module:
    grow = partial(
        DynamicSparsity, growth=growth, every=task.setting.every, generator=task.run.rng("method")
    )
    masks = task.random_masks(task.model)
    return task.train(task.model, masks, rate="sparse", steps=times * task.steps, grow=grow)


def gradual(task: Task) -> nn.Module:
    """Prunes from the first tenth of the steps on, to three quarters of them."""
    prune = partial(
        GradualPruning,
        density=task.density,
        start=task.steps // 10,
        stop=3 * task.steps // 4,
        every=max(1, task.setting.every // 10),
    )
    return task.train(task.model, rate="sparse", prune=prune)


def before(task: Task, method: Any, shuffled: bool = False) -> nn.Module:
    task.model.train()
    masks = prune_at_init(task.model, method, task.density, task.loader(), F.cross_entropy)
    if shuffled:
        masks.assign(masks.shuffle(task.run.rng("method")))
    return task.train(task.model, masks, rate="sparse")


def magnitude(task: Task) -> nn.Module:
    """Trains, prunes the smallest weights of each layer once, and trains again."""
    model = task.trained()
    densities = layer_densities(model, task.density)  # ranked together, the later layers starve
    chosen = make_masks(scores(model, "magnitude"), densities)
    return task.train(model, Masks(model, chosen), rate="sparse")


def one_of_four(task: Task) -> nn.Module:
    """As `magnitude`, one of four inputs; a first layer whose inputs 4 does not divide stays."""
    model = task.trained()
    found = {n: s for n, s in scores(model, "magnitude").items() if s[0].numel() % 4 == 0}
    chosen = make_masks(found, task.density, structure=(1, 4))
    return task.train(model, Masks(model, chosen), rate="sparse")


def channels(task: Task) -> nn.Module:
    """Trains, removes the channels of smallest weights, and trains the small network again."""
    model = task.trained()
    *_, classifier = prunable(model)
    budget = task.density * sum(weight.numel() for weight in prunable(model).values())

    def without(share: float) -> nn.Module:
        densities = dict.fromkeys(prunable(model), share) | {classifier: 1.0}
        chosen = make_masks(scores(model, "magnitude"), densities, structure="channel")
        return remove_channels(model, chosen, task.example)

    low, high = 0.0, 1.0  # the share of rows with which so many weights are left: by bisection
    small = model
    for _ in range(12):
        middle = (low + high) / 2
        candidate = without(max(middle, 1 / task.setting.width))
        if sum(weight.numel() for weight in prunable(candidate).values()) <= budget:
            low, small = middle, candidate
        else:
            high = middle
    return task.train(small, rate="dense")


def ticket(task: Task, fresh: bool = False) -> nn.Module:
    """Trains a rewound ticket, or its masks on other initial weights."""
    lr = task.rate("sparse")
    found = task.run.fixture(
        find_ticket,
        seed=task.run.seed,
        lr=lr,
        density=task.density,
        rounds=task.setting.rounds,
        **shared(task.setting),
    )
    model, start = task.network(stream="fresh"), 0
    if not fresh:
        model.load_state_dict(found["weights"])
        start = int(REWIND * task.steps)
    task.cost += found["cost"]
    masks = Masks(model, {name: mask.bool() for name, mask in found["masks"].items()})
    return task.train(model, masks, rate=lr, start=start)


METHODS = {
    "dense": dense,
    "small_dense": small_dense,
    "uniform": partial(static, scheme="uniform"),
    "uniform_plus": partial(static, scheme="uniform+"),
    "erk": partial(static, scheme="erk"),
    "snip": partial(before, method="snip"),
    "snip_shuffled": partial(before, method="snip", shuffled=True),
    "synflow": partial(before, method="synflow"),
    "synflow_shuffled": partial(before, method="synflow", shuffled=True),
    "set": partial(dynamic, growth="random"),
    "rigl": partial(dynamic, growth="gradient"),
    "rigl_3x": partial(dynamic, growth="gradient", times=3),
    "gmp": gradual,
    "magnitude": magnitude,
    "ticket": ticket,
    "ticket_fresh": partial(ticket, fresh=True),
}
STRUCTURES = {
    "single_weights": magnitude,
    "1_of_4": one_of_four,
    "channels": channels,
}


# --- trials ---------------------------------------------------------------------------------------


def trial(setting: Setting, run: Run) -> dict[str, float]:
    """Make one network sparse with one method."""
    task = Task(setting, run)
    run.witness(split=[part.ids for part in task.parts.values()], weights=task.model.state_dict())
    model = run.methods[setting.method](task)
    kept = sum(int(weight.count_nonzero()) for weight in prunable(model).values())
    metrics = {
        "accuracy": task.accuracy(model, "test"),
        "validation_accuracy": task.accuracy(model, "val"),
        "kept": kept / task.weights(setting.width),
        "training_cost": task.cost / task.dense_cost,
    }
    if task.in_time_rate is not None:
        metrics["in_time_rate"] = task.in_time_rate
    return metrics


def emptying(setting: Setting, run: Run) -> dict[str, float]:
    """Prune an untrained network so far that a layer may be left with nothing."""
    task = Task(setting, run)
    run.witness(split=[part.ids for part in task.parts.values()], weights=task.model.state_dict())
    task.model.train()
    masks = run.methods[setting.method](
        task.model, density=task.density, loader=task.loader(), loss_fn=F.cross_entropy
    )
    densities = masks.densities()
    return {
        "emptied": float(min(densities.values()) == 0),
        "smallest_layer_density": min(densities.values()),
    }


# --- the study ------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {"train": 0.3339, "val": 0.111, "test": 0.555}
DESK: dict[str, Any] = {
    "data": "digits",
    **SIZES,
    "noise": 0.3,
    "augment": False,
    "network": "mlp",
    "width": 256,
    "batch": 60,
    "epochs": 60,
    "optimizer": "adam",
}
SMOKE = DESK | {"width": 32, "epochs": 1, "lr": 1e-2}
CIFAR: dict[str, Any] = {
    "data": ["hub:uoft-cs/cifar10", "hub:uoft-cs/cifar100?label=fine_label"],
    "train": 0.9,
    "val": 0.1,
    "test": 1.0,
    "noise": 0,
    "augment": True,
    "batch": 128,
    "epochs": 250,
    "optimizer": "sgd",
    "lr": 0.1,
}
IMAGENET = CIFAR | {
    "data": "hub:ILSVRC/imagenet-1k?size=224&channels=3",
    "train": 0.98,
    "val": 0.02,
    "batch": 256,
    "epochs": 100,
}


def full(**keys: Any) -> Any:
    """The networks of the literature, each at its width, on CIFAR."""
    widths = {"resnet20": 16, "resnet50": 64, "vgg19": 64}
    blocks = [grid(network=name, width=width, **CIFAR, **keys) for name, width in widths.items()]
    return blocks[0] + blocks[1] + blocks[2]


ANY = [name for name in METHODS if name not in ("dense", "ticket", "ticket_fresh", "rigl_3x")]
LATE: list[Any] = ["ticket", "ticket_fresh", "rigl_3x"]
accuracies = Experiment(
    trial,
    METHODS,
    name="accuracy",
    smoke=grid(method=["dense"], **SMOKE)
    + grid(method=ANY, density=0.03, every=4, **SMOKE)
    + grid(method=["rigl", "small_dense"], density=0.1, every=4, **SMOKE)
    + grid(method=LATE, density=0.03, every=4, rounds=2, **SMOKE),
    desk=grid(method=["dense"], **DESK)
    + grid(method=ANY, density=[0.1, 0.03], every=100, **DESK)
    + grid(method=LATE, density=0.03, every=100, rounds=5, **DESK),
    full=full(method=["dense"])
    + full(method=ANY, density=[0.1, 0.05, 0.03, 0.02], every=100)
    + full(method=LATE, density=[0.1, 0.05, 0.03, 0.02], every=100, rounds=10)
    + grid(
        method=["uniform", "erk", "rigl"],
        network="resnet50",
        width=64,
        density=[0.2, 0.1],
        every=100,
        **IMAGENET,
    ),
)
structures = Experiment(
    trial,
    STRUCTURES,
    name="structure",
    smoke=grid(density=0.25, **SMOKE),
    desk=grid(density=0.25, **DESK),
    full=full(density=0.25),
)
updates = Experiment(
    trial,
    {"rigl": METHODS["rigl"]},
    name="updates",
    smoke=grid(density=0.03, every=[4, 2], **SMOKE),
    desk=grid(density=0.03, every=[400, 200, 100, 50], **DESK),
    full=grid(
        density=0.03,
        every=[4000, 1000, 400, 100],
        **CIFAR | {"network": "resnet20", "width": 16, "data": "hub:uoft-cs/cifar10"},
    ),
)
collapse = Experiment(
    emptying,
    {
        "snip": partial(prune_at_init, method="snip"),
        "synflow": partial(prune_at_init, method="synflow"),
    },
    name="collapse",
    smoke=grid(density=0.05, **SMOKE),
    desk=grid(density=0.005, **DESK),
    full=full(density=0.005),
)

ONE = 1 / 997
accuracy = accuracies.metric("accuracy", resolution=ONE)
cost = accuracies.metric("training_cost", log=True, deterministic=True)
structured = structures.metric("accuracy", resolution=ONE)
updated = updates.metric("accuracy", resolution=ONE)
in_time = updates.metric("in_time_rate")
emptied = collapse.metric("emptied", resolution=1.0)
never_emptied = collapse.metric("emptied", deterministic=True)
BOTH: list[Any] = [0.1, 0.03]

study = Study(
    "sparseland",
    experiments=[accuracies, structures, updates, collapse],
    claims=[
        Claim(
            "C1",
            "Sparse is not small: at density 0.1 RigL is more accurate than a narrower dense "
            "network with as many weights",
            higher(accuracy.mean("rigl", density=0.1), accuracy.mean("small_dense", density=0.1)),
            note="On development seeds everything at density 0.1 is as accurate as the full dense "
            "network (0.81 to 0.82), which the noise allows; at 0.03 RigL is two points above the "
            "narrower network.",
        ),
        Claim(
            "C2",
            "Dynamic over static: at density 0.03 RigL is more accurate than random masks at the "
            "same layer densities that stay",
            higher(accuracy.mean("rigl", density=0.03), accuracy.mean("erk", density=0.03)),
        ),
        Claim(
            "C3",
            "Dense-to-sparse at equal epochs: gradual pruning is at most a point less accurate "
            "than RigL, or more accurate",
            higher(
                accuracy.mean("gmp", density=BOTH), accuracy.mean("rigl", density=BOTH), by=-0.01
            ),
            margin="ours",
        ),
        Claim(
            "C3b",
            "With three times the epochs RigL at density 0.03 is at most half a point less "
            "accurate than gradual pruning, for fewer multiply-adds of training",
            all_of(
                higher(
                    accuracy.mean("rigl_3x", density=0.03),
                    accuracy.mean("gmp", density=0.03),
                    by=-0.005,
                ),
                lower(cost.mean("rigl_3x", density=0.03), cost.mean("gmp", density=0.03)),
            ),
            margin="ours",
        ),
        Claim(
            "C4",
            "Layer densities matter: at density 0.03 random masks that stay are more accurate with "
            "ERK's than with one density for all layers",
            higher(accuracy.mean("erk", density=0.03), accuracy.mean("uniform", density=0.03)),
        ),
        Claim(
            "C4b",
            "Accuracy of ERK minus that of uniform with a denser classifier (uniform+), at 0.03",
            report(
                accuracy.mean("erk", density=0.03) - accuracy.mean("uniform_plus", density=0.03)
            ),
        ),
        Claim(
            "C5",
            "Before training, where SNIP and SynFlow put the weights inside a layer does not "
            "matter: shuffled there, accuracies are within a point",
            all_of(
                within(
                    accuracy.mean("snip", density=BOTH),
                    accuracy.mean("snip_shuffled", density=BOTH),
                    0.01,
                ),
                within(
                    accuracy.mean("synflow", density=BOTH),
                    accuracy.mean("synflow_shuffled", density=BOTH),
                    0.01,
                ),
            ),
            margin="ours",
            note="SNIP, which sees pictures, puts the first layer's weights on pixels that vary "
            "(rank correlation 0.8 on development seeds, SynFlow's about 0), and shuffling takes "
            "them to pixels of little but noise.",
        ),
        Claim(
            "C5b",
            "Magnitude pruning after training, with fine-tuning, is more accurate than SNIP and "
            "than SynFlow",
            all_of(
                higher(
                    accuracy.mean("magnitude", density=BOTH), accuracy.mean("snip", density=BOTH)
                ),
                higher(
                    accuracy.mean("magnitude", density=BOTH), accuracy.mean("synflow", density=BOTH)
                ),
            ),
            note="The dense network fits its 600 pictures before its weights have moved far: their "
            "magnitudes after training still rank much as at the start (correlation 0.3 to 0.6 in "
            "a layer on development seeds), and so say little. SNIP sees 100 labelled pictures.",
        ),
        Claim(
            "C6",
            "The freer the structure the better: at density 0.25 single weights are at most half a "
            "point below one of four, and that below channels, or above",
            all_of(
                higher(structured.mean("single_weights"), structured.mean("1_of_4"), by=-0.005),
                higher(structured.mean("1_of_4"), structured.mean("channels"), by=-0.005),
            ),
            margin="ours",
        ),
        Claim(
            "C7",
            "A rewound lottery ticket at density 0.03 is more accurate than the same masks on "
            "fresh weights",
            higher(
                accuracy.mean("ticket", density=0.03), accuracy.mean("ticket_fresh", density=0.03)
            ),
        ),
        Claim(
            "C8",
            "At density 0.005 SNIP in one shot empties a layer in more seeds than SynFlow in a "
            "hundred rounds, which empties none",
            all_of(
                higher(emptied.mean("snip"), emptied.mean("synflow")),
                equals(never_emptied.max("synflow"), 0, tolerance=1e-9),
            ),
            note="On development seeds SNIP empties no layer either: a perceptron with three "
            "layers and 422 weights left is not extreme enough.",
        ),
        Claim(
            "C9",
            "The more often RigL changes its masks, from every 400 steps to every 50, the more "
            "positions were ever active and the higher is the accuracy",
            all_of(
                falls(in_time, "rigl", along="every", density=0.03),
                falls(updated, "rigl", along="every", density=0.03),
            ),
        ),
    ],
    figures=[
        bars(
            x="density",
            y="accuracy",
            experiment=accuracies,
            where={"method": ["small_dense", "erk", "snip", "synflow", "rigl", "gmp", "magnitude"]},
            name="accuracy_by_density",
        ),
        lines(x="every", y="accuracy", experiment=updates, name="accuracy_by_every"),
    ],
    data=data.Accepts("image", min_classes=2),
    demo=["C2"],
)
