"""Codebook features: the brief's checks first, then each part."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paperworks.common.activations import collect_activations
from paperworks.nets import MLP, causal_lm
from paperworks.representation import (
    CodebookLayer,
    CodebookModel,
    CodeEdit,
    CodeTable,
    FiniteStateMachine,
    GroupCodebook,
    Site,
    codebook_param_groups,
    initialize_codes_,
    js_divergence,
    load_codebooks,
    nearest_codes,
    neuron_precision_at_recall,
    record_codes,
    replace_unused_codes_,
    steer,
    wrap_codebooks,
)

SIZES = {"vocab_size": 11, "width": 16, "layers": 2, "heads": 2, "context": 16}


@pytest.fixture(autouse=True)
def seeded():
    """Modules draw their weights from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tokens(*shape, seed=0):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["gpt2", "gpt_neox"])
def transformer(request):
    pytest.importorskip("transformers")
    return causal_lm(request.param, **SIZES)


@pytest.fixture
def gpt2():
    pytest.importorskip("transformers")
    return causal_lm("gpt2", **SIZES)


def layer_of(codes, **options):
    codes = torch.as_tensor(codes, dtype=torch.float64)
    layer = CodebookLayer(codes.shape[1], len(codes), **options).double()
    layer.codes.data = codes
    return layer


# ---- the checks of the brief


def test_check_1_by_hand():
    codes, h = [[2.0, 0.0], [0.0, 1.0]], torch.tensor([1.0, 0.9], dtype=torch.float64)
    for options, expected in (
        ({}, [2.0, 0.0]),
        ({"similarity": "euclidean"}, [0.0, 1.0]),
        ({"k": 2}, [1.0, 0.5]),
    ):
        layer = layer_of(codes, layernorm=False, **options)
        assert layer(h).tolist() == expected


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("loss", ["base", "aeloss", "fullaeloss", "vqvae"])
def test_check_2_gradients_equal_the_explicit_expressions(k, loss):
    n, d, C, weight, beta = 7, 4, 12, 0.7, 0.3
    layer = CodebookLayer(d, C, k, loss=loss, mse_weight=weight, beta=beta, layernorm=False)
    layer = layer.double()
    h, g = gaussian(n, d).requires_grad_(), gaussian(n, d, seed=1)
    (layer(h) * g).sum().backward()
    ids = layer.ids
    codes = layer.codes.detach().clone().requires_grad_()
    z = torch.stack([codes[row].mean(0) for row in ids])
    explicit = (z * g).sum() if loss != "vqvae" else 0
    if loss != "base":
        explicit = explicit + weight * (z - h.detach()).square().sum() / n
    (expected,) = torch.autograd.grad(explicit, codes)
    torch.testing.assert_close(layer.codes.grad, expected, atol=1e-6, rtol=0)
    unselected = torch.ones(C, dtype=torch.bool)
    unselected[ids.flatten()] = False
    assert unselected.any()
    assert not layer.codes.grad[unselected].any()
    if loss in ("base", "aeloss"):
        assert torch.equal(h.grad, g)
    else:
        torch.testing.assert_close(h.grad, g + 2 * beta * (h - z).detach() / n)
    if loss == "aeloss":  # of a code that was selected once, by hand
        code = int((ids.flatten().bincount(minlength=C) == 1).nonzero()[0])
        i = int((ids == code).any(1).nonzero()[0])
        by_hand = g[i] / k + weight * 2 * (z[i] - h[i]) / (n * k)
        torch.testing.assert_close(layer.codes.grad[code], by_hand.detach(), atol=1e-6, rtol=0)


