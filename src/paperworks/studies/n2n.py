"""Can a policy find a smaller architecture for a trained network, and is it better than chance?

- `search`: a teacher on digits, and two searches for its students with as many children: `policy`
  (removal, then shrinkage, learned by REINFORCE) and `random` (the same actions, drawn evenly).
  Rewards are means over the children of an iteration, with -1 for those that are no networks. What
  the search found is trained longer: on the teacher's logits (`accuracy`); with the labels instead
  (`labels_accuracy`); and so is, on the logits, the teacher with all of its layers, thinned evenly
  to as many parameters (`uniform_accuracy`).
- `transfer`: a deeper teacher, and the first iterations of a search for layers to remove, by a
  policy that learned on the first teacher (`pretrained`) or a fresh one (`scratch`).

A method of `search` is `method(teacher, train, valid, **options) -> SearchResult`, one of
`transfer` a function of the task that gives the policies to start from. All final networks choose
the better of two rates by accuracy on the validation pictures, of which rewards are made, too.
Test pictures are seen by final networks alone.

Differences from the paper: digits and small chains of convolutions in place of CIFAR-10 and
residual networks, fewer iterations and rollouts, two epochs a child with a higher rate, because
there are only fourteen batches in an epoch. Rewards are given to each rollout for itself and
measured on validation pictures; the authors' code gives all the mean, and uses the test set.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.compress import (
    N2N,
    RemovalPolicy,
    SearchResult,
    distill,
    random_architectures,
)
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    all_of,
    grid,
    higher,
    lines,
    report,
)
from paperworks.study.run import Streams

STAGES: tuple[Any, ...] = ("removal", "shrinkage")
RATES = (3e-3, 1e-2)
"""Of Adam, for students."""

# --- the task -------------------------------------------------------------------------------------

CHAINS: dict[str, tuple[list[int], list[int]]] = {
    "conv6": ([16] * 2 + [32] * 4, [1, 3]),
    "conv9": ([16] * 3 + [32] * 6, [2, 5]),
    "vgg19": ([64] * 2 + [128] * 2 + [256] * 4 + [512] * 8, [1, 3, 7, 11, 15]),
}
"""Widths of the convolutions, and after which of them pictures are halved."""
STAGE_WIDTHS = (64, 128, 256, 512)
RESIDUAL = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}


def make_network(name: str, shape: torch.Size, classes: int, factor: float = 1.0) -> nn.Module:
    """A teacher for pictures of this shape, or one that is `factor` times as wide."""
    if name in RESIDUAL:
        widths = [max(1, round(factor * width)) for width in STAGE_WIDTHS]
        return nets.ResNet(shape[0], widths, RESIDUAL[name], num_classes=classes)
    widths, pool_after = CHAINS[name]
    return nets.ConvNet(
        shape[0],
        [max(1, round(factor * width)) for width in widths],
        pool_after,
        head="flatten",
        image_size=(shape[1], shape[2]),
        num_classes=classes,
    )


class Task:
    """The pictures of a seed, and its trained teacher."""

    def __init__(self, setting: Setting, run: Streams) -> None:
        self.setting, self.run = setting, run
        sizes = (setting.train, setting.val, setting.test)
        self.data = data.load(setting.data, sizes=sizes, generator=run.rng("split"))
        self.train = data.batches(
            self.data.train,
            setting.batch,
            run.rng("batches"),
            augment=crop_flip if setting.augment else None,
        )
        self.valid = [(x, y) for x, y in data.batches(self.data.val, 500, torch.Generator())]
        self.example = next(iter(data.batches(self.data.val, 1, torch.Generator())))[0]
        with run.seeded("weights"):
            self.teacher = self.network().to(run.device)

    def network(self, factor: float = 1.0) -> nn.Module:
        classes = len(self.data.classes)
        return make_network(self.setting.teacher, self.example.shape[1:], classes, factor)

    def shared(self) -> dict[str, Any]:
        """The settings on which the teacher depends."""
        keys = ("data", "train", "val", "test", "batch", "augment", "teacher", "teacher_epochs")
        return {key: self.setting[key] for key in keys}

    def load_teacher(self) -> nn.Module:
        state = self.run.fixture(train_teacher, seed=self.run.seed, **self.shared())
        self.teacher.load_state_dict(state)
        return self.teacher.eval()

    def thinned(self, parameters: int) -> nn.Module:
        """The whole teacher, thinned evenly to the fewest parameters that are not fewer."""
        with torch.device("meta"):
            factor = next(
                i / 100 for i in range(1, 101) if size(self.network(i / 100)) >= parameters
            )
        with self.run.seeded("thinned"):
            return self.network(factor).to(self.run.device)

    def learn(self, model: nn.Module, epochs: int, rate: float) -> nn.Module:
        """Trains with the labels."""
        steps = epochs * len(self.train)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=5e-4, fused=True)
        loss = partial(cross_entropy, self.run.device)
        nets.fit(model, self.train, loss, optimizer=optimizer, steps=steps)
        return model

    def distil(self, model: nn.Module, epochs: int, rate: float) -> nn.Module:
        return distill(self.teacher, model, self.train, epochs, rate)

    def trained(self, student: nn.Module, train: Callable[..., nn.Module]) -> float:
        """Test accuracy of the student, trained at the best rate by validation accuracy."""
        models = [train(copy.deepcopy(student), self.setting.final_epochs, rate) for rate in RATES]
        return self.accuracy(max(models, key=lambda model: self.accuracy(model, "val")), "test")

    @torch.no_grad()
    def accuracy(self, model: nn.Module, part: str) -> float:
        pictures = getattr(self.data, part)
        right = 0
        for x, y in data.batches(pictures, 500, torch.Generator()):
            right += int((model(x.to(self.run.device)).argmax(1).cpu() == y).sum())
        return right / len(pictures)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    return data.crop_flip(x, 4, generator)


def cross_entropy(device: torch.device, model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x.to(device)), y.to(device))


def train_teacher(run: Streams, **settings: Any) -> dict[str, Tensor]:
    """Fixture: the weights of a seed's teacher."""
    task = Task(Setting(settings), run)
    return task.learn(task.teacher, task.setting.teacher_epochs, rate=3e-3).state_dict()


