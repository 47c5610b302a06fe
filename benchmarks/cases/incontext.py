"""Models that learn in context, beside plain solves and the usual networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from cases.case import Case, largest_difference, rng

DIM, EXAMPLES = 8, 20


def tasks(dim: int, n: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    from paperworks.incontext import LinearTasks

    generator = torch.Generator().manual_seed(0)
    return LinearTasks(dim).sample(batch, n, generator, dtype=torch.float64)[:2]


# ---- a ridge regression in the weights of a transformer, and in textbook form


def our_ridge() -> Callable[[], Any]:
    from paperworks.incontext import RidgeTransformer, interleave

    model, (x, y) = RidgeTransformer(DIM, EXAMPLES, 0.1), tasks(DIM, EXAMPLES, 64)

    def predict() -> Any:
        with torch.no_grad():
            return model(interleave(x, y)).numpy()

    return predict


def their_ridge() -> Callable[[], Any]:
    """All positions in one batched solve, 0.1 I + the moments before each."""
    x, y = tasks(DIM, EXAMPLES, 64)

    def predict() -> Any:
        outer, moment = x[..., None] * x[..., None, :], x * y[..., None]
        A = outer.cumsum(1) - outer + 0.1 * torch.eye(DIM, dtype=x.dtype)
        b = moment.cumsum(1) - moment
        return (torch.linalg.solve(A, b) * x).sum(-1).numpy()

    return predict


# ---- training steps at d = 20, 40 examples, width 256, 6 layers

SHAPE = {"dim": 20, "d_model": 256, "num_layers": 6, "num_heads": 8, "max_examples": 40}


def our_training() -> Callable[[], Any]:
    from paperworks.incontext import InContextRegressor, LinearTasks, train_in_context

    torch.manual_seed(0)
    model = InContextRegressor(**SHAPE)
    return lambda: np.array(train_in_context(model, LinearTasks(20), 3, batch_size=16).loss)


def their_training() -> Callable[[], Any]:
    from transformers import GPT2Config, GPT2Model

    from paperworks.incontext import LinearTasks, train_in_context

    class TransformerModel(torch.nn.Module):
        """The model of dtsip/in-context-learning, on our tokens."""

        def __init__(self) -> None:
            super().__init__()
            config = GPT2Config(
                n_positions=80, n_embd=256, n_layer=6, n_head=8, vocab_size=1,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            )  # fmt: skip
            self.read_in = torch.nn.Linear(21, 256)
            self.backbone = GPT2Model(config)
            self.read_out = torch.nn.Linear(256, 1)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            states = self.backbone(inputs_embeds=self.read_in(tokens)).last_hidden_state
            return self.read_out(states[:, 0::2])[..., 0]

    torch.manual_seed(0)
    model = TransformerModel()
    return lambda: np.array(
        train_in_context(model, LinearTasks(20), 3, num_examples=40, batch_size=16).loss
    )


# ---- hidden states of a learner, as probes want them


def our_states() -> Callable[[], Any]:
    from paperworks.common import collect_activations
    from paperworks.incontext import InContextRegressor, interleave

    torch.manual_seed(0)
    model = InContextRegressor(**SHAPE)
    tokens = interleave(*tasks(20, 40, 256)).float()
    layers = [f"blocks.{i}" for i in range(6)]
    return lambda: torch.stack(
        list(collect_activations(model, tokens.split(64), layers).values())
    ).numpy()


def their_states() -> Callable[[], Any]:
    """Hooks by hand and a list, which is what TransformerLens keeps as a cache."""
    from paperworks.incontext import InContextRegressor, interleave

    torch.manual_seed(0)
    model = InContextRegressor(**SHAPE).eval()
    tokens = interleave(*tasks(20, 40, 256)).float()

    def run() -> Any:
        kept: dict[int, list[torch.Tensor]] = {}
        hooks = [
            block.register_forward_hook(
                lambda _, args, out, i=i: kept.setdefault(i, []).append(out)
            )
            for i, block in enumerate(model.blocks)
        ]
        with torch.no_grad():
            for part in tokens.split(64):
                model(part)
        for hook in hooks:
            hook.remove()
        return torch.stack([torch.cat(kept[i]) for i in range(6)]).numpy()

    return run


# ---- pfn: 1,000 queries after 1,000 rows of 5 columns, width 512, 6 layers


def rows(n: int) -> list[torch.Tensor]:
    draw = rng()
    parts = draw.random((n, 5)), draw.standard_normal(n), draw.random((1000, 5))
    return [torch.from_numpy(part).float()[None] for part in parts]


def our_network() -> Any:
    from paperworks.incontext import PFN, BarDistribution

    torch.manual_seed(0)
    return PFN(5, BarDistribution(torch.linspace(-3, 3, 1001)))


def their_network() -> Any:
    """With one token a row, as the paper has it."""
    from pfns.model.transformer import TableTransformer

    torch.manual_seed(0)
    return TableTransformer(
        ninp=512,
        nhead=4,
        nhid=1024,
        nlayers=6,
        features_per_group=5,
        attention_between_features=False,
        decoder_dict={"standard": (None, 1000)},
    )


def our_forward() -> Callable[[], Any]:
    model, (x, y, queries) = our_network().eval(), rows(1000)

    def predict() -> Any:
        with torch.no_grad():
            return model(x, y, queries).numpy()

    return predict


def their_forward() -> Callable[[], Any]:
    model, (x, y, queries) = their_network().eval(), rows(1000)

    def predict() -> Any:
        with torch.no_grad():
            return model(x, y, queries).numpy()

    return predict


def masked_forward() -> Callable[[], Any]:
    """The same network with a mask of all pairs of tokens, which the paper's code made."""
    layer = nn.TransformerEncoderLayer(512, 4, 1024, 0.0, "gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).eval()
    e_x, e_y = nn.Linear(5, 512), nn.Linear(1, 512)
    head = nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 1000))
    x, y, queries = rows(1000)
    seen = torch.eye(2000, dtype=torch.bool)
    seen[:, :1000] = True

    def predict() -> Any:
        with torch.no_grad():
            tokens = torch.cat([e_x(x) + e_y(y[..., None]), e_x(queries)], dim=1)
            return head(encoder(tokens, mask=~seen)[:, 1000:]).numpy()

    return predict