def test_check_2_through_layernorm():
    layer = CodebookLayer(5, 20).double()
    x, g = gaussian(6, 5).requires_grad_(), gaussian(6, 5, seed=1)
    (layer(x) * g).sum().backward()
    other = x.detach().clone().requires_grad_()
    (nn.functional.layer_norm(other, (5,), eps=1e-5) * g).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_check_3_no_error_where_h_is_a_code():
    layer = layer_of([[1.0, 2.0], [-3.0, 0.5]], layernorm=False)
    out = layer(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    assert layer.reconstruction_error == 0
    (out * 0).sum().backward()
    assert not layer.codes.grad.any()


def test_check_4_one_code_carries_no_information(transformer):
    model = wrap_codebooks(transformer, at=["mlp"], num_codes=1).eval()
    outputs = collect_activations(model, tokens(3, 9), ["codebooks.mlp_0"])["codebooks.mlp_0"]
    assert torch.equal(outputs, outputs[:1, :1].expand_as(outputs))
    x, y = gaussian(400, 4, dtype=torch.float32), torch.arange(400) % 2
    x[:, 0] += 6.0 * y  # easy to tell, were it not for the code

    def accuracy(num_codes):
        layer = CodebookLayer(4, num_codes, layernorm=False)
        net = nn.Sequential(layer, nn.Linear(4, 2))
        optimizer = torch.optim.Adam(net.parameters(), 0.05)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        return (net.eval()(x).argmax(1) == y).float().mean().item()

    assert accuracy(1) == 0.5  # as a network gets that sees nothing
    assert accuracy(20) > 0.9


def test_check_5_disabled_is_the_network_bit_for_bit(transformer):
    model, x = wrap_codebooks(transformer, num_codes=20), tokens(3, 9)
    expected = transformer(input_ids=x).logits
    assert not torch.equal(model(input_ids=x).logits, expected)
    model.disable()
    assert torch.equal(model(input_ids=x).logits, expected)
    model.enable()
    assert not torch.equal(model(input_ids=x).logits, expected)


def test_check_6_steering_to_the_active_ids_changes_nothing(transformer):
    model, x = wrap_codebooks(transformer, num_codes=20, k=3).eval(), tokens(3, 9)
    expected = model(input_ids=x).logits
    edits = [CodeEdit(name, book.ids, slot="all") for name, book in model.codebooks.items()]
    with steer(model, edits):
        torch.testing.assert_close(model(input_ids=x).logits, expected, atol=1e-6, rtol=0)


def test_check_6_the_codes_of_another_input_give_its_mlp_outputs(transformer):
    model = wrap_codebooks(transformer, num_codes=20, k=2).eval()
    sites = ["codebooks.mlp_0", "codebooks.mlp_1"]
    a, b = tokens(3, 9), tokens(3, 9, seed=1)
    theirs = collect_activations(model, b, sites)
    edits = [
        CodeEdit(name, book.ids[:, -1:], positions=8, slot="all")
        for name, book in model.codebooks.items()
    ]
    ours = collect_activations(model, a, sites)
    with steer(model, edits):
        steered = collect_activations(model, a, sites)
    for site in sites:
        torch.testing.assert_close(steered[site][:, -1], theirs[site][:, -1], atol=1e-6, rtol=0)
        torch.testing.assert_close(steered[site][:, :-1], ours[site][:, :-1])
        assert not torch.allclose(ours[site][:, -1], theirs[site][:, -1])


def test_check_7_divergence():
    p = gaussian(5, 8).softmax(-1)
    assert js_divergence(p, p).max() < 1e-12
    disjoint = js_divergence(torch.eye(3)[0], torch.tensor([0.0, 0.5, 0.5]))
    assert disjoint.item() == pytest.approx(math.log(2))
    q = p.roll(1, 0)
    torch.testing.assert_close(js_divergence(p, q), js_divergence(q, p))


def test_check_8_every_walk_is_legal_and_guesses_score_the_share_of_edges():
    generator = torch.Generator().manual_seed(0)
    machine = FiniteStateMachine(100, 10, base=10, generator=generator)
    assert machine.legal_fraction(machine.encode(machine.sample(200, 30, generator))) == 1
    guesses = torch.randint(100, (400, 40), generator=generator)
    assert machine.legal_fraction(machine.encode(guesses)) == pytest.approx(0.1, abs=0.01)


# ---- nearest codes


def by_definition(x, codes, k, similarity):
    if similarity == "cosine":
        scores = nn.functional.cosine_similarity(x.unsqueeze(-2), codes, dim=-1)
    else:
        scores = -(x.unsqueeze(-2) - codes).norm(dim=-1)
    return scores.topk(k).indices


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999), n=st.integers(1, 9), C=st.integers(1, 12), d=st.integers(1, 5),
    k=st.integers(1, 4), groups=st.sampled_from([0, 1, 3]), chunk=st.sampled_from([None, 1, 4]),
    similarity=st.sampled_from(["cosine", "euclidean"]),
)  # fmt: skip
def test_nearest_codes_by_definition_whatever_the_chunk(
    seed, n, C, d, k, groups, chunk, similarity
):
    lead = (groups,) if groups else ()
    x, codes = gaussian(2, n, *lead, d + 1, seed=seed), gaussian(*lead, C, d + 1, seed=seed + 1)
    k = min(k, C)
    found = nearest_codes(x, codes, k, similarity, chunk)
    assert torch.equal(found, by_definition(x, codes, k, similarity))


def test_nearest_codes_hold_no_more_than_a_chunk_of_scores():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.numbers = max(self.numbers, out.numel())
            return out

    x, codes = gaussian(1000, 4), gaussian(500, 4)
    with Largest() as seen:
        nearest_codes(x, codes, 2, chunk=10)
    assert seen.numbers == max(10 * 500, x.numel())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2])
def test_nearest_codes_of_any_dtype(dtype, k):
    codes = torch.eye(6, dtype=dtype) * torch.arange(1, 7, dtype=dtype).unsqueeze(1)
    x = torch.tensor([[0, 0.5, 0, 1, 0, 0], [0, 0, 0, 0, -1, 2]]).to(dtype)
    assert nearest_codes(x, codes, k)[:, 0].tolist() == [3, 5]


def test_a_zero_code_or_vector_gives_no_nan():
    codes = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert nearest_codes(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), codes).tolist() == [[1], [0]]
    layer = CodebookLayer(3, 5)
    out = layer(torch.ones(2, 3, requires_grad=True))  # constant: no variance to divide by
    out.sum().backward()
    assert out.isfinite().all()
    assert layer.codes.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(3, dtype=torch.long)}, TypeError, "x must be a floating-point tensor"),
        ({"codes": torch.ones(5, 3, dtype=torch.float64)}, TypeError, "x is torch.float32 but"),
        ({"codes": torch.ones(3)}, ValueError, r"codes must have shape \(C, d\) or \(G, C, d\)"),
        ({"x": torch.ones(2, 4)}, ValueError, r"x must end in \(3,\)"),
        ({"codes": torch.ones(2, 5, 3)}, ValueError, r"x must end in \(2, 3\)"),
        ({"k": 6}, ValueError, "k must be an integer from 1 to num_codes 5, got 6"),
        ({"similarity": "dot"}, ValueError, "similarity must be one of cosine, euclidean"),
        ({"chunk": 0}, ValueError, "chunk must be a positive integer, got 0"),
    ],
)
def test_nearest_codes_refuse(change, error, message):
    with pytest.raises(error, match=message):
        nearest_codes(**({"x": torch.ones(3), "codes": torch.ones(5, 3)} | change))


# ---- layers


def test_codes_are_ranked_by_direction_but_keep_their_length():
    layer = layer_of([[100.0, 0.0], [0.1, 0.1]], layernorm=False)
    out = layer(torch.tensor([[1.0, 0.8]], dtype=torch.float64))
    assert out.tolist() == [[0.1, 0.1]]


