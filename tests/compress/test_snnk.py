"""Checks 1 to 8 are those of the paper's brief: hand-computed values, moments, closed forms."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.stats import special_ortho_group
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from paperworks.compress import (
    ArcCosineFeatures,
    BundledRegressor,
    FourierMeasure,
    FourierSeries,
    HoulsbyAdapter,
    LowRankLinear,
    SNNKAdapter,
    SNNKLinear,
    UniversalRandomFeatures,
    add_adapters,
    bundle,
    fit_fourier,
    uptrain,
)

X = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
W = torch.tensor([0.4, 0.6, -0.1, 0.2], dtype=torch.float64)
F64 = torch.float64
# e^{iz} as its real part and, times -i, its imaginary part: what L(ix) L(w) estimates
WAVE = {
    part: FourierSeries(
        torch.tensor([1 / (2 * math.pi)]), torch.tensor([c], dtype=torch.complex128)
    )
    for part, c in {"real": 1 + 0j, "imaginary": -1j}.items()
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def products(activation, x=X, w=W, b=None, m=100_000, seed=0, **options):
    """m products Φ_j(x) Ψ_j(w, b), each an estimate of f(w·x + b) of its own."""
    features = UniversalRandomFeatures(
        len(x), m, activation, generator=generator(seed), **options
    ).double()
    both = features.phi(x) * features.psi(w, b)
    return m * both.reshape(2, m).sum(0)


def assert_mean(samples, expected, sigmas=5.0):
    error = samples.std() / math.sqrt(len(samples))
    assert 0 < sigmas * error < max(0.05, abs(expected))  # or it could not tell
    assert abs(samples.mean() - expected) < sigmas * error


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "second"), [("i", 2.6117), ("symmetric", 2.4596)])
def test_check_1_moments_by_hand(split, second):
    real, imaginary = (products(WAVE[part], split=split) for part in ("real", "imaginary"))
    assert_mean(real, 0.99955)
    assert abs(imaginary.mean() + 0.02999) < 5 * imaginary.std() / math.sqrt(len(imaginary))
    assert_mean(real.square() + imaginary.square(), second)


def test_check_1_sine():
    samples = products("sin", m=1_000_000)
    error = samples.std() / 1000
    assert 5 * error < 0.008
    assert abs(samples.mean() + 0.029996) < 5 * error


def second_moment(A, split, x=X, w=W):
    """E |L(ρx) L(ηw)|² in closed form: a Gaussian integral, finite for A < 1/8."""
    angles = (math.pi / 2, 0.0) if split == "i" else (math.pi / 4, math.pi / 4)
    y = math.cos(angles[0]) * x + math.cos(angles[1]) * w
    square = math.cos(2 * angles[0]) * x @ x + math.cos(2 * angles[1]) * w @ w
    spread = 2 * (1 - 4 * A) / (1 - 8 * A) * y @ y
    return ((1 - 4 * A) / math.sqrt(1 - 8 * A)) ** len(x) * math.exp(spread - square)


@pytest.mark.parametrize("split", ["i", "symmetric"])
def test_check_2_unbiased_for_every_A_and_least_varied_below_0(split):
    moments = {}
    for A in (-0.1, -0.05, 0.0, 0.05):
        real, imaginary = (products(WAVE[part], A=A, split=split) for part in WAVE)
        assert_mean(real, math.cos(-0.03))
        squares = real.square() + imaginary.square()
        assert_mean(squares, second_moment(A, split))
        moments[A] = squares.mean()
    assert moments[-0.05] < moments[0.0] < moments[0.05]


@pytest.mark.parametrize("split", ["i", "symmetric"])
@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize(
    ("activation", "f"),
    [("sin", torch.sin), ("cos", torch.cos), ("gaussian", lambda z: torch.exp(-z.square() / 2))],
)
def test_unbiased_with_a_bias(activation, f, orthogonal, split):
    b = torch.tensor(0.8, dtype=F64)
    options = {"orthogonal": orthogonal, "split": split, "A": -0.03, "scale": 1.2}
    assert_mean(products(activation, b=b, **options), f(W @ X + b).item())


def test_check_3_arc_cosine_by_hand():
    features = ArcCosineFeatures(4, 400_000, orthogonal=True, generator=generator()).double()
    unit = torch.eye(4, dtype=F64)
    for x, w, kernel in (
        (X, W, 0.067691),
        (unit[0], unit[1], 1 / (2 * math.pi)),
        (X, X, (X @ X).item() / 2),
    ):
        samples = features.m * features.phi(x) * features.psi(w)
        assert_mean(samples, kernel)
        assert features.kernel(x, w) == pytest.approx(kernel, rel=0.02)


@pytest.mark.parametrize("kind", ["urf", "relu"])
def test_check_4_error_falls_as_the_root_of_m(kind):
    x, w = 0.25 * randn(20, 4, dtype=F64), 0.25 * randn(20, 4, seed=1, dtype=F64)
    make = UniversalRandomFeatures if kind == "urf" else ArcCosineFeatures
    exact = torch.sin(x @ w.T) if kind == "urf" else arc_cosine(x, w)
    sizes, errors = [2**k for k in range(4, 13)], []
    for m in sizes:
        draws = [make(4, m, generator=generator(seed)).double() for seed in range(20)]
        squares = [(f.kernel(x, w) - exact).square().mean() for f in draws]
        errors.append(torch.stack(squares).mean().sqrt().item())
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1)


def arc_cosine(x, w):
    lengths = x.norm(dim=1)[:, None] * w.norm(dim=1)
    t = (x @ w.T / lengths).clamp(-1, 1).acos()
    return lengths * (t.sin() + (math.pi - t) * t.cos()) / (2 * math.pi)


def test_phi_of_relu_by_hand():
    features = ArcCosineFeatures(2, 2, floor=-0.5, bias=True)
    features.G = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, -2.0]])
    x, root = torch.tensor([0.5, 0.25]), math.sqrt(2)
    torch.testing.assert_close(features(x), torch.tensor([4.0, -0.5]) / root)
    torch.testing.assert_close(features.psi(x, torch.tensor(2.0)), torch.tensor([7, -0.5]) / root)
    torch.testing.assert_close(features.psi(x), torch.tensor([1.0, -0.5]) / root)
    features.normalize = 5.0
    torch.testing.assert_close(features.psi(x), torch.tensor([1.0, -0.5]) / root)  # inputs only
    scaled = 5 / math.hypot(0.5, 0.25) * x
    expected = torch.stack([scaled[0] + 2 * scaled[1] + 3, torch.tensor(-0.5)]) / root
    torch.testing.assert_close(features(x), expected)


@pytest.mark.parametrize("m", [3, 5, 12])
def test_orthogonal_rows(m):
    G = ArcCosineFeatures(5, m, orthogonal=True, generator=generator()).G.double()
    for block in G.split(5):
        gram = block @ block.T
        assert (gram - gram.diag().diag()).abs().max() < 1e-5
    free = ArcCosineFeatures(5, m, generator=generator()).G.double()
    torch.testing.assert_close(free.norm(dim=1), G.norm(dim=1), rtol=1e-5, atol=1e-5)
    many = ArcCosineFeatures(5, 50_000, orthogonal=True, generator=generator()).G
    assert many.mean(0).abs().max() < 0.03  # each row is N(0, I) whatever the sign QR chose
    assert (many.T @ many / len(many) - torch.eye(5)).abs().max() < 0.03
    assert (many**4).mean() == pytest.approx(3, rel=0.03)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(0, 99))
def test_turning_x_w_and_G_together_changes_nothing(d, seed):
    turn = torch.from_numpy(special_ortho_group(d, seed=seed).rvs())
    x, w = randn(7, d, seed=seed, dtype=F64), randn(3, d, seed=seed + 1, dtype=F64)
    for features in (
        ArcCosineFeatures(d, 8, generator=generator(seed)),
        UniversalRandomFeatures(d, 8, "gaussian", A=-0.1, generator=generator(seed)),
    ):
        features = features.double()
        before = features.kernel(x, w)
        features.G = features.G @ turn
        torch.testing.assert_close(features.kernel(x @ turn, w @ turn), before)


def test_scale_moves_length_from_x_to_w():
    plain, scaled = (
        UniversalRandomFeatures(4, 16, scale=s, generator=generator()) for s in (1.0, 2.0)
    )
    x, w = randn(3, 4), randn(2, 4, seed=1)
    torch.testing.assert_close(scaled.phi(2 * x), plain.phi(x))
    torch.testing.assert_close(scaled.psi(w / 2), plain.psi(w))


def test_gradients():
    for features in (
        ArcCosineFeatures(3, 6, bias=True, generator=generator()),
        UniversalRandomFeatures(3, 6, "gaussian", A=-0.05, normalize=1.5, generator=generator()),
    ):
        inputs = [randn(2, 3, dtype=F64), randn(4, 3, seed=1, dtype=F64), randn(4, dtype=F64)]
        torch.autograd.gradcheck(features.double().kernel, [t.requires_grad_() for t in inputs])


def test_large_inputs_stay_finite_where_the_product_is():
    features = UniversalRandomFeatures(4, 64, generator=generator())
    x = 8 * nn.functional.normalize(randn(5, 4), dim=1)
    assert features(x).isfinite().all()
    assert features(100 * x / 8)[0].isinf().any()  # e^{|x|²/2}: the docstring says keep it near 1


# --- Fourier measures -----------------------------------------------------------------------------


@pytest.mark.parametrize("f", [torch.tanh, nn.functional.gelu, torch.relu])
def test_fit_fourier_on_its_interval(f):
    measure = fit_fourier(f, radius=2.0, terms=8)
    z = torch.linspace(-2, 2, 101)
    assert (measure(z) - f(z)).abs().max() < (0.1 if f is torch.relu else 0.02)
    assert measure.frequencies.abs().max() == pytest.approx(1.0)  # period 8, so k/8


def test_a_fitted_activation_is_estimated():
    measure = fit_fourier(torch.tanh, radius=1.0, terms=2)
    b = torch.tensor(0.7, dtype=F64)
    samples = products(measure, b=b, m=400_000)
    assert_mean(samples, measure(W @ X + b).item())
    assert measure(W @ X + b).item() == pytest.approx(math.tanh(0.67), abs=0.02)


def test_a_series_by_hand():
    series = FourierSeries(torch.tensor([0.0, 0.25]), torch.tensor([2.0, -1j]))
    z = torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(series(z), torch.tensor([2.0, 3.0, 2.0]))
    xi, ratio = series.sample(3000, generator())
    assert (xi == 0.25).double().mean() == pytest.approx(1 / 3, abs=0.05)
    torch.testing.assert_close(ratio.abs(), torch.full((3000,), 3.0, dtype=F64))


def test_a_density_of_ones_own():
    class Uniform(FourierMeasure):
        """sin(z)/z: 2πξ is uniform on [-1, 1]."""

        def sample(self, m, generator=None):
            xi = torch.rand(m, generator=generator, dtype=F64) * 2 - 1
            return xi / (2 * math.pi), torch.ones(m, dtype=torch.complex128)

    b = torch.tensor(1.5, dtype=F64)
    assert_mean(products(Uniform(), b=b), math.sin(1.47) / 1.47)


# --- layers ---------------------------------------------------------------------------------------


def test_check_5_a_new_adapter_is_the_identity():
    x = randn(2, 3, 24)
    adapters = [
        SNNKAdapter(24, m=5, generator=generator()),
        SNNKAdapter(24, m=5, floor=-5.0, normalize=24**0.25, generator=generator()),
        SNNKAdapter(24, m=5, down=4, generator=generator()),
        HoulsbyAdapter(24, 4),
    ]
    for adapter in adapters:
        assert torch.equal(adapter(x), x)
        adapter(x).square().sum().backward()
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter -= 0.01 * parameter.grad
        assert not torch.equal(adapter(x), x)  # the identity can be left


def bert_like(dim, inner, layers, norm=True):
    """The linear layers of an encoder under BERT's names."""

    def layer():
        def dense(a, b):
            return nn.ModuleDict({"dense": nn.Linear(a, b)})

        attention = nn.ModuleDict({"query": nn.Linear(dim, dim), "output": dense(dim, dim)})
        intermediate = dense(dim, inner)
        intermediate["intermediate_act_fn"] = nn.GELU()
        parts = {"attention": attention, "intermediate": intermediate, "output": dense(inner, dim)}
        return nn.ModuleDict(parts)

    return nn.ModuleDict({"layer": nn.ModuleList(layer() for _ in range(layers))})


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_check_5_numbers_of_bert_base():
    with torch.device("meta"):
        bert = bert_like(768, 3072, 12)
    adapted = add_adapters(bert, m=16)
    assert trainable(adapted) == 24 * (768 * 16 + 768) == 313_344
    houlsby = add_adapters(bert, m=48, adapter=HoulsbyAdapter)
    assert trainable(houlsby) == 1_789_056
    assert trainable(bert) == sum(p.numel() for p in bert.parameters())  # untouched


