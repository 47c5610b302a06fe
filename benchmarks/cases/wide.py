"""Infinitely wide networks beside neural-tangents and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cases.case import Case, largest_difference, rng

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


# ---- wide: kernels of a convolutional network


def our_cnn() -> Callable[[], Any]:
    from paperworks.wide import cnn_ntk_kernel

    X = torch.from_numpy(inputs(1000, 64).reshape(-1, 1, 8, 8))
    options = {"activation": "relu", "filter_sizes": [3, 3, 3, 3], "C_W": 2.0, "C_b": 0.1}
    return lambda: cnn_ntk_kernel(X, **options).numpy()


def their_cnn() -> Callable[[], Any]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import stax

    weights = {"W_std": 2**0.5, "b_std": 0.1**0.5}
    block = [stax.Conv(1, (3, 3), padding="SAME", **weights), stax.Relu()]
    kernel = jax.jit(
        stax.serial(*block * 4, stax.Flatten(), stax.Dense(1, **weights))[2], static_argnames="get"
    )
    X = inputs(1000, 64).reshape(-1, 8, 8, 1)
    return lambda: np.asarray(kernel(X, None, get="ntk"))


# ---- permute: many small networks


def our_ensemble() -> Callable[[], Any]:
    from paperworks.wide import train_ensemble

    eye = torch.eye(10)

    def trained() -> np.ndarray:
        networks = train_ensemble(
            eye, eye.flip(0), 300, 1000, generator=torch.Generator().manual_seed(0)
        )
        return networks(two_ones()).mean(0).detach().numpy()

    return trained


def their_ensemble() -> Callable[[], Any]:
    eye = torch.eye(10)

    def trained() -> np.ndarray:
        torch.manual_seed(1)
        total = torch.zeros(45, 10)
        for _ in range(300):
            first, last = torch.randn(1000, 10), torch.randn(10, 1000)
            optimizer = torch.optim.SGD([first.requires_grad_(), last.requires_grad_()], lr=4.1)
            for _ in range(60):
                optimizer.zero_grad()
                out = (eye @ first.T / 10**0.5).relu() @ last.T / 1000**0.5
                (0.5 * (out - eye.flip(0)).square().sum()).backward()
                optimizer.step()
            with torch.no_grad():
                total += (two_ones() @ first.T / 10**0.5).relu() @ last.T / 1000**0.5
        return (total / 300).numpy()

    return trained


def two_ones() -> torch.Tensor:
    places = torch.combinations(torch.arange(10), 2)
    return torch.nn.functional.one_hot(places, 10).sum(1).float() / 2**0.5


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


CASES = {
    "kernels": Case(
        "NNGP and NTK, 4,000 x 100 inputs, depth 3",
        "neural-tangents",
        {"ours": our_kernels, "peer": their_kernels},
        largest_difference,
    ),
    "cnn-kernel": Case(
        "NTK of a convolutional network, 1,000 pictures 8 x 8, 4 layers",
        "neural-tangents",
        {"ours": our_cnn, "peer": their_cnn},
        largest_difference,
    ),
    "ensemble": Case(
        "300 networks of width 1,000 trained on 10 bits, 60 steps",
        "one after the other, autograd",
        {"ours": our_ensemble, "peer": their_ensemble},
        lambda ours, peer: f"means differ by {np.abs(ours - peer).max():.3f}",
        repeats=1,
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
}
