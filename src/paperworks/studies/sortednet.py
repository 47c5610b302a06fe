"""SortedNet: does one training run replace one for every size of network?

- `widths`: a perceptron 64-128-128-10 whose eight widths 16, 32, ..., 128 are nested. "sortednet"
  draws four sub-models an update, each with a mini-batch of its own; "sortednet_g1" draws one;
  "full_sum" takes all on one mini-batch; "sandwich" takes the smallest, the largest and two drawn
  ones on one mini-batch; "non_nested" is "sortednet" on random subsets of the hidden units, fixed
  for each size, instead of the first ones; "truncated" trains the largest alone.
- `alone`: each width trained by itself, with the same effort for each as one run above takes.
- `modular`: a residual perceptron with 16 widths (15 to 60, the paper's compared nets end at a
  quarter) x 10 depths, 160 sub-models: "sortednet", and "ordinary", the largest alone.

All train with an equal number of gradients of sub-models ("evaluations") on 900 digits under pixel
noise, which is drawn afresh for each training batch and once for validation and test, with AdamW at
a rate that follows half a cosine. Each method tries three rates, chosen by validation accuracy
(mean over sub-models); `alone` does so at the largest width.

Metrics, all on the test set: `accuracy`, the mean over sub-models; `largest_accuracy`;
`accuracies`, along `share_of_macs` (each sub-model's multiply-adds in units of the largest's) and
`share` (of the width); `tau`, Kendall's correlation of multiply-adds and minus the loss.

A method is a function `method(task)` that gives a trained model with `at(b)`. `task.sorted()` makes
a `paperworks.compress.SortedModel` of the seed's initial network, `task.fit(model, **options)`
trains with a `SortedTrainer` of these options, `task.evaluations` is the budget.

Differences from the paper: digits in place of CIFAR-10, GLUE and text, which are the full scale.
There: the bottleneck ResNet-20 of `apple/learning-compressible-subspaces` under instance and under
batch norm, MobileNetV2 (width x depth), BERT (depth x heads) and LLaMA (depth; accuracy is that of
the next token, on problems and answers together). Non-nested subsets are for chains with ReLU only,
and left out there. Batch norms get statistics of their own for each width before it is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from paperworks import data, nets
from paperworks.compress import SortedModel, SortedSpec, SortedTrainer, to_sorted
from paperworks.data.names import require
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    Tune,
    all_of,
    grid,
    higher,
    lines,
    within,
)
from paperworks.study.run import Streams

# --- networks -------------------------------------------------------------------------------------


def make_network(setting: Any, shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network for inputs of a shape, of all channels or a share of them."""
    setting = Setting(setting)
    width = setting.get("share", 1.0)
    if setting.network == "mlp":
        hidden = round(width * setting.width)
        return nn.Sequential(nn.Flatten(), *nets.MLP([math.prod(shape), hidden, hidden, classes]))
    if setting.network == "residual":
        mlp = nets.ResidualMLP(
            math.prod(shape), round(width * setting.width), setting.blocks, classes
        )
        return nn.Sequential(nn.Flatten(), mlp)
    if setting.network == "resnet20":
        return resnet20(shape[0], round(width * 16), classes, setting.norm)
    if setting.network == "mobilenet":
        return nets.MobileNet(
            shape[0], round(width * setting.width), setting.blocks, 6, num_classes=classes
        )
    return Text(setting.network, classes)


STACKS = ("blocks", "encoder.layer", "layers")
"""Where networks that are cut in depth have their blocks."""

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": partial(nn.InstanceNorm2d, affine=True),
}