FRESH = """
import sys, torch
from safetensors.torch import load_file, save_file
from torch import nn
from paperworks.compress import SNNKAdapter, SNNKLinear, UniversalRandomFeatures
torch.manual_seed(99)
model = nn.Sequential(SNNKLinear(6, 8, 5), SNNKAdapter(8, 4), SNNKLinear(8, 2, 7, kind="urf"))
model.load_state_dict(load_file(sys.argv[1] + "/weights.safetensors"))
x = load_file(sys.argv[1] + "/x.safetensors")["x"].clone()  # aligned as tensors are
save_file({"y": model(x).detach()}, sys.argv[1] + "/y.safetensors")
"""


def test_check_6_a_saved_layer_computes_the_same_in_a_fresh_process(tmp_path):
    model = nn.Sequential(
        SNNKLinear(6, 8, 5, generator=generator(1)),
        SNNKAdapter(8, 4, generator=generator(2)),
        SNNKLinear(8, 2, 7, kind="urf", generator=generator(3)),
    )
    x = randn(3, 6)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    save_file({"x": x}, tmp_path / "x.safetensors")
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path)], check=True)
    assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_check_8_many_features_make_the_sine_layer():
    dense = nn.Linear(6, 3)
    dense.weight.data, dense.bias.data = 0.3 * randn(3, 6), randn(3, seed=1)
    x = nn.functional.normalize(randn(40, 6, seed=2), dim=1)
    exact = torch.sin(dense(x))
    errors = {}
    for m in (100, 40_000):
        layer = SNNKLinear.from_linear(
            dense, m, kind="urf", activation="sin", A=-0.02, generator=generator()
        )
        errors[m] = (layer(x) - exact).square().mean().sqrt().item()
    assert errors[40_000] < 0.02 < errors[100]


