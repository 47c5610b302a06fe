"""Retrieval of models: the brief's checks first, then each part, then what is refused."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from paperworks import nets
from paperworks.representation import (
    Knowledge,
    ModelEncoder,
    ModelRetriever,
    ModelZoo,
    NearestKnowledge,
    NoiseFingerprint,
    QueryEncoder,
    TaskClassifier,
    TransferModelEncoder,
    TransferQueryEncoder,
    hardest_negative_loss,
    leep,
    logme,
    official_batch_score,
    probe_knowledge,
    probe_zoo,
    query_knowledge,
    transfer_loss,
)


@pytest.fixture(autouse=True)
def untouched_generators():
    """Modules draw their weights from the global generator, seeded here; parts leave it alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=rng(seed), dtype=dtype)


def flat(x):
    return x.flatten(1)


class Asked:
    """A predictor that counts calls and rows, and refuses gradients."""

    def __init__(self, predict):
        self.predict, self.calls, self.rows = predict, 0, 0

    def __call__(self, x):
        assert not torch.is_grad_enabled()
        assert not x.requires_grad
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return self.predict(x)


# --- checks: probing ------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), bias=st.floats(-0.5, 0.5))
def test_the_boundary_of_a_linear_model_is_where_algebra_puts_it(seed, bias):
    w, pool = gaussian(5, seed=seed), gaussian(20, 5, seed=seed + 1)

    def f(x):
        return x @ w + bias

    if f(pool).max() < 0.1 or f(pool).min() > -0.1:
        return
    found = probe_knowledge(lambda x: torch.stack([f(x), -f(x)], 1), pool, 2, flat, top=1, steps=12)
    a, c = found.inputs[0, 0, 0], found.inputs[0, 1, 1]
    assert f(a) > 0 > f(c)
    for i, j, start, end in ((0, 1, a, c), (1, 0, c, a)):
        point = found.inputs[0, i, j]
        t = (point - start).norm() / (end - start).norm()
        exact = f(start) / (f(start) - f(end))
        assert abs(t - exact) <= 2**-12 + 1e-12
        assert (f(point) < 0) == (j == 1)


@pytest.mark.parametrize("draws", [1, 3])
def test_a_model_is_asked_through_the_callable_alone_and_seldom(draws):
    weight = gaussian(6, 4).numpy()
    asked = Asked(lambda x: np.asarray(x) @ weight)  # NumPy knows no gradients
    pool = gaussian(50, 6)
    found = probe_knowledge(asked, pool, 4, flat, steps=12, draws=draws, generator=rng())
    assert asked.calls == 1 + 12
    assert asked.rows == len(pool) + draws * 4 * 3 * 12
    assert found.features.shape == (draws, 4, 4, 6)


def test_parameters_are_those_of_the_paper():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        model, query = ModelEncoder(1000, 4), QueryEncoder(1000)
        classifier = TaskClassifier(256, 58)
    assert count(model.rows) == 4 * 6_008_000
    assert count(model.head) == 1_288_192
    assert count(model) == 25_320_192
    assert count(query) == 16_528_256
    assert count(classifier) == 40_378


# --- checks: encoders -----------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["last", "states"])
@pytest.mark.parametrize("aggregate", ["lstm", "mean", "concat"])
def test_vectors_have_length_one_and_repeat(aggregate, pool):
    model = ModelEncoder(6, 4, hidden=5, dim=7, aggregate=aggregate, pool=pool).eval()
    query = QueryEncoder(6, hidden=5, dim=7, pool=pool).eval()
    for encoder, x in ((model, torch.randn(9, 4, 4, 6)), (query, torch.randn(9, 4, 6))):
        first, again = encoder(x), encoder(x)
        assert first.shape == (9, 7)
        torch.testing.assert_close(first.norm(dim=1), torch.ones(9))
        assert torch.equal(first, again)


