"""N2N: the reward, layers and children, the policies' gradient, the search."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paperworks import nets
from paperworks.compress import (
    CODE_RATIOS,
    N2N,
    PAPER_RATIOS,
    Reinforce,
    RemovalPolicy,
    ShrinkagePolicy,
    apply_removal,
    apply_shrinkage,
    architecture,
    compression_reward,
    default_frozen,
    describe_layers,
    distill,
    load_tensors,
    random_architectures,
    save_tensors,
)

X = torch.rand(1, 1, 8, 8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def seeded(make, *args, seed=0, **options):
    """A module whose weights do not depend on what ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(*args, **options)


def size(model):
    return sum(p.numel() for p in model.parameters())


def convnet():
    return seeded(nets.ConvNet, 1, [16, 16, 32], pool_after=[1], head="flatten", image_size=(8, 8))


def resnet(block="basic"):
    return seeded(nets.ResNet, 1, [12, 16], [1, 1], block)


TEACHERS = [
    convnet,
    resnet,
    lambda: resnet("bottleneck"),
    lambda: seeded(nets.ResNet, 1, [12, 16], [2, 1], preactivation=True),
    lambda: nn.Sequential(convnet()[:5], nn.Sequential(convnet()[5:])),
    lambda: seeded(nets.MLP, [64, 32, 16, 10], norm="batch"),
]


def inputs(model):
    return torch.rand(1, 64) if isinstance(model[0], nn.Linear) else X


# --- the reward -----------------------------------------------------------------------------------


def test_check_1_rewards():
    assert compression_reward(0.95, 0.95, 50, 100) == pytest.approx(0.75)
    assert compression_reward(0.9, 1, 10, 100) == pytest.approx(0.891)
    resnet34 = compression_reward(92.35, 92.05, 2_070_000, 21_280_000)
    assert resnet34 == pytest.approx(0.9938, abs=5e-5)


@settings(deadline=None)
@given(c=st.floats(0, 1), a=st.floats(0, 1), teacher=st.floats(0.1, 1))
def test_check_2_the_reward_rises_with_compression(c, a, teacher):
    def reward(c):
        return compression_reward(a, teacher, round((1 - c) * 10**9), 10**9)

    slope = (reward(min(1, c + 1e-4)) - reward(max(0, c - 1e-4))) / (
        min(1, c + 1e-4) - max(0, c - 1e-4)
    )
    assert slope == pytest.approx(2 * (1 - c) * a / teacher, abs=2e-3)
    assert reward(0) == 0


def test_check_3_a_violation_costs_everything_in_the_end():
    for e, eps in [(0, 1), (1, 0.7588), (5, 0.1975), (15, 0), (40, 0)]:
        reward = compression_reward(0.9, 1, 10, 100, max_params=5, iteration=e)
        assert reward == pytest.approx(eps - 1 + eps * 0.891, abs=1e-4)
    assert compression_reward(0.9, 1, 10, 100, min_acc=0.91, iteration=15) == -1
    assert compression_reward(0.9, 1, 10, 100, min_acc=0.9, max_params=10, iteration=15) > 0


def test_bad_rewards():
    for arguments in [(0.9, 0, 1, 2), (0.9, 1, 1, 0)]:
        with pytest.raises(ValueError, match="must be positive"):
            compression_reward(*arguments)
    with pytest.raises(ValueError, match=r"must be positive, got 1, 2, 0"):
        compression_reward(0.9, 1, 1, 2, anneal=0)


# --- layers ---------------------------------------------------------------------------------------


def test_each_kind_has_its_code():
    layers = [
        nn.Tanh(), nn.Conv2d(1, 7, 5, 2, 3), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.BatchNorm2d(7),
        nn.Linear(3, 9), nn.Dropout(), nn.LogSoftmax(1), nn.AvgPool2d(2), nn.Softmax(1),
    ]  # fmt: skip
    rows = describe_layers(nn.Sequential(*layers)).tolist()
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert rows[1] == [1, 5, 2, 7, 3]
    assert rows[2] == [2, 3, 2, 0, 1]
    assert rows[5] == [5, 0, 0, 9, 0]


