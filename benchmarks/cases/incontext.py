"""Models that learn in context, beside plain solves and the usual networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cases.case import Case, largest_difference

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
}
