"""Scalable neural network kernels: how well they estimate, and what fewer trained numbers cost.

- `estimation`: kernel matrices of 64 inputs and 64 weight vectors of length 1 in 16 dimensions,
  from independent ("iid") and from orthogonal projections. `error` is the relative Frobenius
  error, its mean over 100 draws of the features. A method is `method(activation, d, m, generator)`,
  which gives `paperworks.compress.RandomFeatures`.
- `compressed`, `dense`: a perceptron 64-256-256-10 on the digits, both hidden layers replaced.
  "snnk" has m features a layer, `256 m` numbers; "low_rank" as many numbers, its rank rounded up.
  All start from the same dense weights: "snnk" from their features, "low_rank" from their singular
  vectors. A method is `method(linear, m)`, which gives the layer together with its activation.
  `hidden_numbers` are trained, `stored_numbers` with the projections; a seed replaces these.
- `regression`: a bundled network of two layers in closed form against a perceptron trained by Adam
  with early stopping, on the diabetes table and on a draw from a Gaussian process. A method is
  `method(train, val, setting, run)`, which gives a function that predicts. `r2` on the test rows;
  `fit_seconds` is one fit, without tuning.
- `adapters`: which package of Python a docstring is from, read by the lowest two layers of frozen
  all-MiniLM-L6 with adapters: "snnk" (m), "houlsby" (bottleneck 3 m), "lora" from `peft` on queries
  and values (rank m / 2, as many numbers as "snnk"). Files of the test set are in no other. A
  method is `method(model, m)`, which gives a model that only wants its adapters trained;
  `trainables` leaves out the classifier, which is alike for all.

Every method tries equally many learning rates (the bundled one: ridges), chosen by validation loss.

Differences from the paper: digits, 6 packages and short training in place of GLUE and CIFAR, which
are the full scale. The layers of SNNK use orthogonal projections and read a constant 1 beside x, so
that biases count (ours). Pictures are centred by the mean training picture. GLUE is scored on its
validation sets, as its test labels are secret, with Matthews' correlation for CoLA, Spearman's for
STS-B and accuracy for the rest; texts are averaged over tokens.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from scipy.stats import spearmanr
from sklearn.metrics import matthews_corrcoef, r2_score
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.compress import (
    ArcCosineFeatures,
    BundledRegressor,
    HoulsbyAdapter,
    LowRankLinear,
    RandomFeatures,
    SNNKLinear,
    UniversalRandomFeatures,
    add_adapters,
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
    bars,
    grid,
    higher,
    lines,
    lower,
    report,
)
from paperworks.study.run import Streams

# --- estimation -----------------------------------------------------------------------------------


def features(
    activation: str, d: int, m: int, generator: torch.Generator, *, orthogonal: bool
) -> RandomFeatures:
    if activation == "arc-cosine":
        return ArcCosineFeatures(d, m, orthogonal=orthogonal, generator=generator)
    return UniversalRandomFeatures(d, m, activation, orthogonal=orthogonal, generator=generator)


def arc_cosine(z: Tensor) -> Tensor:
    """The kernel of order 1 for vectors of length 1 with dot product z."""
    t = z.clamp(-1, 1).acos()
    return (t.sin() + (math.pi - t) * t.cos()) / (2 * math.pi)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "gaussian": lambda z: torch.exp(-z.square() / 2),
    "arc-cosine": arc_cosine,
}


def estimation(setting: Setting, run: Run) -> dict[str, float]:
    """The error of one activation's kernel, estimated with m features."""
    x, w = (
        F.normalize(torch.randn(64, setting.d, generator=run.rng("split")).double(), dim=1)
        for _ in range(2)
    )
    run.witness(split=[x, w])
    exact = KERNELS[setting.activation](x @ w.T)
    errors = []
    for _ in range(setting.draws):
        seed = int(torch.randint(2**62, (), generator=run.rng("method")))  # ξ and |g| are shared
        drawn = run.methods[setting.method](
            setting.activation, setting.d, setting.m, torch.Generator().manual_seed(seed)
        )
        errors.append((drawn.double().kernel(x, w) - exact).norm() / exact.norm())
    return {"error": torch.stack(errors).mean().item()}