def test_padding_leaves_the_variants_query_vector_unchanged():
    encoder = TransferQueryEncoder(6, dim=5, hidden=4).eval()
    x, lengths = torch.randn(3, 50, 6), torch.tensor([3, 50, 17])
    u = encoder(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder(x[row : row + 1, :length])
        torch.testing.assert_close(u[row : row + 1], alone)
    padded = torch.cat([x, 9 * torch.randn(3, 50, 6)], 1)
    assert torch.equal(encoder(padded, lengths), u)
    assert torch.equal(encoder(x, lengths), u)
    assert not torch.equal(encoder(x), u)
    assert (u.norm(dim=1) - 1).abs().min() > 1e-3  # not normalised


# --- checks: losses and scores --------------------------------------------------------------------


def test_losses_computed_by_hand():
    eye, labels = torch.eye(2), torch.tensor([0, 1])
    assert hardest_negative_loss(eye, eye, labels, margin=0.2) == 0
    swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert hardest_negative_loss(swapped, eye, labels).item() == pytest.approx(1.2)
    same = torch.tensor([[0.6, 0.8], [0.6, 0.8]])
    assert hardest_negative_loss(same, same, labels, margin=0, mask_same=False) == 0
    assert hardest_negative_loss(same, same, labels).item() == pytest.approx(0.2)


def test_the_official_score_is_no_retrieval():
    v, u, labels = torch.tensor([[0.9, 0.8], [0.95, 0.1]]), torch.eye(2), torch.tensor([0, 1])
    assert official_batch_score(v, u, labels) == 0.5
    by_query = (v @ u.T).argmax(0)
    assert (labels[by_query] == labels).sum() == 0


def test_leep_knows_the_label_or_nothing():
    y = torch.tensor([0, 1] * 10)
    knows = nn.functional.one_hot(y).double()
    nothing = torch.full((20, 2), 0.5, dtype=torch.float64)
    assert leep(knows, y).item() == pytest.approx(0, abs=1e-12)
    assert leep(nothing, y).item() == pytest.approx(-math.log(2))
    assert torch.equal(leep(torch.stack([knows, nothing]), y), torch.stack(
        [leep(knows, y), leep(nothing, y)]
    ))  # fmt: skip


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(6)))
def test_the_order_of_the_zoo_permutes_ranks_only(order):
    knowledge = {f"m{i}": gaussian(2, 3, 3, 4, seed=i).float() for i in range(6)}
    names = list(knowledge)
    shuffled = {names[i]: knowledge[names[i]] for i in order}
    query = gaussian(3, 4, seed=99).float()

    def ranked(zoo):
        return [name for name, _ in zoo.rank(query)]

    assert ranked(NearestKnowledge(knowledge)) == ranked(NearestKnowledge(shuffled))
    tasks = torch.tensor([0, 0, 1, 1, 2, 2])
    retriever = fitted(knowledge, tasks, steps=2)
    moved = copy.copy(retriever)
    moved.names = list(shuffled)
    moved.vectors_ = retriever.vectors_[list(order)]
    assert [n for n, _ in retriever.rank(query)] == [n for n, _ in moved.rank(query)]


# --- probing --------------------------------------------------------------------------------------


def nearest(centres):
    """Logits of the nearest centre."""
    return lambda x: -(torch.cdist(x, centres) ** 2)


def test_boundaries_lie_between_planted_classes():
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 3.5]], dtype=torch.float64)
    pool = (centres.repeat(20, 1) + 0.1 * gaussian(60, 2)).double()
    found = probe_knowledge(nearest(centres), pool, 3, flat, draws=4, generator=rng())
    labels = nearest(centres)(found.inputs.flatten(0, 2)).argmax(1).reshape(4, 3, 3)
    assert torch.equal(labels, torch.arange(3).expand(4, 3, 3))  # the far side is j's here
    middle = (centres[0] + centres[1]) / 2
    assert (found.features[:, 0, 1] - middle).norm(dim=1).max() < 0.3
    assert (found.features[:, 1, 0] - middle).norm(dim=1).max() < 0.3
    assert not found.flagged.any()
    nodes = found.features.diagonal(dim1=1, dim2=2).mT
    assert len(nodes.reshape(-1, 2).unique(dim=0)) > 3  # several draws, several nodes
    assert (nodes.unsqueeze(2) == pool).all(-1).any(-1).all()  # nodes are of the pool


def test_nodes_are_the_surest_samples():
    pool = torch.linspace(-1, 1, 21).unsqueeze(1)
    found = probe_knowledge(lambda x: torch.cat([-x, x], 1), pool, 2, flat, top=3, draws=200)
    nodes = found.features.diagonal(dim1=1, dim2=2)[:, 0]
    assert set(nodes[:, 0].tolist()) == set(pool[:3, 0].tolist())
    assert set(nodes[:, 1].tolist()) == set(pool[-3:, 0].tolist())


def test_probabilities_and_their_logarithms_are_probed_alike():
    logits, pool = nn.Linear(5, 3), torch.randn(40, 5)
    by_logits = probe_knowledge(logits, pool, 3, flat, generator=rng())
    by_probability = probe_knowledge(lambda x: logits(x).softmax(1), pool, 3, flat, generator=rng())
    assert torch.equal(by_logits.features, by_probability.features)