# --- searches -------------------------------------------------------------------------------------

SEARCH = ("iterations", "rollouts", "epochs", "lr")
Method = Callable[..., SearchResult]


def by_policy(teacher: nn.Module, train: Any, valid: Any, **options: Any) -> SearchResult:
    return N2N(teacher, train, valid, **options).fit()


def search(setting: Setting, run: Run) -> dict[str, Any]:
    task = Task(setting, run)
    teacher = task.load_teacher()
    run.witness(split=task.data.train.tensors()[1], weights=teacher.state_dict())
    found = run_search(run.methods[setting.method], task)
    metrics: dict[str, Any] = {
        "best": max(rollout.reward for rollout in found.history),
        "rewards": torch.cat([found.rewards(stage) for stage in STAGES]).tolist(),
        "children": found.evaluated,
    }
    for stage in STAGES:
        rewards = found.rewards(stage)
        metrics |= {
            f"{stage}_first": rewards[:5].mean().item(),
            f"{stage}_last": rewards[-5:].mean().item(),
            f"{stage}_mean": rewards.mean().item(),
        }
    removed = found.children.get("removal", teacher)
    student = found.children.get("shrinkage", removed)
    return metrics | {
        "compression_removal": size(teacher) / size(removed),
        "compression": size(teacher) / size(student),
        "teacher_accuracy": task.accuracy(teacher, "test"),
        "accuracy": task.trained(student, task.distil),
        "labels_accuracy": task.trained(student, task.learn),
        "uniform_accuracy": task.trained(task.thinned(size(student)), task.distil),
    }


def run_search(method: Method, task: Task, **options: Any) -> SearchResult:
    given = {key: task.setting[key] for key in SEARCH}
    seed = task.run.random_state("method")
    return method(
        task.teacher, task.train, task.valid, random_state=seed, final_epochs=1, **given, **options
    )


# --- transfer -------------------------------------------------------------------------------------


def scratch(task: Task) -> None:
    return None


def pretrained(task: Task) -> dict[str, nn.Module]:
    first = {**task.shared(), "teacher": task.setting.first, "iterations": task.setting.learned}
    options = {key: task.setting[key] for key in SEARCH}
    policy = RemovalPolicy()
    state = task.run.fixture(train_policy, seed=task.run.seed, **{**options, **first})
    policy.load_state_dict(state)
    return {"removal": policy}


def train_policy(run: Streams, **settings: Any) -> dict[str, Tensor]:
    """Fixture: the policy that learned which layers of a teacher to remove."""
    task = Task(Setting(settings), run)
    task.load_teacher()
    return run_search(by_policy, task, stages=["removal"]).policies["removal"].state_dict()


def transfer(setting: Setting, run: Run) -> dict[str, float]:
    task = Task(setting, run)
    teacher = task.load_teacher()
    run.witness(split=task.data.train.tensors()[1], weights=teacher.state_dict())
    policies = run.methods[setting.method](task)
    found = run_search(by_policy, task, stages=["removal"], policies=policies)
    return {"reward": found.rewards("removal").mean().item()}


# --- the study ------------------------------------------------------------------------------------