def test_padding_enters_neither_error_nor_usage():
    layer = CodebookLayer(4, 10, k=2).double()
    x, mask = gaussian(3, 5, 4).requires_grad_(), torch.ones(3, 5, dtype=torch.bool)
    mask[1, 2:] = mask[2, 4] = False
    layer(x, mask).backward(torch.zeros(3, 5, 4, dtype=torch.float64))
    twin = copy.deepcopy(layer)
    twin.reset_usage()
    twin.zero_grad()
    kept = twin(x[mask].detach().requires_grad_())
    kept.backward(torch.zeros_like(kept))
    torch.testing.assert_close(layer.codes.grad, twin.codes.grad)
    torch.testing.assert_close(layer.reconstruction_error, twin.reconstruction_error)
    assert torch.equal(layer.usage, twin.usage)
    assert layer.usage.sum() == 2 * mask.sum()
    layer(x, torch.zeros_like(mask)).sum().backward()  # nothing but padding
    assert layer.codes.grad.isfinite().all()


def test_a_group_is_its_layers_side_by_side():
    group = GroupCodebook(6, 3, 10, k=2).double()
    group.weight.data, group.bias.data = gaussian(3, 2).exp(), gaussian(3, 2, seed=1)
    x, g = gaussian(4, 5, 6).requires_grad_(), gaussian(4, 5, 6, seed=2)
    out = group(x)
    (out * g).sum().backward()
    error = 0
    for i in range(3):
        layer = CodebookLayer(2, 10, k=2).double()
        layer.codes.data, layer.weight.data, layer.bias.data = (
            p[i].detach() for p in (group.codes, group.weight, group.bias)
        )
        part = x.detach()[..., 2 * i : 2 * i + 2].requires_grad_()
        z = layer(part)
        (z * g[..., 2 * i : 2 * i + 2]).sum().backward()
        torch.testing.assert_close(out[..., 2 * i : 2 * i + 2], z)
        torch.testing.assert_close(group.codes.grad[i], layer.codes.grad)
        torch.testing.assert_close(x.grad[..., 2 * i : 2 * i + 2], part.grad)
        assert torch.equal(group.ids[..., i, :], layer.ids)
        assert torch.equal(group.usage[i], layer.usage)
        error += layer.reconstruction_error
    torch.testing.assert_close(group.reconstruction_error, error)


def test_no_loss_is_added_in_evaluation():
    layer = CodebookLayer(4, 10).double().eval()
    x = gaussian(6, 4)
    layer(x).backward(torch.zeros(6, 4, dtype=torch.float64))
    assert not layer.codes.grad.any()
    assert not layer.usage.any()
    layer.train()(x).backward(torch.zeros(6, 4, dtype=torch.float64))
    assert layer.codes.grad.any()


def test_loss_and_k_are_each_layers_own():
    a, b = CodebookLayer(4, 10, k=1, loss="base"), CodebookLayer(4, 10, k=3)
    a.k = 2
    assert (a.k, b.k, a.loss, b.loss) == (2, 3, "base", "aeloss")
    with pytest.raises(ValueError, match="k must be an integer from 1 to num_codes 10, got 11"):
        b.k = 11


def test_training_brings_codes_to_where_activations_are():
    x = gaussian(300, 6, dtype=torch.float32)
    for loss in ("aeloss", "base"):
        layer = CodebookLayer(6, 20, loss=loss)
        layer(x)
        before = layer.reconstruction_error
        optimizer = torch.optim.Adam([layer.codes], 0.03)
        for _ in range(100):
            optimizer.zero_grad()
            layer(x.requires_grad_()).backward(torch.zeros_like(x))
            optimizer.step()
        layer(x)
        assert (layer.reconstruction_error < 0.7 * before) == (loss == "aeloss")


def test_kmeans_starts_closer_than_normal_draws():
    centres = 4 * gaussian(8, 6, dtype=torch.float32)
    x = centres.repeat(40, 1) + 0.01 * gaussian(320, 6, dtype=torch.float32)
    for layer in (CodebookLayer(6, 8), GroupCodebook(6, 2, 8)):
        layer.initialize_(x, torch.Generator().manual_seed(0))
        layer(x)
        assert layer.reconstruction_error < 1.0 if isinstance(layer, GroupCodebook) else 0.5
        assert layer.usage.bool().float().mean() > 0.8
        with pytest.raises(ValueError, match="8 codes need as many activations, got 7"):
            layer.initialize_(x[:7])


@pytest.mark.parametrize("make", [lambda: CodebookLayer(6, 30), lambda: GroupCodebook(6, 2, 30)])
def test_unused_codes_move_onto_activations(make):
    layer, x = make(), gaussian(10, 6, dtype=torch.float32)
    layer(x)
    used, before = layer.usage > 0, layer.codes.detach().clone()
    moved = layer.replace_unused_(x, generator=torch.Generator().manual_seed(0))
    assert moved == (~used).sum()
    assert torch.equal(layer.codes[used], before[used])
    h = layer.normalize(x).detach()
    h = h if h.dim() == 3 else h.unsqueeze(1)
    codes = layer.codes.detach().reshape(h.shape[1], 30, -1)
    for g in range(h.shape[1]):
        unused = ~used.view(h.shape[1], 30)[g]
        assert torch.cdist(codes[g][unused], h[:, g]).amin(1).max() < 1e-5
    assert not layer.usage.any()
    layer.replace_unused_(x, noise=0.5)
    assert (
        torch.cdist(layer.codes.detach().reshape(-1, h.shape[-1]), h.flatten(0, 1)).amin(1).max()
        > 0.05
    )
    with pytest.raises(ValueError, match="noise must not be negative"):
        layer.replace_unused_(x, noise=-1)
    with pytest.raises(ValueError, match="x holds no activations"):
        layer.replace_unused_(x[:0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes_copies_and_states(dtype):
    layer = GroupCodebook(8, 2, 10, k=2).to(dtype)
    x = gaussian(3, 5, 8).to(dtype).requires_grad_()
    out = layer(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == layer.codes.grad.dtype == dtype
    assert out.isfinite().all()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), out)
    fresh = GroupCodebook(8, 2, 10, k=2).to(dtype)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), out)
    assert set(layer.state_dict()) == {"codes", "weight", "bias"}