def test_a_class_that_is_never_answered_is_flagged():
    def predict(x):
        return torch.cat([x, -x, x.abs() * 0 - 50 + x], 1)

    pool = torch.linspace(-1, 1, 9).unsqueeze(1)
    found = probe_knowledge(predict, pool, 3, flat, top=1)
    assert found.flagged.tolist() == [False, False, True]
    p = predict(pool).softmax(1)
    assert found.features[0, 2, 2] == pool[p[:, 2].argmax()]
    assert found.features.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_a_module_is_left_as_it_was(training):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    pool = torch.randn(30, 4, requires_grad=True)
    global_state = torch.get_rng_state()
    first, again = (probe_knowledge(model, pool, 2, flat) for _ in range(2))
    assert torch.equal(first.features, again.features)  # in evaluation mode
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not first.features.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pictures_of_any_precision(dtype):
    pool = torch.rand(30, 1, 4, 4, generator=rng()).to(dtype)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    found = probe_knowledge(model, pool, 3, flat, draws=2, generator=rng())
    assert found.features.dtype == found.inputs.dtype == dtype
    assert found.inputs.shape == (2, 3, 3, 1, 4, 4)
    y = torch.arange(30) % 3
    assert query_knowledge(pool, y, 3, flat).dtype == dtype


def test_a_query_is_the_mean_of_the_first_of_each_class():
    x, y = gaussian(20, 3), torch.tensor([0] * 12 + [1] * 7 + [2])
    found = query_knowledge(x, y, 3, lambda x: 2 * x, n_per_class=5)
    torch.testing.assert_close(found[0], 2 * x[:5].mean(0))
    torch.testing.assert_close(found[1], 2 * x[12:17].mean(0))
    torch.testing.assert_close(found[2], 2 * x[19])  # a class of one sample


def test_a_query_of_permuted_classes_is_another_query():
    x, y = gaussian(20, 3), torch.arange(20) % 4
    order = torch.tensor([2, 0, 3, 1])
    found = query_knowledge(x, order[y], 4, flat)
    torch.testing.assert_close(found[order], query_knowledge(x, y, 4, flat))


def test_answers_that_are_no_answers_are_refused():
    pool = torch.randn(10, 3)
    wrong = {
        "predict returned 10 columns, expected 4": lambda x: torch.zeros(len(x), 10),
        "predict returned NaN or infinity for 10 of 10": lambda x: torch.full((len(x), 4), np.nan),
        "a row for each of 10 inputs, got \\(4,\\)": lambda x: torch.zeros(4),
    }
    for message, predict in wrong.items():
        with pytest.raises(ValueError, match=message):
            probe_knowledge(predict, pool, 4, flat)
    with pytest.raises(TypeError, match="predict must return a tensor or an array, got dict"):
        probe_knowledge(lambda x: {}, pool, 4, flat)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pool": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "pool must be a floating"),
        ({"pool": torch.zeros(0, 2)}, ValueError, "pool must hold samples"),
        ({"num_classes": 1}, ValueError, "num_classes must be an integer of at least 2, got 1"),
        ({"predict": 3}, TypeError, "predict must be a function, got int"),
        ({"encode": None}, TypeError, "encode must be a function"),
        ({"top": 0}, ValueError, "top must be a positive integer, got 0"),
        ({"draws": 1.5}, ValueError, "draws must be a positive integer, got 1.5"),
        ({"steps": -1}, ValueError, "steps must be an integer >= 0, got -1"),
    ],
)
def test_bad_probing(change, error, message):
    given = {
        "predict": lambda x: x,
        "pool": torch.zeros(3, 2),
        "num_classes": 2,
        "encode": flat,
    } | change
    with pytest.raises(error, match=message):
        probe_knowledge(**given)


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (torch.tensor([0, 0, 2]), ValueError, "y has no sample of class 1"),
        (torch.tensor([0, 1, 3]), ValueError, "y must be in \\[0, 3\\), got 0 to 3"),
        (torch.tensor([0.0, 1, 2]), TypeError, "y must be a tensor of whole numbers"),
        (torch.tensor([0, 1]), ValueError, "y must have shape \\(3,\\), got \\(2,\\)"),
    ],
)
def test_bad_queries(y, error, message):
    with pytest.raises(error, match=message):
        query_knowledge(torch.rand(3, 2), y, 3, flat)


# --- the zoo --------------------------------------------------------------------------------------


CARD = {"network": "MLP", "arguments": {"sizes": [4, 6, 2]}, "task": ["ant", "bee"], "by": "me"}


@pytest.fixture
def zoo(tmp_path):
    zoo = ModelZoo(tmp_path / "zoo")
    zoo.add("b", nets.MLP([4, 6, 2]), CARD)
    zoo.add("a", nets.MLP([4, 6, 2]).double(), CARD)
    return zoo