def test_other_layers():
    rows = describe_layers(
        nn.Sequential(
            nn.Conv1d(4, 8, 3, padding="same"),
            nn.Sequential(nn.Conv3d(1, 2, (5, 3, 1)), nn.AdaptiveAvgPool1d(1)),
            nn.GRU(4, 4),
        )
    )
    assert rows.tolist() == [[1, 3, 1, 8, 0], [1, 5, 1, 2, 0], [8, 0, 0, 0, 0], [0] * 5]


def test_skips_count_the_rows_of_a_block():
    model = nn.Sequential(nn.ReLU(), nets.Residual(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU())))
    assert describe_layers(model, skips=True)[:, 5:].tolist() == [[0, 0], [0, 2], [1, 1], [2, 0]]
    assert torch.equal(describe_layers(model), describe_layers(model, skips=True)[:, :5])


def test_shortcuts_have_no_row():
    model = resnet()
    convolutions = describe_layers(model)[:, 0].eq(1).sum()
    assert convolutions == 5
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 6


# --- children -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", TEACHERS)
def test_check_4_everything_kept_is_the_teacher_again(make):
    teacher = make()
    layers = len(describe_layers(teacher))
    children = [
        apply_removal(teacher, torch.ones(layers), inputs(teacher)),
        apply_shrinkage(teacher, torch.full((layers, 5), -1), [0.5], inputs(teacher)),
        apply_shrinkage(teacher, torch.full((layers, 5), 9), PAPER_RATIOS, inputs(teacher)),
    ]
    for child in children:
        assert architecture(child) == architecture(teacher)
        assert size(child) == size(teacher)
        assert child(inputs(teacher).repeat(2, *[1] * (inputs(teacher).dim() - 1))).shape == (2, 10)


def test_no_child_is_worth_anything_that_is_no_smaller():
    search = N2N(convnet(), [X], [(X, torch.zeros(1))], iterations=1)
    everything = torch.ones(len(describe_layers(search.teacher)))
    assert search._child("removal", search.teacher, everything) is None
    assert search._rollout("removal", 0, everything, None).reward == -1


def keep_all_but(model, *rows):
    keep = torch.ones(len(describe_layers(model)), dtype=torch.bool)
    keep[list(rows)] = False
    return keep


def test_layers_are_made_for_the_input_that_they_get():
    child = apply_removal(convnet(), keep_all_but(convnet(), 3, 6), X)  # a convolution, the pool
    assert architecture(child).startswith(
        "Conv2d(1, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False), BatchNorm2d"
    )
    assert child[-1].in_features == 32 * 64
    assert [m.num_features for m in child if isinstance(m, nn.BatchNorm2d)] == [16, 16, 32]


