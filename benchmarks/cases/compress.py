"""Compression beside auto-round, torch and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cases.case import Case, largest_difference, rng

# ---- flexround: one step of learning a layer's rounding

STEPS = 30


def layer_and_inputs() -> tuple[torch.nn.Linear, torch.Tensor]:
    draw = rng()
    layer = torch.nn.Linear(768, 3072)
    weight = draw.standard_normal((3072, 768)) * draw.lognormal(0, 0.5, (3072, 1)) / 768**0.5
    layer.weight.data = torch.from_numpy(weight).float()
    mixing = draw.standard_normal((768, 768)) / 768**0.5
    x = draw.standard_normal((32 * 128, 768)) @ mixing
    return layer.requires_grad_(False), torch.from_numpy(x).float()


def our_step(name: str) -> Callable[[], Any]:
    from paperworks import compress

    layer, x = layer_and_inputs()
    target = layer(x)
    rounding = getattr(compress, name)(
        layer.weight, 3, symmetric=False, per_channel=True, scale="minmax"
    )
    optimizer = torch.optim.Adam(rounding.parameters(), lr=3e-3, fused=True)

    def steps() -> Any:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            output = torch.nn.functional.linear(x, rounding(layer.weight), layer.bias)
            (output - target).square().sum(1).mean().backward()
            optimizer.step()
        return relative_error(x, layer, rounding.eval()(layer.weight).detach())

    return steps


def autoround_step() -> Callable[[], Any]:
    from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD
    from auto_round.wrapper import WrapperLinear

    layer, x = layer_and_inputs()
    target = layer(x)
    settings = {"bits": 3, "group_size": -1, "sym": False, "data_type": "int", "act_bits": 16}
    for key, value in settings.items():
        setattr(layer, key, value)
    layer.scale_dtype = torch.float32
    wrapped = WrapperLinear(layer, enable_torch_compile=False, iters=STEPS)
    learned = [wrapped.value, wrapped.min_scale, wrapped.max_scale]
    optimizer = SignSGD(learned, lr=1 / STEPS)

    def steps() -> Any:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            (wrapped(x) - target).square().mean().backward()
            optimizer.step()
        weight, *_ = wrapped._qdq_weight(wrapped.value, wrapped.min_scale, wrapped.max_scale)
        return relative_error(x, layer, weight.detach())

    return steps


def relative_error(x: torch.Tensor, layer: torch.nn.Linear, rounded: torch.Tensor) -> Any:
    return np.array([(x @ (rounded - layer.weight).T).norm() / (x @ layer.weight.T).norm()])


def errors(ours: np.ndarray, peer: np.ndarray) -> str:
    return f"output error after {STEPS} steps {ours[0]:.3f} | {peer[0]:.3f}"


# ---- sparseland: masks of 25 million weights


def many_weights() -> dict[str, torch.Tensor]:
    """Shapes like ResNet-50's: 50 layers of half a million weights."""
    generator = torch.Generator().manual_seed(0)
    return {f"{i}.weight": torch.randn(512, 1000, generator=generator) for i in range(50)}


def as_model(weights: dict[str, torch.Tensor]) -> torch.nn.Sequential:
    with torch.device("meta"):
        layers = [torch.nn.Linear(1000, 512, bias=False) for _ in weights]
    for layer, weight in zip(layers, weights.values()):
        layer.weight = torch.nn.Parameter(weight)
    return torch.nn.Sequential(*layers)


def our_masks() -> Callable[[], Any]:
    from paperworks.compress import make_masks, scores

    model = as_model(many_weights())
    return lambda: np.array(
        [int(m.sum()) for m in make_masks(scores(model, "magnitude"), 0.1, "global").values()]
    )


def their_masks() -> Callable[[], Any]:
    from torch.nn.utils import prune

    weights = many_weights()

    def run() -> Any:  # on a copy, which takes a thirtieth of the time: it changes the model
        model = as_model({name: weight.clone() for name, weight in weights.items()})
        prune.global_unstructured(
            [(layer, "weight") for layer in model], prune.L1Unstructured, amount=0.9
        )
        return np.array([int(layer.weight_mask.sum()) for layer in model])

    return run