def steps_of(model: Any, inputs: tuple[torch.Tensor, ...], target: torch.Tensor) -> Any:
    """Three gradients of the cross-entropy in 1,000 buckets, with Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)

    def train() -> Any:
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(*inputs).flatten(0, 1), target)
            loss.backward()
            optimizer.step()
        return np.array([loss.item()])

    return train


def our_steps() -> Callable[[], Any]:
    x, y, queries = rows(1000)
    return steps_of(our_network(), (x, y, queries), torch.arange(1000))


def their_steps() -> Callable[[], Any]:
    x, y, queries = rows(1000)
    return steps_of(their_network().train(), (x, y, queries), torch.arange(1000))


# ---- pfn: what it replaces. 1,000 predictions after 99 rows, hyperparameters unknown


def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = rng()
    X = draw.random((1099, 5))
    y = np.sin(5 * X[:, 0]) + X[:, 1] + 0.1 * draw.standard_normal(1099)
    return X[:99], y[:99], X[99:]


def our_regressor() -> Callable[[], Any]:
    from paperworks.incontext import PFNRegressor

    X, y, T = table()
    return lambda: PFNRegressor().fit(X, y).predict(T)


def exact_process() -> Callable[[], Any]:
    """Length scales, amplitude and noise by maximal marginal likelihood, then exact."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    X, y, T = table()
    kernel = ConstantKernel() * RBF([1.0] * 5) + WhiteKernel(0.1)
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=3, random_state=0)
    return lambda: process.fit(X, y).predict(T)


def sampled_process() -> Callable[[], Any]:
    """The same hyperparameters by 200 NUTS samples of Pyro, after 200 to warm up."""
    import pyro
    from pyro import distributions as dist
    from pyro.infer import MCMC, NUTS

    X, y, T = (torch.from_numpy(part) for part in table())

    def kernel(A: torch.Tensor, B: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.exp(-torch.cdist(A / scale, B / scale).square() / 2)

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(5).double(), 1.0).to_event(1))
        size = pyro.sample("size", dist.LogNormal(torch.tensor(0.0).double(), 1.0))
        noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-3.0).double(), 1.0))
        K = size * kernel(X, X, scale) + noise * torch.eye(99).double()
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(99).double(), K), obs=y)

    def predict() -> Any:
        pyro.set_rng_seed(0)
        chain = MCMC(NUTS(model), num_samples=200, warmup_steps=200, disable_progbar=True)
        chain.run()
        draws = chain.get_samples()
        means = []
        for scale, size, noise in zip(draws["scale"], draws["size"], draws["noise"]):
            K = size * kernel(X, X, scale) + noise * torch.eye(99).double()
            means.append(size * kernel(T, X, scale) @ torch.linalg.solve(K, y))
        return torch.stack(means).mean(0).numpy()

    return predict


def root_errors(ours: np.ndarray, peer: np.ndarray) -> str:
    X = table()[2]
    truth = np.sin(5 * X[:, 0]) + X[:, 1]
    mine, theirs = (np.square(found - truth).mean() ** 0.5 for found in (ours, peer))
    return f"RMSE to the noiseless function {mine:.3f} | {theirs:.3f}"


CASES = {
    "constructed": Case(
        "ridge transformer, 64 tasks, d = 8, 20 examples",
        "batched torch.linalg.solve",
        {"ours": our_ridge, "peer": their_ridge},
        largest_difference,
    ),
    "training": Case(
        "3 training steps, d = 20, 40 examples, width 256, 6 layers, batch 16",
        "GPT-2 of transformers (as dtsip/in-context-learning)",
        {"ours": our_training, "peer": their_training},
        lambda ours, peer: f"last loss {ours[-1]:.1f} | {peer[-1]:.1f}",
    ),
    "states": Case(
        "hidden states of 6 layers, 256 sequences of 80 tokens",
        "hooks by hand",
        {"ours": our_states, "peer": their_states},
        largest_difference,
    ),
    "pfn-forward": Case(
        "1,000 queries after 1,000 rows, width 512, 6 layers",
        "pfns",
        {"ours": our_forward, "peer": their_forward},
        lambda ours, peer: f"shapes {ours.shape[1:]} | {peer.shape[1:]}",
    ),
    "pfn-mask": Case(
        "the same",
        "torch's TransformerEncoder with a mask",
        {"ours": our_forward, "peer": masked_forward},
        lambda ours, peer: f"shapes {ours.shape[1:]} | {peer.shape[1:]}",
    ),
    "pfn-training": Case(
        "3 training steps of the same",
        "pfns",
        {"ours": our_steps, "peer": their_steps},
        lambda ours, peer: f"loss {ours[0]:.1f} | {peer[0]:.1f}",
    ),
    "pfn-process": Case(
        "1,000 predictions after 99 rows, hyperparameters unknown",
        "exact process, scikit-learn",
        {"ours": our_regressor, "peer": exact_process},
        root_errors,
        repeats=1,
    ),
    "pfn-mcmc": Case(
        "the same",
        "process by NUTS, Pyro",
        {"ours": our_regressor, "peer": sampled_process},
        root_errors,
        repeats=1,
    ),
}
