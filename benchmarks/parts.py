"""Parts beside their peers: `make bench` prints one table of time, memory and quality.

Every measurement is a process of its own, `python benchmarks/parts.py CASE SIDE`, with the same
input and both cores: the best of three repeats after one that warms up, and how far the process
grew beyond what the input and the imports take. What both sides return is compared by the parent.
The peers live in an environment of their own (`benchmarks/peers.txt`), with paperworks in it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Side = Callable[[], Any]
"""Prepares, and gives the function that is measured; that gives an array."""


@dataclass(frozen=True)
class Case:
    """One thing that ours and a peer do.

    Attributes:
        quality: says in a few words how our output compares with the peer's.
    """

    what: str
    peer: str
    sides: dict[str, Callable[[], Callable[[], Any]]]
    quality: Callable[[np.ndarray, np.ndarray], str]
    repeats: int = 3


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def largest_difference(ours: np.ndarray, peer: np.ndarray) -> str:
    return f"relative difference {np.abs(ours - peer).max() / np.abs(peer).max():.0e}"


# ---- wide: kernels of an infinitely wide ReLU network


def inputs(n: int, d: int) -> np.ndarray:
    return rng().standard_normal((n, d))


def our_kernels() -> Callable[[], Any]:
    from paperworks.wide import deep_kernels

    X = torch.from_numpy(inputs(4000, 100))
    return lambda: torch.stack(
        deep_kernels(X, activation="relu", depth=3, C_W=2.0, C_b=0.1)
    ).numpy()


def their_kernel(depth: int, W: float, b: float) -> Any:
    """`kernel_fn` of neural-tangents, in double precision and compiled."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import stax

    dense = stax.Dense(1, W_std=W**0.5, b_std=b**0.5)
    layers = [dense, *[stax.Relu(), dense] * depth]
    kernel = stax.serial(*layers)[2]
    return jax.jit(kernel, static_argnames="get")


def their_kernels() -> Callable[[], Any]:
    kernel = their_kernel(3, 2.0, 0.1)
    X = inputs(4000, 100)
    return lambda: np.stack(kernel(X, None, get=("nngp", "ntk")))


# ---- optimal: a deep kernel as a classifier