def test_input_and_weights_meet_on_the_same_projection():
    dense = nn.Linear(4, 3)
    layer = SNNKLinear.from_linear(dense, 200_000, generator=generator())
    x = randn(5, 4)
    ones = torch.ones(5, 1)
    joined = arc_cosine(torch.cat([x, ones], 1), torch.cat([dense.weight, dense.bias[:, None]], 1))
    torch.testing.assert_close(layer(x), joined, rtol=0.02, atol=0.01)
    bare = SNNKLinear.from_linear(dense, 200_000, bias=False, generator=generator())
    torch.testing.assert_close(bare(x), arc_cosine(x, dense.weight), rtol=0.02, atol=0.01)


def test_a_layer_learns():
    layer = SNNKLinear(4, 2, 64, generator=generator())
    x = randn(256, 4)
    target = torch.stack([x[:, 0].abs(), x[:, 1] - x[:, 2].relu()], 1)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * target.var()
    assert [name for name, _ in layer.named_parameters()] == ["Psi"]
    assert "features.G" in layer.state_dict()


@pytest.mark.parametrize("kind", ["relu", "urf"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes(kind, dtype):
    dense = nn.Linear(4, 3).to(dtype)
    layer = SNNKLinear.from_linear(dense, 64, kind=kind, generator=generator())
    x = randn(5, 4).mul(0.3).to(dtype)
    assert layer(x).dtype == layer.Psi.dtype == dtype
    wide = SNNKLinear.from_linear(dense.double(), 64, kind=kind, generator=generator())
    torch.testing.assert_close(layer(x).double(), wide(x.double()), rtol=0.1, atol=0.1)
    assert SNNKLinear(4, 3, 8, kind=kind).to(dtype)(x).dtype == dtype
    adapter = SNNKAdapter(4, 8).to(dtype)
    assert adapter(x).dtype == dtype


def test_a_generator_leaves_the_default_one_alone():
    before = torch.get_rng_state()
    a, b = (SNNKLinear(4, 3, 8, generator=generator(5)) for _ in range(2))
    SNNKAdapter(4, 2, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.Psi, b.Psi)
    assert torch.equal(a.features.G, b.features.G)


@pytest.mark.parametrize("kind", ["relu", "urf"])
def test_compiles_to_a_graph(kind):
    layer, x = SNNKLinear(4, 3, 8, kind=kind), randn(2, 4)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


def test_low_rank_is_the_nearest():
    dense = nn.Linear(6, 4)
    dense.weight.data = randn(4, 6)
    layer = LowRankLinear.from_linear(dense, 2)
    U, S, Vh = torch.linalg.svd(dense.weight.detach())
    nearest = U[:, :2] * S[:2] @ Vh[:2]
    torch.testing.assert_close(layer.U.weight @ layer.V.weight, nearest)
    full = LowRankLinear.from_linear(dense, 4)
    x = randn(3, 6, seed=1)
    torch.testing.assert_close(full(x), dense(x))
    assert LowRankLinear.from_linear(dense.bfloat16(), 2)(x.bfloat16()).dtype == torch.bfloat16
    assert LowRankLinear.from_linear(nn.Linear(6, 4, bias=False), 2).U.bias is None


# --- transformers ---------------------------------------------------------------------------------


def test_adapters_sit_behind_both_projections():
    model = bert_like(8, 16, 2)
    adapted = add_adapters(model, m=3)
    names = {n.removesuffix(".1") for n, m in adapted.named_modules() if isinstance(m, SNNKAdapter)}
    expected = {f"layer.{i}.{end}" for i in (0, 1) for end in ("attention.output", "output")}
    assert names == {f"{name}.dense" for name in expected}
    assert isinstance(model["layer"][0]["output"]["dense"], nn.Linear)
    query = add_adapters(model, m=3, after=["query"])
    assert trainable(query) == 2 * (8 * 3 + 8)
    assert isinstance(query["layer"][0]["attention"]["query"], nn.Sequential)


def test_uptrain_replaces_the_matrix_and_its_activation_on_top():
    model = bert_like(8, 16, 3).double()
    model["layer"][2].eval()
    changed = uptrain(model, layers=2, m=5, generator=generator())
    bottom, *top = (layer["intermediate"] for layer in changed["layer"])
    assert isinstance(bottom["dense"], nn.Linear)
    assert isinstance(bottom["intermediate_act_fn"], nn.GELU)
    for old, new in zip(model["layer"][1:], top):
        assert isinstance(new["intermediate_act_fn"], nn.Identity)
        dense, layer = old["intermediate"]["dense"], new["dense"]
        assert layer.Psi.dtype == F64
        torch.testing.assert_close(layer.Psi, layer.features.psi(dense.weight, dense.bias))
    assert [part["dense"].training for part in top] == [True, False]
    assert isinstance(model["layer"][2]["intermediate"]["dense"], nn.Linear)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta", "vit"])
def test_models_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64,
    }  # fmt: skip
    kinds = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
        "vit": (transformers.ViTConfig, transformers.ViTModel),
    }
    config, make = kinds[family]
    extra = {"image_size": 8, "patch_size": 4} if family == "vit" else {}
    model = make(config(**sizes, **extra)).eval()
    inputs = randn(2, 3, 8, 8) if family == "vit" else torch.randint(3, 90, (2, 7))
    before = model(inputs).last_hidden_state
    adapted = add_adapters(model, m=4)
    assert torch.equal(adapted(inputs).last_hidden_state, before)
    assert trainable(adapted) == 4 * (32 * 4 + 32)
    adapted(inputs).last_hidden_state.square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for n, p in adapted.named_parameters()
               if "pooler" not in n)  # fmt: skip
    changed = uptrain(model, layers=1, m=4, generator=generator())
    output = changed(inputs).last_hidden_state
    assert output.shape == before.shape
    assert not torch.equal(output, before)
    assert sum(isinstance(module, SNNKLinear) for module in changed.modules()) == 1
    assert torch.equal(model(inputs).last_hidden_state, before)