def resnet20(channels: int, width: int, classes: int, norm: str) -> nn.Module:
    """Two pre-activation bottlenecks in each of three stages, 9 * 2 + 2 layers."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    wide = width
    for stage in range(3):
        for block in range(2):
            inner, stride = width * 2**stage, 1 + (stage > 0 and block == 0)
            layers.append(Bottleneck(wide, inner, stride, NORMS[norm]))
            wide = 4 * inner
    head = [NORMS[norm](wide), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(wide, classes))


class Bottleneck(nn.Module):
    """He et al. 2016, arXiv 1603.05027; expansion 4."""

    def __init__(
        self, wide: int, inner: int, stride: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(norm(wide), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(wide, inner, 1, bias=False), norm(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False), norm(inner), nn.ReLU(),
            nn.Conv2d(inner, 4 * inner, 1, bias=False),
        )  # fmt: skip
        same = stride == 1 and wide == 4 * inner
        self.skip = None if same else nn.Conv2d(wide, 4 * inner, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.body(h) + (x if self.skip is None else self.skip(h))


TOKENS = ("input_ids", "attention_mask", "token_type_ids")


class Text(nn.Module):
    """A `transformers` model that takes tokens and masks (N, parts, length) and gives logits."""

    def __init__(self, name: str, classes: int) -> None:
        require("transformers", "language", what=name)
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        super().__init__()
        if classes:
            self.model = AutoModelForSequenceClassification.from_pretrained(
                name, num_labels=classes
            )
        else:
            self.model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", use_cache=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(**dict(zip(TOKENS, x.unbind(1)))).logits


# --- a task ---------------------------------------------------------------------------------------


class Task:
    """The data and the untrained network of a seed, and how networks are trained on them."""

    def __init__(self, setting: Setting, run: Run) -> None:
        self.setting, self.run = setting, run
        parts, self.classes = load_parts(setting, run)
        self.train, self.val, self.test = parts
        self.example = self.train[:1].tensors()[0].to(run.device)
        self.spec = make_spec(setting)
        shape = tuple(self.example.shape[1:])
        with run.seeded("weights"):
            network = make_network(setting, shape, self.classes)
        self.network = network.to(run.device)
        self.evaluations: int = setting.evaluations
        run.witness(
            split=[part.ids for part in parts] + [self.example], weights=self.network.state_dict()
        )

    def sorted(self) -> SortedModel:
        """The seed's network with all of its sub-models."""
        return make_sorted(self.setting, self.network, self.example)

    def fit(self, model: Any, **options: Any) -> Any:
        """Train with as many gradients of sub-models as everybody has."""
        optimizer = self._optimizer(model)
        trainer = SortedTrainer(
            model, optimizer, self.loss, generator=self.run.rng("method"), **options
        )
        gradients = len(trainer.configs) if trainer.mode == "sum" else trainer.accumulate
        steps = max(self.evaluations // gradients, 1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        batches = self.batches()
        model.train()
        for step in range(steps):
            trainer.step(batches)
            schedule.step()
            if step % 100 == 0:
                self.run.progress(step, steps)
        return model.eval()

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.setting.optimizer == "sgd":
            return torch.optim.SGD(
                model.parameters(), lr=self.setting.lr, momentum=0.9, weight_decay=5e-4
            )
        return torch.optim.AdamW(
            model.parameters(), lr=self.setting.lr, weight_decay=1e-2, fused=True
        )

    def batches(self) -> Iterator[Any]:
        """Batches without end."""
        batch_size, rng = self.setting.batch_size, self.run.rng("batches")
        epoch = data.batches(self.train, batch_size, rng, augment=self._augment())
        return chain.from_iterable(repeat(epoch))

    def _augment(self) -> Callable[[Tensor, torch.Generator], Tensor] | None:
        if self.setting.noise:
            return lambda x, generator: data.noise(x, self.setting.noise, generator)
        if self.setting.get("augment"):
            return lambda x, generator: data.crop_flip(x, 4, generator)
        return None

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        x, y = (part.to(self.run.device) for part in batch)
        return cross_entropy(model(x), y)


def make_sorted(setting: Any, network: nn.Module, example: Tensor) -> SortedModel:
    names = [name for name, _ in network.named_modules()]
    blocks = next((s for s in STACKS if any(f".{n}".endswith(f".{s}") for n in names)), "")
    return to_sorted(network, make_spec(setting), example=example, blocks=blocks)


def count_macs(run: Streams, shape: list[int], classes: int, **settings: Any) -> list[int]:
    """Fixture: multiply-adds of each sub-model for one input."""
    with run.seeded("weights"):
        network = make_network(settings, tuple(shape), classes)
    example = torch.zeros(1, *shape, dtype=torch.long if "length" in settings else None)
    whole = make_sorted(settings, network, example)
    return [whole.cost(b, example) for b in whole.spec.configs]


SHAPING = ["network", "width", "blocks", "norm", "share", "widths", "depths", "heads"]
SHAPING += ["first_widths", "first_depths", "length"]
"""The settings that decide what sub-models there are."""


def make_spec(setting: Any) -> SortedSpec:
    """Equally spaced shares of each dimension; of a network by itself, only the whole."""
    dims = {
        dim: [k / setting[key] for k in range(setting.get(f"first_{key}", 1), setting[key] + 1)]
        for dim, key in DIMENSIONS.items()
        if key in setting
    }
    return SortedSpec(dims or {"width": [1.0]})


DIMENSIONS = {"width": "widths", "depth": "depths", "heads": "heads"}
"""For each dimension the setting key with the number of equally spaced sizes."""


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Of classes, or of the next token where there are logits for each."""
    z, y = aligned(z, y)
    return F.cross_entropy(z, y)


def aligned(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of logits and their targets; padding (target -100) is left out."""
    if z.dim() == 3:
        z, y = z[:, :-1].flatten(0, 1), y[:, 1:].flatten()
        z, y = z[y >= 0], y[y >= 0]
    return z.float(), y


# --- data -----------------------------------------------------------------------------------------


def load_parts(setting: Setting, run: Run) -> tuple[list[Any], int]:
    """Training, validation and test part, and how many classes there are (0: the next token)."""
    if "task" in setting:
        return load_texts(setting, run)
    sizes = (0.5, 0.17, 0.33) if setting.noise else None
    pictures = data.load(setting.data, sizes=sizes, generator=run.rng("split"))
    parts = [pictures.train, pictures.val, pictures.test]
    if setting.noise:
        noisy = partial(data.noise, std=setting.noise, generator=run.rng("noise"))
        for i in (1, 2):
            parts[i] = data.Split(noisy(parts[i].tensors()[0]), parts[i].y, parts[i].ids)
    return parts, len(pictures.classes)


TEXTS: dict[str, tuple[str, ...]] = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qqp": ("question1", "question2"),
    "gsm8k": ("question", "answer"),
}
"""Columns of the tasks of GLUE that have classes, and of GSM8K."""