@pytest.mark.parametrize(
    ("card", "shape"),
    [
        ({"network": "MLP", "arguments": {"sizes": [64, 8, 3], "norm": "batch"}}, (64,)),
        ({"network": "ConvNet", "arguments": {"in_channels": 1, "widths": [4]}}, (1, 8, 8)),
        ({"network": "MobileNet", "arguments": {"in_channels": 1, "width": 8}}, (1, 8, 8)),
        ({"network": "ResNet", "arguments": {"in_channels": 1, "widths": [4], "blocks": [1]}},
         (1, 8, 8)),
        ({"network": "ResidualMLP", "arguments": {"in_features": 5, "width": 4, "depth": 1}}, (5,)),
    ],
)  # fmt: skip
def test_networks_come_back_as_they_were(tmp_path, card, shape):
    model = getattr(nets, card["network"])(**card["arguments"])
    x = torch.rand(6, *shape)
    model(x)  # running means move
    zoo = ModelZoo(tmp_path)
    zoo.add("net-1.0", model.eval(), card)
    state = torch.get_rng_state()
    loaded = ModelZoo(str(tmp_path)).load("net-1.0")
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    assert torch.equal(loaded(x), model(x))
    assert zoo.card("net-1.0") == card


def test_a_zoo_is_a_mapping_of_names_to_networks(zoo):
    assert zoo.names == list(zoo) == ["a", "b"]
    assert len(zoo) == 2
    assert zoo.card("b") == CARD
    assert zoo.load("a")[0].weight.dtype == torch.float64
    assert list(zoo.predictors()) == ["a", "b"]
    assert "c" not in zoo
    zoo.add("a", nets.MLP([4, 6, 2]), CARD)
    assert zoo.load("a")[0].weight.dtype == torch.float32


def test_an_mlp_of_pictures(tmp_path):
    zoo, mlp = ModelZoo(tmp_path), nets.MLP([64, 8, 3])
    card = {"network": "MLP", "arguments": {"sizes": [64, 8, 3]}, "flatten": True}
    zoo.add("m", nn.Sequential(nn.Flatten(), mlp), card)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(zoo.load("m")(x), mlp(x.flatten(1)))


def test_a_zoo_and_a_mapping_of_functions_are_probed_alike(zoo):
    zoo.add("a", nets.MLP([4, 6, 2]), CARD)
    pool = torch.randn(30, 4)
    by_zoo = probe_zoo(zoo, pool, 2, flat, generator=rng())
    loaded = zoo.predictors()
    functions = {name: lambda x, name=name: loaded[name](x).numpy() for name in zoo}
    by_mapping = probe_zoo(functions, pool, 2, flat, generator=rng())
    assert list(by_zoo) == list(by_mapping) == ["a", "b"]
    assert all(torch.equal(by_zoo[n].features, by_mapping[n].features) for n in by_zoo)


def test_other_classes_need_a_function(zoo):
    zoo.add("own", nn.Linear(4, 2), {"made": "by me", "width": 4})
    with pytest.raises(ValueError, match=r"'own' names the network None.*build"):
        zoo.load("own")
    assert isinstance(zoo.load("own", lambda card: nn.Linear(card["width"], 2)), nn.Linear)
    for name in ("os.system", "Linear", "__class__"):
        (zoo.folder / "b.json").write_text(json.dumps({"network": name}))
        with pytest.raises(ValueError, match="none of MLP, ConvNet"):
            zoo.load("b")


def test_files_that_are_no_models_are_refused(zoo):
    weights, card = zoo.folder / "a.safetensors", zoo.folder / "a.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"a\.safetensors is no safetensors file, or was cut off"):
        zoo.load("a")
    weights.write_bytes(whole)
    for text, message in (
        ('{"network": "M', "a.json is no JSON"),
        ("[1, 2]", "must hold a JSON object, got list"),
        (json.dumps(CARD | {"arguments": {"sizes": [4, 9, 2]}}), "weights of 'a' are not"),
        (json.dumps(CARD | {"arguments": {"size": 4}}), "MLP of {'size': 4} fails"),
        (json.dumps(CARD | {"arguments": [4]}), "arguments must be an object"),
    ):
        card.write_text(text)
        with pytest.raises(ValueError, match=message):
            zoo.load("a")
    card.write_text(json.dumps(CARD))
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        zoo.load("a")
    with pytest.raises(ValueError, match=r"no model 'z' in .*there is: a, b"):
        zoo.load("z")


