"""From a zoo's knowledge and example queries to a ranking of models for new tasks."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.compress.storage import load_tensors, save_tensors
from paperworks.nets import fit
from paperworks.representation.know2vec.encoders import (
    ModelEncoder,
    QueryEncoder,
    TaskClassifier,
    UnitEncoder,
    check_sizes,
)
from paperworks.representation.know2vec.losses import hardest_negative_loss
from paperworks.representation.know2vec.probing import Knowledge, check_labels

ZooKnowledge = Mapping[str, Knowledge | Tensor]


class Ranking:
    """Names of models, and scores of queries for them."""

    names: list[str]

    def scores(self, queries: Tensor) -> Tensor:
        """How well each model fits each query: (n, K, f) to (n, models), higher is better."""
        raise NotImplementedError

    def rank(self, query: Tensor, k: int | None = None) -> list[tuple[str, float]]:
        """Models for one query (K, f), the best first, with their scores; all, or the first k.

        Raises:
            ValueError: query is of another shape, or k no positive integer.
        """
        if k is not None:
            check_sizes(k=k)
        if query.dim() != 2:
            raise ValueError(f"query must have shape (K, f), got {tuple(query.shape)}")
        best = self.scores(query.unsqueeze(0))[0].sort(descending=True, stable=True)
        places = zip(best.indices.tolist()[:k], best.values.tolist()[:k], strict=True)
        return [(self.names[place], score) for place, score in places]


class ModelRetriever(Ranking):
    """Rank a zoo's models for a task by one encoding of a few samples, asking no model.

    Two encoders are trained so that the vectors of models and of queries of a task meet:

        score(model, query) = vᵀu,   loss = hardest_negative_loss + cross entropy of the task on o

    Each step draws queries, and for each a model of its task and one of the model's M. Afterwards
    a model's vector is the mean over its M, brought to length 1 (ours). A query costs one pass of
    the query encoder and a product with `vectors_`. Models of tasks that no training query has are
    ranked as well. arXiv 2412.16251, retrieval, trained by Adam at 1e-4 on batches of 200 for up to
    10,000 epochs; defaults here are for a small zoo.

    `margin=0, mask_same=False` is the loss of the released code (`hardest_negative_loss`).

    It works on tensors and not on arrays, on the device and in the precision of the knowledge, so
    it is no subject of scikit-learn's `check_estimator`.

    Args:
        zoo_knowledge: name -> what `probe_knowledge` found, all of one shape (`probe_zoo`), or
            tensors (draws, ...) for a model encoder that reads something else.
        tasks: the task of each model, a whole number, in the order of the names.
        model_encoder: trained as a copy; by default a `ModelEncoder` of the paper's size.
        query_encoder: the same; by default of the paper's size.
        margin, mask_same: see `hardest_negative_loss`.
        steps: batches to train on.
        batch_size: queries in a batch.
        lr: rate of Adam.
        random_state: seeds initial weights and batches.

    Attributes:
        names: of the models.
        vectors_: v of each model, (models, dim).
        model_encoder_, query_encoder_: the trained encoders.

    >>> knowledge = {f"model {i}": torch.full((1, 2, 2, 8), float(i // 2)) for i in range(4)}
    >>> labels = torch.arange(20) % 2
    >>> queries = labels.float().reshape(20, 1, 1).expand(20, 2, 8)
    >>> encoders = ModelEncoder(8, 2, hidden=8, dim=4), QueryEncoder(8, hidden=8, dim=4)
    >>> retriever = ModelRetriever(knowledge, [0, 0, 1, 1], *encoders, steps=50, lr=1e-2)
    >>> best, score = retriever.fit(queries, labels).rank(torch.ones(2, 8), k=1)[0]
    >>> best in ("model 2", "model 3")
    True
    """

    vectors_: Tensor
    model_encoder_: UnitEncoder
    query_encoder_: QueryEncoder

    def __init__(
        self,
        zoo_knowledge: ZooKnowledge,
        tasks: Sequence[int] | Tensor,
        model_encoder: UnitEncoder | None = None,
        query_encoder: QueryEncoder | None = None,
        *,
        margin: float = 0.2,
        mask_same: bool = True,
        steps: int = 300,
        batch_size: int = 64,
        lr: float = 1e-3,
        random_state: int = 0,
    ) -> None:
        self.zoo_knowledge, self.tasks = zoo_knowledge, tasks
        self.model_encoder, self.query_encoder = model_encoder, query_encoder
        self.margin, self.mask_same = margin, mask_same
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.random_state = random_state
        self.names = list(zoo_knowledge)

    def fit(self, queries: Tensor, labels: Tensor) -> ModelRetriever:
        """Train the encoders and place the models.

        Args:
            queries: (n, K, f), as `query_knowledge` gives them, of tasks that models have.
            labels: their tasks (n,).

        Raises:
            TypeError: labels or tasks are no whole numbers.
            ValueError: the zoo is empty, its knowledge of several shapes or not finite, another
                number of tasks, queries of other classes or width, or of a task without a model.
        """
        knowledge = stacked(self.zoo_knowledge)
        check_sizes(steps=self.steps, batch_size=self.batch_size)
        tasks = torch.as_tensor(self.tasks, device=knowledge.device)
        check_labels("tasks", tasks, len(knowledge))
        labels = labels.to(knowledge.device)
        check_labels("labels", labels, len(queries))
        known, of_model = tasks.unique(return_inverse=True)
        if not len(labels) or not torch.isin(labels, known).all():
            alone = labels[~torch.isin(labels, known)].unique().tolist()
            raise ValueError(f"labels name tasks that no model has: {alone or 'there are none'}")
        of_query = torch.searchsorted(known, labels)
        queries = queries.detach().to(knowledge)
        parts = self._untrained(knowledge, queries, len(known)).to(knowledge)
        fit(
            parts,
            self._batches(knowledge, of_model, queries, of_query),
            self._loss,
            optimizer=torch.optim.Adam(parts.parameters(), self.lr),
            steps=self.steps,
        )
        self.model_encoder_, self.query_encoder_ = parts["model"], parts["query"]  # type: ignore
        with torch.no_grad():
            v = torch.stack([self.model_encoder_(draws) for draws in knowledge])
        self.vectors_ = F.normalize(v.mean(1), dim=1)
        return self

    def scores(self, queries: Tensor) -> Tensor:
        """vᵀu of each query with each model, (n, K, f) to (n, models)."""
        self._check_fitted()
        with torch.no_grad():
            scores: Tensor = self.query_encoder_(queries.to(self.vectors_)) @ self.vectors_.T
        return scores

    def save(self, file: str | Path) -> None:
        """Write what ranking needs to one safetensors file: models' vectors, and query encoder.

        Raises:
            ValueError: not fitted.
        """
        self._check_fitted()
        encoder = self.query_encoder_
        sizes = {name: getattr(encoder, name) for name in ("in_features", "hidden", "dim", "pool")}
        said = json.dumps({"names": self.names, "query_encoder": sizes}).encode()
        weights = {f"query_encoder.{name}": value for name, value in encoder.state_dict().items()}
        tensors = {
            "vectors": self.vectors_,
            "tasks": torch.as_tensor(self.tasks),
            "json": torch.frombuffer(bytearray(said), dtype=torch.uint8),
        }
        save_tensors(tensors | weights, file)

    @classmethod
    def load(cls, file: str | Path) -> ModelRetriever:
        """A retriever that ranks as the saved one did; it has no knowledge to be fitted on again.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file was cut off, or is no retriever's.
        """
        tensors = load_tensors(file)
        if not {"vectors", "tasks", "json"} <= set(tensors):
            raise ValueError(f"{file} holds no retriever, only {', '.join(tensors)}")
        said = json.loads(bytes(tensors["json"].tolist()))
        retriever = cls({}, tensors["tasks"])
        retriever.names, retriever.vectors_ = said["names"], tensors["vectors"]
        with torch.device("meta"):
            retriever.query_encoder_ = QueryEncoder(**said["query_encoder"])
        prefix = "query_encoder."
        weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        retriever.query_encoder_.load_state_dict(weights, assign=True)
        retriever.query_encoder_.eval()
        return retriever

    def _untrained(self, knowledge: Tensor, queries: Tensor, num_tasks: int) -> nn.ModuleDict:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.random_state)
            model, query = copy.deepcopy((self.model_encoder, self.query_encoder))
            model = model or ModelEncoder(knowledge.shape[-1], knowledge.shape[-2])
            query = query or QueryEncoder(queries.shape[-1], dim=model.dim)
            classifier = TaskClassifier(model.dim, num_tasks)
        if model.dim != query.dim:
            raise ValueError(f"encoders must share dim, got {model.dim} and {query.dim}")
        return nn.ModuleDict({"model": model, "query": query, "classifier": classifier})

    def _batches(
        self, knowledge: Tensor, of_model: Tensor, queries: Tensor, of_query: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Queries, for each a model of its task, and one of that model's draws, without end."""
        generator = torch.Generator().manual_seed(self.random_state)
        by_task = of_model.argsort(stable=True).cpu()
        counts = of_model.bincount().cpu()
        first, of_query = counts.cumsum(0) - counts, of_query.cpu()

        def draw(below: Tensor) -> Tensor:
            uniform = torch.rand(self.batch_size, dtype=torch.float64, generator=generator)
            return (uniform * below).long()

        while True:
            rows = draw(torch.tensor(len(queries)))
            task = of_query[rows]
            model = by_task[first[task] + draw(counts[task])]
            sample = draw(torch.tensor(knowledge.shape[1]))
            device = knowledge.device
            model, sample, rows, task = (z.to(device) for z in (model, sample, rows, task))
            yield knowledge[model, sample], queries[rows], task

    def _loss(self, parts: Any, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        knowledge, queries, task = batch
        o = parts["model"].embed(knowledge)
        v, u = F.normalize(o, dim=1), parts["query"](queries)
        ranking = hardest_negative_loss(v, u, task, self.margin, self.mask_same)
        classification = F.cross_entropy(parts["classifier"](o), task)
        return {"loss": ranking + classification, "ranking": ranking.detach()}

    def _check_fitted(self) -> None:
        if not hasattr(self, "vectors_"):
            raise ValueError("this ModelRetriever is not fitted: call fit, or load a saved one")


class NearestKnowledge(Ranking):
    """Rank models by the cosine of their nodes and a query's class means, without training.

        cos(vec(M_11, ..., M_KK), vec(q_1, ..., q_K)),   M the mean over draws

    The baseline that asks whether anything has to be learned; boundaries are not used. Center the
    vectors of the reference encoder, or all cosines are alike. Ours.

    Args:
        zoo_knowledge: name -> what `probe_knowledge` found, or (draws, K, K, f).

    Raises:
        ValueError: an empty zoo, knowledge of several shapes, not finite, or not (draws, K, K, f).

    >>> knowledge = {"a": torch.eye(2).reshape(1, 2, 1, 2).repeat(1, 1, 2, 1)}
    >>> knowledge["b"] = -knowledge["a"]
    >>> [name for name, cosine in NearestKnowledge(knowledge).rank(torch.eye(2))]
    ['a', 'b']
    """

    def __init__(self, zoo_knowledge: ZooKnowledge) -> None:
        knowledge = stacked(zoo_knowledge)
        if knowledge.dim() != 5 or knowledge.shape[2] != knowledge.shape[3]:
            raise ValueError(
                "zoo_knowledge must have shape (draws, K, K, f) for each model, got "
                f"{tuple(knowledge.shape[1:])}"
            )
        self.names = list(zoo_knowledge)
        nodes = knowledge.mean(1).diagonal(dim1=1, dim2=2).mT  # (models, K, f)
        self._shape = nodes.shape[1:]
        self.vectors_ = F.normalize(nodes.flatten(1), dim=1)

    def scores(self, queries: Tensor) -> Tensor:
        """The cosine of each query with each model, (n, K, f) to (n, models)."""
        if queries.shape[1:] != self._shape:
            raise ValueError(
                f"queries must have shape (n, {', '.join(map(str, self._shape))}), "
                f"got {tuple(queries.shape)}"
            )
        return F.normalize(queries.to(self.vectors_).flatten(1), dim=1) @ self.vectors_.T


def stacked(zoo_knowledge: ZooKnowledge) -> Tensor:
    """The knowledge of all models, (models, draws, ...)."""
    if not zoo_knowledge:
        raise ValueError("zoo_knowledge is empty: there is no model to rank")
    values = {
        name: (value.features if isinstance(value, Knowledge) else value).detach()
        for name, value in zoo_knowledge.items()
    }
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    first, shape = next(iter(shapes.items()))
    for name, value in values.items():
        if shapes[name] != shape:
            raise ValueError(
                f"zoo_knowledge must be of one shape: {first!r} has {shape}, {name!r} has "
                f"{shapes[name]}"
            )
        if not value.isfinite().all():
            raise ValueError(f"zoo_knowledge of {name!r} is not finite")
    return torch.stack([*values.values()])