def load_texts(setting: Setting, run: Run) -> tuple[list[Any], int]:
    """A task as tokens: 10 % of its training rows validate."""
    require("datasets", "hub", what=setting.task)
    require("transformers", "language", what=setting.network)
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting.network)
    if setting.task == "gsm8k":
        rows, outer = datasets.load_dataset("openai/gsm8k", "main"), "test"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    else:
        rows = datasets.load_dataset("nyu-mll/glue", setting.task)
        outer = "validation_matched" if setting.task == "mnli" else "validation"
    known, test = (encoded(rows[part], setting, tokenizer) for part in ("train", outer))
    order = torch.randperm(len(known), generator=run.rng("split"))
    held_out = len(known) // 10
    classes = 0 if setting.task == "gsm8k" else int(known.y.max()) + 1
    return [known[order[held_out:]], known[order[:held_out]], test], classes


def encoded(rows: Any, setting: Setting, tokenizer: Any) -> Any:
    texts = [rows[column][:] for column in TEXTS[setting.task]]
    whole = setting.task == "gsm8k"
    if whole:
        texts = [[f"{question}\n{answer}" for question, answer in zip(*texts)]]
    tokens = tokenizer(
        *texts,
        padding="max_length",
        truncation=True,
        max_length=setting.length,
        return_tensors="pt",
    )
    x = torch.stack([tokens[kind] for kind in TOKENS if kind in tokens], 1)
    if whole:
        return data.Split(x[:, :2], x[:, 0].masked_fill(x[:, 1] == 0, -100))
    return data.Split(x, torch.tensor(rows["label"][:]))


