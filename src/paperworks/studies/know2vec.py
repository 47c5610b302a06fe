"""Finding the model of a zoo that fits a task, without running the models.

A seed draws 40 tasks of four classes each, in ascending order, and trains four small networks for
each task. A query is the mean vectors, by a fixed encoder, of five pictures of each class; a method
scores all 160 models for it, and is right (`top1`) where the best one is of the query's task. The
pictures are cut in four, so that nobody sees another's: those that the models are trained on, an
unlabelled pool for probing them, and those of training and of test queries. `held_out` tasks have
models in the zoo and no training queries; where there are any, the test queries are theirs.

- "lstm" is know2vec; "mean" and "concat" summarise rows in other ways; "nodes_only" has nodes in
  the place of boundaries; "official" has the released code's loss.
- "noise" describes a model by its answers to noise, "nearest" compares nodes with class means and
  learns nothing.
- "brute_force" takes the model that is most accurate on the query's pictures (twenty leave many
  ties, and the one surest of the right classes wins), and "leep" scores all models on them: both
  run the whole zoo, which `zoo_queries` counts, in inputs a query.

All that learn choose a rate of Adam, of the same two, by validation queries of pictures that the
models were trained on, but no query encoder; "official", without a verdict, has 1e-3. A
method is `method(market) -> scores`, with a `Market`, see there, and a function of `Queries` that
gives scores (queries, models).

`batch_score` is what the released code reports in the place of `top1`. `map` shows the vectors of
some tasks in two dimensions.

Differences from the paper. Desk: digits, MLPs of 24 to 64 units, 32 whitened principal components
of the pool for an encoder, all widths 64. Full: the 58 tasks of the authors are not published, and
the quadruples of CIFAR-100 stand in for them; a ResNet-18 of `transformers` is the encoder; models
are trained by a recipe of ours, encoders for fewer steps and at higher rates than the paper's, and
20 models a task are ours too. The ranking of models to be fine-tuned needs a zoo of 42 fine-tuned
networks that is not published, and is left to the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.data.names import require
from paperworks.representation import (
    ModelEncoder,
    ModelRetriever,
    NearestKnowledge,
    NoiseFingerprint,
    QueryEncoder,
    leep,
    official_batch_score,
    probe_zoo,
)
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    Tune,
    all_of,
    drawn,
    equals,
    grid,
    higher,
    report,
    within,
)
from paperworks.study.figures import COLOURS
from paperworks.study.run import Streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

# --- the zoo --------------------------------------------------------------------------------------

RECIPE = (
    *("data", "models", "pool", "queries", "tasks", "ways", "network", "copies", "zoo_steps"),
    *("zoo_batch", "zoo_lr", "encoder", "draws", "fingerprint"),
)
"""The settings on which the zoo depends."""


def zoo(frun: Streams, **recipe: Any) -> dict[str, Any]:
    """Fixture: what is known of every model, in the order of tasks; and the pictures of queries."""
    setting = Setting(recipe)
    parts = pictures(frun, setting)
    classes = int(parts["models"][1].max()) + 1
    tasks = quadruples(classes, setting.ways, setting.tasks, frun.rng("tasks"))
    pool = parts["pool"][0].to(frun.device)
    phi = reference(setting.encoder, pool)
    models = {
        f"{task}.{copy}": model
        for task, group in enumerate(trained(frun, setting, *parts["models"], tasks))
        for copy, model in enumerate(group)
    }
    probed = probe_zoo(
        models, pool, setting.ways, phi, draws=setting.draws, generator=frun.rng("probing")
    )
    noise = NoiseFingerprint(
        pool.shape[1:], setting.ways, setting.fingerprint, generator=frun.rng("noise")
    ).to(frun.device)

    def seen(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Vectors of pictures, and every model's answers to them."""
        chunks = x.split(500)
        answers = [torch.cat([answer(m, c, frun.device) for c in chunks]) for m in models.values()]
        vectors = torch.cat([phi(c.to(frun.device)).cpu() for c in chunks])
        return {"phi": vectors, "y": y, "answers": torch.stack(answers)}

    x, y = parts["models"]
    some = torch.randperm(len(x), generator=frun.rng("validation"))[:5000]
    return {
        "tasks": tasks,
        "knowledge": torch.stack([k.features.cpu() for k in probed.values()]),
        "flagged": torch.stack([k.flagged.cpu() for k in probed.values()]),
        "fingerprints": torch.stack([noise.probe(m).cpu() for m in models.values()]),
        "noise": noise.noise.cpu(),
        "training": seen(*parts["training"]),
        "validation": seen(x[some], y[some]),
        "test": seen(*parts["test"]),
    }


