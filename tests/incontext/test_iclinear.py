"""The brief's checks, written-down weights against closed forms, metrics, probes, bad input."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

from paperworks.common import ActivationRecorder, collect_activations
from paperworks.incontext import (
    AffineLayer,
    InContextRegressor,
    LinearTasks,
    MoveLayer,
    MultiplyLayer,
    OnlinePredictor,
    ReciprocalLayer,
    RidgeTransformer,
    SGDTransformer,
    Slots,
    compile_program,
    deinterleave,
    implicit_weight_difference,
    implicit_weights,
    interleave,
    nearest_algorithm,
    online_gd,
    online_knn,
    online_ridge,
    online_sgd,
    probe_hidden_states,
    squared_prediction_difference,
    train_in_context,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(dim, n, batch=20, seed=0, **tasks):
    x, y, _ = LinearTasks(dim, **tasks).sample(batch, n, rng(seed), dtype=torch.float64)
    return x, y


def one_slot_each(**values):
    """A stream of one token with these numbers in slots, and an empty slot `out`."""
    slots = Slots(1, **dict.fromkeys(values, 1), out=1)
    stream = slots.start(1)
    for name, value in values.items():
        stream[0, slots[name]] = value
    return slots, stream


def ridge(alpha):
    return OnlinePredictor(partial(online_ridge, alpha=alpha))


# The brief's checks


def test_check_1_a_step_of_gradient_descent():
    """From w = (0.5, −0.5): reached from 0 with an example that leads there."""
    w, x, y, alpha, decay = torch.tensor([0.5, -0.5]), torch.tensor([1.0, 2.0]), 3.0, 0.05, 0.1
    by_hand = w - 2 * alpha * (x * (w @ x - y) + decay * w)
    torch.testing.assert_close(by_hand, torch.tensor([0.845, 0.205]))
    before = torch.tensor([1.0, -1.0])  # w₁ = 2·0.05·5 x = x/2
    xs = torch.stack([before, x, torch.tensor([2.0, -1.0])])[None].double()
    ys = torch.tensor([[5.0, y, 0.0]]).double()
    for predictions in (
        online_sgd(xs, ys, lr=alpha, weight_decay=decay),
        SGDTransformer(2, 3, lr=alpha, weight_decay=decay)(interleave(xs, ys)),
    ):
        assert predictions[0].tolist() == pytest.approx([0, -0.5, 1.485], abs=1e-7)


def test_check_2_a_sherman_morrison_update():
    model = RidgeTransformer(2, 1, alpha=0.5)
    tokens = interleave(torch.tensor([[[1.0, 2.0], [1.0, 0.0]]]), torch.tensor([[3.0]]))
    with ActivationRecorder(model, ["program.6", "program.7"]) as recorder:
        model(tokens)
    inverse = recorder.activations["program.6"][0, -1, model.slots["inverse"]]
    expected = [1.636364, -0.727273, -0.727273, 0.545455]
    assert inverse.tolist() == pytest.approx(expected, abs=1e-6)
    w = recorder.activations["program.7"][0, -1, model.slots["w"]]
    assert w.tolist() == pytest.approx([0.545455, 1.090909], abs=1e-6)


@pytest.mark.parametrize(("eps", "error"), [(1e-3, 8e-6), (1e-4, 8e-8), (1e-5, 8e-10)])
def test_check_3_products(eps, error):
    slots, stream = one_slot_each(x=3.0, y=-2.0)
    layer = MultiplyLayer(slots, "x", "y", "out", neurons=3, eps=eps)
    assert abs(layer(stream)[0, -1].item() + 6) == pytest.approx(error, rel=0.2)


def test_check_3_reciprocal():
    slots, stream = one_slot_each(a=7.0)
    off = ReciprocalLayer(slots, "a", "out", delta=1e-4)(stream)[0, -1].item() - 1 / 7
    assert abs(off) == pytest.approx(1.5e-11, rel=0.1)


@pytest.mark.parametrize(("dim", "n", "alpha", "error"), [(3, 8, 0.5, 1e-7), (8, 20, 0.1, 1e-5)])
def test_check_4_ridge_transformer_is_ridge(dim, n, alpha, error):
    x, y = drawn(dim, n)
    model = RidgeTransformer(dim, n, alpha)
    assert len(model.program) == 6 * n + 3
    p = model(interleave(x, y))
    assert (p - online_ridge(x, y, alpha)).abs().max() <= error
    for i in (1, n // 2, n - 1):  # and by another's solver
        w = Ridge(alpha, fit_intercept=False).fit(x[0, :i], y[0, :i]).coef_
        assert p[0, i].item() == pytest.approx(float(w @ x[0, i].numpy()), abs=error)


@pytest.mark.parametrize(("dim", "n", "decay"), [(3, 8, 0.0), (3, 8, 0.3), (8, 20, 0.1)])
def test_check_4_sgd_transformer_is_sgd(dim, n, decay):
    x, y = drawn(dim, n)
    model = SGDTransformer(dim, n, 0.03, decay)
    assert len(model.program) == 3 * n + 2
    assert (model(interleave(x, y)) - online_sgd(x, y, 0.03, decay)).abs().max() <= 1e-7


MODELS = {
    "sgd": lambda: SGDTransformer(2, 5, 0.1, 0.2),
    "ridge": lambda: RidgeTransformer(2, 5, 0.3),
    "trained": lambda: InContextRegressor(2, 16, 2, 2, 5).double(),
}


@pytest.mark.parametrize("name", MODELS)
def test_check_5_later_tokens_change_nothing_before(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    tokens = interleave(*drawn(2, 5))
    before = model(tokens)
    for t in (1, 4, 7):  # a y, an x, a y
        changed = tokens.clone()
        changed[:, t:] = torch.randn(changed[:, t:].shape, generator=rng(1)).double()
        seen = (t + 1) // 2  # x-tokens before t
        torch.testing.assert_close(model(changed)[:, :seen], before[:, :seen], rtol=0, atol=1e-12)
        assert not torch.allclose(model(changed)[:, seen:], before[:, seen:])
        torch.testing.assert_close(model(tokens[:, : t + 1]), before[:, : t // 2 + 1])


@pytest.mark.parametrize(("make", "order"), [("sgd", 1), ("ridge", 2)])
def test_check_6_width_and_weights(make, order):
    def sizes(dim):
        model = SGDTransformer(dim, 2, 0.1, 0.1) if make == "sgd" else RidgeTransformer(dim, 2, 0.1)
        return model.slots.width, sum(p.numel() for p in model.parameters())

    dims = np.array([4, 8, 16, 32, 64])
    for values in np.transpose([sizes(int(dim)) for dim in dims]):
        polynomial = np.polyfit(dims, values, order)
        np.testing.assert_allclose(np.polyval(polynomial, dims), values, rtol=1e-6)
        assert polynomial[0] > 0.5


def test_check_7_implicit_weights_of_least_squares():
    x, y, w = LinearTasks(3).sample(30, 6, rng(), dtype=torch.float64)
    fit = implicit_weights(ridge(0.0), (x, y), 20, rng())
    torch.testing.assert_close(fit.weights, w)
    torch.testing.assert_close(fit.r2, torch.ones(30).double())
    assert implicit_weight_difference(ridge(0.5), ridge(0.5), (x, y)) == 0


# Layers of programs


@pytest.mark.parametrize("neurons", [3, 4])
@given(x=st.floats(-20, 20), y=st.floats(-20, 20))
@settings(max_examples=30, deadline=None)
def test_products_of_any_numbers(neurons, x, y):
    slots, stream = one_slot_each(x=x, y=y)
    product = MultiplyLayer(slots, "x", "y", "out", neurons=neurons)(stream)[0, -1].item()
    assert product == pytest.approx(x * y, abs=3e-5 if neurons == 3 else 3e-6)


@given(a=st.floats(0.05, 500))
@settings(max_examples=30, deadline=None)
def test_reciprocals_of_any_numbers(a):
    slots, stream = one_slot_each(a=a - 1)
    inverse = ReciprocalLayer(slots, "a", "out", shift=1.0)(stream)[0, -1].item()
    assert inverse == pytest.approx(1 / a, rel=1e-5)


def test_affine_layers_are_exact():
    slots = Slots(3, x=4, z=2)
    stream = slots.start(3)
    stream[:, slots["x"]] = torch.randn(3, 4, generator=rng()).double()
    W, b = torch.randn(2, 4, generator=rng(1)).double(), torch.tensor([3.0, -1.0])
    out = AffineLayer(slots, "x", "z", W, b)(stream)
    torch.testing.assert_close(out[:, slots["z"]], stream[:, slots["x"]] @ W.T + b)
    assert torch.equal(out[:, slots["x"]], stream[:, slots["x"]])
    assert AffineLayer(slots, "x", "x", -1.0)(stream)[:, slots["x"]].abs().max() < 1e-15


def test_moves_average_what_is_not_in_the_future():
    slots = Slots(4, x=1, z=1)
    stream = slots.start(4)
    stream[:, slots["x"][0]] = torch.tensor([0.0, 5.0, 6.0, 9.0]).double()
    source = torch.zeros(4, 4, dtype=torch.bool)
    source[1, 3] = source[2, 1:] = source[3, [1, 3]] = True
    out = MoveLayer(slots, "x", "z", source)(stream)[:, slots["z"][0]]
    assert out.tolist() == pytest.approx([0, 0, 5.5, 7])


def test_layers_are_a_transformer():
    """The weights as matrices, run by torch's own layers, do the same."""
    model = RidgeTransformer(2, 3, 0.5)
    x, y = drawn(2, 3, batch=4)
    tokens = torch.cat([torch.zeros(4, 1, 3).double(), interleave(x, y)], dim=1)
    stream = tokens @ model.embed.weight.T + model.start[:7]
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    for layer in model.program:
        if isinstance(layer, MoveLayer):
            q, k, v = (stream @ f.weight.T + f.bias for f in (layer.query, layer.key, layer.value))
            attention = (q @ k.mT).masked_fill(future, -torch.inf).softmax(-1)
            stream = stream + attention @ v @ layer.out.weight.T
            continue
        hidden = stream @ layer.hidden.weight.T + layer.hidden.bias
        if isinstance(layer, ReciprocalLayer):
            hidden = torch.nn.functional.layer_norm(hidden, (4,), eps=0.0)
        else:
            hidden = torch.nn.functional.gelu(hidden)
        stream = stream + hidden @ layer.out.weight.T + layer.out.bias
    out = (stream[:, 1::2] @ model.unembed.weight.T)[..., 0]
    torch.testing.assert_close(out, online_ridge(x, y, 0.5), rtol=0, atol=1e-5)