# --- digits ---------------------------------------------------------------------------------------


def dense_layer(linear: nn.Linear, m: int) -> nn.Module:
    return nn.Sequential(linear, nn.ReLU())


def low_rank_layer(linear: nn.Linear, m: int) -> nn.Module:
    """Of the least rank with `out m` numbers or more."""
    d, k = linear.in_features, linear.out_features
    rank = min(math.ceil((k * m - k) / (d + k)), d, k)
    return nn.Sequential(LowRankLinear.from_linear(linear, rank), nn.ReLU())


def snnk_layer(linear: nn.Linear, m: int) -> nn.Module:
    return SNNKLinear.from_linear(linear, m)


def classification(setting: Setting, run: Run) -> dict[str, float]:
    """Train a perceptron whose hidden layers are one method's."""
    pictures = data.load(setting.data, sizes=(0.65, 0.15, 0.2), generator=run.rng("split"))
    train, val, test = flat(pictures, run.device)
    sizes = [train.x.shape[1], *[setting.width] * 2, len(pictures.classes)]
    with run.seeded("weights"):
        mlp = nets.MLP(sizes)
    run.witness(split=[train.ids, val.ids, test.ids], weights=mlp.state_dict())
    with run.seeded("method"):
        hidden = [run.methods[setting.method](mlp[i], setting.get("m", 0)) for i in (0, 2)]
    network = nn.Sequential(*hidden, mlp[4]).to(run.device)
    batches = data.batches(train, 64, run.rng("batches"))
    nets.fit(
        network,
        batches,
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        optimizer=torch.optim.AdamW(network.parameters(), lr=setting.lr, weight_decay=1e-2),
        steps=setting.epochs * len(batches),
        schedule="cosine",
    )
    with torch.no_grad():
        validation_loss = F.cross_entropy(network(val.x), val.y).item()
        accuracy = (network(test.x).argmax(1) == test.y).double().mean().item()
    return {
        "accuracy": accuracy,
        "validation_loss": validation_loss,
        "hidden_numbers": sum(p.numel() for layer in hidden for p in layer.parameters()),
        "stored_numbers": sum(t.numel() for layer in hidden for t in layer.state_dict().values()),
    }


def flat(pictures: data.DataSet, device: torch.device) -> list[Any]:
    """The parts as rows, less the mean training picture and in units of the overall deviation."""
    parts = [pictures.train, pictures.val, pictures.test]
    rows = [part.tensors()[0].flatten(1) for part in parts]
    mean, deviation = rows[0].mean(0), rows[0].std(0).square().mean().sqrt()
    return [
        data.Split((x - mean) / deviation, part.y, part.ids).to(device)
        for x, part in zip(rows, parts)
    ]


# --- regression -----------------------------------------------------------------------------------

Predict = Callable[[Tensor], Tensor]


def trained_mlp(train: Any, val: Any, setting: Setting, run: Run) -> Predict:
    """A perceptron of two hidden layers at its best validation error."""
    with run.seeded("weights"):
        mlp = nets.MLP([train.x.shape[1], setting.width, setting.width, 1])
    batches = data.batches(train, 32, run.rng("batches"))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch[0]).squeeze(1), batch[1])

    nets.fit(
        mlp,
        batches,
        loss,
        optimizer=torch.optim.Adam(mlp.parameters(), lr=setting.lr),
        steps=setting.epochs * len(batches),
        validate=lambda model: loss(model, val.tensors()).item(),
        every=len(batches),
        patience=20,
        restore_best=True,
    )
    return lambda x: mlp(x).squeeze(1).detach()


def bundled(train: Any, val: Any, setting: Setting, run: Run) -> Predict:
    """The same in closed form: as many features a layer as the setting says."""
    model = BundledRegressor(
        [setting.m, setting.m], setting.ridge, random_state=run.random_state("method")
    )
    model.fit(train.x.numpy(), train.y.numpy())
    return lambda x: torch.from_numpy(model.predict(x.numpy()))