# --- methods --------------------------------------------------------------------------------------


def sortednet(task: Task, g: int = 4) -> SortedModel:
    return task.fit(task.sorted(), accumulate=g)


def full_sum(task: Task) -> SortedModel:
    return task.fit(task.sorted(), mode="sum")


def sandwich(task: Task) -> SortedModel:
    return task.fit(task.sorted(), mode="sandwich", accumulate=4)


def truncated(task: Task) -> SortedModel:
    """Ordinary training of the largest."""
    return task.fit(
        task.sorted(), accumulate=1, distribution=lambda b: float(b == task.spec.largest)
    )


def non_nested(task: Task) -> NonNested:
    return task.fit(NonNested(task), accumulate=4)


class NonNested(nn.Module):
    """Sub-models of as many hidden units as the nested ones, but any: fixed random subsets.

    What a unit behind a ReLU gives is set to 0, so that the network computes what the subset would.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.network, self.spec = task.network, task.spec
        self.size = self.spec.largest["width"]
        self.masks: dict[Any, Tensor] = {}
        self.generator = task.run.rng("method")
        for name, module in self.network.named_modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(partial(self._masked, name))

    @contextmanager
    def at(self, b: dict[str, float]) -> Iterator[NonNested]:
        before, self.size = self.size, b["width"]
        try:
            yield self
        finally:
            self.size = before

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def _masked(self, name: str, module: nn.Module, args: Any, h: Tensor) -> Tensor:
        key = (name, self.size)
        if key not in self.masks:
            units = h.shape[1]
            kept = torch.randperm(units, generator=self.generator)[: round(units * self.size)]
            mask = torch.zeros(units).index_fill_(0, kept, 1.0)
            self.masks[key] = mask.reshape(-1, *[1] * (h.dim() - 2)).to(h)
        return h * self.masks[key]


# --- trials ---------------------------------------------------------------------------------------


def trial(setting: Setting, run: Run) -> dict[str, Any]:
    """Train all sub-models with one method, and test them all."""
    task = Task(setting, run)
    model = run.methods[setting.method](task)
    validated, tested = (measure(task, model, part) for part in (task.val, task.test))
    shaping: Any = {key: setting[key] for key in SHAPING if key in setting}
    shape = list(task.example.shape[1:])
    counted = run.fixture(count_macs, shape=shape, classes=task.classes, **shaping)
    costs = torch.tensor(counted, dtype=torch.float64)
    order = costs.argsort(stable=True)
    loss, right = tested.unbind(1)
    metrics = {
        "accuracy": right.mean().item(),
        "largest_accuracy": right[-1].item(),
        "validation_accuracy": validated[:, 1].mean().item(),
        "accuracies": right[order].tolist(),
        "share_of_macs": (costs / costs[-1])[order].tolist(),
    }
    if len(loss) > 1:
        metrics["tau"] = float(kendalltau(costs, -loss).statistic)
        metrics["share"] = [b.get("width", 1.0) for b in task.spec.configs]
    return metrics


@torch.no_grad()
def measure(task: Task, model: Any, part: Any) -> Tensor:
    """Loss and accuracy of each sub-model, (|B|, 2)."""
    found: dict[tuple[Any, ...], Tensor] = {}
    size: Any = task.setting.get("test_batch", 500)
    for depths in by_depth(task.spec):
        with model.at(depths[0]):
            estimate_batchnorms_(task, model)
        totals = torch.zeros(len(depths), 3, dtype=torch.float64)
        for x, y in data.batches(part, size, torch.Generator()):
            x, y = x.to(task.run.device), y.to(task.run.device)  # type: ignore[union-attr]
            with model.sharing_blocks() if len(depths) > 1 else nullcontext():
                totals += torch.stack([scored(model, b, x, y) for b in depths])
        found |= {tuple(b.values()): row[:2] / row[2] for b, row in zip(depths, totals)}
    return torch.stack([found[tuple(b.values())] for b in task.spec.configs])


def by_depth(spec: SortedSpec) -> list[list[Any]]:
    """Sub-models that differ in depth alone, the deepest first: one pass serves them."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for b in reversed(spec.configs):
        groups.setdefault(tuple(b[name] for name in b if name != "depth"), []).append(b)
    return list(groups.values())