def test_autocast_keeps_the_dtype_of_the_input():
    layer = CodebookLayer(8, 10)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(gaussian(3, 8).bfloat16().requires_grad_())
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.codes.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CodebookLayer(4, 10, k=11), "k must be an integer from 1 to num_codes 10, got 11"),
        (lambda: CodebookLayer(4, 10, k=0), "k must be an integer"),
        (lambda: CodebookLayer(0, 10), "dim must be a positive integer, got 0"),
        (lambda: CodebookLayer(4, 1.5), "num_codes must be a positive integer, got 1.5"),
        (lambda: CodebookLayer(4, 10, similarity="dot"), "similarity must be one of"),
        (lambda: CodebookLayer(4, 10, loss="mse"), "loss must be one of base, aeloss"),
        (lambda: CodebookLayer(4, 10, mse_weight=-1), "mse_weight must not be negative, got -1"),
        (lambda: CodebookLayer(4, 10, beta=float("nan")), "beta must not be negative"),
        (lambda: GroupCodebook(4, 3, 10), "dim must be a multiple of groups, got 4 and 3"),
        (lambda: GroupCodebook(4, 0, 10), "groups must be a positive integer, got 0"),
        (lambda: CodebookLayer(128, 10)(torch.ones(2, 64)), "expected last dim 128, got 64"),
        (lambda: CodebookLayer(4, 10)(torch.tensor(1.0)), "expected last dim 4, got none"),
        (
            lambda: CodebookLayer(4, 10)(torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool)),
            r"mask must be boolean of shape \(2,\)",
        ),
    ],
)
def test_layers_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch\.int64"):
        CodebookLayer(4, 10)(torch.ones(2, 4, dtype=torch.long))


# ---- a wrapped network


def test_sites_of_known_architectures(transformer):
    model = wrap_codebooks(transformer, num_codes=20, k=2)
    assert set(model.codebooks) == {"attn_0", "mlp_0", "attn_1", "mlp_1"}
    assert model.codebooks["attn_0"].codes.shape == (2, 20, 8)  # a code book a head
    assert model.codebooks["mlp_1"].codes.shape == (20, 16)
    kinds = ["attn", "mlp", "mlp_hidden", "qkv", "block"]
    every = wrap_codebooks(transformer, kinds, layers=[1], num_codes=20, mlp_groups=4)
    assert set(every.codebooks) == {f"{kind}_1" for kind in kinds}
    every(input_ids=tokens(2, 5))
    assert every.codebooks["mlp_1"].ids.shape == (2, 5, 4, 1)
    assert every.codebooks["mlp_hidden_1"].dim == 64
    assert every.codebooks["qkv_1"].dim == 48
    body = getattr(transformer, transformer.base_model_prefix)
    assert wrap_codebooks(body, num_codes=5)(input_ids=tokens(2, 5)).last_hidden_state.shape == (
        2, 5, 16,
    )  # fmt: skip


def test_attention_codes_replace_what_heads_give(gpt2):
    model, x = wrap_codebooks(gpt2, at=["attn"], num_codes=20).eval(), tokens(2, 5)
    projection = "model.transformer.h.0.attn.c_proj"
    given_ = collect_activations(model, x, ["codebooks.attn_0"])["codebooks.attn_0"]
    taken = collect_activations(model, x, [projection])[projection]
    torch.testing.assert_close(taken, gpt2.transformer.h[0].attn.c_proj(given_))


def test_gpt_neo_is_known():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoConfig(
        vocab_size=11, hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=16,
        attention_types=[[["global"], 2]], bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = wrap_codebooks(transformers.GPTNeoForCausalLM(config).eval(), num_codes=20)
    assert model(input_ids=tokens(2, 5)).logits.shape == (2, 5, 11)
    assert model.codebooks["attn_1"].ids.shape == (2, 5, 2, 1)


def test_the_given_model_is_untouched(transformer):
    before = {name: p.clone() for name, p in transformer.state_dict().items()}
    x = tokens(2, 5)
    expected = transformer(input_ids=x).logits
    model = wrap_codebooks(transformer, num_codes=20).train()
    fine_tune(model, steps=2)
    assert not transformer.training
    assert torch.equal(transformer(input_ids=x).logits, expected)
    assert all(torch.equal(p, before[name]) for name, p in transformer.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in transformer.modules())


def fine_tune(model, steps, lr=1e-2):
    optimizer = torch.optim.AdamW(codebook_param_groups(model, lr))
    model.train()
    for step in range(steps):
        x = tokens(8, 9, seed=step)
        logits = model(input_ids=x[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def test_model_and_codebooks_learn_together(transformer):
    model = wrap_codebooks(transformer, num_codes=20)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fine_tune(model, steps=3)
    stuck = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert not stuck


def test_any_network_by_the_names_of_its_modules():
    net = MLP([4, 8, 6, 3])
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    model = wrap_codebooks(net, sites={"first": names[0], "second": names[1]}, num_codes=9)
    x = torch.rand(5, 4)
    out = model(x)
    first, second = model.codebooks["first"], model.codebooks["second"]
    assert (first.dim, second.dim) == (8, 6)
    by_hand = net[names.index(names[0])](x)
    torch.testing.assert_close(first.decode(first.ids), first(by_hand))
    assert out.shape == (5, 3)
    table = record_codes(model, x)
    assert table.ids["first"].shape == (5, 1)
    assert table.tokens is None


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x, "more"


def test_layers_that_return_tuples_and_widths_seen_in_a_forward():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 6), Twice())
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            z, more = self.body(x)
            assert more == "more"
            return self.head(z)

    with pytest.raises(ValueError, match="width at site 'body_1' cannot be read off its module"):
        wrap_codebooks(Net(), sites=["body.1"], num_codes=5)
    net = Net()
    for options in ({"example": torch.rand(2, 4)}, {}):
        site = "body.1" if options else Site("body.1", dim=6)
        model = wrap_codebooks(net, sites=[site], num_codes=5, **options)
        assert model.codebooks["body_1"].dim == 6
        assert model(torch.rand(3, 4)).shape == (3, 2)
    model = wrap_codebooks(net, sites=[Site("head", "input", groups=3)], num_codes=5)
    assert model.codebooks["head"].codes.shape == (3, 5, 2)
    assert model(torch.rand(3, 4)).shape == (3, 2)


def test_generation_with_a_cache_equals_that_without(transformer):
    model = wrap_codebooks(transformer, num_codes=20, k=2).eval()
    prompt = tokens(3, 4)
    options = {"max_new_tokens": 8, "do_sample": False}
    cached = model.generate(prompt, **options)
    assert cached.shape == (3, 12)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **options))
    assert model.codebooks["mlp_0"].ids.shape == (3, 11, 2)  # of the whole text, without a cache
    plain = transformer.generate(prompt, **options)
    assert not torch.equal(cached, plain)
    model.disable()
    assert torch.equal(model.generate(prompt, **options), plain)