def pictures(frun: Streams, setting: Setting) -> dict[str, tuple[Tensor, Tensor]]:
    """Pictures and classes, disjoint: of models, of the pool, of training and of test queries."""
    sizes = (setting.models, setting.pool, setting.queries)
    found = data.load(setting.data, sizes=sizes, generator=frun.rng("split"))
    x, y = found.test.tensors()
    order = torch.randperm(len(x), generator=frun.rng("split"))
    order = order[y[order].argsort(stable=True)]  # so that each class is halved
    return {
        "models": found.train.tensors(),
        "pool": found.val.tensors(),
        "training": (x[order[::2]], y[order[::2]]),
        "test": (x[order[1::2]], y[order[1::2]]),
    }


def quadruples(classes: int, ways: int, most: int, generator: torch.Generator) -> Tensor:
    """Different sets of `ways` classes, ascending, (tasks, ways); all there are, or the most."""
    there_are = torch.tensor([(classes - i) / (i + 1) for i in range(ways)]).double().prod()
    tasks: dict[tuple[int, ...], None] = {}
    while len(tasks) < min(most, round(there_are.item())):
        drawn = torch.randperm(classes, generator=generator)[:ways]
        tasks.setdefault(tuple(drawn.sort().values.tolist()))
    return torch.tensor([*tasks])


def reference(name: str, pool: Tensor) -> Callable[[Tensor], Tensor]:
    """The encoder φ: whitened principal components of the pool, or a network of `transformers`."""
    if name != "pca":
        return pretrained(name).to(pool.device)
    x = pool.flatten(1).double().cpu().numpy()
    pca = PCA(min(32, *x.shape), whiten=True, svd_solver="full").fit(x)
    scaled = pca.components_.T / pca.explained_variance_.clip(1e-6) ** 0.5
    mean, axes = (torch.from_numpy(a).to(pool) for a in (pca.mean_, scaled))
    return lambda x: (x.flatten(1) - mean) @ axes


class Logits(nn.Module):
    """A classifier's outputs for pictures in [0, 1], in the units of ImageNet."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.new_tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
        std = x.new_tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
        logits: Tensor = self.model((x - mean) / std).logits
        return logits


def pretrained(name: str) -> nn.Module:
    require("transformers", "language", what=name)
    from transformers import AutoModelForImageClassification

    return Logits(AutoModelForImageClassification.from_pretrained(name))


@torch.no_grad()
def answer(model: nn.Module, x: Tensor, device: torch.device) -> Tensor:
    return model(x.to(device)).softmax(1).cpu()


# --- training the zoo -----------------------------------------------------------------------------

WIDTHS = (24, 32, 48, 64)


def trained(
    frun: Streams, setting: Setting, x: Tensor, y: Tensor, tasks: Tensor
) -> Iterator[list[nn.Module]]:
    """Networks of each task, in evaluation mode."""
    of_task = [task_rows(y, task) for task in tasks]
    if setting.network == "mlp":
        together = [
            train_together(
                frun,
                setting,
                [mlp(frun, x, WIDTHS[c % 4], setting.ways) for _ in tasks],
                x,
                of_task,
            )
            for c in range(setting.copies)
        ]
        yield from (list(group) for group in zip(*together, strict=True))
        return
    for rows, labels in of_task:
        yield [one_by_one(frun, setting, x[rows], labels) for _ in range(setting.copies)]


def task_rows(y: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a task's classes, and their places in the task."""
    member = y.unsqueeze(1) == task
    rows = member.any(1).nonzero().flatten()
    return rows, member[rows].long().argmax(1)


def mlp(frun: Streams, x: Tensor, width: int, ways: int) -> nn.Module:
    with frun.seeded("weights"):
        return nn.Sequential(nn.Flatten(), *nets.MLP([x[0].numel(), width, ways]))