# --- bundling -------------------------------------------------------------------------------------


def table(n, targets=None, seed=0):
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, 4))
    Y = draw.normal(size=(n, targets or 1)) + X[:, :1]
    return X, Y[:, 0] if targets is None else Y


@pytest.mark.parametrize(("n", "features"), [(200, [30]), (200, [20, 40]), (25, [60])])
@pytest.mark.parametrize("targets", [None, 3])
def test_check_7_closed_form(n, features, targets):
    X, y = table(n, targets)
    model = BundledRegressor(features, ridge=0.1, random_state=0).fit(X, y)
    Z = model.feature_matrix(X)
    assert Z.shape == (n, features[-1])
    gradient = (model.predict(X) - y).T @ Z + 0.1 * model.coef_
    assert np.abs(gradient).max() < 1e-9
    ridge = Ridge(alpha=0.1, fit_intercept=False, solver="svd").fit(Z, y)
    np.testing.assert_allclose(model.coef_, ridge.coef_, atol=1e-8)
    new = table(7, seed=1)[0]
    np.testing.assert_allclose(
        model.predict(new), ridge.predict(model.feature_matrix(new)), atol=1e-8
    )


def test_check_7_universal_features():
    X, y = table(100)
    options = {"activation": "cos", "normalize": 1.0}
    model = BundledRegressor([30], kind="urf", options=options, random_state=0).fit(X, y)
    Z = model.feature_matrix(X)
    assert Z.shape == (100, 60)
    assert np.abs((Z @ model.coef_ - y) @ Z + 1e-3 * model.coef_).max() < 1e-8