def test_padding_of_a_transformer_is_left_out(transformer):
    model = wrap_codebooks(transformer, num_codes=20).train()
    x, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    model(input_ids=x, attention_mask=mask)
    assert model.codebooks["mlp_0"].usage.sum() == 10
    model.eval()
    whole = record_codes(model, [{"input_ids": x, "attention_mask": mask}])
    assert len(whole) == 10
    assert torch.equal(whole.tokens, x[mask.bool()])
    model.generate(x, attention_mask=mask, max_new_tokens=2, do_sample=False)


def test_saving_and_loading(transformer, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = wrap_codebooks(transformer, num_codes=20, k=2, loss="base", mlp_groups=2)
    fine_tune(model, steps=1)
    model.set_k(1)
    x = tokens(2, 5)
    model.save_pretrained(tmp_path)
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded = load_codebooks(alone, tmp_path)
    torch.testing.assert_close(loaded(input_ids=x).logits, model(input_ids=x).logits)
    assert loaded.codebooks["mlp_0"].loss == "base"
    assert loaded.codebooks["attn_0"].k == 1
    model.disable()
    torch.testing.assert_close(alone(input_ids=x).logits, model(input_ids=x).logits)
    with pytest.raises(ValueError, match=r"holds no codebooks.safetensors"):
        load_codebooks(alone, tmp_path / "nowhere")


def test_copies_and_pickles_have_codebooks_of_their_own(transformer):
    model, x = wrap_codebooks(transformer, num_codes=20).eval(), tokens(2, 5)
    expected = model(input_ids=x).logits
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(twin(input_ids=x).logits, expected)
        twin.codebooks["mlp_0"].codes.data += 1
        assert not torch.equal(twin(input_ids=x).logits, expected)
        twin.disable()
        assert torch.equal(model(input_ids=x).logits, expected)
    fresh = wrap_codebooks(transformer, num_codes=20).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(input_ids=x).logits, expected)


def test_dtype_device_mode_and_attributes_are_the_models(transformer):
    model = wrap_codebooks(transformer.bfloat16().train(), num_codes=20)
    assert model.training
    assert all(book.training for book in model.codebooks.values())
    assert model.codebooks["mlp_0"].codes.dtype == torch.bfloat16
    model(input_ids=tokens(2, 5)).logits.sum().backward()
    assert model.config is model.model.config
    assert model.device == torch.device("cpu")
    with pytest.raises(AttributeError, match="nonsense"):
        model.nonsense  # noqa: B018


def test_groups_of_parameters(transformer):
    model = wrap_codebooks(transformer, num_codes=20)
    model.model.get_input_embeddings().weight.requires_grad_(False)
    rest, own = codebook_param_groups(model, lr=1e-3, weight_decay=0.1)
    assert (rest["weight_decay"], own["weight_decay"], own["lr"]) == (0.1, 0.0, 1e-3)
    assert {id(p) for p in own["params"]} == {id(p) for p in model.codebooks.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(rest["params"]) + len(own["params"]) == len(trained)
    with pytest.raises(ValueError, match="no codebook that can be trained"):
        codebook_param_groups(transformer, lr=1e-3)


def test_codes_start_at_centres_and_unused_ones_move(transformer):
    model = wrap_codebooks(transformer, num_codes=20).train()
    x = tokens(30, 9)

    def error():
        model(input_ids=x)
        return model.codebooks["attn_0"].reconstruction_error.item()

    before = error()
    initialize_codes_(model, x, examples=200, generator=torch.Generator().manual_seed(0))
    assert error() < 0.5 * before
    for book in model.codebooks.values():
        book.reset_usage()
    model(input_ids=x[:1, :1])
    unused = sum(int((book.usage == 0).sum()) for book in model.codebooks.values())
    assert replace_unused_codes_(model, x) == unused
    with pytest.raises(TypeError, match="model must come from wrap_codebooks, got MLP"):
        initialize_codes_(MLP([4, 2]), x)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"at": ["ffn"]}, ValueError, "at: gpt2 has attn, mlp, mlp_hidden, qkv, block, got 'ffn'"),
        ({"at": "mlp"}, TypeError, "at must be a sequence of kinds"),
        ({"at": []}, ValueError, "name no place for a codebook"),
        ({"layers": [2]}, ValueError, "layers: the model has 2, from 0, got 2"),
        ({"sites": ["transformer.h.0.mpl"]}, ValueError, "did you mean transformer.h.0.mlp"),
        ({"sites": "lm_head"}, TypeError, "sites must be a sequence or mapping"),
        ({"sites": {"a.b": "lm_head"}}, ValueError, "give it a name of its own"),
        ({"sites": {"keys": "lm_head"}}, ValueError, "give it a name of its own"),
        ({"sites": [Site("lm_head", of="both")]}, ValueError, "of must be 'output' or 'input'"),
        ({"k": 30}, ValueError, "k must be an integer from 1 to num_codes 20, got 30"),
        ({"mlp_groups": 3}, ValueError, "dim must be a multiple of groups, got 16 and 3"),
    ],
)
def test_wrapping_refuses(gpt2, change, error, message):
    with pytest.raises(error, match=message):
        wrap_codebooks(gpt2, **({"num_codes": 20} | change))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in gpt2.modules())