def regression(setting: Setting, run: Run) -> dict[str, float]:
    """Fit one table with one method."""
    table = gaussian_process(setting.rows, run) if setting.table == "gp" else load(setting, run)
    mean, deviation = table[0].y.mean(), table[0].y.std()
    train, val, test = (data.Split(part.x, (part.y - mean) / deviation, part.ids) for part in table)
    run.witness(split=[train.x, train.ids, val.ids, test.ids])
    start = time.perf_counter()
    predict = run.methods[setting.method](train, val, setting, run)
    seconds = time.perf_counter() - start
    return {
        "r2": r2_score(test.y, predict(test.x)),
        "validation_error": 1 - r2_score(val.y, predict(val.x)),
        "fit_seconds": seconds,
    }


def load(setting: Setting, run: Run) -> list[Any]:
    """60 % of a table to train, 20 % to validate and 20 % to test."""
    table = data.load(
        setting.table, sizes=(0.6, 0.2, 0.2), generator=run.rng("split"), scale="standard"
    )
    return [table.train, table.val, table.test]


def gaussian_process(n: int, run: Run, d: int = 4, length: float = 2.0) -> list[Any]:
    """Noisy values (deviation 0.1) of a smooth random function at n normal points, cut likewise."""
    rng = run.rng("split")
    x = torch.randn(n, d, generator=rng, dtype=torch.float64)
    K = torch.exp(-torch.cdist(x, x).square() / (2 * length**2)) + 1e-2 * torch.eye(n)
    y = torch.linalg.cholesky(K) @ torch.randn(n, generator=rng, dtype=torch.float64)
    whole = data.Split(x.float(), y.float())
    first, second = round(0.6 * n), round(0.8 * n)
    return [whole[:first], whole[first:second], whole[second:]]


# --- adapters -------------------------------------------------------------------------------------


def snnk_adapters(model: nn.Module, m: int) -> nn.Module:
    return add_adapters(model, m)


def houlsby_adapters(model: nn.Module, m: int) -> nn.Module:
    return add_adapters(model, 3 * m, adapter=HoulsbyAdapter)