def test_bundled_regressor_is_an_estimator_of_scikit_learn():
    check_estimator(BundledRegressor((64,), ridge=0.1), on_skip=None)


def test_bundled_regressor_depends_on_its_random_state_alone():
    X, y = table(50)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    fits = [BundledRegressor([20], random_state=s).fit(X, y).predict(X) for s in (0, 0, 1)]
    assert np.array_equal(fits[0], fits[1])
    assert not np.array_equal(fits[0], fits[2])
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


class Sine(nn.Module):
    def forward(self, x):
        return x.sin()


def test_a_bundle_of_sines_is_the_network():
    network = nn.Sequential(nn.Linear(3, 5), Sine(), nn.Linear(5, 2))
    for i in (0, 2):
        network[i].weight.data.copy_(0.4 * randn(*network[i].weight.shape, seed=i))
    x = nn.functional.normalize(randn(20, 3), dim=1)
    bundled = bundle(network, 100_000, kind="urf", activation="sin", generator=generator())
    torch.testing.assert_close(bundled(x), network(x), rtol=0, atol=0.03)
    assert [n for n, _ in bundled.named_parameters()] == ["1.weight", "1.bias"]


def test_a_bundle_of_one_hidden_layer_is_that_layer_and_the_head():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double().eval()
    bundled = bundle(network, 9, generator=generator())
    layer = SNNKLinear.from_linear(network[0], 9, generator=generator())
    x = randn(5, 4, dtype=F64)
    torch.testing.assert_close(bundled(x), network[2](layer(x)))
    assert not bundled.training


