"""What is compared: functions of a context and a query, at one position or at all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from paperworks.incontext.iclinear.tasks import check_examples, interleave

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (B, n, d), y (B, n), x_query (B, q, d)) → predictions (B, q)."""


class OnlinePredictor:
    """Predicts queries with a function that predicts every y of a sequence from what is before it.

    Makes a reference algorithm, or a sequence model, what `nearest_algorithm` and
    `implicit_weights` compare: `OnlinePredictor(partial(online_ridge, alpha=0.5))`, or
    `OnlinePredictor(lambda x, y: my_model(interleave(x, y)))`.

    Args:
        online: (x (B, n, d), y (B, n)) → (B, n), where entry i depends on the i examples before
            and on x_i only.

    >>> from paperworks.incontext import online_ridge
    >>> ridge = OnlinePredictor(lambda x, y: online_ridge(x, y, alpha=0.0))
    >>> x = torch.eye(2)[None]
    >>> ridge(x, torch.tensor([[3.0, 4.0]]), torch.tensor([[[1.0, 1.0], [2.0, 0.0]]]))
    tensor([[7., 6.]])
    """

    def __init__(self, online: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.online = online

    def __call__(self, x: Tensor, y: Tensor, x_query: Tensor) -> Tensor:
        """Predictions (B, q) for x_query (B, q, d) after the context x (B, n, d), y (B, n)."""
        check_examples(x, y)
        batch, queries, _ = x_query.shape
        sequences = torch.cat(
            [
                x[:, None].expand(-1, queries, -1, -1),
                x_query[:, :, None].to(x),
            ],
            dim=2,
        ).flatten(0, 1)
        known = torch.cat([y, y.new_zeros(batch, 1)], dim=1)  # the last is never looked at
        return self.online(sequences, known.repeat_interleave(queries, 0))[:, -1].view(batch, -1)


class InContextModule(nn.Module):
    """A model of tokens, `forward(tokens (B, T, d + 1)) -> (B, ⌈T/2⌉)`, that can be compared."""

    @property
    def predict(self) -> OnlinePredictor:
        """This model as a function of (x (B, n, d), y (B, n), x_query (B, q, d))."""
        return OnlinePredictor(lambda x, y: self(interleave(x, y[:, :-1])))


def at_every_position(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """Predictions (B, n) of each y from the examples before it; 0 before the first."""
    if isinstance(predict, OnlinePredictor):
        return predict.online(x, y)
    later = [predict(x[:, :i], y[:, :i], x[:, i : i + 1])[:, 0] for i in range(1, x.shape[1])]
    return torch.stack([y.new_zeros(len(y)), *later], dim=1)