def same_counts(ours: np.ndarray, peer: np.ndarray) -> str:
    apart = abs(ours - peer).max()
    return f"{ours.sum():,} | {peer.sum():,} kept, layers differ by up to {apart}"


# ---- snnk: a feed-forward layer, forward and backward


def layer_step(layer: torch.nn.Module) -> Callable[[], Any]:
    x = torch.from_numpy(rng().standard_normal((32, 128, 768))).float().requires_grad_()

    def step() -> Any:
        x.grad = None
        layer.zero_grad(set_to_none=True)
        y = layer(x)
        y.backward(torch.ones_like(y))
        return np.array([y.detach().square().mean().sqrt().item()])

    return step


def our_layer(m: int) -> Callable[[], Any]:
    from paperworks.compress import SNNKLinear

    return layer_step(SNNKLinear(768, 3072, m, generator=torch.Generator().manual_seed(0)))


def dense_layer() -> Callable[[], Any]:
    return layer_step(torch.nn.Sequential(torch.nn.Linear(768, 3072), torch.nn.GELU()))


def numbers(m: int) -> Callable[[np.ndarray, np.ndarray], str]:
    return lambda ours, peer: f"trained numbers {3072 * m:,} | {3072 * 769:,}"


# ---- snnk: regression on random features in closed form


def friedman(stream: int) -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng([1, stream]).uniform(-1, 1, (5000, 10))
    return X, np.sin(np.pi * X[:, 0] * X[:, 1]) + 2 * X[:, 2] ** 2 + X[:, 3] + 0.5 * X[:, 4]


def our_regressor() -> Callable[[], Any]:
    from paperworks.compress import BundledRegressor

    (X, y), (T, _) = friedman(0), friedman(1)
    model = BundledRegressor((1000,), ridge=1e-2, random_state=0)
    return lambda: model.fit(X, y).predict(T)


def their_regressor() -> Callable[[], Any]:
    from sklearn.kernel_approximation import RBFSampler
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    (X, y), (T, _) = friedman(0), friedman(1)
    features = RBFSampler(gamma=0.1, n_components=1000, random_state=0)
    return lambda: make_pipeline(features, Ridge(1e-2)).fit(X, y).predict(T)


def fits(ours: np.ndarray, peer: np.ndarray) -> str:
    truth = friedman(1)[1]
    scores = [1 - ((p - truth) ** 2).mean() / truth.var() for p in (ours, peer)]
    return "test R² {:.3f} | {:.3f}".format(*scores)


# ---- jlcm: a look-up table for millions of weights


def weights_1d(n: int) -> np.ndarray:
    return rng().standard_normal(n).astype(np.float32)


def our_codebook(method: str, n: int) -> Callable[[], Any]:
    from paperworks.compress import kmeans1d

    values = torch.from_numpy(weights_1d(n))

    def run() -> Any:
        codewords, indices = kmeans1d(values, 16, method)
        return np.array([(values - codewords[indices]).square().mean().item()])

    return run


def their_codebook(n: int) -> Callable[[], Any]:
    from sklearn.cluster import KMeans

    values = weights_1d(n)[:, None]

    def run() -> Any:
        found = KMeans(16, n_init=1, random_state=0).fit(values)
        return np.array([found.inertia_ / len(values)])

    return run


def squared_errors(ours: np.ndarray, peer: np.ndarray) -> str:
    return f"mean squared error {ours[0]:.6f} | {peer[0]:.6f}"


# ---- jlcm: a layer of 4-bit indices, looked up in every forward


def dense_4096() -> tuple[torch.nn.Linear, np.ndarray]:
    layer = torch.nn.Linear(4096, 4096, bias=False).requires_grad_(False)
    weight = rng().standard_normal((4096, 4096)).astype(np.float32) / 64
    layer.weight.data = torch.from_numpy(weight)
    return layer, rng().standard_normal((32, 4096)).astype(np.float32)


def our_codebook_layer(batch: int) -> Callable[[], Any]:
    from paperworks.compress import CodebookLinear

    dense, x = dense_4096()
    layer, inputs = CodebookLinear.from_dense(dense, 4, kmeans="lloyd"), torch.from_numpy(x[:batch])
    return torch.no_grad()(lambda: layer(inputs).numpy())


