"""Which way to a smaller network, and what does it keep at the same bytes and multiply-adds?

A face-off of the field `compress`, tied to no paper: its methods on two trained networks. A budget
is the share of the weights' bytes that a method may store; `bytes` counts all that it stores, as a
share of what the dense network takes: what comes on top of the weights (biases, scales, tables) may
exceed the budget by a tenth. `macs` are multiply-adds of ordinary hardware, where zeros count, as a
share of the dense network's.

- `digits`: a convolutional network with a hidden linear layer, trained with the labels of 800
  pictures under pixel noise. Test `accuracy`.
- `sentences`: the first two layers of MiniLM on docstrings of 16 tokens (the embeddings stay and
  are not counted). `neighbours`: the share of a text's 10 nearest by cosine that it keeps, among
  texts of files that no method has seen. Needs the extra `language`.

A method is `method(task, budget, rate) -> (model, tensors)`: a new model, and what would be saved
of it. It leaves `task.network` alone, learns from `task.inputs` (no labels) with
`task.follow(model, rate)`, which trains the model to give what the dense network gives, or by
itself in `task.steps` steps of `task.batch` inputs; draws come from `task.generator`. `rate`
multiplies its usual learning rate.

- `nearest`, `flexround` (rounding), `codebooks`: 32 * budget bits a weight, in all layers, with the
  parts' own defaults: rounding has one grid a layer.
- `magnitude`, `rigl` (pruning): a mask of one bit a weight, and the weights that it keeps; RigL
  goes on choosing while it trains.
- `channels` (pruning), `sortednet` (nested training): thinner layers; `n2n` (search): fewer ones,
  too. `snnet` (stitching): first layers of the network, last ones of a thin second network, which
  is what `channels` makes for half of the budget.
- `low_rank`, `random_features`: hidden linear layers as two factors, and as features of which the
  seed is stored.

Where a method cannot keep a budget, the grid has no such cell: `digits_half` is the same trial for
those that cannot keep 1/8. All train for equally many steps; one is a pass through the whole
network, or through each of its layers. `training_steps` counts what is needed beyond: `n2n` trains
each child for an epoch to judge it, by accuracy on labelled validation pictures; `sortednet` takes
four sub-models a step, but one training serves all budgets; `snnet` trains its second network and
then the stitched one. Who trains tries three rates (0.3, 1 and 3 times the usual one), chosen on
validation data: for each budget of its own with pictures, at 1/8 for all with `sentences`.

Seeds draw split, noise and weights of `digits` anew; `sentences` has one pretrained network, and
its seeds draw other texts. There is no paper to differ from: networks, budgets, candidates and
margins are ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.common.surgery import replace_modules
from paperworks.compress import (
    N2N,
    AnchorAdapter,
    DynamicSparsity,
    LowRankLinear,
    Masks,
    SNNKLinear,
    SortedModel,
    SortedSpec,
    SortedTrainer,
    StitchableNetwork,
    footprint,
    integer_state_dict,
    layer_densities,
    learn_codebooks,
    macs,
    make_masks,
    prunable,
    reconstruct_,
    remove_channels,
    scores,
    sparse_state_dict,
    stitch_finetune,
    to_sorted,
)
from paperworks.data.names import require
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    Tune,
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

LEEWAY = 1.1
"""What may be stored, in units of the budget."""

# --- tasks ----------------------------------------------------------------------------------------


class Task:
    """A trained network, and what a method may use to compress it.

    Attributes:
        network: in evaluation mode.
        inputs: some of its inputs, unlabelled.
        layers: names of the layers or blocks that are compressed one after another.
        hidden: names of the linear layers that others may replace.
        steps, batch: of every training.
        training_steps: how many passes with a gradient were taken.
    """

    def __init__(
        self,
        setting: Setting,
        run: Streams,
        network: nn.Module,
        inputs: Tensor,
        layers: list[str],
        hidden: list[str],
    ) -> None:
        self.setting, self.run = setting, run
        self.network = network.eval().requires_grad_(False).to(run.device)
        self.inputs = inputs.to(run.device)
        self.layers, self.hidden = layers, hidden
        self.steps, self.batch = setting.steps, setting.batch
        self.generator = run.rng("method")
        self.training_steps = 0
        with torch.no_grad():
            pairs = data.Split(self.inputs, self.network(self.inputs))
        self.batches = data.batches(pairs, self.batch, run.rng("batches"))

    @property
    def example(self) -> Tensor:
        return self.inputs[:1]

    @property
    def epochs(self) -> int:
        return max(1, self.steps // len(self.batches))

    def quality(self, model: nn.Module, part: str) -> float:
        """How good a model is on "val" or "test"."""
        raise NotImplementedError

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.Adam:
        parameters = model.requires_grad_().parameters()
        return torch.optim.Adam(parameters, rate * self.setting.lr, fused=True)

    def follow(
        self, model: nn.Module, rate: float, masks: Masks | None = None, dynamic: bool = False
    ) -> nn.Module:
        """Trains a model in place to give what the network gives, inside of masks if there are."""
        optimizer = self.optimizer(model, rate)
        growing = []
        if masks is not None:
            masks.attach(optimizer)
        if masks is not None and dynamic:
            every = max(2, self.steps // 15)
            rigl = DynamicSparsity(masks, optimizer, every=every, total_steps=self.steps)
            growing = [rigl.step]
        nets.fit(
            model,
            self.batches,
            distance,
            optimizer=optimizer,
            steps=self.steps,
            schedule="cosine",
            after_backward=growing,
        )
        self.training_steps += self.steps
        return model

    def left(self, budget: float, layers: list[str]) -> float:
        """The share of the weights of layers that a budget leaves when the others stay whole."""
        sizes = {name: weight.numel() for name, weight in prunable(self.network).items()}
        inside = sum(sizes[f"{name}.weight"] for name in layers)
        return 1 - (1 - budget) * sum(sizes.values()) / inside


def distance(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


class Pictures(Task):
    """A seed's pictures, and a convolutional network that knows them."""

    def __init__(self, setting: Setting, run: Streams) -> None:
        loaded, noise = load_pictures(setting, run), run.rng("noise")
        self.parts = {
            part: copies(getattr(loaded, part), setting.noise, setting.draws, noise)
            for part in ("train", "val", "test")
        }
        shared = {key: setting[key] for key in TRAINED}
        network = picture_network(setting, loaded)
        network.load_state_dict(run.fixture(train, seed=run.seed, **shared))
        inputs = self.parts["train"][: setting.inputs].tensors()[0]
        layers = [name.removesuffix(".weight") for name in prunable(network)]
        hidden = [name for name in layers if isinstance(network.get_submodule(name), nn.Linear)]
        super().__init__(setting, run, network, inputs, layers, hidden[:-1])

    @property
    def valid(self) -> list[Any]:
        return list(data.batches(self.parts["val"], 500, torch.Generator()))

    @torch.no_grad()
    def quality(self, model: nn.Module, part: str) -> float:
        """Accuracy."""
        right = 0
        for x, y in data.batches(self.parts[part], 500, torch.Generator()):
            right += int((model(x.to(self.run.device)).argmax(1).cpu() == y).sum())
        return right / len(self.parts[part])

    def witness(self) -> dict[str, Any]:
        ids = [part.ids for part in self.parts.values()]
        return {"split": ids, "weights": self.network.state_dict()}