DIGITS: dict[str, Any] = {
    "data": "digits",
    "train": 700,
    "val": 300,
    "test": 797,
    "batch": 50,
    "augment": False,
    "teacher_epochs": 15,
    "lr": 3e-3,
    "epochs": 2,
}
DESK = DIGITS | {"teacher": "conv6", "iterations": 20, "rollouts": 4}
SMOKE = DESK | {"train": 100, "val": 50, "test": 50, "teacher_epochs": 1, "epochs": 1}
SMOKE |= {"iterations": 2, "rollouts": 2}
PICTURES: dict[str, Any] = {
    "train": 0.9,
    "val": 0.1,
    "test": 1.0,
    "batch": 128,
    "augment": True,
    "teacher_epochs": 100,
    "lr": 5e-4,
    "epochs": 5,
    "iterations": 100,
    "rollouts": 5,
}
CIFAR10 = "hub:uoft-cs/cifar10"
OTHERS = [
    "hub:uoft-cs/cifar100?label=fine_label",
    "hub:ufldl-stanford/svhn?config=cropped_digits",
]


def paper(**keys: Any) -> Any:
    """The teachers and pictures of the paper."""
    return (
        grid(data=CIFAR10, teacher=["vgg19", "resnet18", "resnet34"], **PICTURES, **keys)
        + grid(data=OTHERS, teacher="resnet18", **PICTURES, **keys)
        + grid(data="hub:ylecun/mnist?size=32", teacher="vgg19", **PICTURES, **keys)
    )


searches = Experiment(
    search,
    {"policy": by_policy, "random": random_architectures},
    name="search",
    smoke=grid(final_epochs=1, **SMOKE),
    desk=grid(final_epochs=20, **DESK),
    full=paper(final_epochs=100),
)
transfers = Experiment(
    transfer,
    {"pretrained": pretrained, "scratch": scratch},
    name="transfer",
    smoke=grid(first="conv6", learned=2, **SMOKE | {"teacher": "conv9"}),
    desk=grid(first="conv6", learned=20, **DESK | {"teacher": "conv9", "iterations": 5}),
    full=grid(
        first="resnet18",
        learned=100,
        data=CIFAR10,
        teacher="resnet34",
        **PICTURES | {"iterations": 5},
    ),
)


ONE = 1 / 797
last = searches.metric("removal_last").mean
best = searches.metric("best").mean
compression = searches.metric("compression", log=True).mean
accuracy = searches.metric("accuracy", resolution=ONE).mean
early = transfers.metric("reward")

study = Study(
    "n2n",
    experiments=[searches, transfers],
    claims=[
        Claim(
            "C1",
            "The student that was found has at most a fifth of the teacher's parameters, and an "
            "accuracy at most two points below it",
            all_of(
                higher(compression("policy"), 5),
                higher(
                    accuracy("policy"),
                    searches.metric("teacher_accuracy", resolution=ONE).mean("policy"),
                    by=-0.02,
                ),
            ),
            margin="ours",
        ),
        Claim(
            "C2",
            "The policy learns: children of the last five iterations of removal earn more than "
            "those of the first five",
            higher(last("policy"), searches.metric("removal_first").mean("policy")),
        ),
        Claim(
            "C3",
            "It beats chance: in the end its children earn more than random ones, and its best "
            "child is at most 0.02 below the best random one",
            all_of(
                higher(last("policy"), searches.metric("removal_mean").mean("random")),
                higher(best("policy"), best("random"), by=-0.02),
            ),
            margin="ours",
        ),
        Claim(
            "C4",
            "Shrinkage after removal compresses at least 1.5 times as much as removal alone",
            higher(
                compression("policy"),
                searches.metric("compression_removal", log=True).mean("policy"),
                factor=1.5,
            ),
            margin="ours",
            note="Many shrunk children are larger than their parent and earn -1: any ratio below 1 "
            "turns a pooling of 2 x 2 into none, and the last layer grows. Removal alone makes the "
            "network nine times smaller.",
        ),
        Claim(
            "C5",
            "On a deeper teacher a pretrained policy's first five iterations earn more than those "
            "of a fresh one",
            higher(early("pretrained"), early("scratch")),
        ),
        Claim(
            "C6",
            "Distilled, the student is at most a point less accurate than trained on labels",
            higher(
                accuracy("policy"),
                searches.metric("labels_accuracy", resolution=ONE).mean("policy"),
                by=-0.01,
            ),
            margin="ours",
        ),
        Claim(
            "C7",
            "Accuracy of the student less that of the whole teacher, thinned evenly to its number "
            "of parameters",
            report(
                accuracy("policy")
                - searches.metric("uniform_accuracy", resolution=ONE).mean("policy")
            ),
        ),
    ],
    figures=[lines(x="iteration", y="rewards", by="method")],
    data=data.Accepts(["image"], min_classes=2),
    demo=["C2"],
)