def dense_4096_forward(batch: int) -> Callable[[], Any]:
    dense, x = dense_4096()
    inputs = torch.from_numpy(x[:batch])
    return torch.no_grad()(lambda: dense(inputs).numpy())


def relative_distance(ours: np.ndarray, peer: np.ndarray) -> str:
    return f"outputs differ by {np.linalg.norm(ours - peer) / np.linalg.norm(peer):.3f}"


# ---- jlcm: steps of learning a layer's codebooks and mapping


def our_codebook_step() -> Callable[[], Any]:
    from paperworks.compress import LearnableCodebook

    layer, x = layer_and_inputs()
    target = layer(x)
    codebook = LearnableCodebook(layer.weight, 3, 8, kmeans="lloyd")
    optimizer = torch.optim.Adam(codebook.parameters(), lr=1e-3, fused=True)

    def steps() -> Any:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            output = torch.nn.functional.linear(x, codebook(layer.weight), layer.bias)
            (output - target).square().sum(1).mean().backward()
            optimizer.step()
        return relative_error(x, layer, codebook(layer.weight).detach())

    return steps


# ---- n2n: a child of a ResNet-34, made anew, beside one forward of the teacher


def teacher() -> tuple[torch.nn.Module, torch.Tensor]:
    from paperworks import nets

    network = nets.ResNet(3, [64, 128, 256, 512], [3, 4, 6, 3])
    return network.eval(), torch.from_numpy(rng().random((1, 3, 32, 32))).float()


def our_child() -> Callable[[], Any]:
    from paperworks.compress import RemovalPolicy, apply_removal, describe_layers

    network, x = teacher()
    policy, layers = RemovalPolicy(), describe_layers(network)
    free = torch.zeros(len(layers), dtype=torch.bool)
    free[[i for i, row in enumerate(layers.tolist()) if row[0] == 4]] = True  # batch norms

    def rollout() -> Any:
        actions, _ = policy.sample(layers, free)
        child = apply_removal(network, actions[0] != 0, x)
        assert child is not None
        return np.array([sum(p.numel() for p in child.parameters())])

    return rollout


def copied_teacher() -> Callable[[], Any]:
    """What making a network of that size and sending one picture through it takes."""
    from paperworks import nets

    _, x = teacher()

    @torch.no_grad()
    def build() -> Any:
        network = nets.ResNet(3, [64, 128, 256, 512], [3, 4, 6, 3])
        network(x.repeat(2, 1, 1, 1))
        return np.array([sum(p.numel() for p in network.parameters())])

    return build


def parameters(ours: np.ndarray, peer: np.ndarray) -> str:
    return f"parameters {ours[0] / 1e6:.1f} | {peer[0] / 1e6:.1f} million"


# ---- sortednet: a sub-model inside its network and cut out


def wide_mlp() -> tuple[torch.nn.Module, torch.Tensor]:
    from paperworks import nets

    torch.manual_seed(0)
    x = torch.from_numpy(rng().standard_normal((512, 1024), dtype=np.float32))
    return nets.MLP([1024, 4096, 4096, 10]), x


def sorted_mlp(cut: bool) -> Callable[[], Any]:
    """A batch through half of the width, in place or cut out."""
    from paperworks.compress import SortedSpec, to_sorted

    network, x = wide_mlp()
    model = to_sorted(network, SortedSpec({"width": [2048, 4096]}), example=x[:1])
    model.set({"width": 2048})
    run = model.materialize({"width": 2048}) if cut else model
    return torch.no_grad()(lambda: run(x).numpy())


def plain_mlp() -> Callable[[], Any]:
    """The same weights in a plain network of that size."""
    from paperworks import nets

    (wide, x), narrow = wide_mlp(), nets.MLP([1024, 2048, 2048, 10])
    for small, large in zip(narrow.parameters(), wide.parameters(), strict=True):
        small.data.copy_(large.data[tuple(slice(n) for n in small.shape)])
    return torch.no_grad()(lambda: narrow(x).numpy())


