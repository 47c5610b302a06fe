"""Heavy tails for networks of finite width: one random factor on the last layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from paperworks.common.generators import following
from paperworks.wide.smnngp.distributions import draw
from paperworks.wide.smnngp.scales import Prior, as_distribution


@torch.no_grad()
def scale_last_layer_(
    module: nn.Module, prior: Prior, *, generator: torch.Generator | None = None
) -> float:
    """Multiply the last Linear layer of a network by σ_v = √s, with s drawn from a prior.

    f(x) = (σ_v/√n) Σ v_i h_i(x): over draws of σ_v and of the weights the outputs of a wide network
    are a scale mixture of Gaussian processes, for an inverse gamma Student-t. Do it once, before
    training: it then says how far members of an ensemble spread where data say nothing.

    Args:
        module: any network; its Linear layer that was registered last is changed in place, the
            bias with the weight.
        prior: of s, a torch distribution of one positive number or the pair (α, β) of an inverse
            gamma.
        generator: draws s; torch's global one when left out.

    Returns:
        σ_v.

    Raises:
        ValueError: there is no Linear layer, it shares its weights with another module, or s is
            not positive.
        TypeError: the prior is no distribution.

    Source: arXiv 2107.01408, section 3.1.

    >>> net = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 1))
    >>> x, generator = torch.ones(1, 3), torch.Generator().manual_seed(0)
    >>> before = net(x)
    >>> factor = scale_last_layer_(net, (2.0, 2.0), generator=generator)
    >>> torch.allclose(net(x), factor * before)
    True
    """
    distribution = as_distribution(prior)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ValueError(f"module: {type(module).__name__} has no Linear layer")
    last = layers[-1]
    holders = sum(any(p is last.weight for p in m._parameters.values()) for m in module.modules())
    if holders > 1:
        raise ValueError(
            "module: the last Linear layer shares its weights with another module, which would be "
            "scaled as well"
        )
    factor = draw(distribution, 1, generator).item() ** 0.5
    for parameter in last.parameters(recurse=False):
        parameter.mul_(factor)
    return factor


class HeavyTailedEnsemble(nn.Module):
    """Independent networks, each with a last layer of its own random scale.

    Train all members alike (a sum of their losses trains each on its own); as width grows their
    outputs follow `scale_mixture` of the ensemble's Gaussian law, whose tails an ordinary ensemble
    lacks. Where only the last layer is trained, by gradient descent to the end, that is
    `scale_mixture(*ntk_posterior(K, …, K, …, y), prior)`. Where all layers are, σ_v would have to
    multiply the readout instead of its first weights for the same law.

    Args:
        make_net: makes a newly initialised network.
        num_members: how many.
        prior: of s = σ_v², as for `scale_last_layer_`.
        generator: draws the scales and, by torch's initialisations, the weights; torch's global
            one when left out.

    Attributes:
        members: the networks.
        factors: σ_v of each, shape (num_members,), a buffer.

    Shapes: what members take; output (num_members, *output of a member).

    Raises:
        ValueError: fewer than one member, and as `scale_last_layer_`.

    Source: arXiv 2107.01408, section 3.2.

    >>> def make_net():
    ...     return nn.Sequential(nn.Linear(1, 200), nn.ReLU(), nn.Linear(200, 1))
    >>> ensemble = HeavyTailedEnsemble(make_net, 5, prior=(2.0, 2.0))
    >>> optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.01)
    >>> x, y = torch.ones(4, 1), torch.zeros(4, 1)
    >>> (ensemble(x) - y).square().mean((1, 2)).sum().backward()
    >>> optimizer.step()
    >>> ensemble(x).quantile(0.9, dim=0).shape
    torch.Size([4, 1])
    """

    factors: Tensor

    def __init__(
        self,
        make_net: Callable[[], nn.Module],
        num_members: int,
        prior: Prior = (2.0, 2.0),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_members < 1:
            raise ValueError(f"num_members must be at least 1, got {num_members}")
        distribution: Distribution = as_distribution(prior)
        with following(generator):
            self.members = nn.ModuleList(make_net() for _ in range(num_members))
        factors = [
            scale_last_layer_(member, distribution, generator=generator) for member in self.members
        ]
        self.register_buffer("factors", torch.tensor(factors))

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.stack([member(*inputs) for member in self.members])


__all__ = ["HeavyTailedEnsemble", "scale_last_layer_"]