def test_fresh_weights_follow_the_generator():
    keep = keep_all_but(convnet(), 2)
    state = torch.random.get_rng_state()
    a, b, c = (apply_removal(convnet(), keep, X, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(a[0].weight, b[0].weight)
    assert not torch.equal(a[0].weight, c[0].weight)
    assert not torch.equal(a[0].weight, convnet()[0].weight)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_shrinking_multiplies_each_attribute():
    model = nn.Sequential(
        nn.Conv2d(1, 25, 5, padding=2), nn.ReLU(), nn.MaxPool2d(4, 4), nn.Conv2d(25, 12, 1),
        nn.Conv2d(12, 8, 1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    index = torch.full((7, 5), -1)
    index[0, 1:] = torch.tensor([0, 0, 0, 0])
    index[2, 1:3] = 0
    index[3:5, 3] = 0
    child = apply_shrinkage(model, index, [0.6], X)
    shape = (child[0].kernel_size, child[0].stride, child[0].out_channels, child[0].padding)
    assert shape == ((3, 3), (1, 1), 15, (1, 1))
    assert (child[2].kernel_size, child[2].stride) == (2, 2)
    assert child[3].out_channels == 10  # not 7
    assert child[4].out_channels == 8  # the limit enlarges nothing
    assert child[6].in_features == 8 * 16


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_residual_block_shrinks_inside(block):
    teacher = seeded(nets.ResNet, 1, [20, 20], [1, 1], block)
    layers = describe_layers(teacher)
    first = {"basic": [3, 9], "bottleneck": [3, 12]}[block]
    index = torch.full((len(layers), 5), -1)
    index[first, 3] = 0
    child = apply_shrinkage(teacher, index, [0.5, 1.0], X)
    blocks = [m for m in child if isinstance(m, nets.Residual)]
    for shrunk, whole in zip(blocks, (m for m in teacher if isinstance(m, nets.Residual))):
        assert shrunk.body[0].out_channels == 10
        identity = isinstance(whole.shortcut, nn.Identity)
        out = [m for m in shrunk.body if isinstance(m, nn.Conv2d)][-1].out_channels
        before = [m for m in whole.body if isinstance(m, nn.Conv2d)][-1].out_channels
        assert out == (before if identity else before // 2)
    assert child(X).shape == (1, 10)


def test_a_block_without_a_body_disappears_and_one_that_does_not_fit_is_no_child():
    teacher = resnet()
    names = describe_layers(teacher)[:, 0].tolist()
    body = range(3, 8)  # conv, norm, relu, conv, norm of the first block
    assert [names[i] for i in body] == [1, 4, 3, 1, 4]
    child = apply_removal(teacher, keep_all_but(teacher, *body), X)
    assert sum(isinstance(m, nets.Residual) for m in child) == 1
    # without its strided convolution, the second block's body is larger than its shortcut
    strided = next(i for i, row in enumerate(describe_layers(teacher)) if row[2] == 2)
    assert apply_removal(teacher, keep_all_but(teacher, strided), X) is None


def test_what_makes_no_child():
    deep = nn.Sequential(*(nn.Conv2d(1, 1, 3) for _ in range(3)), nn.Flatten(), nn.Linear(4, 2))
    assert apply_removal(deep, keep_all_but(deep, 0), X) is not None
    assert apply_removal(deep, keep_all_but(deep, 3), X) is None  # other output
    thin = nn.Sequential(nn.Conv2d(1, 2, 6), nn.MaxPool2d(1), nn.Flatten(), nn.Linear(18, 2))
    assert apply_removal(thin, keep_all_but(thin, 0), X) is not None  # 64
    small = nn.Sequential(nn.Conv2d(1, 4, 6), nn.Conv2d(4, 1, 1), nn.Flatten(), nn.Linear(9, 2))
    assert apply_removal(small, keep_all_but(small), X) is not None  # as the teacher has it
    assert apply_removal(small, keep_all_but(small, 1), X) is not None  # 36
    narrow = nn.Sequential(nn.Conv2d(1, 1, 6), nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(36, 2))
    assert apply_removal(narrow, keep_all_but(narrow, 1), X) is None  # 9
    wide = nn.Sequential(nn.Conv2d(1, 800, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12_800, 2))
    assert apply_removal(wide, keep_all_but(wide, 1), X) is None  # 51,200
    large = nn.Sequential(nn.MaxPool2d(2, 2), nn.Conv2d(1, 4, 4), nn.Flatten(), nn.Linear(4, 2))
    index = torch.full((4, 5), -1)
    index[0, 1:3] = 0
    assert apply_shrinkage(large, index, [0.5], X) is not None
    tall = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 9, padding=1))
    index = torch.full((2, 5), -1)
    index[1, 4] = 0
    assert apply_shrinkage(tall, index, [0.5], X) is None  # a kernel larger than its map


def test_grouped_one_dimensional_and_unknown_layers():
    model = nn.Sequential(
        nn.Conv1d(4, 24, 3, padding="same"),
        nn.GroupNorm(4, 24),
        nn.Hardswish(),
        nn.Conv1d(24, 48, 3, groups=24),  # depthwise, two each
        nn.Conv1d(48, 24, 1, groups=3, bias=False),
        nn.LayerNorm(6),
        nn.Flatten(),
        nn.Linear(24 * 6, 3),
    ).double()
    x = torch.rand(2, 4, 8)
    assert [default_frozen(layer) for layer in model] == [0, 1, 0, 0, 0, 1, 1, 1]
    index = torch.full((8, 5), -1)
    index[0, 3] = 0
    child = apply_shrinkage(model, index, [0.5], x.double())
    assert child[0].out_channels == child[1].num_channels == child[3].groups == 12
    assert child[3].out_channels == 24
    assert child[4].groups == 3
    assert child(x.double()).dtype == torch.float64
    index[4, 3] = 0
    assert apply_shrinkage(model, index, [0.6], x.double()) is None  # 14 channels in three groups


def test_bfloat16_tied_layers_and_modes():
    model = convnet().bfloat16().eval()
    child = apply_removal(model, keep_all_but(model, 2), X.bfloat16())
    assert child(X.bfloat16()).dtype == torch.bfloat16
    assert not child.training
    relu = nn.ReLU()
    shared = nn.Sequential(nn.Linear(64, 16), relu, nn.Linear(16, 16), relu, nn.Linear(16, 2))
    child = apply_removal(shared, torch.tensor([1, 0, 1, 1, 1]), torch.rand(1, 64))
    assert [type(m).__name__ for m in child] == ["Linear", "Linear", "ReLU", "Linear"]


def test_bad_children():
    with pytest.raises(ValueError, match=r"keep must have shape \(12,\), got \(3,\)"):
        apply_removal(convnet(), torch.ones(3), X)
    with pytest.raises(ValueError, match="example does not pass through the teacher"):
        apply_removal(convnet(), torch.ones(12), torch.rand(1, 3, 8, 8))
    index = torch.zeros(12, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"ratio_index must have shape \(12, 5\), got \(5,\)"):
        apply_shrinkage(convnet(), index[0], [0.5], X)
    with pytest.raises(ValueError, match=r"ratio_index must be in \[-1, 1\), got 1 to 1"):
        apply_shrinkage(convnet(), index + 1, [0.5], X)
    for ratios in ([0.0, 1], [1.1], []):
        with pytest.raises(ValueError, match=r"ratios must lie in \(0, 1\]"):
            apply_shrinkage(convnet(), index, ratios, X)


# --- policies -------------------------------------------------------------------------------------

LAYERS = describe_layers(convnet())


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize(("kind", "shape"), [(RemovalPolicy, (12,)), (ShrinkagePolicy, (12, 5))])
@given(seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_check_6_log_probabilities_are_those_of_the_draw(kind, shape, skips, seed):
    layers = describe_layers(convnet(), skips)
    policy = seeded(kind, skips=skips, seed=seed).double()
    free = torch.rand(shape, generator=generator(seed)) < 0.5
    actions, log_prob = policy.sample(layers, free, generator(seed), rollouts=4)
    assert actions.shape == (4, *shape)
    torch.testing.assert_close(policy.log_prob(layers, actions), log_prob, atol=1e-6, rtol=0)
    torch.testing.assert_close(policy.log_prob(layers, actions[1]), log_prob[1], atol=1e-6, rtol=0)
    assert torch.equal(actions == -1, ~free.expand_as(actions))
    nothing = torch.full_like(actions, -1)
    assert not policy.log_prob(layers, nothing).any()


def test_the_later_choices_know_of_the_earlier_ones():
    """The probability of a draw, step by step as the equation has it."""
    policy = seeded(ShrinkagePolicy, ratios=CODE_RATIOS).double()
    layers = LAYERS[:2].double()
    free = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 0, 1]]).bool()
    actions, log_prob = policy.sample(layers, free, generator(), rollouts=1)
    state, total = None, 0.0
    for row, chosen, choice in zip(layers, actions[0], free, strict=True):
        row = row.clone()
        for j in range(5):
            hidden, state = policy.lstm(row[None], state)
            if choice[j]:
                total += policy.head(hidden[0]).log_softmax(-1)[chosen[j]]
                row[j] *= CODE_RATIOS[chosen[j]]
    torch.testing.assert_close(log_prob[0], total)


def test_draws_have_the_policy_s_probabilities():
    policy = seeded(RemovalPolicy)
    free = torch.tensor([False, True, True])
    actions, _ = policy.sample(LAYERS[:3], free, generator(), rollouts=20_000)
    for a in range(2):
        one = torch.tensor([-1, a, -1])
        expected = policy.log_prob(LAYERS[:3], one).exp().item()
        assert (actions[:, 1] == a).float().mean().item() == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("credit", ["rollout", "batch_mean"])
def test_check_5_reinforce_is_the_gradient_of_the_expected_reward(credit):
    policy = seeded(RemovalPolicy).double()
    layers = LAYERS[:3].double()
    with torch.no_grad():  # far from even, so that the gradient is not small
        policy.head.weight.mul_(4)
    table = torch.rand(2, 2, 2, generator=generator(1), dtype=torch.float64)
    outcomes = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    parameters = list(policy.parameters())

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    expected = (policy.log_prob(layers, outcomes).exp() * table[tuple(outcomes.T)]).sum()
    exact = gradient(expected)

    free = torch.ones(3, dtype=torch.bool)
    actions, log_prob = policy.sample(layers, free, generator(), rollouts=20_000)
    before = [p.detach().clone() for p in parameters]
    reinforce = Reinforce(policy, lr=1.0, credit=credit)
    reinforce.optimizer = torch.optim.SGD(parameters, lr=1.0)
    reinforce.step(log_prob, table[tuple(actions.T)])
    moved = torch.cat([(p - b).flatten() for p, b in zip(parameters, before, strict=True)])
    error = (moved - exact).norm() / exact.norm()
    assert error < 0.05 if credit == "rollout" else error > 0.5  # credit inside the batch is lost


def test_the_baseline_is_the_average_of_past_means():
    reinforce = Reinforce(seeded(RemovalPolicy), lr=0.0, decay=0.9)
    log_prob = torch.zeros(2)
    for rewards, baseline in [([0.0, 2.0], 1.0), ([3.0, 3.0], 1.2), ([0.0, 0.0], 1.08)]:
        reinforce.step(log_prob, torch.tensor(rewards))
        assert reinforce.baseline == pytest.approx(baseline)


def test_check_7_a_bandit_that_rewards_keeping_is_solved():
    policy = seeded(RemovalPolicy)
    reinforce = Reinforce(policy, lr=0.003)
    free = torch.ones(len(LAYERS), dtype=torch.bool)
    draws = generator()
    for _ in range(200):
        actions, log_prob = policy.sample(LAYERS, free, draws, rollouts=5)
        reinforce.step(log_prob, actions.double().mean(1))
    actions, _ = policy.sample(LAYERS, free, draws, rollouts=500)
    assert actions.double().mean() > 0.95


def test_bad_policies():
    with pytest.raises(ValueError, match=r"ratios must lie in \(0, 1\], got \[0, 1\]"):
        ShrinkagePolicy(ratios=[0, 1])
    with pytest.raises(ValueError, match=r"free must be bool of shape \(12,\), got torch.float32"):
        RemovalPolicy().sample(LAYERS, torch.ones(12))
    with pytest.raises(ValueError, match=r"free must be bool of shape \(12, 5\)"):
        ShrinkagePolicy().sample(LAYERS, torch.ones(12, dtype=torch.bool))
    with pytest.raises(ValueError, match="credit must be 'rollout' or 'batch_mean', got 'mean'"):
        Reinforce(RemovalPolicy(), 0.1, credit="mean")
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        Reinforce(RemovalPolicy(), 0.1, decay=1)


# --- the search -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    """Which quarter of a picture is brightest, and a teacher who knows."""
    x = torch.rand(256, 1, 8, 8, generator=generator())
    y = nn.functional.avg_pool2d(x, 4).flatten(1).argmax(1)
    teacher = seeded(
        nets.ConvNet, 1, [12, 12], [1], head="flatten", image_size=(8, 8), num_classes=4
    )
    batches = list(zip(x[:192].split(32), y[:192].split(32), strict=True))
    nets.fit(
        teacher,
        batches,
        lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        optimizer=torch.optim.Adam(teacher.parameters(), lr=1e-2),
        steps=60,
    )
    teacher.zero_grad()
    return teacher, batches, [(x[192:], y[192:])]


QUICK = {"iterations": 2, "rollouts": 3, "epochs": 1, "final_epochs": 2}


def test_check_8_the_teacher_is_not_touched(task):
    teacher = task[0].train()
    before = copy.deepcopy(teacher.state_dict())
    result = N2N(*task, **QUICK).fit()
    assert teacher.training
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert len(result.history) == 12
    assert not result.best.training
    teacher.eval()


def test_a_search_repeats_and_trains_no_child_twice(task):
    first, second = (N2N(*task, **QUICK, random_state=3).fit() for _ in range(2))
    assert [r.reward for r in first.history] == [r.reward for r in second.history]
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.best.parameters(), second.best.parameters(), strict=True)
    )
    by_name = {}
    for rollout in first.history:
        by_name.setdefault(rollout.architecture, set()).add(rollout.accuracy)
    assert all(len(accuracies) == 1 for accuracies in by_name.values())
    assert first.evaluated == len(by_name.keys() - {""})


