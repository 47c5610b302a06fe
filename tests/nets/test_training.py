"""fit and pick."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperworks.data import Split, batches
from paperworks.nets import MLP, fit, pick


def line(weight=0.0):
    """y = w x, one parameter, in float64."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, weight)
    return model


def square(model, batch):
    """(w - batch)^2 / 2, whose gradient is w - batch."""
    return (model.weight.squeeze() - batch) ** 2 / 2


def sgd(model, lr=0.5, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def test_two_steps_by_hand():
    model = line()
    history = fit(model, [4.0, 0.0], square, optimizer=sgd(model), steps=2)
    # w: 0 -> 0 - .5 (0 - 4) = 2 -> 2 - .5 (2 - 0) = 1
    assert model.weight.item() == 1.0
    assert history.loss == [8.0, 2.0]
    assert (history.steps, history.diverged, history.best) == (2, False, None)


def test_batches_are_gone_through_again():
    model = line()
    history = fit(model, [4.0, 0.0], square, optimizer=sgd(model), steps=5)
    assert history.steps == 5
    assert history.loss[2] == (1.0 - 4.0) ** 2 / 2


def test_an_endless_iterable_is_asked_for_no_more_than_it_needs():
    drawn = []

    def endless():
        while True:
            drawn.append(1.0)
            yield 1.0

    model = line()
    fit(model, endless(), square, optimizer=sgd(model), steps=7)
    assert len(drawn) == 7


def test_it_equals_a_loop_written_out():
    g = torch.Generator().manual_seed(0)
    part = Split(torch.rand(40, 6, generator=g), torch.randint(3, (40,), generator=g))
    net = MLP([6, 8, 3])
    twin = copy.deepcopy(net)
    g1, g2 = (torch.Generator().manual_seed(1) for _ in range(2))
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    fit(
        net, batches(part, 16, g1), lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        optimizer=adam, steps=9, clip=0.5,
    )  # fmt: skip
    adam = torch.optim.Adam(twin.parameters(), 1e-2)
    for _ in range(3):
        for x, y in batches(part, 16, g2):
            adam.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            adam.step()
    for ours, theirs in zip(net.parameters(), twin.parameters()):
        assert torch.equal(ours, theirs)


def rates(schedule, steps, **options):
    model = line()
    optimizer = sgd(model, lr=0.1)
    seen = []
    made = schedule(optimizer) if schedule is torch_schedule else schedule
    fit(
        model, [1.0], square, optimizer=optimizer, steps=steps, schedule=made,
        after_step=[lambda: seen.append(optimizer.param_groups[0]["lr"])], **options,
    )  # fmt: skip
    return seen


def torch_schedule(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)


def test_schedules():
    cosine = [0.1 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    assert rates("cosine", 4) == pytest.approx(cosine)
    assert rates(lambda step: 1 / (1 + step), 3) == pytest.approx([0.1, 0.05, 0.1 / 3])
    assert rates(torch_schedule, 5) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])
    assert rates(None, 2) == [0.1, 0.1]


def test_clip_bounds_the_gradient_before_the_hooks_see_it():
    model = line()
    seen = []
    fit(
        model, [100.0], square, optimizer=sgd(model), steps=1, clip=2.0,
        after_backward=[lambda: seen.append(model.weight.grad.item())],
    )  # fmt: skip
    assert seen == pytest.approx([-2.0], rel=1e-5)
    assert model.weight.item() == pytest.approx(1.0, rel=1e-5)


def test_a_true_after_backward_skips_the_update():
    model = line()
    calls = []
    history = fit(
        model, [4.0], square, optimizer=sgd(model), steps=3,
        after_backward=[lambda: len(calls) == 0, lambda: calls.append("backward")],
        after_step=[lambda: calls.append("step")],
    )  # fmt: skip
    # the second hook runs although the first was true
    assert calls == ["backward", "backward", "step", "backward", "step"]
    assert history.loss == [8.0, 8.0, 2.0]