def scored(model: Any, b: Any, x: Tensor, y: Tensor) -> Tensor:
    """Summed loss, how many predictions are right, and of how many."""
    with model.at(b):
        z, y = aligned(model(x), y)
    loss = F.cross_entropy(z, y, reduction="sum")
    return torch.stack([loss, (z.argmax(1) == y).sum(), torch.tensor(len(y))]).double().cpu()


def estimate_batchnorms_(task: Task, model: Any) -> None:
    """Statistics of the active sub-model, from 512 training inputs."""
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        x = task.train[:512].tensors()[0].to(task.run.device)
        update_bn(x.split(128), model)


# --- the study ------------------------------------------------------------------------------------

RATES: list[Any] = [3e-3, 1e-2, 3e-2]
DIGITS: dict[str, Any] = {
    "data": "digits",
    "noise": 0.3,
    "batch_size": 64,
    "optimizer": "adamw",
}
CIFAR: dict[str, Any] = {
    "data": "hub:uoft-cs/cifar10",
    "noise": 0.0,
    "augment": True,
    "batch_size": 128,
    "evaluations": 200 * 352,
    "optimizer": "sgd",
    "lr": 0.1,
}
SLIMMABLE: dict[str, Any] = CIFAR | {"network": "resnet20", "norm": ["instance", "batch"]}
TUNED: dict[str, Any] = {"noise": 0.0, "optimizer": "adamw", "lr": 2e-5}
BERT: dict[str, Any] = TUNED | {
    "network": ["google-bert/bert-base-uncased", "google-bert/bert-large-uncased"],
    "length": 128,
    "batch_size": 32,
    "evaluations": 20_000,
    "depths": 12,
}
LLAMA: dict[str, Any] = TUNED | {
    "network": "meta-llama/Llama-2-7b-hf",
    "task": "gsm8k",
    "length": 512,
    "batch_size": 32,
    "test_batch": 8,
    "evaluations": 6 * 420,
    "depths": 8,
    "first_depths": 3,
}
PERCEPTRON: dict[str, Any] = DIGITS | {"network": "mlp", "width": 128}
RESIDUAL: dict[str, Any] = DIGITS | {"network": "residual", "width": 60, "blocks": 10}
SHARES: list[Any] = [k / 8 for k in range(8, 0, -1)]

METHODS: dict[str, Callable[[Task], Any]] = {
    "truncated": truncated,
    "non_nested": non_nested,
    "full_sum": full_sum,
    "sandwich": sandwich,
    "sortednet_g1": partial(sortednet, g=1),
    "sortednet": sortednet,
}
DESK: list[Any] = ["truncated", "non_nested", "sandwich", "sortednet"]
"""What claims name: with the others, too, the desk would take longer than it may."""
IN_PLACE: list[Any] = [name for name in METHODS if name != "non_nested"]