TRAINED = ("data", "train", "val", "test", "noise", "network", "epochs")
"""The settings on which the trained network depends."""
NETWORKS: dict[str, dict[str, Any]] = {
    "small": {"widths": [16, 16, 32], "hidden": [64]},
    "large": {"widths": [64, 64, 128, 128], "hidden": [256]},
}


def load_pictures(setting: Setting, run: Streams) -> data.DataSet:
    sizes = (setting.train, setting.val, setting.test)
    return data.load(setting.data, sizes=sizes, generator=run.rng("split"))


def picture_network(setting: Setting, loaded: data.DataSet) -> nn.Module:
    shape = loaded.train[:1].tensors()[0].shape[1:]
    return nets.ConvNet(
        shape[0],
        pool_after=[0],
        norm=None,
        head="flatten",
        num_classes=len(loaded.classes),
        image_size=(shape[1], shape[2]),
        **NETWORKS[setting.network],
    )


def copies(part: Any, noise: float, draws: int, generator: torch.Generator) -> Any:
    """Every picture under several draws of noise, or as it is without noise."""
    if not noise:
        return part
    x, y = part.tensors()
    several = data.noise(x.repeat(draws, 1, 1, 1), noise, generator)
    return data.Split(several, y.repeat(draws), part.ids.repeat(draws))