def sorted_update(g: int) -> Callable[[], Any]:
    """An update of eight nested widths: g drawn ones; 8 is full summation."""
    from paperworks.compress import SortedSpec, SortedTrainer, to_sorted

    network, x = wide_mlp()
    spec = SortedSpec({"width": [512 * k for k in range(1, 9)]})
    model = to_sorted(network, spec, example=x[:1])
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    mode = "sum" if g == 8 else "stochastic"
    trainer = SortedTrainer(model, sgd, lambda m, x: m(x).square().mean(), accumulate=g, mode=mode)
    return lambda: np.array([trainer.step([x] * g).item() for _ in range(5)])


# ---- snnet: the start of one stitching layer, and a stitched DeiT


def features_of_two() -> tuple[torch.Tensor, torch.Tensor]:
    """What DeiT-Ti gives and DeiT-S takes, for 100 pictures of 197 tokens."""
    draws = rng()
    x, mixing, rest = (draws.standard_normal(s) for s in ((19_700, 192), (192, 384), (19_700, 384)))
    return torch.from_numpy(x).float(), torch.from_numpy(x @ mixing + 0.1 * rest).float()


def our_fit() -> Callable[[], Any]:
    from paperworks.compress import fit_stitch

    x, y = features_of_two()
    return lambda: fit_stitch(x, y)[0].numpy()


def pseudoinverse() -> Callable[[], Any]:
    """In single precision, on [X 1]."""
    x, y = features_of_two()

    def run() -> Any:
        X = torch.cat([x, torch.ones(len(x), 1)], 1)
        return (torch.linalg.pinv(X) @ y)[:-1].T.numpy()

    return run