def circles(n: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows on the positive orthant of a sphere, and which of two overlapping classes they are."""
    draw = np.random.default_rng([0, stream])
    y = draw.integers(0, 2, n)
    alphas = np.array([[3, 1, 2, 1, 1], [1, 2, 2, 2, 3]])
    rows = np.stack([draw.dirichlet(alphas[label]) for label in y])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), y


def our_classifier(**options: Any) -> Callable[[], Any]:
    from paperworks.wide import DeepKernelClassifier

    (X, y), (T, _) = circles(2000, 0), circles(2000, 1)
    return lambda: DeepKernelClassifier(**options).fit(X, y).predict(T)


def their_classifier() -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    kernel = their_kernel(100, 2.0, 0.0)
    (X, y), (T, _) = circles(2000, 0), circles(2000, 1)

    @jax.jit
    def votes(K: Any, K_test: Any, y: Any) -> Any:
        return K_test @ jax.scipy.linalg.solve(K, y, assume_a="pos")

    def fit_and_predict() -> Any:
        K, K_test = kernel(X, None, get="ntk"), kernel(T, X, get="ntk")
        return np.asarray(votes(K, K_test, jnp.asarray(2.0 * y - 1)) > 0).astype(int)

    return fit_and_predict


def sklearn_classifier(name: str) -> Callable[[], Any]:
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    (X, y), (T, _) = circles(2000, 0), circles(2000, 1)
    model, knobs = {
        "k-nn": (KNeighborsClassifier(), {"n_neighbors": [1, 3, 5, 9, 15, 25, 41, 65]}),
        "svm": (SVC(), {"C": [0.1, 1, 10, 100], "gamma": [1, 10, 100, 1000]}),
    }[name]
    return lambda: GridSearchCV(model, knobs).fit(X, y).predict(T)


def accuracies(ours: np.ndarray, peer: np.ndarray) -> str:
    truth = circles(2000, 1)[1]
    same = (ours == peer).mean()
    return f"accuracy {(ours == truth).mean():.3f} | {(peer == truth).mean():.3f}, {same:.1%} alike"


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


# ---- relreps: projection of many latents, and anchors


def latents(n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 768, generator=generator)
    return x, x[torch.randperm(n, generator=generator)[:m]]


def our_projection() -> Callable[[], Any]:
    from paperworks.representation import relative_projection

    x, anchors = latents(100_000, 768)
    return lambda: relative_projection(x, anchors)


def their_projection() -> Callable[[], Any]:
    from latentis.transform.projection import cosine_proj

    x, anchors = latents(100_000, 768)
    return lambda: cosine_proj(x, anchors=anchors)


def our_anchors() -> Callable[[], Any]:
    from paperworks.representation import select_anchors

    x, _ = latents(20_000, 1)
    return lambda: select_anchors(x, 300, "fps").numpy()


def their_anchors() -> Callable[[], Any]:
    import fpsample

    x = latents(20_000, 1)[0].numpy()
    return lambda: fpsample.fps_sampling(x, 300, start_idx=0).astype(np.int64)


def coverage(ours: np.ndarray, peer: np.ndarray) -> str:
    """The largest distance of a sample to its nearest anchor: what such anchors make small."""
    x, _ = latents(20_000, 1)
    radii = [torch.cdist(x, x[torch.from_numpy(ids)]).amin(1).max().item() for ids in (ours, peer)]
    return "covering radius {:.2f} | {:.2f}".format(*radii)


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


CASES = {
    "kernels": Case(
        "NNGP and NTK, 4,000 x 100 inputs, depth 3",
        "neural-tangents",
        {"ours": our_kernels, "peer": their_kernels},
        largest_difference,
    ),
    "deep": Case(
        "ReLU NTK classifier, 100 layers, fit + predict 2,000",
        "neural-tangents",
        {
            "ours": lambda: our_classifier(activation="relu", depth=100, kernel="ntk"),
            "peer": their_classifier,
        },
        accuracies,
    ),
    "k-nn": Case(
        "optimal classifier, fit + predict 2,000",
        "tuned k-NN",
        {"ours": our_classifier, "peer": lambda: sklearn_classifier("k-nn")},
        accuracies,
    ),
    "svm": Case(
        "optimal classifier, fit + predict 2,000",
        "tuned SVC",
        {"ours": our_classifier, "peer": lambda: sklearn_classifier("svm")},
        accuracies,
    ),
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
    "projection": Case(
        "relative projection, 100,000 x 768, 768 anchors",
        "latentis",
        {"ours": our_projection, "peer": their_projection},
        largest_difference,
    ),
    "anchors": Case(
        "farthest point sampling, 300 of 20,000 x 768",
        "fpsample",
        {"ours": our_anchors, "peer": their_anchors},
        coverage,
    ),
}


def memory() -> float:
    """The most this process has held since the last call, in MB (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    return int(found[1]) / 1024 if found else float("nan")


def measure(case: Case, side: str, out: Path) -> dict[str, float]:
    run = case.sides[side]()
    memory()
    before, times, result = memory(), [], None
    for _ in range(case.repeats + (case.repeats > 1)):
        result = None  # the last one's memory is free before the next
        start = time.perf_counter()
        result = np.asarray(run())
        times.append(time.perf_counter() - start)
    grown = memory() - before
    np.save(out, result)
    return {"seconds": min(times[1:] or times), "megabytes": grown}


def compare(name: str) -> tuple[str, ...]:
    case, figures, results = CASES[name], [], []
    with tempfile.TemporaryDirectory() as folder:
        for side in ("ours", "peer"):
            out = Path(folder) / f"{side}.npy"
            words = [sys.executable, __file__, name, side, str(out)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            figures.append(json.loads(done.stdout.splitlines()[-1]))
            results.append(np.load(out))
    (ours, peer), quality = figures, case.quality(*results)
    return (
        case.what,
        case.peer,
        f"{ours['seconds']:.2f} s | {peer['seconds']:.2f} s",
        f"{peer['seconds'] / ours['seconds']:.2f} x",
        f"{ours['megabytes']:.0f} | {peer['megabytes']:.0f} MB",
        quality,
    )


def main() -> None:
    if len(sys.argv) == 4:
        name, side, out = sys.argv[1:]
        print(json.dumps(measure(CASES[name], side, Path(out))))
        return
    print("| part | peer | time, ours and peer's | faster | memory | quality |\n|-|-|-|-|-|-|")
    for name in sys.argv[1:] or CASES:
        row = " | ".join(cell.replace("|", "/") for cell in compare(name))
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