def test_rewards_are_measured_against_the_first_teacher(task):
    teacher, _, valid = task
    result = N2N(*task, **QUICK, random_state=1).fit()
    with torch.no_grad():
        x, y = valid[0]
        accuracy = (teacher(x).argmax(1) == y).double().mean().item()
    for rollout in result.history:
        if rollout.architecture:
            expected = compression_reward(rollout.accuracy, accuracy, rollout.params, size(teacher))
            assert rollout.reward == pytest.approx(expected)
            assert rollout.params < size(teacher)
    best = max(result.history, key=lambda r: r.reward)
    assert architecture(result.best) == best.architecture
    smaller = [r.params for r in result.history if r.stage == "shrinkage" and r.architecture]
    assert max(smaller) < size(result.children["removal"])


def test_constraints(task):
    teacher = task[0]
    options = {**QUICK, "stages": ["shrinkage"], "iterations": 4}
    unbounded = N2N(*task, **options).fit()
    bound = sorted(r.params for r in unbounded.history if r.architecture)[2]
    result = N2N(*task, **options, max_params=bound).fit()
    assert size(result.best) <= bound
    with pytest.warns(UserWarning, match=r"no smaller child with max_params=3 and min_acc=None"):
        result = N2N(*task, **options, max_params=3, anneal=1).fit()
    assert {r.reward for r in result.history if r.iteration > 0} == {-1.0}
    assert size(result.best) < size(teacher)