def train(run: Streams, **settings: Any) -> dict[str, Tensor]:
    """Fixture: the weights of a seed's network, trained with labels and fresh noise."""
    setting = Setting(settings)
    loaded = load_pictures(setting, run)
    with run.seeded("weights"):
        model = picture_network(setting, loaded).to(run.device)
    batches = data.batches(
        loaded.train, 64, run.rng("batches"), augment=partial(noisy, setting.noise)
    )
    nets.fit(
        model,
        batches,
        partial(cross_entropy, run.device),
        optimizer=torch.optim.Adam(model.parameters(), 3e-3, fused=True),
        steps=setting.epochs * len(batches),
        schedule="cosine",
    )
    return model.state_dict()


def noisy(noise: float, x: Tensor, generator: torch.Generator) -> Tensor:
    return data.noise(x, noise, generator)


def cross_entropy(device: torch.device, model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x.to(device)), y.to(device))


class Texts(Task):
    """A seed's texts as embedded tokens, and the layers that make one vector of each."""

    def __init__(self, setting: Setting, run: Streams) -> None:
        encoder, embeddings = pretrained(setting.network, setting.encoder_layers)
        documents = run.fixture(documents_of, network=setting.network, length=setting.length)
        sizes = {"train": setting.inputs, "val": setting.val, "test": setting.test}
        self.ids = choose_texts(documents["file"], sizes, run.rng("split"))
        with torch.no_grad():
            self.parts = {
                part: embeddings(documents["tokens"][ids]) for part, ids in self.ids.items()
            }
        layers = [f"encoder.layer.{i}" for i in range(len(encoder.layer))]
        network = Pooled(encoder)
        hidden = [name.removesuffix(".weight") for name in prunable(network)]
        super().__init__(setting, run, network, self.parts["train"], layers, hidden)

    def quality(self, model: nn.Module, part: str) -> float:
        """Share of the nearest neighbours kept."""
        shared = {key: self.setting[key] for key in CHOSEN}
        ours = self.run.fixture(dense_neighbours, seed=self.run.seed, part=part, **shared)
        return ((ours.cpu() & self.neighbours(model, part).cpu()).sum() / ours.sum()).item()

    @torch.no_grad()
    def neighbours(self, model: nn.Module, part: str) -> Tensor:
        z = torch.cat([model(some.to(self.run.device)) for some in self.parts[part].split(100)])
        return nearest_neighbours(z, NEIGHBOURS)

    def witness(self) -> dict[str, Any]:
        return {"split": self.ids}


CHOSEN = ("network", "encoder_layers", "length", "inputs", "val", "test", "steps", "batch")
"""The settings on which a seed's texts and the network depend."""


def dense_neighbours(run: Streams, part: str, **settings: Any) -> Tensor:
    """Fixture: the nearest neighbours of a seed's texts before any compression."""
    task = Texts(Setting(settings), run)
    return task.neighbours(task.network, part)


NEIGHBOURS = 10


def nearest_neighbours(z: Tensor, k: int) -> Tensor:
    """For unit vectors which others are their k nearest, bool (N, N)."""
    similarities = (z @ z.T).fill_diagonal_(-math.inf)
    nearest = torch.zeros_like(similarities, dtype=torch.bool)
    return nearest.scatter_(1, similarities.topk(k).indices, True)