def test_programs_are_for_writing_your_own():
    """xᵀz/(1 + xᵀx), two instructions side by side in the first layer."""
    slots = Slots(1, x=3, z=3, dot=1, square=1, inverse=1, out=1)
    ones = torch.ones(1, 3)
    program = compile_program(
        [
            [
                MultiplyLayer(slots, "x", "z", "dot", ones),
                MultiplyLayer(slots, "x", "x", "square", ones),
            ],
            ReciprocalLayer(slots, "square", "inverse", shift=1.0),
            MultiplyLayer(slots, "dot", "inverse", "out"),
        ]
    )
    stream = slots.start(1).repeat(5, 1, 1)
    x, z = torch.randn(2, 5, 3, generator=rng()).double()
    stream[:, 0, slots["x"]], stream[:, 0, slots["z"]] = x, z
    expected = (x * z).sum(1) / (1 + x.square().sum(1))
    torch.testing.assert_close(program(stream)[:, 0, -1], expected, rtol=0, atol=1e-7)


def test_programs_refuse_what_does_not_fit():
    slots, other = Slots(3, x=2, z=1), Slots(3, x=1)
    with pytest.raises(ValueError, match="no slot 'w', only position, one, x, z"):
        AffineLayer(slots, "w", "z")
    with pytest.raises(ValueError, match="write has 1 coordinates, for 2 numbers; give a weight"):
        MultiplyLayer(slots, "x", "x", "z")
    with pytest.raises(ValueError, match=r"weight must be of shape \(1, 2\), got \(2, 1\)"):
        AffineLayer(slots, "x", "z", torch.ones(2, 1))
    with pytest.raises(ValueError, match="left has 3 coordinates, right 2"):
        MultiplyLayer(slots, "position", "x", "z")
    with pytest.raises(ValueError, match="neurons must be 3 or 4, got 2"):
        MultiplyLayer(slots, "x", "x", "x", neurons=2)
    with pytest.raises(ValueError, match="read has 2 coordinates, write 1"):
        MoveLayer(slots, "x", "z", 1)
    with pytest.raises(ValueError, match=r"source must be in \[0, 3\), got 3"):
        MoveLayer(slots, "x", "x", 3)
    with pytest.raises(ValueError, match="one coordinate divides at a time"):
        ReciprocalLayer(slots, "x", "z")
    with pytest.raises(ValueError, match="for streams of one width"):
        compile_program([AffineLayer(slots, "x", "x"), AffineLayer(other, "x", "x")])
    with pytest.raises(ValueError, match="got none"):
        compile_program([])
    with pytest.raises(TypeError, match="MLP layers only can be one layer"):
        compile_program([[AffineLayer(slots, "x", "x"), MoveLayer(slots, "x", "x", 1)]])
    with pytest.raises(TypeError, match="ops must be layers of a program, got Linear"):
        compile_program([torch.nn.Linear(2, 2)])