def test_a_card_that_is_not_the_models_is_refused_before_writing(zoo):
    for name, model, card, error in (
        ("new", nets.MLP([4, 5, 2]), CARD, ValueError),
        ("../new", nets.MLP([4, 6, 2]), CARD, ValueError),
        ("new", nets.MLP([4, 6, 2]), {"network": nets.MLP}, TypeError),
        ("new", "weights", CARD, TypeError),
    ):
        with pytest.raises(error):
            zoo.add(name, model, card)
    assert zoo.names == ["a", "b"]


def raises(x):
    raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (raises, "model 'bad': out of order"),
        (lambda x: torch.full((len(x), 2), torch.nan), "model 'bad': predict returned NaN"),
        (lambda x: torch.zeros(len(x), 3), "model 'bad': predict returned 3 columns, expected 2"),
    ],
)
def test_a_bad_model_is_named(predict, message):
    zoo = {"good": lambda x: torch.cat([x, -x], 1), "bad": predict}
    with pytest.raises(ValueError, match=message):
        probe_zoo(zoo, torch.randn(9, 1), 2, flat)


def test_an_empty_zoo_says_so(tmp_path):
    with pytest.raises(ValueError, match="the zoo is empty"):
        probe_zoo(ModelZoo(tmp_path / "none"), torch.randn(9, 1), 2, flat)
    with pytest.raises(ValueError, match="zoo_knowledge is empty"):
        NearestKnowledge({})
    with pytest.raises(ValueError, match="zoo_knowledge is empty"):
        ModelRetriever({}, []).fit(torch.rand(3, 2, 4), torch.zeros(3, dtype=torch.long))


# --- encoders and losses --------------------------------------------------------------------------


def test_the_backward_half_of_the_last_step_has_seen_one_element():
    x = torch.randn(2, 4, 6)
    for pool, seen in (("last", 1), ("states", 4)):
        encoder = QueryEncoder(6, hidden=5, dim=3, pool=pool)
        encoder.head = nn.Identity()
        backward = encoder.embed(x.requires_grad_())[:, 5:]
        (gradient,) = torch.autograd.grad(backward.square().sum(), x)
        assert (gradient.abs().sum((0, 2)) > 0).tolist() == [False] * (4 - seen) + [True] * seen


def test_rows_have_weights_of_their_own_and_an_order():
    encoder = ModelEncoder(6, 3, hidden=5, dim=4)
    x = torch.randn(1, 3, 3, 6)
    assert not torch.allclose(encoder(x), encoder(x.flip(1)))
    assert not torch.allclose(encoder(x), encoder(x.flip(2)))
    assert len({id(p) for p in encoder.rows.parameters()}) == 3 * 8
    mean = ModelEncoder(6, 3, hidden=5, dim=4, aggregate="mean")
    assert mean.head.in_features == 10
    assert ModelEncoder(6, 3, hidden=5, dim=4, aggregate="concat").head.in_features == 30


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_encoders_of_any_precision(dtype):
    for encoder, shape in (
        (ModelEncoder(6, 2, hidden=3, dim=4), (5, 2, 2, 6)),
        (QueryEncoder(6, hidden=3, dim=4), (5, 2, 6)),
        (NoiseFingerprint((6,), 2, num_inputs=3, hidden=4, dim=4), (5, 3, 2)),
        (TransferModelEncoder(6, dim=4, hidden=3), (5, 4, 7, 6)),
        (TransferQueryEncoder(6, dim=4, hidden=3), (5, 7, 6)),
    ):
        x = torch.randn(shape).to(dtype)
        out = copy.deepcopy(encoder).to(dtype)(x)
        assert out.dtype == dtype
        assert out.shape == (5, 4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), masked=st.booleans())
def test_the_loss_is_what_a_loop_computes(seed, masked):
    v, u = gaussian(7, 3, seed=seed), gaussian(7, 3, seed=seed + 1)
    labels = torch.randint(3, (7,), generator=rng(seed))
    total = 0.0
    for q in range(7):
        wrong = [float(v[i] @ u[q]) for i in range(7) if not masked or labels[i] != labels[q]]
        hardest = max(wrong, default=-math.inf)
        total += max(0.0, hardest - float(v[q] @ u[q]) + 0.1)
    loss = hardest_negative_loss(v, u, labels, margin=0.1, mask_same=masked)
    assert loss.item() == pytest.approx(total / 7)


def test_losses_have_the_right_gradients():
    v, u = (gaussian(5, 3, seed=s).requires_grad_() for s in (0, 1))
    labels = torch.tensor([0, 1, 2, 0, 1])
    assert torch.autograd.gradcheck(lambda v, u: hardest_negative_loss(v, u, labels), (v, u))
    accuracy = gaussian(5, 5, seed=2)
    assert torch.autograd.gradcheck(lambda v, u: transfer_loss(v, u, accuracy), (v, u))