def train_together(
    frun: Streams,
    setting: Setting,
    models: list[nn.Module],
    x: Tensor,
    of_task: list[tuple[Tensor, Tensor]],
) -> list[nn.Module]:
    """Adam for networks of one shape at once, each on batches of its own task."""
    x = x.to(frun.device)
    weights, _ = torch.func.stack_module_state([m.to(frun.device) for m in models])
    call = partial(torch.func.functional_call, models[0])
    optimizer = torch.optim.Adam(weights.values(), setting.zoo_lr)
    for _ in range(setting.zoo_steps):
        batches = [drawn_rows(*rows, setting.zoo_batch, frun) for rows in of_task]
        rows, labels = (torch.stack(part).to(frun.device) for part in zip(*batches))
        logits = torch.vmap(call)(weights, (x[rows],))
        optimizer.zero_grad()
        # a sum over networks of means over samples: each learns as if alone
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        (loss / setting.zoo_batch).backward()
        optimizer.step()
    for i, model in enumerate(models):
        model.load_state_dict({name: value[i].detach() for name, value in weights.items()})
    return [model.eval() for model in models]


def drawn_rows(rows: Tensor, labels: Tensor, size: int, frun: Streams) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(rows), (size,), generator=frun.rng("batches"))
    return rows[chosen], labels[chosen]


def one_by_one(frun: Streams, setting: Setting, x: Tensor, y: Tensor) -> nn.Module:
    """A MobileNet of one task."""
    with frun.seeded("weights"):
        model = nets.MobileNet(x.shape[1], num_classes=setting.ways, stem_stride=2)
    model.to(frun.device)
    part = data.Split(x, y).to(frun.device)
    nets.fit(
        model,
        data.batches(part, min(setting.zoo_batch, len(x)), frun.rng("batches"), replace=True),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        optimizer=torch.optim.Adam(model.parameters(), setting.zoo_lr),
        steps=setting.zoo_steps,
        schedule="cosine",
    )
    return model.requires_grad_(False)


# --- queries, and what methods see ----------------------------------------------------------------


@dataclass(eq=False)
class Queries:
    """Tasks as few labelled pictures.

    Attributes:
        features: mean vectors of each class, (n, K, f).
        labels: the number of each task, (n,).
        rows: which pictures, (n, K, m).
        part: of which part of the fixture.
    """

    features: Tensor
    labels: Tensor
    rows: Tensor
    part: str


@dataclass(eq=False)
class Market:
    """What a method may use.

    Attributes:
        knowledge: of each model, (models, draws, K, K, f).
        fingerprints: its answers to noise, (models, 1, m, K), and that noise.
        tasks: the number of each model's task, (models,).
        queries: to learn from.
        setting: widths, steps and the rate.
        seed: for weights and batches.
        asked: how many inputs models were asked about by now.
    """

    knowledge: Tensor
    fingerprints: Tensor
    noise: Tensor
    tasks: Tensor
    queries: Queries
    setting: Setting
    seed: int
    answers: dict[str, Tensor] = field(repr=False)
    asked: int = 0

    def ask(self, queries: Queries) -> Tensor:
        """Probabilities by every model for every picture of queries, (n, models, K m, K)."""
        found = self.answers[queries.part][:, queries.rows.flatten(1)].transpose(0, 1)
        self.asked += found[..., 0].numel()
        return found