class Pooled(nn.Module):
    """The layers of an encoder, and the mean over all tokens, scaled to length one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.encoder(x).last_hidden_state.mean(1), dim=-1)


class Toy(nn.Module):
    """Stands in for the encoder at smoke scale: importing `transformers` takes seconds."""

    def __init__(self, layers: int, dim: int = 32) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> SimpleNamespace:
        for layer in self.layer:
            x = x + layer(x)
        return SimpleNamespace(last_hidden_state=x)


def pretrained(network: str, layers: int) -> tuple[Any, nn.Module]:
    """The first layers of an encoder, and the embeddings before them."""
    if network == "toy":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return Toy(layers), nn.Embedding(100, 32)
    require("transformers", "language", what=network)
    transformer: Any = nets.sentence_encoder().transformer
    transformer.encoder.layer = transformer.encoder.layer[:layers]
    return transformer.encoder, TokenEmbeddings(transformer.embeddings)


class TokenEmbeddings(nn.Module):
    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embeddings(input_ids=tokens)


def documents_of(run: Streams, network: str, length: int) -> dict[str, Tensor]:
    """Fixture: the beginnings of docstrings that are long enough, and the files they are from."""
    if network == "toy":
        tokens = torch.randint(100, (200, length), generator=run.rng("texts"))
        return {"tokens": tokens, "file": torch.arange(200)}
    require("transformers", "language", what=network)
    documents = data.stdlib_documents()
    tokenizer = nets.sentence_encoder().tokenizer
    texts = documents["text"].tolist()
    rows = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    whole = [i for i, row in enumerate(rows) if len(row) == length]  # nothing to be padded
    files = documents["file"].astype("category").cat.codes.to_numpy(dtype=np.int64)
    return {"tokens": torch.tensor([rows[i] for i in whole]), "file": torch.tensor(files[whole])}


def choose_texts(
    file: Tensor, sizes: Mapping[str, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Places of as many texts for each part, no two parts with texts of one file."""
    part_of_file = torch.randint(len(sizes), (int(file.max()) + 1,), generator=generator)
    shuffled = torch.randperm(len(file), generator=generator)
    return {
        part: shuffled[part_of_file[file[shuffled]] == number][:size]
        for number, (part, size) in enumerate(sizes.items())
    }


# --- methods --------------------------------------------------------------------------------------

Compressed = tuple[nn.Module, Mapping[str, Tensor]]
Method = Callable[[Any, float, float], Compressed]


def bits_of(budget: float) -> int:
    return round(32 * budget)


def rounding(task: Task, budget: float, rate: float, kind: str) -> Compressed:
    model = copy.deepcopy(task.network)
    result = reconstruct_(
        model,
        task.layers,
        task.inputs,
        rounding=kind,
        bits=bits_of(budget),
        iters=task.steps,
        lr=3e-2 * rate,
        batch_size=task.batch,
        quantize_first_last=True,
        generator=task.generator,
    )
    task.training_steps += 0 if kind == "nearest" else task.steps
    return model, integer_state_dict(model, result.weights)


def codebooks(task: Task, budget: float, rate: float) -> Compressed:
    model = learn_codebooks(
        task.network,
        task.inputs,
        bits=bits_of(budget),
        steps=task.steps,
        layers=task.layers,
        candidates=3,  # a codeword's neighbours
        mapping_lr=3e-2 * rate,
        batch_size=task.batch,
        kmeans="lloyd",
        generator=task.generator,
    )
    task.training_steps += task.steps
    return model, model.state_dict()


def pruning(task: Task, budget: float, rate: float, dynamic: bool = False) -> Compressed:
    model = copy.deepcopy(task.network)
    densities = layer_densities(model, budget - 1 / 32)  # the mask takes one bit of 32
    masks = Masks(model, make_masks(scores(model, "magnitude"), densities))
    masks.apply()
    task.follow(model, rate, masks, dynamic)
    return model, sparse_state_dict(model, masks)


def channels(task: Task, budget: float, rate: float) -> Compressed:
    model = thinner(task, rate, math.sqrt(budget))
    return model, model.state_dict()


def thinner(task: Task, rate: float, share: float) -> nn.Module:
    """A share of each layer's channels, trained."""
    *rows, _ = scores(task.network, "magnitude").items()  # all but the outputs
    masks = make_masks(dict(rows), share, structure="channel")
    return task.follow(remove_channels(task.network, masks, task.example), rate)


SIXTEENTHS = (4, 5, 8, 11, 16)
"""Of the channels: the sub-models that are trained together, one to a budget."""
SUBMODELS = 4
"""In a step."""