def lora(model: nn.Module, m: int) -> nn.Module:
    require("peft", "language", what="LoRA")
    from peft import LoraConfig, get_peft_model

    rank = max(m // 2, 1)
    targets = [
        name
        for name, _ in model.named_modules()
        if name.endswith(("query", "value", "q_proj", "v_proj"))
    ]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    return get_peft_model(copy.deepcopy(model), config)


TOKENS = ("input_ids", "attention_mask", "token_type_ids")


class Scored(nn.Module):
    """A backbone and a linear layer on the mean of its tokens, or on a picture's first token."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return self.head(self.backbone(pixel_values=2 * x - 1).last_hidden_state[:, 0])
        inputs = dict(zip(TOKENS, x.unbind(1)))
        hidden = self.backbone(**inputs).last_hidden_state
        weight = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * weight).sum(1) / weight.sum(1))


def adaptation(setting: Setting, run: Run) -> dict[str, float]:
    """Adapt a frozen network to one task."""
    train, val, test, outputs = task_parts(setting, run)
    backbone, dim = pretrained(setting)
    with run.seeded("weights"):
        head = nn.Linear(dim, outputs)
    run.witness(split=[train.ids, val.ids, test.ids], weights=head.state_dict())
    with run.seeded("method"):
        adapted = run.methods[setting.method](backbone, setting.m)
    trainables = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    model = Scored(adapted, head).to(run.device)
    batches = data.batches(train, setting.batch_size, run.rng("batches"))
    steps = min(setting.epochs * len(batches), setting.most_steps)
    counter = iter(range(1, steps + 1))
    nets.fit(
        model,
        batches,
        lambda model, batch: loss(model(batch[0].to(run.device)), batch[1].to(run.device)),
        optimizer=torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=setting.lr, weight_decay=0.1
        ),
        steps=steps,
        schedule=lambda step: min((step + 1) / (0.06 * steps), 1 - step / steps),
        after_step=[lambda: run.progress(next(counter), steps)],
    )
    z_val, y_val = outputs_of(model, val, run.device)
    z, y = outputs_of(model, test, run.device)
    return {
        "score": score(setting.task, z, y),
        "validation_loss": loss(z_val, y_val).item(),
        "trainables": trainables,
    }


def loss(z: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(z.squeeze(1), y) if y.is_floating_point() else F.cross_entropy(z, y)


@torch.no_grad()
def outputs_of(model: nn.Module, part: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(part)).split(100)
    batches = [part[some].tensors() for some in rows]
    return torch.cat([model(x.to(device)).cpu() for x, _ in batches]), part.y


def score(task: str, z: Tensor, y: Tensor) -> float:
    if task == "stsb":
        return float(spearmanr(z.squeeze(1), y).statistic)
    if task == "cola":
        return float(matthews_corrcoef(y, z.argmax(1)))
    return (z.argmax(1) == y).double().mean().item()


def task_parts(setting: Setting, run: Run) -> tuple[Any, Any, Any, int]:
    """Training, validation and test part of a task, and how many outputs it asks for.

    Texts are rows (parts, length) of tokens, masks and, for BERT, kinds of tokens.
    """
    if setting.task in GLUE:
        return glue_parts(setting, run)
    if setting.task.startswith("hub:"):
        pictures = data.load(setting.task, generator=run.rng("split"))
        return pictures.train, pictures.val, pictures.test, len(pictures.classes)
    if setting.task == "toy":
        ids = torch.randint(100, (60, 8), generator=run.rng("split"))
        x, y, file = torch.stack([ids, torch.ones_like(ids)], 1), ids[:, 0] % 2, torch.arange(60)
    else:
        texts = run.fixture(docstrings, length=setting.length)
        x, y, file = texts["x"], texts["y"], texts["file"]
    whole = data.Split(x, y)
    parts = cut_by_file(y, file, run.rng("split"))
    train, val, test = (whole[part] for part in parts)
    return train, val, test, int(y.max()) + 1


def cut_by_file(y: Tensor, file: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Of the files of each class half to train, 15 % to validate and 35 % to test."""
    place = torch.rand(int(file.max()) + 1, generator=generator)
    part_of_file = torch.zeros_like(place, dtype=torch.long)
    for label in y.unique():
        files = file[y == label].unique()
        rank = place[files].argsort().argsort() / len(files)
        part_of_file[files] = torch.bucketize(rank, torch.tensor([0.5, 0.65]), right=True)
    return [(part_of_file[file] == part).nonzero().squeeze(1) for part in range(3)]


def docstrings(run: Streams, length: int) -> dict[str, Tensor]:
    """Fixture: docstrings as tokens of MiniLM: the six largest packages of 15 files or more."""
    documents = data.stdlib_documents()
    files = documents.groupby("package")["file"].nunique()
    sizes = documents["package"].value_counts()[files.index[files >= 15]]
    packages = sorted(sizes.nlargest(6).index)
    documents = documents[documents["package"].isin(packages)]
    tokenizer = nets.sentence_encoder().tokenizer
    tokens = tokenizer(
        documents["text"].tolist(),
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    number = {name: i for i, name in enumerate(sorted(documents["file"].unique()))}
    return {
        "x": torch.stack([tokens["input_ids"], tokens["attention_mask"]], 1),
        "y": torch.tensor([packages.index(name) for name in documents["package"]]),
        "file": torch.tensor([number[name] for name in documents["file"]]),
    }


GLUE = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
"""The columns of text of each task."""


def glue_parts(setting: Setting, run: Run) -> tuple[Any, Any, Any, int]:
    """A task of GLUE: 10 % of its training rows validate, its validation rows test."""
    require("datasets", "hub", what=setting.task)
    require("transformers", "language", what=setting.network)
    import datasets
    from transformers import AutoTokenizer

    rows = datasets.load_dataset("nyu-mll/glue", setting.task)
    tokenizer = AutoTokenizer.from_pretrained(setting.network)
    outer = "validation_matched" if setting.task == "mnli" else "validation"
    known, test = (
        encoded(rows[part], GLUE[setting.task], tokenizer, setting.length)
        for part in ("train", outer)
    )
    order = torch.randperm(len(known), generator=run.rng("split"))
    held_out = len(known) // 10
    outputs = 1 if known.y.is_floating_point() else int(known.y.max()) + 1
    return known[order[held_out:]], known[order[:held_out]], test, outputs


def encoded(rows: Any, columns: tuple[str, ...], tokenizer: Any, length: int) -> Any:
    tokens = tokenizer(
        *[rows[column][:] for column in columns],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    x = torch.stack([tokens[kind] for kind in TOKENS if kind in tokens], 1)
    return data.Split(x, torch.tensor(rows["label"][:]))


class Toy(nn.Module):
    """Stands in for a transformer at smoke scale: importing `transformers` takes seconds."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Embedding.from_pretrained(torch.randn(100, dim, generator=generator))
        self.output = nn.ModuleDict({"dense": nn.Linear(dim, dim)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.output["dense"](self.words(input_ids)))


def pretrained(setting: Setting) -> tuple[nn.Module, int]:
    """The network and its width."""
    if setting.network == "toy":
        return Toy(), 16
    require("transformers", "language", what=setting.network)
    if setting.network == "all-MiniLM-L6":
        model: Any = nets.sentence_encoder().transformer
        model.encoder.layer = model.encoder.layer[: setting.layers]
    else:
        from transformers import AutoModel

        model = AutoModel.from_pretrained(setting.network, add_pooling_layer=False)
    return model, model.config.hidden_size


# --- the study ------------------------------------------------------------------------------------

ACTIVATIONS: list[Any] = list(KERNELS)
FEATURES: list[Any] = [16, 32, 64, 128, 256, 512, 1024]
estimates = Experiment(
    estimation,
    name="estimation",
    methods={
        "iid": partial(features, orthogonal=False),
        "orthogonal": partial(features, orthogonal=True),
    },
    smoke=grid(activation=ACTIVATIONS, m=[64, 256], d=16, draws=2),
    desk=grid(activation=ACTIVATIONS, m=FEATURES, d=16, draws=100),
    full=grid(activation=ACTIVATIONS, m=[*FEATURES, 2048, 4096], d=[16, 64], draws=100),
)
DIGITS: dict[str, Any] = {"data": "digits", "width": 256, "epochs": 25}
FEW: dict[str, Any] = DIGITS | {"width": 16, "epochs": 1}
MNIST: dict[str, Any] = {"data": "hub:ylecun/mnist?size=28", "width": 1024, "epochs": 40}
WIDTHS: list[Any] = [8, 16, 32, 64]
RATES: list[Any] = [1e-3, 3e-3, 1e-2]
compressed = Experiment(
    classification,
    name="compressed",
    methods={"low_rank": low_rank_layer, "snnk": snnk_layer},
    smoke=grid(m=[8, 32], **FEW),
    desk=grid(m=WIDTHS, **DIGITS),
    full=grid(m=[32, 64, 128, 256], **MNIST),
    tune=Tune(by="validation_loss", lr=RATES),
)
dense = Experiment(
    classification,
    name="dense",
    methods={"dense": dense_layer},
    smoke=grid(**FEW),
    desk=grid(**DIGITS),
    full=grid(**MNIST),
    tune=Tune(by="validation_loss", lr=RATES),
)
TABLES: list[Any] = ["diabetes", "gp"]
tables = Experiment(
    regression,
    methods={"mlp": trained_mlp, "bundled": bundled},
    smoke=grid(table=TABLES, rows=100, m=32, width=16, epochs=2),
    desk=grid(table=TABLES, rows=1000, m=256, width=128, epochs=100),
    full=grid(table=TABLES, rows=10_000, m=2048, width=1024, epochs=500),
    tune=Tune(
        by="validation_error",
        only={
            "mlp": {"lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]},
            "bundled": {"ridge": [1e-3, 1e-2, 1e-1, 10.0, 100.0]},
        },
    ),
)
LONG: dict[str, Any] = {"layers": 12, "epochs": 80, "most_steps": 20_000, "batch_size": 64}
BERT: dict[str, Any] = LONG | {"network": "google-bert/bert-base-uncased", "length": 128, "m": 16}
VIT: dict[str, Any] = LONG | {"network": "google/vit-base-patch16-224-in21k", "m": 64}
PICTURES: list[Any] = ["hub:uoft-cs/cifar10?size=224", "hub:uoft-cs/cifar100?size=224"]
adapters = Experiment(
    adaptation,
    name="adapters",
    methods={"snnk": snnk_adapters, "houlsby": houlsby_adapters, "lora": lora},
    smoke=grid(
        method=["snnk", "houlsby"],  # importing peft takes seconds
        task="toy", network="toy", m=4, epochs=1, most_steps=3, batch_size=8,
    ),
    desk=grid(
        task="docstrings", network="all-MiniLM-L6", layers=2, length=12, m=16,
        epochs=1, most_steps=100, batch_size=8,
    ),
    full=grid(task=list(GLUE), **BERT) + grid(task=PICTURES, **VIT),
    tune=Tune(by="validation_loss", lr=[3e-3, 1e-2, 3e-2]),
)  # fmt: skip

error = estimates.metric("error", log=True)
accuracy = compressed.metric("accuracy", resolution=1 / 359)
dense_accuracy = dense.metric("accuracy", resolution=1 / 359)
numbers = compressed.metric("hidden_numbers", log=True, deterministic=True)
dense_numbers = dense.metric("hidden_numbers", log=True, deterministic=True)
r2 = tables.metric("r2")
seconds = tables.metric("fit_seconds", log=True)
adapted = adapters.metric("score")
trainables = adapters.metric("trainables", log=True, deterministic=True)

study = Study(
    "snnk",
    experiments=[estimates, compressed, dense, tables, adapters],
    claims=[
        Claim(
            "C1",
            "Orthogonal projections estimate each of the four kernels with a lower relative error "
            "than independent ones, at 256 features",
            all_of(
                *(
                    lower(
                        error.mean("orthogonal", activation=activation, m=256),
                        error.mean("iid", activation=activation, m=256),
                    )
                    for activation in ACTIVATIONS
                )
            ),
            note="The general result for random features; the paper's own comparison was not read.",
        ),
        Claim(
            "C2",
            "With 5 times fewer numbers in the hidden layers SNNK's accuracy is within 1.5 points "
            "of the dense network's, or higher",
            all_of(
                higher(accuracy.mean("snnk", m=32), dense_accuracy.mean("dense"), by=-0.015),
                higher(dense_numbers.mean("dense"), numbers.mean("snnk", m=32), factor=5),
            ),
            margin="ours",
            note="All that a layer knows of its input are m fixed random projections, here 32 of "
            "64 pixels, and what is not in them cannot be learned.",
        ),
        Claim(
            "C3",
            "SNNK's accuracy is within 1 point of low-rank layers with as many numbers, or higher, "
            "at every size",
            all_of(
                *(
                    higher(accuracy.mean("snnk", m=m), accuracy.mean("low_rank", m=m), by=-0.01)
                    for m in WIDTHS
                )
            ),
            margin="ours",
            note="Low-rank layers learn what to read of their input. On development seeds the gap "
            "closed as m grew to the number of pixels, 64.",
        ),
        Claim(
            "C4",
            "On both tables a bundled network's R² is within 0.03 of the trained one's, or higher, "
            "and its fit at least 5 times faster",
            all_of(
                *(higher(r2("bundled", table=t), r2("mlp", table=t), by=-0.03) for t in TABLES),
                *(
                    lower(seconds("bundled", table=t), seconds("mlp", table=t), factor=1 / 5)
                    for t in TABLES
                ),
            ),
            margin="ours",
        ),
        Claim(
            "C5",
            "SNNK adapters with 5 times fewer trainable numbers score within 1 point of Houlsby "
            "adapters, or higher",
            all_of(
                higher(adapted.mean("snnk"), adapted.mean("houlsby"), by=-0.01),
                higher(trainables.mean("houlsby"), trainables.mean("snnk"), factor=5),
            ),
            margin="ours",
        ),
        Claim(
            "C6",
            "Score of SNNK adapters less that of LoRA with as many trainable numbers",
            report(adapted.mean("snnk") - adapted.mean("lora")),
        ),
    ],
    figures=[
        lines(x="m", y="error", experiment=estimates, logx=True, logy=True),
        lines(x="m", y="accuracy", experiment=compressed, logx=True),
        bars(x="table", y="r2", experiment=tables),
        bars(x="task", y="score", experiment=adapters),
    ],
    data=data.Accepts("image", min_classes=2),
    demo=["C1"],
)