def test_a_deep_bundle_follows_its_recursion():
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2, bias=False)]
    bundled = bundle(nn.Sequential(*layers), 9, generator=generator())
    one, two, last = bundled
    Psi_1 = one.psi(layers[0].weight, layers[0].bias)
    Psi_2 = two.psi(layers[2].weight @ Psi_1, layers[2].bias)
    assert two.in_features == 9
    torch.testing.assert_close(last.weight, layers[4].weight @ Psi_2)
    assert last.bias is None


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [0, -1, 2.0, True])
def test_m_must_be_positive(m):
    for make in (
        lambda: UniversalRandomFeatures(4, m),
        lambda: ArcCosineFeatures(4, m),
        lambda: SNNKLinear(4, 4, m),
        lambda: SNNKAdapter(4, m),
        lambda: SNNKLinear.from_linear(nn.Linear(4, 4), m),
        lambda: add_adapters(bert_like(4, 4, 1), m),
        lambda: uptrain(bert_like(4, 4, 1), 1, m),
        lambda: bundle(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), m),
        lambda: BundledRegressor([m]).fit(*table(9)),
    ):
        with pytest.raises(ValueError, match=r"m must be (a )?positive"):
            make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"A": 0.25}, "A must be below 0.25"),
        ({"A": float("nan")}, "A must be below 0.25"),
        ({"activation": "x"}, "activation 'x' has no Fourier measure; use fit_fourier"),
        ({"activation": "relu"}, "has no Fourier measure"),
        ({"split": "even"}, "split must be"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"normalize": -1.0}, "normalize must be positive"),
    ],
)
def test_bad_options_of_universal_features(options, message):
    with pytest.raises(ValueError, match=message):
        UniversalRandomFeatures(4, 8, **options)
    with pytest.raises(ValueError, match=message):
        SNNKLinear(4, 4, 8, kind="urf", **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ArcCosineFeatures(0, 4), "in_features must be positive"),
        (lambda: ArcCosineFeatures(4, 4, floor=float("inf")), "floor must be finite"),
        (lambda: ArcCosineFeatures(4, 4)(torch.ones(3)), r"x must have shape \(..., 4\), got \(3,"),
        (lambda: ArcCosineFeatures(4, 4).psi(torch.ones(2, 5)), "w must have shape"),
        (lambda: ArcCosineFeatures(4, 4).psi(torch.ones(4), torch.ones(())), "b has no place"),
        (lambda: UniversalRandomFeatures(4, 4)(torch.tensor(1.0)), "x must have shape"),
        (lambda: SNNKLinear(4, 4, 4, kind="elu"), "kind must be 'relu' or 'urf'"),
        (lambda: SNNKLinear(4, 0, 4), "out_features must be a positive"),
        (lambda: LowRankLinear(4, 6, 5), "rank must be at most 4"),
        (lambda: LowRankLinear(4, 6, 0), "rank must be a positive"),
        (lambda: SNNKAdapter(0), "dim must be"),
        (lambda: SNNKAdapter(4, down=0), "down must be"),
        (lambda: HoulsbyAdapter(4, 0), "bottleneck must be"),
        (lambda: add_adapters(nn.Linear(2, 2)), "after: no linear layer's name ends in"),
        (lambda: add_adapters(bert_like(4, 4, 1), after="output.dense"), "after: no linear"),
        (lambda: uptrain(nn.Linear(2, 2), 1), "model: no linear layer's name ends in"),
        (lambda: uptrain(bert_like(4, 4, 2), 3), "layers must be at most 2"),
        (lambda: uptrain(bert_like(4, 4, 2), 0), "layers must be a positive"),
        (lambda: bundle(nn.Linear(2, 2), 4), "got Linear"),
        (lambda: bundle(nn.Sequential(nn.Linear(2, 2)), 4), "Linear, activation"),
        (lambda: bundle(nn.Sequential(*[nn.Linear(2, 2)] * 3), 4), "an activation between"),
        (lambda: bundle(nn.Sequential(nn.ReLU(), nn.Tanh(), nn.ReLU()), 4), "Linear, activation"),
        (lambda: BundledRegressor([]).fit(*table(9)), "features must name"),
        (lambda: BundledRegressor([4], ridge=0).fit(*table(9)), "ridge must be positive"),
        (lambda: BundledRegressor([4], kind="elu").fit(*table(9)), "kind must be"),
        (lambda: fit_fourier(torch.tanh, 0.0, 3), "radius must be positive"),
        (lambda: fit_fourier(torch.tanh, 1.0, 0), "terms must be"),
        (lambda: fit_fourier(torch.log, 1.0, 3), "f must be elementwise and finite"),
        (lambda: fit_fourier(torch.sum, 1.0, 3), "f must be elementwise and finite"),
        (lambda: FourierSeries(torch.ones(2), torch.ones(3)), "must have one shape"),
        (lambda: FourierSeries(torch.ones(2), torch.zeros(2)), "one of these not 0"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_types():
    with pytest.raises(TypeError, match=r"linear must be a torch.nn.Linear, got Conv2d"):
        SNNKLinear.from_linear(nn.Conv2d(1, 1, 1), 4)
    with pytest.raises(TypeError, match="linear must be"):
        LowRankLinear.from_linear(nn.Tanh(), 4)
    with pytest.raises(TypeError, match="floor"):
        SNNKLinear(4, 4, 4, kind="urf", floor=1.0)