def deit(width: int) -> torch.nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = {"hidden_size": width, "num_attention_heads": width // 64}
    config = ViTConfig(**shape, intermediate_size=4 * width, num_labels=1000)
    return ViTForImageClassification(config).eval()


def our_path() -> Callable[[], Any]:
    """Id 24 of DeiT-Ti/S/B, switched to before every forward."""
    from paperworks.compress import StitchableNetwork

    x = torch.rand(8, 3, 224, 224)
    net = StitchableNetwork([deit(192), deit(384), deit(768)], x[:1]).eval()

    @torch.inference_mode()
    def forward() -> Any:
        net.set_stitch(24)
        return np.array(net(x).shape)

    return forward


def small_deit() -> Callable[[], Any]:
    x, model = torch.rand(8, 3, 224, 224), deit(384)
    return torch.inference_mode()(lambda: np.array(model(x).logits.shape))


# ---- sparseland: a step of sparse training beside a dense one


def training_steps(sparse: bool) -> Callable[[], Any]:
    """A hundred steps, with one exchange of weights among them where they are sparse."""
    from paperworks import nets
    from paperworks.compress import DynamicSparsity, Masks, make_masks, scores

    torch.manual_seed(0)
    model = nets.MLP([1024, 1024, 1024, 10])
    x, y = torch.randn(256, 1024), torch.randint(10, (256,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    after: Callable[[], Any] | None = None
    if sparse:
        masks = Masks(model, make_masks(scores(model, "random"), 0.1))
        masks.attach(optimizer)
        after = DynamicSparsity(masks, optimizer, every=100, total_steps=10_000).step

    def steps() -> Any:
        for _ in range(100):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            if after is None or not after():
                optimizer.step()
        return np.array([loss.item()])

    return steps


# ---- packing: ten million numbers of three bits


def small_numbers() -> np.ndarray:
    return rng().integers(0, 8, 10_000_000, dtype=np.uint8)


def our_packing() -> Callable[[], Any]:
    from paperworks.compress import pack_bits, unpack_bits

    values = torch.from_numpy(small_numbers())
    return lambda: unpack_bits(pack_bits(values, 3), 3, values.shape).numpy()


def their_packing() -> Callable[[], Any]:
    values = small_numbers()

    def run() -> Any:
        bits = values[:, None] >> np.arange(3, dtype=np.uint8) & 1
        packed = np.packbits(bits, bitorder="little")
        stream = np.unpackbits(packed, count=bits.size, bitorder="little").reshape(bits.shape)
        return (stream << np.arange(3, dtype=np.uint8)).sum(1, dtype=np.uint8)

    return run


CASES = {
    "flexround": Case(
        f"FlexRound, {STEPS} steps, Linear 768 x 3072, batch 32 x 128",
        "auto-round",
        {"ours": lambda: our_step("FlexRound"), "peer": autoround_step},
        errors,
        repeats=1,
    ),
    "masks": Case(
        "global magnitude masks, 25 million weights",
        "torch.nn.utils.prune",
        {"ours": our_masks, "peer": their_masks},
        same_counts,
    ),
    "rigl": Case(
        "100 steps at a tenth of the weights, RigL every 100, MLP of 1024, batch 256",
        "dense steps",
        {"ours": lambda: training_steps(True), "peer": lambda: training_steps(False)},
        lambda ours, peer: f"loss {ours[0]:.2f} | {peer[0]:.2f}",
    ),
    "packing": Case(
        "packing and unpacking 10 million numbers of 3 bits",
        "numpy.packbits",
        {"ours": our_packing, "peer": their_packing},
        lambda ours, peer: "equal" if (ours == peer).all() else "not equal",
    ),
    "snnk": Case(
        "SNNK layer 768 x 3072, m = 64, forward + backward, batch 32 x 128",
        "torch dense + GELU",
        {"ours": lambda: our_layer(64), "peer": dense_layer},
        numbers(64),
    ),
    "snnk-256": Case(
        "the same, m = 256",
        "torch dense + GELU",
        {"ours": lambda: our_layer(256), "peer": dense_layer},
        numbers(256),
    ),
    "bundled": Case(
        "bundled regression, 5,000 x 10, one layer of 1,000, fit + predict",
        "RBFSampler + Ridge",
        {"ours": our_regressor, "peer": their_regressor},
        fits,
    ),
    "kmeans": Case(
        "16 codewords of 10 million weights",
        "scikit-learn KMeans",
        {
            "ours": lambda: our_codebook("lloyd", 10_000_000),
            "peer": lambda: their_codebook(10_000_000),
        },
        squared_errors,
        repeats=1,
    ),
    "kmeans-exact": Case(
        "the same of 1 million, exact",
        "scikit-learn KMeans",
        {
            "ours": lambda: our_codebook("exact", 1_000_000),
            "peer": lambda: their_codebook(1_000_000),
        },
        squared_errors,
        repeats=1,
    ),
    "codebook": Case(
        "4-bit codebook layer 4096 x 4096, forward of one row",
        "torch fp32",
        {"ours": lambda: our_codebook_layer(1), "peer": lambda: dense_4096_forward(1)},
        relative_distance,
    ),
    "codebook-32": Case(
        "the same, 32 rows",
        "torch fp32",
        {"ours": lambda: our_codebook_layer(32), "peer": lambda: dense_4096_forward(32)},
        relative_distance,
    ),
    "jlcm": Case(
        f"codebooks and mapping, {STEPS} steps, Linear 768 x 3072, batch 32 x 128",
        "auto-round",
        {"ours": our_codebook_step, "peer": autoround_step},
        errors,
        repeats=1,
    ),
    "child": Case(
        "N2N, a child of ResNet-34 drawn and built",
        "building ResNet-34, one forward",
        {"ours": our_child, "peer": copied_teacher},
        parameters,
    ),
    "sorted": Case(
        "SortedNet, half of MLP 1024-4096-4096-10 in place, forward of 512",
        "a plain network of that size",
        {"ours": lambda: sorted_mlp(cut=False), "peer": plain_mlp},
        largest_difference,
    ),
    "sorted-cut": Case(
        "the same, cut out",
        "a plain network of that size",
        {"ours": lambda: sorted_mlp(cut=True), "peer": plain_mlp},
        largest_difference,
    ),
    "sorted-update": Case(
        "SortedNet, 5 updates of 8 widths, 4 drawn",
        "full summation",
        {"ours": lambda: sorted_update(4), "peer": lambda: sorted_update(8)},
        lambda ours, peer: f"loss {ours.mean():.3f} | {peer.mean():.3f}",
    ),
    "stitch-fit": Case(
        "least squares of one stitch, 19,700 rows, 192 to 384",
        "torch.linalg.pinv",
        {"ours": our_fit, "peer": pseudoinverse},
        largest_difference,
    ),
    "stitch": Case(
        "DeiT-Ti/S/B switched to id 24, forward of 8 pictures",
        "DeiT-S of transformers",
        {"ours": our_path, "peer": small_deit},
        lambda ours, peer: "0.60 of the multiply-adds",
    ),
}