def test_unknown_architectures_and_wrapped_models_are_refused(gpt2):
    with pytest.raises(ValueError, match=r"unknown architecture 'MLP' .*: pass sites="):
        wrap_codebooks(MLP([4, 2]), num_codes=5)
    with pytest.raises(TypeError, match="model must be a module without codebooks"):
        wrap_codebooks(wrap_codebooks(gpt2, num_codes=5), num_codes=5)


@pytest.mark.slow
def test_transformers_is_not_imported_with_the_field():
    code = (
        "import sys; from paperworks.representation import wrap_codebooks, CodebookLayer; "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- steering


@pytest.fixture
def model(gpt2) -> CodebookModel:
    return wrap_codebooks(gpt2, num_codes=20, k=3).eval()


def ids_of(model, x, edits):
    with steer(model, edits):
        model(input_ids=x)
    return {name: book.ids for name, book in model.codebooks.items()}


@pytest.mark.parametrize(
    ("positions", "steered"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        (2, [2]),
        ([0, 4], [0, 4]),
        (range(1, 3), [1, 2]),
        (slice(3, None), [3, 4, 5]),
        (slice(1, 6, 2), [1, 3, 5]),
        (torch.tensor([False, True, True]), [1, 2]),
        (99, []),
    ],
)
def test_positions(model, positions, steered):
    x = tokens(2, 6)
    model(input_ids=x)
    before = model.codebooks["mlp_0"].ids
    after = ids_of(model, x, [CodeEdit("mlp_0", 7, positions)])["mlp_0"]
    others = [t for t in range(6) if t not in steered]
    assert (after[:, steered, -1] == 7).all()
    assert torch.equal(after[:, others], before[:, others])
    assert torch.equal(after[..., :-1], before[..., :-1])  # the last slot, the least similar


def test_a_mask_for_each_text(model):
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 1] = mask[1, 4] = True
    ids = ids_of(model, tokens(2, 6), [CodeEdit("mlp_0", 7, mask, slot="all")])["mlp_0"]
    assert torch.equal((ids == 7).all(-1), mask)


def test_slots_heads_and_blocked_codes(model):
    x = tokens(2, 6)
    assert (ids_of(model, x, [CodeEdit("mlp_0", 7, slot=0)])["mlp_0"][..., 0] == 7).all()
    attn = ids_of(model, x, [CodeEdit("attn_0", 7, head=1, slot="all")])["attn_0"]
    assert (attn[:, :, 1] == 7).all()
    assert not (attn[:, :, 0] == 7).all()
    book = model.codebooks["mlp_0"]
    for edit, expected in (
        (CodeEdit("mlp_0", -1), lambda c: (c[..., 0, :] + c[..., 1, :]) / 3),
        (CodeEdit("mlp_0", 7, slot="append"), lambda c: (c.sum(-2) + book.codes[7]) / 4),
        (CodeEdit("mlp_0", -1, slot="all"), lambda c: 0 * c[..., 0, :]),
    ):
        model(input_ids=x)
        chosen = book.codes[book.ids]
        with steer(model, [edit]):
            given_ = collect_activations(model, x, ["codebooks.mlp_0"])["codebooks.mlp_0"]
        torch.testing.assert_close(given_, expected(chosen).detach(), atol=1e-6, rtol=1e-5)


def test_appending_at_one_position_leaves_the_others(model):
    x, site = tokens(2, 6), "codebooks.mlp_0"
    before = collect_activations(model, x, [site])[site]
    with steer(model, [CodeEdit("mlp_0", 7, positions=5, slot="append")]):
        after = collect_activations(model, x, [site])[site]
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5], before[:, 5])


def test_generated_positions_are_steered_through_the_cache(transformer):
    model = wrap_codebooks(transformer, num_codes=20).eval()
    prompt, seen = tokens(2, 4), []
    book = model.codebooks["mlp_0"]
    handle = book.register_forward_hook(lambda *_: seen.append(book.ids[..., 0]))
    options = {"max_new_tokens": 6, "do_sample": False}
    mask = torch.zeros(16, dtype=torch.bool)
    mask[[2, 4, 7]] = True
    for positions, expected in (
        (slice(4, None), {4, 5, 6, 7, 8}),
        ([1, 6], {1, 6}),
        (mask, {2, 4, 7}),
    ):
        seen.clear()
        with steer(model, [CodeEdit("mlp_0", 7, positions)]):
            text = model.generate(prompt, **options)
            ids = torch.cat(seen, 1)
            assert ids.shape == (2, 9)
            whole = model.generate(prompt, use_cache=False, **options)
        assert torch.equal(text, whole)
        assert expected <= set((ids == 7).all(0).nonzero().flatten().tolist())
        seen.clear()
        with steer(model, [CodeEdit("mlp_0", -1, positions)]):
            model.generate(prompt, **options)
        assert set((torch.cat(seen, 1) == -1).all(0).nonzero().flatten().tolist()) == expected
    handle.remove()