def test_a_batch_of_one_task_costs_nothing_and_breaks_nothing():
    v = gaussian(4, 3).requires_grad_()
    loss = hardest_negative_loss(v, v.detach(), torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert torch.equal(v.grad, torch.zeros_like(v))


def test_transfer_loss_by_hand():
    v = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    u = torch.tensor([[2.0, 0.0]])  # cosines 1, 0.6, 0
    assert transfer_loss(v, u, torch.tensor([[3.0, 2, 1]])).item() == pytest.approx(0.2)
    assert transfer_loss(v, u, torch.tensor([[1.0, 2, 3]])).item() == pytest.approx(0.9)


def test_transfer_encoders_read_the_first_rows():
    encoder = TransferModelEncoder(6, hidden=4).eval()
    x = torch.randn(2, 5, 8, 6)
    changed = x.clone()
    changed[:, 3:] = 0
    assert torch.equal(encoder(x), encoder(changed))
    torch.testing.assert_close(encoder(x).norm(dim=1), torch.ones(2))
    assert sum(p.numel() for p in encoder.head.parameters()) == 9 * 128 + 129 * 128


# --- retrieval ------------------------------------------------------------------------------------


def fitted(knowledge, tasks, aggregate="lstm", **keywords):
    k, f = next(iter(knowledge.values())).shape[-2:]
    torch.manual_seed(1)
    encoders = (
        ModelEncoder(f, k, hidden=16, dim=8, aggregate=aggregate),
        QueryEncoder(f, hidden=16, dim=8),
    )
    retriever = ModelRetriever(knowledge, tasks, *encoders, lr=1e-2, **keywords)
    present = torch.as_tensor(tasks).unique()
    labels = present.repeat(30)
    queries = planted(labels, k, f, seed=5)
    return retriever.fit(queries, labels)


def planted(labels, k, f, seed):
    """Queries around the centres of their tasks."""
    centres = gaussian(20, k, f, seed=123).float()
    return centres[labels] + 0.3 * gaussian(len(labels), k, f, seed=seed).float()


def planted_zoo(tasks, k=3, f=6):
    nodes = planted(torch.tensor(tasks).repeat_interleave(2), k, f, seed=7)
    rows = nodes.reshape(len(tasks), 2, k, 1, f).expand(-1, -1, -1, k, -1)
    other = rows.transpose(2, 3)
    return {f"m{i}": m for i, m in enumerate((rows + other) / 2)}


TASKS = [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("aggregate", ["lstm", "mean", "concat"])
def test_planted_tasks_are_found(aggregate):
    retriever = fitted(planted_zoo(TASKS), TASKS, aggregate, steps=60)
    labels = torch.arange(4).repeat(10)
    scores = retriever.scores(planted(labels, 3, 6, seed=11))
    assert (torch.tensor(TASKS)[scores.argmax(1)] == labels).double().mean() > 0.95
    torch.testing.assert_close(retriever.vectors_.norm(dim=1), torch.ones(8))
    best, score = retriever.rank(planted(labels[:1], 3, 6, seed=12)[0], k=1)[0]
    assert best in ("m0", "m1")
    assert -1 <= score <= 1


def test_fitting_repeats_and_touches_nothing():
    knowledge = planted_zoo(TASKS)
    encoder = ModelEncoder(6, 3, hidden=4, dim=4)
    before = copy.deepcopy(encoder.state_dict())
    query = QueryEncoder(6, hidden=4, dim=4)
    labels = torch.arange(4).repeat(5)
    queries = planted(labels, 3, 6, seed=1)
    state = torch.get_rng_state()
    first, again = (
        ModelRetriever(knowledge, TASKS, encoder, query, steps=3).fit(queries, labels)
        for _ in range(2)
    )
    assert torch.equal(first.vectors_, again.vectors_)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not torch.equal(first.model_encoder_.head.weight_ih_l0, encoder.head.weight_ih_l0)
    default = ModelRetriever(knowledge, TASKS, encoder, steps=1, random_state=3)
    seeds = [default.fit(queries, labels).vectors_ for _ in range(2)]
    assert torch.equal(*seeds)
    assert torch.equal(torch.get_rng_state(), state)


def test_tasks_without_queries_are_ranked_too():
    retriever = ModelRetriever(
        planted_zoo(TASKS), TASKS, ModelEncoder(6, 3, 4, 4), QueryEncoder(6, 4, 4), steps=2
    )
    labels = torch.arange(2).repeat(5)
    retriever.fit(planted(labels, 3, 6, seed=1), labels)
    assert len(retriever.rank(torch.randn(3, 6))) == 8


def test_batches_pair_queries_with_models_of_their_task():
    tasks = [5, 9, 5, 5, 9]
    knowledge = {str(i): torch.full((2, 2, 2, 3), float(i)) for i in range(5)}
    retriever = ModelRetriever(knowledge, tasks, batch_size=400)
    of_model = torch.tensor([0, 1, 0, 0, 1])
    of_query = torch.tensor([0, 0, 1])
    queries = torch.arange(3.0).reshape(3, 1, 1).expand(3, 2, 3)
    m, q, task = next(
        retriever._batches(torch.stack([*knowledge.values()]), of_model, queries, of_query)
    )
    assert torch.equal(of_model[m[:, 0, 0, 0].long()], task)
    assert torch.equal(of_query[q[:, 0, 0].long()], task)
    assert set(m[:, 0, 0, 0].tolist()) == {0, 1, 2, 3, 4}


def test_a_saved_retriever_ranks_as_before(tmp_path):
    retriever = fitted(planted_zoo(TASKS), TASKS, steps=5)
    retriever.save(tmp_path / "retriever.safetensors")
    loaded = ModelRetriever.load(tmp_path / "retriever.safetensors")
    query = torch.randn(3, 6)
    assert loaded.rank(query) == retriever.rank(query)
    loaded.save(tmp_path / "again.safetensors")
    assert ModelRetriever.load(tmp_path / "again.safetensors").rank(query) == loaded.rank(query)
    with pytest.raises(ValueError, match="zoo_knowledge is empty"):
        loaded.fit(torch.rand(3, 3, 6), torch.zeros(3, dtype=torch.long))
    zoo = ModelZoo(tmp_path)
    zoo.add("net", nets.MLP([4, 6, 2]), CARD)
    with pytest.raises(ValueError, match="holds no retriever"):
        ModelRetriever.load(tmp_path / "net.safetensors")


def test_bad_fitting():
    knowledge = planted_zoo(TASKS)
    queries, labels = torch.rand(4, 3, 6), torch.arange(4)
    small = ModelEncoder(6, 3, 4, 4), QueryEncoder(6, 4, 4)
    cases = [
        (knowledge, TASKS[:3], small, labels, "tasks must have shape \\(8,\\)"),
        (knowledge, TASKS, small, labels[:2], "labels must have shape \\(4,\\)"),
        (knowledge, TASKS, small, labels + 3, "tasks that no model has: \\[4, 5, 6\\]"),
        (knowledge, TASKS, (small[0], QueryEncoder(6, 4, 5)), labels, "share dim, got 4 and 5"),
        (knowledge, TASKS, (ModelEncoder(7, 3, 4, 4), small[1]), labels, "\\(n, 3, 3, 7\\)"),
        (knowledge | {"m1": torch.zeros(2, 3, 3, 5)}, TASKS, small, labels, "'m1' has \\(2, 3"),
        (
            knowledge | {"m1": torch.full((2, 3, 3, 6), torch.nan)},
            TASKS,
            small,
            labels,
            "'m1' is not finite",
        ),
    ]
    for zoo, tasks, encoders, given_labels, message in cases:
        with pytest.raises(ValueError, match=message):
            ModelRetriever(zoo, tasks, *encoders, steps=1).fit(queries, given_labels)
    with pytest.raises(TypeError, match="tasks must be a tensor of whole numbers"):
        ModelRetriever(knowledge, [0.5] * 8).fit(queries, labels)
    with pytest.raises(ValueError, match="not fitted"):
        ModelRetriever(knowledge, TASKS).rank(queries[0])
    nearest_ = NearestKnowledge(knowledge)
    with pytest.raises(ValueError, match="queries must have shape \\(n, 3, 6\\)"):
        nearest_.scores(torch.rand(2, 3, 5))
    with pytest.raises(ValueError, match="k must be a positive integer, got 0"):
        nearest_.rank(queries[0], k=0)
    with pytest.raises(ValueError, match="query must have shape"):
        nearest_.rank(queries)


def test_knowledge_is_taken_as_it_comes():
    features = torch.randn(2, 3, 3, 4)
    wrapped = Knowledge(features, features, torch.zeros(3, dtype=torch.bool))
    query = torch.randn(3, 4)
    assert NearestKnowledge({"a": wrapped}).rank(query) == NearestKnowledge({"a": features}).rank(
        query
    )


# --- baselines ------------------------------------------------------------------------------------


def test_nearest_knowledge_ignores_boundaries():
    knowledge = planted_zoo(TASKS)
    k = torch.eye(3, dtype=torch.bool)
    noisy = {n: torch.where(k[..., None], m, torch.randn_like(m)) for n, m in knowledge.items()}
    queries = torch.randn(5, 3, 6)
    a, b = (NearestKnowledge(zoo).scores(queries) for zoo in (knowledge, noisy))
    assert torch.equal(a, b)
    nodes = knowledge["m3"].mean(0).diagonal(dim1=0, dim2=1).T.flatten()
    expected = torch.cosine_similarity(nodes, queries[1].flatten(), dim=0)
    torch.testing.assert_close(a[1, 3], expected)


def test_fingerprints_are_probabilities_for_the_same_noise():
    first, again = (NoiseFingerprint((2, 3), 4, num_inputs=5, generator=rng()) for _ in range(2))
    assert torch.equal(first.noise, again.noise)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    answers = first.probe(model)
    torch.testing.assert_close(answers, model(first.noise).softmax(1))
    assert not answers.requires_grad
    with pytest.raises(ValueError, match="predict returned 4 columns, expected 3"):
        NoiseFingerprint((2, 3), 3).probe(model)


def test_leep_is_its_definition():
    probs, y = gaussian(30, 5).softmax(1), torch.randint(3, (30,), generator=rng())
    joint = np.zeros((3, 5))
    for p, c in zip(probs.numpy(), y.tolist()):
        joint[c] += p / 30
    conditional = joint / joint.sum(0)
    expected = np.mean([np.log(conditional[c] @ p) for p, c in zip(probs.numpy(), y.tolist())])
    assert leep(probs, y).item() == pytest.approx(expected)
    unused = torch.cat([probs, torch.zeros(30, 1).double()], 1)
    assert leep(unused, y).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="probs must be probabilities"):
        leep(2 * probs, y)
    with pytest.raises(ValueError, match="y must have shape"):
        leep(probs, y[:3])


@pytest.mark.parametrize(("n", "d"), [(40, 6), (15, 30)])
def test_logme_is_the_maximum_of_the_evidence(n, d):
    f = gaussian(n, d)
    y = (f[:, :3] @ gaussian(3, seed=1) + gaussian(n, seed=2)).numpy()

    def negative(log_scales):
        alpha, beta = np.exp(np.clip(log_scales, -20, 20))
        covariance = np.eye(n) / beta + f.numpy() @ f.numpy().T / alpha
        log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
        return (log_det + y @ np.linalg.solve(covariance, y)) / 2

    best = min(
        minimize(negative, start, method="Nelder-Mead", options={"xatol": 1e-8}).fun
        for start in ([0, 0], [2, 0], [0, 2])
    )
    found = logme(f, torch.from_numpy(y), max_iter=2000, tol=1e-12)
    assert found == pytest.approx(-best / n, abs=1e-4)


def test_logme_prefers_features_that_tell_the_classes():
    y = torch.arange(60) % 3
    centres = gaussian(3, 8)
    good, poor = centres[y] + gaussian(60, 8, seed=1) * 0.5, gaussian(60, 8, seed=2)
    assert logme(good, y) > logme(poor, y) + 0.1
    assert logme(good, y + 7) == logme(good, y)  # absent classes do not count
    one_hot = nn.functional.one_hot(y).double()
    assert logme(good, one_hot) == pytest.approx(logme(good, y))
    assert math.isfinite(logme(one_hot, y))  # a perfect fit
    assert math.isfinite(logme(torch.zeros(60, 2), y))
    with pytest.raises(ValueError, match="features and y must be finite"):
        logme(good * torch.nan, y)
    with pytest.raises(ValueError, match="features and y must have shapes"):
        logme(good, y[:5])
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        logme(y, y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelEncoder(6, 0), "num_classes must be a positive integer, got 0"),
        (lambda: ModelEncoder(6, 2, aggregate="max"), "aggregate must be one of lstm, mean, conc"),
        (lambda: QueryEncoder(6, pool="first"), "pool must be one of last, states"),
        (lambda: QueryEncoder(6, 3, 3)(torch.rand(2, 4, 5)), "shape \\(n, any, 6\\)"),
        (lambda: TransferModelEncoder(6)(torch.rand(2, 2, 4, 6)), "hold 3 classes or more"),
        (
            lambda: TransferQueryEncoder(6)(torch.rand(1, 4, 6), torch.tensor([5])),
            "lengths must be in \\[1, 4\\], got \\[5\\]",
        ),
        (
            lambda: transfer_loss(torch.eye(2), torch.eye(2), torch.rand(2, 3)),
            "v, u and accuracy must have shapes",
        ),
        (
            lambda: hardest_negative_loss(torch.eye(2), torch.eye(3), torch.arange(2)),
            "v and u must share a shape",
        ),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