def test_terms_of_the_loss_are_recorded():
    model = line()

    def loss(model, batch):
        fit_term, penalty = square(model, batch), model.weight.square().sum()
        return {"loss": fit_term + penalty, "fit": fit_term, "penalty": penalty}

    history = fit(model, [4.0], loss, optimizer=sgd(model), steps=2)
    assert history.terms["fit"] == [8.0, 2.0]
    assert history.terms["penalty"] == [0.0, 4.0]
    assert history.loss == [8.0, 6.0]
    with pytest.raises(ValueError, match=r"no 'loss', only \['error'\]"):
        fit(model, [4.0], lambda m, b: {"error": square(m, b)}, optimizer=sgd(model), steps=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_stops_before_the_weights(bad):
    model = line()
    history = fit(model, [4.0, bad, 4.0], square, optimizer=sgd(model), steps=9)
    assert history.diverged
    assert history.steps == 2
    assert model.weight.item() == 2.0
    assert not model.training


def test_validation_is_at_every_and_at_the_end():
    model = line()
    history = fit(
        model, [1.0], square, optimizer=sgd(model), steps=10, every=4,
        validate=lambda m: m.weight.item(),
    )  # fmt: skip
    assert [step for step, _ in history.validation] == [4, 8, 10]


def scripted(values):
    """A validation that returns these values one after another."""
    rest = iter(values)
    return lambda model: next(rest)


def test_patience_counts_validations_without_a_new_lowest():
    model = line()
    values = [5.0, 3.0, 4.0, 3.0, 2.0, 1.0]
    history = fit(
        model, [1.0], square, optimizer=sgd(model), steps=6, every=1, patience=2,
        validate=scripted(values),
    )  # fmt: skip
    assert [value for _, value in history.validation] == [5.0, 3.0, 4.0, 3.0]
    assert history.best == (2, 3.0)


def test_restore_best():
    model = line()
    weights = []
    history = fit(
        model, [4.0], square, optimizer=sgd(model), steps=4, every=1, restore_best=True,
        validate=scripted([3.0, 1.0, 2.0, 1.0]),
        after_step=[lambda: weights.append(model.weight.item())],
    )  # fmt: skip
    assert history.best == (2, 1.0)
    assert model.weight.item() == weights[1] != weights[3]


def test_restore_best_survives_divergence():
    model = line()
    history = fit(
        model, [4.0], square, optimizer=sgd(model, lr=1e200), steps=9, every=1,
        validate=lambda m: m.weight.abs().item(), restore_best=True,
    )  # fmt: skip
    assert history.diverged
    assert model.weight.item() == pytest.approx(4e200)


def test_a_validation_that_is_not_finite_is_divergence():
    model = line()
    history = fit(
        model, [4.0], square, optimizer=sgd(model), steps=9, every=2,
        validate=scripted([1.0, float("nan")]),
    )  # fmt: skip
    assert history.diverged
    assert history.steps == 4
    assert history.best == (2, 1.0)


def test_modes_and_gradients():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
    seen = []

    def loss(model, batch):
        seen.append(("loss", model.training, torch.is_grad_enabled()))
        return model[0](batch).sum()

    def validate(model):
        seen.append(("validate", model.training, torch.is_grad_enabled()))
        return 0.0

    fit(model, [torch.ones(1)], loss, optimizer=sgd(model), steps=2, every=1, validate=validate)
    assert seen == [("loss", True, True), ("validate", False, False)] * 2
    assert not model.training


def test_the_global_generator_is_left_alone():
    model = line()
    before = torch.get_rng_state()
    fit(
        model, [1.0], square, optimizer=torch.optim.AdamW(model.parameters()), steps=3,
        schedule="cosine", clip=1.0, every=1, validate=lambda m: 0.0, restore_best=True,
    )  # fmt: skip
    assert torch.get_rng_state().equal(before)


def test_batches_that_run_out():
    model = line()
    with pytest.raises(ValueError, match="batches is empty"):
        fit(model, [], square, optimizer=sgd(model), steps=1)
    with pytest.raises(ValueError, match="iterator that is used up"):
        fit(model, iter([1.0, 2.0]), square, optimizer=sgd(model), steps=3)
    assert fit(model, iter([1.0, 2.0]), square, optimizer=sgd(model), steps=2).steps == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer"),
        ({"steps": 1.5}, "steps must be a positive integer"),
        ({"every": 0}, "every must be a positive integer"),
        ({"patience": 0, "validate": lambda m: 0.0}, "patience must be a positive integer"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"clip": float("nan")}, "clip must be positive"),
        ({"patience": 1}, "patience and restore_best need validate"),
        ({"restore_best": True}, "patience and restore_best need validate"),
        ({"schedule": "cosin"}, "schedule must be 'cosine', a function or a scheduler"),
    ],
)
def test_bad_input_leaves_the_model_alone(arguments, message):
    model = line().eval()
    with pytest.raises(ValueError, match=message):
        fit(model, [1.0], square, optimizer=sgd(model), **{"steps": 1, **arguments})
    assert not model.training
    assert model.weight.item() == 0.0


def test_pick_trains_each_and_keeps_the_lowest():
    trained = []

    def train(rate):
        model = line()
        fit(model, [4.0], square, optimizer=sgd(model, lr=rate), steps=3)
        trained.append(rate)
        return model

    rate, model = pick([0.1, 1.0, 0.5, 10.0], train, lambda m: square(m, 4.0).item())
    assert trained == [0.1, 1.0, 0.5, 10.0]
    assert rate == 1.0
    assert model.weight.item() == 4.0


def test_pick_skips_what_is_not_finite_and_takes_the_first_among_equals():
    scores = {"a": float("nan"), "b": 2.0, "c": 2.0, "d": float("-inf")}
    assert pick(scores, str.upper, lambda name: scores[name.lower()]) == ("b", "B")
    with pytest.raises(ValueError, match="none of 1 candidates has a finite score"):
        pick(["a"], str, lambda name: scores[name])
    with pytest.raises(ValueError, match="none of 0 candidates"):
        pick([], str, len)