def test_edits_apply_in_order_nest_and_end(model):
    x = tokens(2, 6)
    expected = model(input_ids=x).logits
    with steer(model, [CodeEdit("mlp_0", 7), CodeEdit("mlp_0", 8, positions=1)]):
        with steer(model, [CodeEdit("mlp_0", 9, positions=2)]):
            model(input_ids=x)
            assert model.codebooks["mlp_0"].ids[0, :4, -1].tolist() == [7, 8, 9, 7]
        with pytest.raises(IndexError), steer(model, [CodeEdit("mlp_0", 9)]):
            model(input_ids=x + 100)
        model(input_ids=x)
        assert model.codebooks["mlp_0"].ids[0, :4, -1].tolist() == [7, 8, 7, 7]
    assert torch.equal(model(input_ids=x).logits, expected)


def test_two_dimensional_activations_have_no_positions():
    model = wrap_codebooks(MLP([4, 8, 3]), sites=["0"], num_codes=9).eval()
    with steer(model, [CodeEdit("0", 5)]):
        model(torch.rand(6, 4))
    assert (model.codebooks["0"].ids == 5).all()
    message = "positions need activations"
    with pytest.raises(ValueError, match=message), steer(model, [CodeEdit("0", 5, positions=1)]):
        model(torch.rand(6, 4))


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (CodeEdit("mlp_9", 0), ValueError, "no site 'mlp_9': choose from attn_0, mlp_0"),
        (CodeEdit("mlp_0", 20), ValueError, "code must be from -1 to 19 at 'mlp_0', got 20"),
        (CodeEdit("mlp_0", -2), ValueError, "code must be from -1 to 19"),
        (CodeEdit("mlp_0", 1.5), ValueError, "code must be an integer or a LongTensor"),
        (CodeEdit("mlp_0", 0, slot=3), ValueError, "slot must be below k=3, 'all' or 'append'"),
        (CodeEdit("mlp_0", 0, slot="last"), ValueError, "slot must be below k=3"),
        (CodeEdit("mlp_0", 0, head=0), ValueError, "site 'mlp_0' has 0 heads, got head 0"),
        (CodeEdit("attn_0", 0, head=2), ValueError, "site 'attn_0' has 2 heads, got head 2"),
        (CodeEdit("mlp_0", 0, positions=-1), ValueError, "positions must be integers from the"),
        (CodeEdit("mlp_0", 0, slice(-3, None)), ValueError, "positions count from the start"),
        ("mlp_0", TypeError, "edits must be CodeEdit, got str"),
    ],
)
def test_steering_refuses(model, edit, error, message):
    with pytest.raises(error, match=message), steer(model, [edit]):
        pass
    assert all(book.edit is None for book in model.codebooks.values())


def test_steering_needs_evaluation_and_codebooks(model):
    with pytest.raises(ValueError, match=r"steer needs model.eval\(\)"), steer(model.train(), []):
        pass
    model.eval().disable()
    with pytest.raises(ValueError, match=r"call model.enable\(\)"), steer(model, []):
        pass
    with pytest.raises(ValueError, match=r"call model.enable\(\)"):
        record_codes(model, tokens(1, 3))
    model.enable()
    message = "must broadcast"
    edit = CodeEdit("mlp_0", torch.zeros(5, 6, dtype=torch.long))
    with pytest.raises(ValueError, match=message), steer(model, [edit]):
        model(input_ids=tokens(2, 6))
    with (
        pytest.raises(TypeError, match="model must come from wrap_codebooks"),
        steer(MLP([2, 2]), []),
    ):
        pass


# ---- reading