def test_policies_go_on_to_another_teacher_unchanged(task):
    trained = N2N(*task, **QUICK).fit().policies
    before = copy.deepcopy(trained["removal"].state_dict())
    deeper = seeded(
        nets.ConvNet, 1, [12] * 4, [1, 3], head="flatten", image_size=(8, 8), num_classes=4
    )
    result = N2N(deeper, *task[1:], **QUICK, policies=trained).fit()
    assert all(torch.equal(before[k], t) for k, t in trained["removal"].state_dict().items())
    after = result.policies["removal"].state_dict()
    assert any(not torch.equal(before[k], t) for k, t in after.items())
    with pytest.raises(TypeError, match=r"policies\['removal'\] must be a RemovalPolicy, got Shr"):
        N2N(*task, policies={"removal": trained["shrinkage"]})


def test_chance_draws_evenly_and_learns_nothing(task):
    result = random_architectures(*task, **{**QUICK, "rollouts": 20, "iterations": 1})
    removal = torch.stack([r.actions for r in result.history if r.stage == "removal"])
    assert removal[removal >= 0].double().mean().item() == pytest.approx(0.5, abs=0.15)
    assert result.policies["removal"].head.weight.count_nonzero() == 0


def test_what_is_frozen_stays(task):
    def frozen(layer):
        return default_frozen(layer) or isinstance(layer, nn.ReLU | nn.Conv2d)

    result = N2N(*task, **QUICK, stages=["removal"], frozen=frozen).fit()
    assert {r.architecture.count("BatchNorm2d") for r in result.history} >= {0, 1}
    for rollout in result.history:
        if rollout.architecture:
            assert rollout.architecture.count("ReLU()") == 2
            assert rollout.architecture.count("Conv2d(") == 2