def draw_queries(
    fixture: dict[str, Any], part: str, tasks: Tensor, count: int, shots: int, frun: Streams
) -> Queries:
    """`count` queries of each of these tasks, of `shots` different pictures a class."""
    phi, y = fixture[part]["phi"], fixture[part]["y"]
    generator = frun.rng(f"queries of {part}")

    def some(label: Tensor) -> Tensor:
        mine = (y == label).nonzero().flatten()
        order = torch.rand(count, len(mine), generator=generator).argsort(1)
        return mine[order.repeat(1, -(-shots // len(mine)))[:, :shots]]

    rows = torch.cat(
        [torch.stack([some(label) for label in fixture["tasks"][task]], 1) for task in tasks]
    )
    return Queries(phi[rows].mean(2), tasks.repeat_interleave(count), rows, part)


Scores = Callable[[Queries], Tensor]


def retriever(
    market: Market,
    knowledge: Tensor | None = None,
    encoder: Callable[[], Any] | None = None,
    aggregate: Any = "lstm",
    **keywords: Any,
) -> ModelRetriever:
    setting = market.setting
    lr: Any = setting.get("lr", 1e-3)
    knowledge = market.knowledge if knowledge is None else knowledge
    ways, f = market.queries.features.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(market.seed)
        query = QueryEncoder(f, setting.query_hidden, setting.dim)
        model = (
            ModelEncoder(f, ways, setting.hidden, setting.dim, aggregate)
            if encoder is None
            else encoder()
        )
    return ModelRetriever(
        {str(i): k for i, k in enumerate(knowledge)},
        market.tasks,
        model,
        query,
        steps=setting.steps,
        batch_size=setting.batch,
        lr=lr,
        random_state=market.seed,
        **keywords,
    ).fit(market.queries.features, market.queries.labels)


def know2vec(market: Market, **keywords: Any) -> Scores:
    ranking = retriever(market, **keywords)
    return lambda queries: ranking.scores(queries.features)


def nodes_only(market: Market) -> Scores:
    k = market.knowledge
    nodes = k.diagonal(dim1=2, dim2=3).movedim(-1, 2).unsqueeze(3)
    return know2vec(market, knowledge=nodes.expand_as(k).contiguous())


def noise(market: Market) -> Scores:
    """As TANS: the encoder of models is wider than know2vec's, by as much as the paper's is."""
    setting = market.setting

    def encoder() -> NoiseFingerprint:
        num_inputs, num_classes = market.fingerprints.shape[-2:]
        shape = market.noise.shape[1:]
        return NoiseFingerprint(shape, num_classes, num_inputs, 4 * setting.hidden, setting.dim)

    return know2vec(market, knowledge=market.fingerprints, encoder=encoder)


def nearest(market: Market) -> Scores:
    ranking = NearestKnowledge({str(i): k for i, k in enumerate(market.knowledge)})
    return lambda queries: ranking.scores(queries.features)


def brute_force(market: Market) -> Scores:
    """Accuracy; of equally accurate models the one that gives the right classes most."""

    def accuracy(queries: Queries) -> Tensor:
        p = market.ask(queries)
        target = positions(queries)
        right = (p.argmax(-1) == target).double().sum(-1)
        given = p.gather(-1, target[:, None].expand(*p.shape[:-1], 1)).squeeze(-1)
        return (right + given.mean(-1) / 2) / len(target)

    return accuracy


def by_leep(market: Market) -> Scores:
    return lambda queries: leep(market.ask(queries), positions(queries))


def positions(queries: Queries) -> Tensor:
    """The places in the task of the pictures of a query, (K m,)."""
    _, ways, shots = queries.rows.shape
    return torch.arange(ways).repeat_interleave(shots)


METHODS: dict[str, Callable[[Market], Scores]] = {
    "lstm": know2vec,
    "mean": partial(know2vec, aggregate="mean"),
    "concat": partial(know2vec, aggregate="concat"),
    "nodes_only": nodes_only,
    "official": partial(know2vec, margin=0.0, mask_same=False),
    "noise": noise,
    "nearest": nearest,
    "leep": by_leep,
    "brute_force": brute_force,
}

# --- trials ---------------------------------------------------------------------------------------


def opened(setting: Setting, run: Run) -> tuple[Market, Queries, Queries]:
    """What methods see, and validation and test queries."""
    made = run.fixture(zoo, seed=run.seed, **{key: setting[key] for key in RECIPE})
    run.witness(split=made["test"]["y"], weights=made["fingerprints"])
    count = len(made["tasks"])
    every = torch.arange(count)
    held_out = min(setting.held_out, count - 1)
    known, asked = every[: count - held_out], every[count - held_out :] if held_out else every
    shots = setting.shots
    training = draw_queries(made, "training", known, setting.per_task, shots, run)
    market = Market(
        made["knowledge"].to(run.device),
        made["fingerprints"].unsqueeze(1).to(run.device),
        made["noise"],
        every.repeat_interleave(len(made["knowledge"]) // count),
        training,
        setting,
        run.random_state("method"),
        {part: made[part]["answers"] for part in ("validation", "test")},
    )
    return (
        market,
        draw_queries(made, "validation", known, setting.test_per_task, shots, run),
        draw_queries(made, "test", asked, setting.test_per_task, shots, run),
    )


def retrieval(setting: Setting, run: Run) -> dict[str, float]:
    """How often the best model is of the query's task."""
    market, validation, test = opened(setting, run)
    scores = run.methods[setting.method](market)
    chosen = scores(validation).cpu().argmax(1)
    market.asked = 0
    found = scores(test).cpu()
    return {
        "top1": share(market.tasks[found.argmax(1)] == test.labels),
        "validation_top1": share(market.tasks[chosen] == validation.labels),
        "batch_score": batch_score(found, market.tasks, test.labels, run),
        "zoo_queries": market.asked / len(test.labels),
        "chance": 1 / len(market.tasks.unique()),
    }


def share(right: Tensor) -> float:
    return right.double().mean().item()


def batch_score(scores: Tensor, tasks: Tensor, labels: Tensor, run: Run) -> float:
    """The released code's accuracy: batches of 100 queries, each with one model of its task."""
    order = torch.randperm(len(labels), generator=run.rng("pairs"))
    same = (tasks == labels.unsqueeze(1)).double()
    model = same.multinomial(1, generator=run.rng("pairs")).flatten()
    means = []
    for rows in order.split(100):
        s = scores[rows][:, model[rows]].T  # models by queries
        means.append(official_batch_score(s, torch.eye(len(rows)).to(s), labels[rows]))
    return sum(means) / len(means)


SHOWN = 6


def map_(setting: Setting, run: Run) -> dict[str, list[float]]:
    """Vectors of models and test queries of six tasks in their two principal components."""
    market, _, test = opened(setting, run)
    ranking = retriever(market)
    with torch.no_grad():
        u = ranking.query_encoder_(test.features.to(run.device)).cpu()
    v, tasks = ranking.vectors_.cpu(), market.tasks
    few_models, few_queries = tasks < SHOWN, test.labels < SHOWN
    both = torch.cat([v[few_models], u[few_queries]])
    axes = torch.linalg.svd(both - both.mean(0), full_matrices=False).Vh[:2].T
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    flat = (both - both.mean(0)) @ axes
    return {
        "x": rounded(flat[:, 0]),
        "y": rounded(flat[:, 1]),
        "task": torch.cat([tasks[few_models], test.labels[few_queries]]).double().tolist(),
        "is_query": [0.0] * int(few_models.sum()) + [1.0] * int(few_queries.sum()),
    }


def rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


# --- the study ------------------------------------------------------------------------------------

ORDER = {
    "brute_force": "run all models",
    "leep": "run all models, LEEP",
    "lstm": "know2vec",
    "mean": "… with means",
    "concat": "… concatenated",
    "nodes_only": "… without boundaries",
    "official": "… with the released loss",
    "noise": "noise fingerprint",
    "nearest": "nearest, untrained",
}


def vectors_and_scores(frame: DataFrame) -> Figure:
    """Where models and queries of six tasks lie, and how often each method finds the task."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8.4, 3.9), dpi=140, layout="constrained")
    left, right = canvas.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    of_map = frame[frame["experiment"] == "map_"]
    for _, row in of_map[of_map["seed"] == of_map["seed"].min()].head(1).iterrows():
        for x, y, task, is_query in zip(row["x"], row["y"], row["task"], row["is_query"]):
            colour = COLOURS[int(task) % len(COLOURS)]
            style = {"s": 14, "alpha": 0.5} if is_query else {"s": 90, "marker": "*"}
            edge = {} if is_query else {"edgecolors": "black", "linewidths": 0.6, "zorder": 3}
            left.scatter(x, y, color=colour, **style, **edge)
    left.set_xticks([])
    left.set_yticks([])
    left.set_title("Models (stars) and unseen queries (dots)\nof six tasks, one seed", fontsize=9)
    rows = frame[frame["experiment"] == "retrieval"]
    means = rows[rows["held_out"] == 0].groupby("method")["top1"].mean()
    names = [name for name in ORDER if name in means]
    names += [name for name in means.index if name not in ORDER]  # a reader's rival
    places = range(len(names))
    ours = ("lstm", "mean", "concat", "nodes_only", "official")
    colours = [COLOURS[0] if name in ours else "0.7" for name in names]
    right.barh(places, means[names], color=colours)
    for place, name in zip(places, names):
        right.text(means[name] + 0.01, place, f"{means[name]:.2f}", va="center", fontsize=8)
    right.set_yticks(places, [ORDER.get(name, name) for name in names], fontsize=8)
    right.invert_yaxis()
    right.set_xlim(0, 1.08)
    right.set_xlabel(f"top-1, means over {frame['seed'].nunique()} seeds")
    return canvas


DIGITS: dict[str, Any] = {
    "data": "digits",
    "models": 0.334,  # 601, 400 and 796 of 1797 pictures; the last are halved
    "pool": 0.2226,
    "queries": 0.4434,
    "tasks": 40,
    "ways": 4,
    "network": "mlp",
    "copies": 4,
    "zoo_steps": 60,
    "zoo_batch": 64,
    "zoo_lr": 1e-2,
    "encoder": "pca",
    "draws": 3,
    "fingerprint": 64,
    "shots": 5,
    "per_task": 50,
    "test_per_task": 10,
    "hidden": 64,
    "query_hidden": 64,
    "dim": 64,
    "steps": 300,
    "batch": 64,
}
SMALL = DIGITS | {
    "tasks": 12,
    "copies": 1,
    "zoo_steps": 2,
    "draws": 1,
    "fingerprint": 4,
    "hidden": 4,
    "query_hidden": 4,
    "dim": 4,
    "steps": 2,
    "batch": 8,
    "per_task": 2,
    "test_per_task": 2,
}
CIFAR = DIGITS | {
    "data": "hub:uoft-cs/cifar100?size=64",
    "models": 0.8,
    "pool": 0.2,
    "queries": 1.0,
    "tasks": 58,
    "network": "mobilenet",
    "copies": 20,
    "zoo_steps": 1000,
    "zoo_batch": 128,
    "zoo_lr": 2e-3,
    "encoder": "microsoft/resnet-18",
    "per_task": 200,
    "hidden": 500,
    "query_hidden": 1000,
    "dim": 256,
    "steps": 10_000,
    "batch": 200,
}
HELD = 10


def grids(recipe: dict[str, Any]) -> Any:
    unseen = grid(held_out=HELD, method=["lstm", "nearest"], **recipe)
    return grid(held_out=0, **recipe) + unseen


found = Experiment(
    retrieval,
    METHODS,
    smoke=grids(SMALL),
    desk=grids(DIGITS),
    full=grids(CIFAR),
    tune=Tune(
        by="validation_top1",
        higher=True,
        shared=["held_out"],
        lr=[1e-3, 3e-3],
        only={"official": {}, "nearest": {}, "leep": {}, "brute_force": {}},
    ),
)
mapped = Experiment(
    map_,
    smoke=grid(held_out=0, **SMALL),
    desk=grid(held_out=0, **DIGITS),
    full=grid(held_out=0, **CIFAR),
)

top1 = found.metric("top1", resolution=1 / 400)
chance = found.metric("chance", deterministic=True)
zoo_queries = found.metric("zoo_queries", deterministic=True)
batch = found.metric("batch_score")

study = Study(
    "know2vec",
    experiments=[found, mapped],
    claims=[
        Claim(
            "C1",
            "Top-1 is higher than with fingerprints by noise",
            higher(top1("lstm", held_out=0), top1("noise", held_out=0)),
            note="Both find nearly every model here: tasks of the test are tasks of the training, "
            "and any fingerprint can be memorised.",
        ),
        Claim(
            "C2",
            "Top-1 is higher than by the nearest knowledge, without training",
            higher(top1("lstm", held_out=0), top1("nearest", held_out=0)),
        ),
        Claim(
            "C3",
            "Top-1 with an LSTM over the rows is higher than, or within 0.01 of, top-1 with their "
            "mean and with their concatenation",
            all_of(
                *(
                    higher(top1("lstm", held_out=0), top1(other, held_out=0), by=-0.01)
                    for other in ("mean", "concat")
                )
            ),
            margin="ours",
        ),
        Claim(
            "C4",
            "Top-1 is within 0.05 of that of running every model on the query, and no model is run",
            all_of(
                within(top1("lstm", held_out=0), top1("brute_force", held_out=0), 0.05),
                equals(zoo_queries("lstm", held_out=0), 0, 0.5),
            ),
            margin="ours",
            note="Where several models answer a query equally well, running them all decides by "
            "their confidence; settled on development seeds.",
        ),
        Claim(
            "C5",
            "Without boundaries, nodes in their place, top-1 is lower",
            higher(top1("lstm", held_out=0), top1("nodes_only", held_out=0)),
        ),
        Claim(
            "C6",
            "For tasks without training queries, top-1 is higher than chance",
            higher(top1("lstm", held_out=HELD), chance("lstm", held_out=HELD)),
            margin="ours",
        ),
        Claim(
            "C6b",
            "For tasks without training queries, top-1 less that by the nearest knowledge",
            report(top1("lstm", held_out=HELD) - top1("nearest", held_out=HELD)),
        ),
        Claim(
            "C7",
            "Top-1 less that with the released code's loss",
            report(top1("lstm", held_out=0) - top1("official", held_out=0)),
        ),
        Claim(
            "C8",
            "The released code's accuracy (the best query of a batch, for each model) less top-1",
            report(batch("lstm", held_out=0) - top1("lstm", held_out=0)),
        ),
    ],
    figures=[drawn(vectors_and_scores)],
    data=data.Accepts("image", min_classes=5),
    demo=["C1", "C2"],
)