widths = Experiment(
    trial,
    METHODS,
    name="widths",
    smoke=grid(widths=8, evaluations=8, lr=3e-3, **PERCEPTRON),
    desk=grid(method=DESK, widths=8, evaluations=3000, **PERCEPTRON),
    full=grid(method=IN_PLACE, widths=4, **SLIMMABLE),
    tune=Tune(by="validation_accuracy", higher=True, lr=RATES),
)
alone = Experiment(
    trial,
    {"alone": truncated},
    name="alone",
    smoke=grid(share=[1.0, 0.5], evaluations=4, lr=3e-3, **PERCEPTRON),
    desk=grid(share=SHARES, evaluations=3000, **PERCEPTRON),
    full=grid(share=[0.25, 0.5, 0.75, 1.0], **SLIMMABLE),
    tune=Tune(by="validation_accuracy", higher=True, shared=["share"], lr=RATES),
)
modular = Experiment(
    trial,
    {"ordinary": truncated, "sortednet": sortednet},
    name="modular",
    smoke=grid(widths=2, depths=2, evaluations=4, lr=3e-3, **RESIDUAL | {"width": 16, "blocks": 2}),
    desk=grid(widths=20, first_widths=5, depths=10, evaluations=800, **RESIDUAL),
    full=grid(
        widths=20, first_widths=5, depths=10, network="mobilenet", width=80, blocks=10, **CIFAR
    )
    + grid(task=[name for name in TEXTS if name != "gsm8k"], heads=4, **BERT)
    + grid(**LLAMA),
    tune=Tune(by="validation_accuracy", higher=True, lr=RATES),
)

STEP = 1 / 593
accuracy = widths.metric("accuracy", resolution=STEP / 8)
largest = widths.metric("largest_accuracy", resolution=STEP)
tau = widths.metric("tau")
alone_accuracy = alone.metric("accuracy", resolution=STEP)
modular_accuracy = modular.metric("accuracy", resolution=STEP / 160)
modular_largest = modular.metric("largest_accuracy", resolution=STEP)

study = Study(
    "sortednet",
    experiments=[widths, alone, modular],
    claims=[
        Claim(
            "C1",
            "Mean accuracy over eight widths is at least 15 points higher than that of an "
            "ordinarily trained network cut to them",
            higher(accuracy.mean("sortednet"), accuracy.mean("truncated"), by=0.15),
            margin="ours",
        ),
        Claim(
            "C2",
            "Mean accuracy over eight widths is within 1.5 points of networks trained separately, "
            "each with as many gradients as all of SortedNet",
            within(accuracy.mean("sortednet"), alone_accuracy.mean("alone"), 0.015),
            margin="ours",
            note="Training is short: with three times the gradients the mean over all widths rises "
            "from 0.89 to 0.91 (development seeds 0-2).",
        ),
        Claim(
            "C3",
            "With as many gradients, mean accuracy is at most 1 point below the sandwich rule's, "
            "or higher",
            higher(accuracy.mean("sortednet"), accuracy.mean("sandwich"), by=-0.01),
            margin="ours",
        ),
        Claim(
            "C4",
            "The largest sub-model's accuracy is within 1.5 points of the same network's, trained "
            "ordinarily",
            within(largest.mean("sortednet"), alone_accuracy.mean("alone", share=1.0), 0.015),
            margin="ours",
        ),
        Claim(
            "C5",
            "Nested sub-models are more accurate than random subsets of the same sizes, and their "
            "loss falls with size (Kendall's tau at least 0.8)",
            all_of(
                higher(accuracy.mean("sortednet"), accuracy.mean("non_nested")),
                higher(tau.mean("sortednet"), 0.8),
            ),
            margin="ours",
            note="Tau is 0.89 in the mean, on eight widths of which the larger ones are nearly as "
            "good as each other: one neighbouring pair in the wrong order costs 0.07.",
        ),
        Claim(
            "C6",
            "With 160 sub-models of 16 widths and 10 depths, their mean accuracy is at least 96 % "
            "of the largest network's, trained ordinarily",
            higher(
                modular_accuracy.mean("sortednet"), modular_largest.mean("ordinary"), factor=0.96
            ),
            margin="paper",
        ),
    ],
    figures=[
        lines(x="share", y="accuracies", where={"network": ["mlp", "resnet20"]}),
        lines(x="share_of_macs", y="accuracies", experiment=modular),
    ],
    data=data.Accepts("image", min_classes=2),
    demo=["C1", "C3"],
)