def test_a_table_by_hand():
    plain = torch.tensor([[0, 1], [0, 2], [1, 2], [0, 1]])
    heads = torch.tensor([[[0], [2]], [[0], [2]], [[1], [2]], [[0], [0]]])
    table = CodeTable(
        {"mlp_0": plain, "attn_0": heads}, {"mlp_0": 4, "attn_0": 3}, torch.tensor([5, 6, 5, 5])
    )
    assert len(table) == 4
    mask = torch.tensor([True, True, False, False])
    precision, recall = table.precision_recall(mask, "mlp_0")
    torch.testing.assert_close(precision, torch.tensor([2 / 3, 1 / 3, 1 / 2, 0]))
    torch.testing.assert_close(recall, torch.tensor([1.0, 0.5, 0.5, 0]))
    precision, recall = table.precision_recall(mask, "attn_0")
    torch.testing.assert_close(precision, torch.tensor([[2 / 3, 0, 0], [0, 0, 2 / 3]]))
    torch.testing.assert_close(recall, torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    assert table.dead["mlp_0"].tolist() == [False, False, False, True]
    assert table.dead["attn_0"].tolist() == [[False, False, True], [False, True, False]]
    assert list(table.tokens_of(0, "mlp_0").items()) == [(5, 2), (6, 1)]
    assert table.tokens_of(2, "attn_0", head=1) == {5: 2, 6: 1}
    assert table.tokens_of(3, "mlp_0") == {}
    labels = torch.tensor([0, 0, 1, 2])
    torch.testing.assert_close(
        table.purity(labels, "mlp_0"), torch.tensor([2 / 3, 1 / 3, 1 / 2, 0])
    )
    torch.testing.assert_close(
        table.purity(labels, "attn_0"), torch.tensor([[2 / 3, 1, 0], [1, 0, 2 / 3]])
    )


def test_recording_follows_the_data(transformer):
    model, x = wrap_codebooks(transformer, num_codes=20, k=2).train(), tokens(7, 5)
    table = record_codes(model, x.split(3))
    assert model.training
    assert torch.equal(table.tokens, x.flatten())
    model.eval()(input_ids=x)
    for name, book in model.codebooks.items():
        assert torch.equal(table.ids[name], book.ids.flatten(0, 1))
    tuples = record_codes(model, [(part, None) for part in x.split(4)])
    assert torch.equal(tuples.ids["attn_1"], table.ids["attn_1"])
    precision, recall = table.precision_recall(table.tokens == 3, "mlp_0")
    fires = table.fires("mlp_0", 4)
    hits = (fires & (table.tokens == 3)).sum()
    assert recall[4].item() == pytest.approx((hits / (table.tokens == 3).sum()).item())
    assert precision[4].item() == pytest.approx((hits / fires.sum().clamp(min=1)).item())
    with pytest.raises(ValueError, match="batches is empty"):
        record_codes(model, [])


def test_a_planted_code_is_found(gpt2):
    """A network whose MLP input tells one token apart: its code has precision and recall 1."""
    net = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 6))
    model = wrap_codebooks(net, sites=["1"], num_codes=11).eval()
    book = model.codebooks["1"]
    with torch.no_grad():
        book.codes.copy_(book.normalize(net(torch.arange(11)))[[3, *range(3), *range(4, 11)]])
    table = record_codes(model, tokens(20, 9))
    precision, recall = table.precision_recall(table.tokens == 3, "1")
    assert precision[0] == recall[0] == 1
    assert list(table.tokens_of(0, "1")) == [3]
    assert table.purity(table.tokens, "1").min() == 1


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda t: t.precision_recall(torch.ones(3, dtype=torch.bool), "b"), "no site 'b'"),
        (lambda t: t.precision_recall(torch.ones(3), "a"), "property_mask must be boolean"),
        (lambda t: t.precision_recall(torch.zeros(3, dtype=torch.bool), "a"), "no position has"),
        (lambda t: t.tokens_of(0, "a"), "the table has no tokens"),
        (lambda t: t.fires("a", 0, head=0), "has one code book and no heads"),
        (lambda t: t.fires("h", 0), "has 2 heads, got head None"),
        (lambda t: t.purity(torch.tensor([0, -1, 0]), "a"), "labels must hold an integer from 0"),
    ],
)
def test_tables_refuse(read, message):
    ids = {"a": torch.zeros(3, 1, dtype=torch.long), "h": torch.zeros(3, 2, 1, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        read(CodeTable(ids, {"a": 2, "h": 2}))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(2, 12), recall=st.floats(0, 1))
def test_neurons_get_the_best_threshold_there_is(seed, n, recall):
    acts = gaussian(n, 3, seed=seed).mul(2).round()  # with ties
    masks = gaussian(2, n, seed=seed + 1) > 0
    masks[:, 0] = True
    recalls = torch.tensor([recall, 1.0], dtype=torch.float64)
    found = neuron_precision_at_recall(acts, masks, recalls)
    for p in range(2):
        for m in range(3):
            best = 0.0
            for threshold in acts[:, m]:
                yes = acts[:, m] >= threshold
                hits = (yes & masks[p]).sum()
                if hits >= recalls[p] * masks[p].sum() - 1e-9:
                    best = max(best, (hits / yes.sum()).item())
            assert found[p, m].item() == pytest.approx(best)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acts": torch.ones(4)}, r"acts must be \(N, M\)"),
        ({"mask": torch.ones(4)}, "mask boolean"),
        ({"mask": torch.zeros(4, dtype=torch.bool)}, "a property that no position has"),
        ({"recall": 1.5}, r"recall must lie in \[0, 1\], got 1.5"),
    ],
)
def test_neurons_refuse(change, message):
    good = {"acts": torch.ones(4, 2), "mask": torch.ones(4, dtype=torch.bool), "recall": 0.5}
    with pytest.raises(ValueError, match=message):
        neuron_precision_at_recall(**(good | change))


# ---- the machine


def test_a_machine_by_hand():
    machine = FiniteStateMachine(10, 2, base=3)
    assert machine.digits == 3
    assert machine.vocab_size == 4
    assert machine.encode(torch.tensor([[9, 5]])).tolist() == [[3, 1, 0, 0, 0, 1, 2]]
    text = torch.tensor([[3, 1, 0, 0, 0, 1, 2, 1], [3, 2, 2, 2, 3, 0, 0, 1]])
    assert machine.decode(text).tolist() == [[9, 5], [-1, -1]]
    machine.successors[9] = torch.tensor([5, 0])
    assert machine.legal_fraction(text) == 0.5
    torch.testing.assert_close(machine.next_digit(torch.tensor(9)), torch.tensor([1.0, 0, 0]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), states=st.integers(1, 40), base=st.integers(2, 9))
def test_machines_of_any_size(seed, states, base):
    generator = torch.Generator().manual_seed(seed)
    edges = 1 + seed % states
    machine = FiniteStateMachine(states, edges, base, generator)
    assert all(len(set(row)) == edges for row in machine.successors.tolist())
    walks = machine.sample(5, 6, generator)
    text = machine.encode(walks)
    assert torch.equal(machine.decode(text), walks)
    assert machine.legal_fraction(text) == 1
    torch.testing.assert_close(machine.next_digit(walks).sum(-1), torch.ones(5, 6))


def test_edges_are_equally_likely():
    machine = FiniteStateMachine(5, 2, base=5)
    walks = machine.sample(4000, 6)
    follow = walks[:, 1:][walks[:, :-1] == 0]
    shares = follow.bincount(minlength=5)[machine.successors[0]] / len(follow)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.5]), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 2), "n_states must be an integer from 1, got 0"),
        ((4, 5, 2), "n_edges must be at most n_states 4, got 5"),
        ((4, 2, 1), "base must be an integer from 2, got 1"),
    ],
)
def test_machines_refuse(sizes, message):
    with pytest.raises(ValueError, match=message):
        FiniteStateMachine(*sizes)
    with pytest.raises(ValueError, match="two states need 5 tokens, got 4"):
        FiniteStateMachine(4, 2, 2).legal_fraction(torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="over equally many outcomes"):
        js_divergence(torch.ones(2), torch.ones(3))