def nested(task: Pictures, budget: float, rate: float) -> Compressed:
    """The largest sub-model that the budget allows, of a training that serves all budgets."""
    settings = {key: value for key, value in task.setting.items() if key in NESTED}
    weights = task.run.fixture(train_nested, seed=task.run.seed, rate=rate, **settings)
    task.training_steps += SUBMODELS * task.steps
    whole = sorted_network(task)
    whole.load_state_dict(weights)
    most = int(LEEWAY * budget * numbers(task.network))
    model = whole.materialize(whole.select(max_params=most))
    return model, model.state_dict()


NESTED = (*TRAINED, "draws", "inputs", "steps", "batch", "lr")


def train_nested(run: Streams, rate: float, **settings: Any) -> dict[str, Tensor]:
    """Fixture: the weights of a network whose thinner sub-models follow it, too."""
    task = Pictures(Setting(settings), run)
    model = sorted_network(task)
    optimizer = task.optimizer(model, rate)
    trainer = SortedTrainer(
        model, optimizer, distance, accumulate=SUBMODELS, generator=task.generator
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
    stream = endless(task.batches)
    for _ in range(task.steps):
        trainer.step(stream)
        schedule.step()
    return model.state_dict()


def endless(batches: Any) -> Any:
    while True:
        yield from batches


def sorted_network(task: Task) -> SortedModel:
    spec = SortedSpec({"width": [n / 16 for n in SIXTEENTHS]})
    return to_sorted(task.network, spec, example=task.example)


def search(task: Pictures, budget: float, rate: float) -> Compressed:
    found = N2N(
        task.network,
        task.batches,
        task.valid,
        iterations=task.setting.iterations,
        rollouts=4,
        max_params=int(LEEWAY * budget * numbers(task.network)),
        epochs=1,
        final_epochs=task.epochs,
        lr=task.setting.lr * rate,
        random_state=task.run.random_state("method"),
    ).fit()
    task.training_steps += (found.evaluated + task.epochs) * len(task.batches)
    return found.best, found.best.state_dict()


def stitching(task: Pictures, budget: float, rate: float) -> Compressed:
    """The best path, by validation accuracy, of those that begin in the network and fit."""
    small = thinner(task, rate, math.sqrt(budget / 2)).eval()
    net = StitchableNetwork(
        [anchor(small), anchor(task.network)],
        task.example,
        window=1,
        direction="slow_to_fast",
        generator=task.generator,
    )
    most = LEEWAY * budget * numbers(task.network)
    fits = [numbers(net.materialize(id)) <= most for id in range(len(net.configs))]
    net.configs = [config for config, fit in zip(net.configs, fits) if fit]
    net.active = 0
    net.initialize(task.inputs[:100])
    stitch_finetune(
        net,
        task.batches,
        F.mse_loss,
        task.optimizer(net, rate / 10),
        task.epochs,
        task.generator,
    )
    task.training_steps += task.epochs * len(task.batches)
    paths = [net.materialize(id) for id in range(len(net.configs))]
    model = max(paths, key=lambda path: task.quality(path, "val"))
    return model, model.state_dict()


def anchor(chain: Any) -> AnchorAdapter:
    """Cut behind the first convolution's pooling, behind each other one, and before flattening."""
    modules = list(chain)
    starts = [i for i, module in enumerate(modules) if isinstance(module, nn.Conv2d)][1:]
    (flat,) = (i for i, module in enumerate(modules) if isinstance(module, nn.Flatten))
    ends = [*starts[1:], flat]
    parts = [nn.Sequential(*modules[a:b]) for a, b in zip(starts, ends)]
    embed, head = nn.Sequential(*modules[: starts[0]]), nn.Sequential(*modules[flat:])
    return AnchorAdapter(chain, embed, parts, head)


def low_rank(task: Task, budget: float, rate: float) -> Compressed:
    share = task.left(budget, task.hidden)

    def factors(name: str, old: Any) -> nn.Module:
        a, b = old.in_features, old.out_features
        return LowRankLinear.from_linear(old, max(1, round(share * a * b / (a + b))))

    model, _ = replace_modules(task.network, lambda name, _: name in task.hidden, factors)
    task.follow(model, rate)
    return model, model.state_dict()


def features(task: Task, budget: float, rate: float) -> Compressed:
    """Random features in place of hidden layers and the activations behind them."""
    share, seed = task.left(budget, task.hidden), task.run.random_state("method")
    behind = {str(int(name) + 1) for name in task.hidden}

    def made(name: str, old: Any) -> nn.Module:
        if name in behind:
            return nn.Identity()
        generator = torch.Generator().manual_seed(seed)
        return SNNKLinear.from_linear(old, round(share * old.in_features), generator=generator)

    model, _ = replace_modules(
        task.network, lambda name, _: name in behind or name in task.hidden, made
    )
    task.follow(model, rate)
    trained = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return model, trained | {"seed": torch.tensor(seed)}


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


METHODS: dict[str, Method] = {
    "nearest": partial(rounding, kind="nearest"),
    "flexround": partial(rounding, kind="flexround"),
    "codebooks": codebooks,
    "magnitude": pruning,
    "rigl": partial(pruning, dynamic=True),
    "channels": channels,
    "sortednet": nested,
    "low_rank": low_rank,
    "random_features": features,
    "n2n": search,
    "snnet": stitching,
}

# --- trials ---------------------------------------------------------------------------------------


def digits(setting: Setting, run: Run) -> dict[str, float]:
    """Compress one network for pictures with one method."""
    task = Pictures(setting, run)
    metrics = compressed(task, run, "accuracy")
    return metrics | {"dense_accuracy": task.quality(task.network, "test")}


def sentences(setting: Setting, run: Run) -> dict[str, float]:
    """Compress the first layers of the sentence encoder with one method."""
    return compressed(Texts(setting, run), run, "neighbours")


def compressed(task: Any, run: Run, quality: str) -> dict[str, float]:
    run.witness(**task.witness())
    method: Method = run.methods[task.setting.method]
    model, tensors = method(task, task.setting.budget, task.setting.get("rate", 1.0))
    model.eval()
    dense = footprint(task.network)["total"]
    return {
        quality: task.quality(model, "test"),
        f"validation_{quality}": task.quality(model, "val"),
        "bytes": footprint(tensors)["total"] / dense,
        "macs": macs(model, task.example) / macs(task.network, task.example),
        "training_steps": task.training_steps,
    }


# --- figures --------------------------------------------------------------------------------------


def digits_frontier(frame: DataFrame) -> Figure:
    """Accuracy by bytes and by multiply-adds."""
    return frontier(frame, ["digits", "digits_half"], "accuracy", "dense_accuracy")


def sentences_frontier(frame: DataFrame) -> Figure:
    """Neighbours kept by bytes and by multiply-adds."""
    return frontier(frame, ["sentences"], "neighbours")


def frontier(frame: DataFrame, experiments: list[str], quality: str, dense: str = "") -> Figure:
    """A line a method, its budgets the points; the dense network is a dashed line, or at 1."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import FuncFormatter, NullFormatter

    canvas = Canvas(figsize=(5, 6.4), dpi=140, layout="constrained")
    upper, lower = canvas.subplots(2, sharey=True)
    rows = frame[frame["experiment"].isin(experiments)]
    for axes, cost, name in ((upper, "bytes", "Bytes"), (lower, "macs", "Multiply-adds")):
        axes.set(xlabel=f"{name}, share of the dense network's", ylabel=quality.capitalize())
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: share_said(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        if len(rows):
            level = rows[dense].astype(float).mean() if dense else 1.0
            axes.axhline(level, color="0.4", linestyle="--", linewidth=1)
            draw_methods(axes, rows, cost, quality)
    if len(rows):
        canvas.legend(
            *upper.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
        )
    seeds = rows["seed"].nunique()
    note = f"means over {seeds} seeds; dashed: the dense network; below: who changes multiply-adds"
    canvas.supxlabel(note if len(rows) else "not run", fontsize=8, color="0.35")
    return canvas


def draw_methods(axes: Axes, rows: DataFrame, cost: str, quality: str) -> None:
    for number, (name, mine) in enumerate(rows.groupby("method", sort=False)):
        points = mine.astype({cost: float, quality: float})
        points = points.groupby("budget")[[cost, quality]].mean()
        if cost == "macs" and (points[cost] == 1).all():
            continue
        style = {"color": COLOURS[number % 7], "linestyle": STYLES[number % 5]}
        label, marker = str(name).replace("_", " "), MARKERS[number % 8]
        axes.plot(points[cost], points[quality], marker=marker, label=label, **style)


def share_said(share: float) -> str:
    """Powers of two as people write them.

    >>> share_said(0.125), share_said(1.0)
    ('1/8', '1')
    """
    return f"{share:g}" if share >= 1 else f"1/{1 / share:g}"


# --- the study ------------------------------------------------------------------------------------

DIGITS: dict[str, Any] = {
    "data": "digits",
    "train": 800,
    "val": 200,
    "test": 797,
    "noise": 0.35,
    "draws": 2,
    "network": "small",
    "epochs": 30,
    "inputs": 800,
    "steps": 120,
    "batch": 64,
    "lr": 1e-2,
    "iterations": 5,
}
QUICK: dict[str, Any] = {"steps": 2, "batch": 16}
TINY: dict[str, Any] = (
    DIGITS
    | QUICK
    | {"train": 60, "val": 30, "test": 30, "epochs": 1, "inputs": 32, "draws": 1, "iterations": 1}
)
CIFAR: dict[str, Any] = DIGITS | {
    "data": "hub:uoft-cs/cifar10",
    "train": 0.9,
    "val": 0.1,
    "test": 1.0,
    "noise": 0.0,
    "draws": 1,
    "network": "large",
    "inputs": 8192,
    "steps": 5000,
    "iterations": 50,
}
MINILM: dict[str, Any] = {
    "network": "all-MiniLM-L6",
    "encoder_layers": 2,
    "length": 16,
    "inputs": 32,
    "val": 80,
    "test": 160,
    "steps": 6,
    "batch": 32,
    "lr": 1e-3,
}
ALL_LAYERS: dict[str, Any] = MINILM | {
    "encoder_layers": 6,
    "inputs": 1024,
    "val": 500,
    "test": 1500,
    "steps": 1000,
}
TOY: dict[str, Any] = MINILM | QUICK | {"network": "toy", "inputs": 16, "val": 20, "test": 40}
SMALL = ["nearest", "flexround", "codebooks", "magnitude", "rigl", "channels", "sortednet"]
"""Methods that keep small budgets. Blocks without `method` are open to a user's rivals."""
CODES: list[Any] = SMALL[:3]
LARGE = ["low_rank", "random_features", "n2n", "snnet"]


def tuning(quality: str, shared: list[str]) -> Tune:
    return Tune(
        by=f"validation_{quality}",
        higher=True,
        shared=shared,
        only={"nearest": {}},
        rate=[0.3, 1.0, 3.0],
    )


pictures = Experiment(
    digits,
    {name: METHODS[name] for name in SMALL},
    smoke=grid(budget=1 / 8, **TINY),
    desk=grid(budget=[1 / 16, 1 / 8], **DIGITS)
    + grid(method=["nearest", "magnitude", "rigl"], budget=1 / 4, **DIGITS)
    + grid(method=["channels", "sortednet"], budget=[1 / 4, 1 / 2], **DIGITS),
    full=grid(budget=[1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4], **CIFAR)
    + grid(method=["channels", "sortednet"], budget=1 / 2, **CIFAR),
    tune=tuning("accuracy", shared=[]),
)
half = Experiment(
    digits,
    {name: METHODS[name] for name in LARGE},
    name="digits_half",
    smoke=grid(budget=1 / 2, **TINY),
    desk=grid(budget=1 / 2, **DIGITS)
    + grid(method=["low_rank", "random_features"], budget=1 / 4, **DIGITS),
    full=grid(budget=1 / 2, **CIFAR)
    + grid(method=["low_rank", "random_features"], budget=[3 / 8, 1 / 4], **CIFAR),
    tune=tuning("accuracy", shared=[]),
)
texts = Experiment(
    sentences,
    {name: METHODS[name] for name in [*SMALL[:4], "low_rank"]},
    smoke=grid(budget=1 / 8, **TOY),
    desk=grid(budget=1 / 8, **MINILM)
    + grid(method=CODES, budget=1 / 16, **MINILM)
    + grid(method=["magnitude", "low_rank"], budget=1 / 4, **MINILM),
    full=grid(budget=[1 / 8, 3 / 16, 1 / 4], **ALL_LAYERS)
    + grid(method=[*CODES, "magnitude", "low_rank"], budget=[3 / 32, 1 / 16], **ALL_LAYERS),
    tune=tuning("neighbours", shared=["budget"]),
)
ONE = 1 / (2 * 797)
accuracy = pictures.metric("accuracy", resolution=ONE)
dense = pictures.metric("dense_accuracy", resolution=ONE)
multiply_adds = pictures.metric("macs", log=True, deterministic=True)
neighbours = texts.metric("neighbours", resolution=1 / (NEIGHBOURS * 160))


def less_than_dense(method: str, budget: float) -> Any:
    accuracy, dense = (
        (half if method in LARGE else pictures).metric(name, resolution=ONE)
        for name in ("accuracy", "dense_accuracy")
    )
    return report(accuracy(method, budget=budget) - dense(method, budget=budget))


study = Study(
    "compress_faceoff",
    experiments=[pictures, half, texts],
    claims=[
        Claim(
            "C1",
            "At 1/8 of the bytes FlexRound is more accurate than rounding to nearest",
            higher(accuracy("flexround", budget=1 / 8), accuracy("nearest", budget=1 / 8)),
            margin="ours",
            note="On development seeds both lose 0.003 or less of the dense network's 0.84: there "
            "is little to win.",
        ),
        Claim(
            "C2",
            "At 1/16 of the bytes, two bits a weight, codebooks are more accurate than FlexRound",
            higher(accuracy("codebooks", budget=1 / 16), accuracy("flexround", budget=1 / 16)),
            margin="ours",
            note="Of the sentence encoder FlexRound keeps more neighbours at this budget "
            "(C23, C24).",
        ),
        Claim(
            "C3",
            "At 1/8 of the bytes rounding, to nearest and by FlexRound, is more accurate than "
            "magnitude pruning with fine-tuning",
            all_of(
                *(
                    higher(accuracy(rounded, budget=1 / 8), accuracy("magnitude", budget=1 / 8))
                    for rounded in ("nearest", "flexround")
                )
            ),
            margin="ours",
        ),
        Claim(
            "C4",
            "For half of the multiply-adds or less, channel removal to 1/4 of the bytes is at most "
            "0.02 less accurate than the dense network",
            all_of(
                higher(
                    accuracy("channels", budget=1 / 4), dense("channels", budget=1 / 4), by=-0.02
                ),
                lower(multiply_adds("channels", budget=1 / 4), 1 / 2),
            ),
            margin="ours",
        ),
        Claim(
            "C5",
            "Of a sentence encoder at 1/8 of the bytes, FlexRound and codebooks keep more "
            "neighbours than magnitude pruning",
            all_of(
                *(
                    higher(neighbours(method, budget=1 / 8), neighbours("magnitude", budget=1 / 8))
                    for method in ("flexround", "codebooks")
                )
            ),
            margin="ours",
        ),
        *(
            Claim(
                f"C{number}",
                f"{method.replace('_', ' ')}: accuracy less the dense network's, at "
                f"{share_said(budget)} of the bytes",
                less_than_dense(method, budget),
            )
            for number, (method, budget) in enumerate(
                [(name, 1 / 8) for name in SMALL] + [(name, 1 / 2) for name in LARGE], start=6
            )
        ),
        *(
            Claim(
                f"C{number}",
                f"{method.replace('_', ' ')}: neighbours kept at {share_said(budget)} of the bytes",
                report(neighbours(method, budget=budget)),
            )
            for number, (method, budget) in enumerate(
                [(name, 1 / 8) for name in texts.methods] + [(name, 1 / 16) for name in CODES],
                start=6 + len(METHODS),
            )
        ),
    ],
    figures=[drawn(digits_frontier), drawn(sentences_frontier)],
    data=data.Accepts("image", min_classes=2),
    demo=["C3"],
)