# Constructed transformers


def test_constructed_transformers_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="alpha must be positive"):
        RidgeTransformer(2, 3, alpha=0)
    with pytest.raises(ValueError, match="lr must be positive"):
        SGDTransformer(2, 3, lr=-1)
    with pytest.raises(ValueError, match="dim must be a positive integer, got 0"):
        SGDTransformer(0, 3, lr=0.1)
    model = SGDTransformer(2, 3, lr=0.1)
    with pytest.raises(ValueError, match=r"too many examples.* at most 7 tokens, got 8"):
        model(torch.zeros(1, 8, 3))
    with pytest.raises(ValueError, match=r"tokens must be \(B, T, 3\), got \(1, 4, 4\)"):
        model(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"weights must be float64, got torch\.float32"):
        copy.deepcopy(model).float()(torch.zeros(1, 4, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_constructed_transformers_take_tokens_of_any_dtype(dtype):
    tokens = interleave(*drawn(2, 4)).to(dtype)
    x, y = deinterleave(tokens.double())
    out = RidgeTransformer(2, 4, 0.5)(tokens)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, online_ridge(x, y, 0.5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_models_can_be_copied_saved_and_trained(name, tmp_path):
    torch.manual_seed(0)
    model, tokens = MODELS[name](), interleave(*drawn(2, 5))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = MODELS[name]()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for again in (other, copy.deepcopy(model)):
        assert torch.equal(again(tokens), model(tokens))
    model(tokens).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_query_after_the_longest_context():
    x, y = drawn(2, 4)
    query = torch.randn(20, 6, 2, generator=rng(3)).double()
    w = torch.linalg.solve(x.mT @ x + 0.3 * torch.eye(2), (x.mT @ y[..., None]))
    p = RidgeTransformer(2, 4, 0.3).predict(x, y, query)
    torch.testing.assert_close(p, (query @ w)[..., 0], atol=1e-6, rtol=0)


# Tasks and algorithms


def test_tasks_have_their_moments():
    tasks = LinearTasks(2, noise=0.5, w_scale=2.0, w_mean=1.0, x_mean=-3.0)
    x, y, w = tasks.sample(20_000, 3, rng())
    assert x.mean().item() == pytest.approx(-3, abs=0.02)
    assert (w.mean().item(), w.std().item()) == pytest.approx((1, 2), abs=0.05)
    residual = y - (x @ w[..., None])[..., 0]
    assert residual.std().item() == pytest.approx(0.5, abs=0.01)
    again = tasks.sample(20_000, 3, rng())
    assert all(torch.equal(a, b) for a, b in zip((x, y, w), again))


def test_tasks_refuse_what_they_cannot_be():
    for wrong in ({"dim": 0}, {"noise": -1}, {"w_scale": math.inf}, {"x_mean": math.nan}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LinearTasks(**{"dim": 2} | wrong)
    with pytest.raises(ValueError, match="n must be a positive integer, got 0"):
        LinearTasks(2).sample(1, 0, rng())
    with pytest.raises(ValueError, match="as many examples as x or one less"):
        interleave(torch.zeros(1, 4, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.5])
def test_online_ridge_at_every_position(alpha):
    x, y = drawn(3, 7, noise=0.3)
    x[:, 3] = x[:, 2]  # a row twice
    p = online_ridge(x, y, alpha)
    for i in range(1, 7):
        a, b = x[0, :i].numpy(), y[0, :i].numpy()
        w = np.linalg.pinv(a) @ b if alpha == 0 else np.linalg.solve(
            a.T @ a + alpha * np.eye(3), a.T @ b
        )  # fmt: skip
        assert p[0, i].item() == pytest.approx(float(w @ x[0, i].numpy()), abs=1e-7)
    assert (p[:, 0] == 0).all()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_online_gd_by_autograd(reduction):
    x, y = drawn(3, 5)
    p = online_gd(x, y, 0.05, 3, weight_decay=0.2, reduction=reduction)
    w = torch.zeros(20, 3, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        error = ((x[:, :4] @ w[..., None])[..., 0] - y[:, :4]).square()
        fit = error.sum(1) if reduction == "sum" else error.mean(1)
        loss = (fit + 0.2 * w.square().sum(1)).sum()
        w = (w - 0.05 * torch.autograd.grad(loss, w)[0]).detach().requires_grad_()
    torch.testing.assert_close(p[:, 4], (w * x[:, 4]).sum(1).detach())


def test_online_sgd_clips():
    x, y = torch.tensor([[[1.0], [1.0]]]), torch.tensor([[100.0, 0.0]])
    assert online_sgd(x, y, lr=0.1)[0, 1] == pytest.approx(20)
    assert online_sgd(x, y, lr=0.1, clip=20.0)[0, 1] == pytest.approx(2)


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_online_knn_is_scikit_learns(weights):
    x, y = drawn(2, 9)
    x[:, 6] = x[:, 8] = x[:, 1]  # distances of zero
    p = online_knn(x, y, 3, weights)
    for task in range(5):
        for i in range(1, 9):
            other = KNeighborsRegressor(min(3, i), weights=weights).fit(x[task, :i], y[task, :i])
            expected = other.predict(x[task, i : i + 1])[0]
            assert p[task, i].item() == pytest.approx(expected)


ALGORITHMS = {
    "ridge": online_ridge,
    "sgd": partial(online_sgd, lr=0.1),
    "gd": partial(online_gd, lr=0.1, steps=2),
    "k-nn": online_knn,
}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_algorithms_look_back_only_and_keep_the_dtype(name, dtype):
    x, y = (part.to(dtype) for part in drawn(2, 6))
    p = ALGORITHMS[name](x, y)
    assert p.dtype == dtype
    assert (p[:, 0] == 0).all()
    changed = y.clone()
    changed[:, 3:] = 7
    assert torch.equal(ALGORITHMS[name](x, changed)[:, :4], p[:, :4])
    assert not torch.equal(ALGORITHMS[name](x, changed)[:, 4:], p[:, 4:])
    single = ALGORITHMS[name](x[:, :1], y[:, :1])
    assert torch.equal(single, torch.zeros(20, 1, dtype=dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: online_ridge(x, y, -1.0), "alpha must be not negative"),
        (lambda x, y: online_sgd(x, y, 0.0), "lr must be positive"),
        (lambda x, y: online_gd(x, y, 0.1, 0), "steps must be a positive integer"),
        (lambda x, y: online_gd(x, y, 0.1, reduction="max"), "reduction must be"),
        (lambda x, y: online_knn(x, y, 0), "k must be a positive integer"),
        (lambda x, y: online_knn(x, y, weights="far"), "weights must be 'uniform'"),
        (lambda x, y: online_ridge(x, y[:, :2]), r"got \(20, 4, 2\) and \(20, 2\)"),
    ],
)
def test_algorithms_refuse_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(*drawn(2, 4))


def test_missing_values_are_refused():
    x, y = drawn(2, 4)
    y[0, 1] = math.nan
    with pytest.raises(ValueError, match="leave examples with missing values out"):
        online_ridge(x, y)
    with pytest.raises(ValueError, match="end the sequence at a query without y"):
        SGDTransformer(2, 4, 0.1)(interleave(x, y))


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"floating point, got torch\.int64"):
        online_ridge(torch.ones(1, 2, 2, dtype=torch.long), torch.ones(1, 2))


# Trained learners


def test_training_learns_and_touches_no_global_generator():
    torch.manual_seed(0)
    model = InContextRegressor(1, 16, 2, 2, 4)
    before = torch.get_rng_state()
    history = train_in_context(model, LinearTasks(1), 200, num_examples=4, lr=1e-2)
    assert torch.equal(torch.get_rng_state(), before)
    assert not history.diverged
    assert np.mean(history.loss[-20:]) < 0.75 * np.mean(history.loss[:20])


def test_training_takes_your_model_and_tasks():
    class Cubes:
        def sample(self, batch, n, generator):
            x = torch.randn(batch, n, 1, generator=generator)
            return x, x[..., 0] ** 3

    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, tokens):
            return self.layer(tokens[:, 0::2])[..., 0]

    assert train_in_context(Mine(), Cubes(), 3, num_examples=4, batch_size=2).steps == 3
    with pytest.raises(
        ValueError, match=r"model must return \(2, 4\) predictions, got \(2, 8, 1\)"
    ):
        train_in_context(torch.nn.Linear(2, 1), Cubes(), 3, num_examples=4, batch_size=2)


def test_learners_refuse_what_they_cannot_take():
    with pytest.raises(ValueError, match="d_model must be a multiple of 3 heads, got 16"):
        InContextRegressor(2, 16, 1, 3, 4)
    model = InContextRegressor(2, 16, 1, 2, 4)
    with pytest.raises(ValueError, match="too many examples"):
        model(torch.zeros(1, 9, 3))
    with pytest.raises(ValueError, match="steps must be a positive integer, got 0"):
        train_in_context(model, LinearTasks(2), 0, num_examples=4)
    with pytest.raises(ValueError, match="num_examples must be a positive integer, got None"):
        train_in_context(torch.nn.Linear(3, 1), LinearTasks(2), 1)
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        train_in_context(model, LinearTasks(2), 1, num_examples=4, lr=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_learners_in_other_dtypes(dtype):
    model = InContextRegressor(2, 16, 1, 2, 4).to(dtype)
    assert model(torch.zeros(1, 8, 3)).dtype == dtype
    assert train_in_context(model, LinearTasks(2), 2, num_examples=4).steps == 2


# Metrics


def test_nearest_algorithm_finds_itself():
    candidates = {f"ridge {a}": ridge(a) for a in (0.05, 0.5, 5.0)} | {
        "sgd": OnlinePredictor(partial(online_sgd, lr=0.1))
    }
    tasks = LinearTasks(2, noise=0.3)
    for name, model in {
        "ridge 0.5": RidgeTransformer(2, 5, 0.5),
        "sgd": SGDTransformer(2, 5, 0.1),
    }.items():
        table = nearest_algorithm(
            model.predict, tasks, candidates, num_examples=6, num_tasks=50, skip=[2]
        )
        assert table.index[0] == name
        assert table["mean"].iloc[0] < 1e-10 < table["mean"].iloc[1]
        assert list(table.columns) == [1, 2, 3, 4, 5, "mean"]
        row = table.iloc[-1]
        assert row["mean"] == pytest.approx(row[[1, 3, 4, 5]].mean())


def test_any_callable_is_compared_at_every_position():
    def sklearn_ridge(x, y, x_query):
        fits = (
            Ridge(0.5, fit_intercept=False).fit(a, b).predict(q) for a, b, q in zip(x, y, x_query)
        )
        return torch.stack([torch.as_tensor(fit) for fit in fits])

    table = nearest_algorithm(
        sklearn_ridge, LinearTasks(2), {"ridge": ridge(0.5)}, num_examples=4, num_tasks=10
    )
    assert table.loc["ridge", "mean"] < 1e-10


def test_comparing_needs_something_to_compare():
    with pytest.raises(ValueError, match="candidates must not be empty"):
        nearest_algorithm(ridge(0.5), LinearTasks(2), {}, num_examples=4)
    with pytest.raises(ValueError, match="a context must be left"):
        nearest_algorithm(ridge(0.5), LinearTasks(2), {"a": ridge(1.0)}, num_examples=2, skip=[1])
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(3,\)"):
        squared_prediction_difference(torch.ones(2), torch.ones(3))


def test_implicit_weights_say_when_a_predictor_is_not_linear():
    context = drawn(2, 6)
    fit = implicit_weights(lambda x, y, q: q[..., 0].square(), context, 500)
    assert (fit.r2 < 0.5).all()
    nothing = implicit_weights(lambda x, y, q: 0 * q[..., 0], context, 500)
    assert torch.equal(nothing.weights, torch.zeros(20, 2).double())
    assert torch.equal(nothing.r2, torch.ones(20).double())
    with pytest.raises(ValueError, match=r"at least 2.*got \(20, 1, 2\)"):
        implicit_weights(ridge(0.5), context, 1)
    with pytest.raises(ValueError, match=r"predict must return \(20, 5\), got \(20, 5, 2\)"):
        implicit_weights(lambda x, y, q: q, context, 5)


def test_probes_find_w_where_ridge_has_it():
    """Known answers: w is in the last layers of the constructed transformer only."""
    model = RidgeTransformer(2, 3, 0.01)
    x, y, w = LinearTasks(2).sample(400, 3, rng(), dtype=torch.float64)
    tokens = interleave(x, y)
    layers = ["program.0", f"program.{len(model.program) - 2}"]
    states = collect_activations(model, [tokens], layers)
    for nonlinear in (False, True):
        first, last = probe_hidden_states(states, w, nonlinear, steps=200).values()
        assert last > 0.9
        assert first < 0.6


def test_probes_see_what_is_linear_and_what_is_not():
    h = torch.randn(600, 4, generator=rng())
    square = h[:, :1].square()
    assert probe_hidden_states([h], square, nonlinear=False, steps=100)["0"] < 0.1
    score = probe_hidden_states([h], square, steps=200)
    assert score["0"] > 0.9
    assert probe_hidden_states([h], square, steps=200, generator=rng(0)) == score


def test_probes_refuse_what_they_cannot_read():
    h, s = torch.randn(40, 3, 2, generator=rng()), torch.arange(40.0)
    with pytest.raises(ValueError, match="targets are constant"):
        probe_hidden_states([h], torch.ones(40))
    with pytest.raises(ValueError, match=r"layer '0' must be finite.*got \(40, 3, 2\)"):
        probe_hidden_states([h / 0], s)
    with pytest.raises(ValueError, match=r"layer 'a' must be .*got \(39, 3, 2\)"):
        probe_hidden_states({"a": h[1:]}, s)
    with pytest.raises(ValueError, match="states need a layer"):
        probe_hidden_states([], s)
    with pytest.raises(ValueError, match=r"test_size=1\.0 of 40"):
        probe_hidden_states([h], s, test_size=1.0)