def test_distilling_lowers_the_distance_to_the_teacher(task, tmp_path):
    teacher, train, _ = task
    student = apply_removal(teacher, keep_all_but(teacher, 3, 4, 5), X)

    def distance(model):
        with torch.no_grad():
            return sum((model(x) - teacher(x)).square().mean().item() for x, _ in train)

    student.eval()
    before = distance(student)
    assert distill(teacher, student, train, epochs=5, lr=5e-3) is student
    assert distance(student) < 0.6 * before
    save_tensors(student.state_dict(), tmp_path / "student")
    again = apply_removal(teacher, keep_all_but(teacher, 3, 4, 5), X).eval()
    again.load_state_dict(load_tensors(tmp_path / "student"))
    assert distance(again) == distance(student)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 2)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher": nn.Sequential(nn.Linear(64, 2))}, "teacher has no removable layer"),
        ({"teacher": Custom()}, "teacher has no removable layer"),
        ({"train": []}, "train and valid must give at least one batch each"),
        ({"valid": []}, "train and valid must give at least one batch each"),
        ({"train": [(torch.rand(2, 5), 0)]}, "example does not pass through the teacher"),
        ({"stages": ["pruning"]}, r"stages must be of \['removal', 'shrinkage'\], got"),
        ({"stages": []}, "stages must be of"),
        ({"iterations": 0}, "iterations must be a positive integer, got 0"),
        ({"epochs": 1.5}, "epochs must be a positive integer, got 1.5"),
        ({"ratios": [2.0]}, r"ratios must lie in \(0, 1\]"),
        ({"max_params": 0}, "max_params must be at least 1, got 0"),
        ({"min_acc": 90}, r"min_acc must be in \[0, 1\], got 90"),
    ],
)
def test_bad_searches(arguments, message):
    batch = (torch.rand(4, 64), torch.zeros(4))
    given = {"teacher": nets.MLP([64, 16, 2]), "train": [batch], "valid": [batch]} | arguments
    with pytest.raises(ValueError, match=message):
        N2N(**given)


def test_batches_that_are_no_tensors():
    with pytest.raises(TypeError, match=r"batches must be tensors or tuples \(x, y\), got dict"):
        N2N(nets.MLP([4, 4, 2]), [{"x": torch.rand(2, 4)}], [(torch.rand(2, 4), torch.zeros(2))])
    teacher = nets.MLP([4, 4, 2])
    with pytest.raises(ValueError, match="loader is empty"):
        distill(teacher, teacher, [])
    with pytest.raises(ValueError, match="epochs must be a positive integer, got 0"):
        distill(teacher, teacher, [torch.rand(2, 4)], epochs=0)
