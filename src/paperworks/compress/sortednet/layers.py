"""Layers of which only the first units may be active."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F


class Sorted(nn.Module):
    """What the sorted layers have in common: they compute with the first units of their weights.

    The active parts are views: nothing is copied or masked, and units that are not active get a
    gradient of zero.
    """

    plain: type[nn.Module]

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """The sorted layer with the weights of a plain one, all of it active."""
        layer = cls.__new__(cls)
        layer.__dict__.update(module.__dict__)
        layer.activate_all()
        return layer

    def activate_all(self) -> None:
        raise NotImplementedError

    def active(self) -> dict[str, Tensor | None]:
        """Views of the active parts of parameters and buffers, by name."""
        raise NotImplementedError

    def narrowed(self) -> nn.Module:
        """A plain layer of the active size, with copies of the weights."""
        raise NotImplementedError

    def active_numbers(self: Any) -> int:
        """How many numbers the active parameters have."""
        views = (view for name, view in self.active().items() if name in self._parameters)
        return sum(view.numel() for view in views if view is not None)

    def _copied(self: Any, **sizes: Any) -> nn.Module:
        """A plain layer like this one with other sizes and copies of the active weights."""
        layer = self.plain.__new__(self.plain)
        for key, value in self.__dict__.items():
            if "active" not in key:
                layer.__dict__[key] = value.copy() if isinstance(value, dict) else value
        layer._modules = copy.deepcopy(self._modules)
        for name, view in self.active().items():
            if isinstance(view, Tensor):
                copied, old = view.detach().clone(), self._parameters.get(name)
                if old is None:
                    layer._buffers[name] = copied
                else:
                    layer._parameters[name] = nn.Parameter(copied, old.requires_grad)
        layer.__dict__.update(sizes)
        return layer


class SortedLinear(Sorted, nn.Linear):
    """A linear layer whose first outputs and inputs are active.

        `y = W[:p, :q] x + b[:p]`

    Args: as `torch.nn.Linear`.

    Attributes:
        active_out: p, all outputs at first.
        active_in: q, the length that inputs must have.

    Source: arXiv 2309.00255, section on sorted architectures.

    >>> import torch
    >>> layer = SortedLinear(8, 6)
    >>> layer.active_in, layer.active_out = 4, 3
    >>> layer(torch.rand(2, 4)).shape, layer.narrowed()
    (torch.Size([2, 3]), Linear(in_features=4, out_features=3, bias=True))
    """

    plain = nn.Linear

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activate_all()

    def activate_all(self) -> None:
        self.active_out, self.active_in = self.out_features, self.in_features

    def active(self) -> dict[str, Tensor | None]:
        p, q = self.active_out, self.active_in
        return {"weight": self.weight[:p, :q], "bias": _first(self.bias, p)}

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.active_out, self.active_in
        return F.linear(x, self.weight[:p, :q], _first(self.bias, p))

    def narrowed(self) -> nn.Module:
        return self._copied(out_features=self.active_out, in_features=self.active_in)


class _SortedConv(Sorted):
    """A convolution whose first output and input channels are active; see `SortedConv2d`."""

    convolve: Callable[..., Tensor]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activate_all()

    def activate_all(self: Any) -> None:
        self.active_out, self.active_in = self.out_channels, self.in_channels

    def active_groups(self: Any) -> int:
        """How many groups the active channels are."""
        if self.groups == 1:
            return 1
        groups, rest = divmod(self.active_out * self.groups, self.out_channels)
        if rest:
            raise ValueError(
                f"width {self.active_out} not divisible by groups={self.groups}: "
                f"{self.out_channels} channels are groups of {self.out_channels // self.groups}"
            )
        return groups

    def active(self: Any) -> dict[str, Tensor | None]:
        p, q = self.active_out, self.active_in
        inputs = q if self.groups == 1 else self.weight.shape[1]  # of a group, which stays whole
        return {"weight": self.weight[:p, :inputs], "bias": _first(self.bias, p)}

    def forward(self: Any, x: Tensor) -> Tensor:
        groups = self.active_groups()
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return type(self).convolve(
            x,
            **self.active(),
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=groups,
        )

    def narrowed(self: Any) -> nn.Module:
        return self._copied(
            out_channels=self.active_out,
            in_channels=self.active_in,
            groups=self.active_groups(),
        )


class SortedConv1d(_SortedConv, nn.Conv1d):
    """A one-dimensional convolution whose first channels are active; see `SortedConv2d`.

    >>> import torch
    >>> layer = SortedConv1d(4, 6, 3, padding=1)
    >>> layer.active_out = 2
    >>> layer(torch.rand(1, 4, 10)).shape
    torch.Size([1, 2, 10])
    """

    plain = nn.Conv1d
    convolve = staticmethod(F.conv1d)


class SortedConv2d(_SortedConv, nn.Conv2d):
    """A convolution whose first output and input channels are active.

        `y = W[:p, :q] * x + b[:p]`; with groups, the first groups, each whole

    Args: as `torch.nn.Conv2d`.

    Attributes:
        active_out: p, all output channels at first.
        active_in: q, the channels that inputs must have.

    Raises:
        ValueError: in the forward, active channels that are no whole groups.

    Source: arXiv 2309.00255, section on sorted architectures.

    >>> import torch
    >>> depthwise = SortedConv2d(8, 8, 3, groups=8)
    >>> depthwise.active_in = depthwise.active_out = 5
    >>> depthwise(torch.rand(1, 5, 4, 4)).shape, depthwise.narrowed().groups
    (torch.Size([1, 5, 2, 2]), 5)
    """

    plain = nn.Conv2d
    convolve = staticmethod(F.conv2d)


class SortedConv3d(_SortedConv, nn.Conv3d):
    plain = nn.Conv3d
    convolve = staticmethod(F.conv3d)


class _SortedNorm(Sorted):
    """A norm that takes the first features, as many as its input has unless told."""

    active_features: int | None

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activate_all()

    def activate_all(self) -> None:
        self.active_features = None

    def active(self: Any) -> dict[str, Tensor | None]:
        return self._views(self.active_features)

    def _views(self: Any, p: int | None) -> dict[str, Tensor | None]:
        tensors = {**self._parameters, **self._buffers}
        return {
            name: _first(t, p) if t is not None and t.dim() else t for name, t in tensors.items()
        }


class SortedLayerNorm(_SortedNorm, nn.LayerNorm):
    """Layer norm over the first p features: `layer_norm(x[..., :p]) * w[:p] + b[:p]`.

    Mean and variance are those of p numbers; of an input with zeros behind them they would shrink.

    Args: as `torch.nn.LayerNorm`, with one number for the shape.

    Attributes:
        active_features: p; None, as at first, for as many as the input has.

    Source: arXiv 2309.00255, section on sorted architectures.

    >>> import torch
    >>> norm = SortedLayerNorm(6)
    >>> x = torch.rand(2, 4)
    >>> torch.equal(norm(x), nn.functional.layer_norm(x, (4,)))
    True
    """

    plain = nn.LayerNorm

    def forward(self, x: Tensor) -> Tensor:
        p = self.active_features or x.shape[-1]
        return F.layer_norm(x, (p,), **self._views(p), eps=self.eps)

    def narrowed(self) -> nn.Module:
        p = self.active_features or self.normalized_shape[0]
        return self._copied(normalized_shape=(p,))


class _SortedBatchNorm(_SortedNorm):
    def forward(self: Any, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        views = self._views(self.active_features or x.shape[1])
        views.pop("num_batches_tracked", None)
        factor = self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            if factor is None:  # the mean over all batches
                factor = 1 / float(self.num_batches_tracked)
        if self.training and not self.track_running_stats:
            views |= {"running_mean": None, "running_var": None}
        batch_statistics = self.training or self.running_mean is None
        return F.batch_norm(
            x, **views, training=batch_statistics, momentum=factor or 0.0, eps=self.eps
        )

    def narrowed(self: Any) -> nn.Module:
        return self._copied(num_features=self.active_features or self.num_features)


class SortedBatchNorm1d(_SortedBatchNorm, nn.BatchNorm1d):
    """Batch norm of the first channels of (N, C) or (N, C, L); see `SortedBatchNorm2d`.

    >>> import torch
    >>> SortedBatchNorm1d(6)(torch.rand(8, 4)).shape
    torch.Size([8, 4])
    """

    plain = nn.BatchNorm1d


class SortedBatchNorm2d(_SortedBatchNorm, nn.BatchNorm2d):
    """Batch norm of the first p channels of pictures.

    All sizes share running statistics, which suit none of them: the inputs of a layer depend on how
    many channels come before. In training mode this does not matter. Before a sub-model is used,
    estimate its own: `torch.optim.swa_utils.update_bn(loader, model)` inside `model.at(b)`.

    Args: as `torch.nn.BatchNorm2d`.

    Attributes:
        active_features: p; None, as at first, for as many as the input has.

    Source: arXiv 2309.00255; estimating again is ours, after universally slimmable networks
    (arXiv 1903.05134).

    >>> import torch
    >>> norm = SortedBatchNorm2d(6)
    >>> norm(torch.rand(2, 4, 3, 3)).shape, norm.running_mean.ne(0).tolist()
    (torch.Size([2, 4, 3, 3]), [True, True, True, True, False, False])
    """

    plain = nn.BatchNorm2d


class SortedBatchNorm3d(_SortedBatchNorm, nn.BatchNorm3d):
    plain = nn.BatchNorm3d


class _SortedInstanceNorm(_SortedNorm):
    def forward(self: Any, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if x.dim() == self._get_no_batch_dim():
            return self.forward(x.unsqueeze(0)).squeeze(0)
        views = self._views(self.active_features or x.shape[1])
        views.pop("num_batches_tracked", None)
        own_statistics = self.training or not self.track_running_stats
        momentum = self.momentum or 0.0
        return F.instance_norm(
            x, **views, use_input_stats=own_statistics, momentum=momentum, eps=self.eps
        )

    def narrowed(self: Any) -> nn.Module:
        return self._copied(num_features=self.active_features or self.num_features)


class SortedInstanceNorm1d(_SortedInstanceNorm, nn.InstanceNorm1d):
    plain = nn.InstanceNorm1d


class SortedInstanceNorm2d(_SortedInstanceNorm, nn.InstanceNorm2d):
    """Instance norm of the first channels of pictures: no statistics, so nothing to estimate again.

    Args: as `torch.nn.InstanceNorm2d`; inputs (N, C, H, W).

    Attributes:
        active_features: the active channels; None, as at first, for as many as the input has.

    Source: arXiv 2309.00255; the norm of `apple/learning-compressible-subspaces`.

    >>> import torch
    >>> SortedInstanceNorm2d(6, affine=True)(torch.rand(2, 4, 3, 3)).shape
    torch.Size([2, 4, 3, 3])
    """

    plain = nn.InstanceNorm2d


class SortedInstanceNorm3d(_SortedInstanceNorm, nn.InstanceNorm3d):
    plain = nn.InstanceNorm3d


def _first(tensor: Tensor | None, p: int | None) -> Tensor | None:
    return None if tensor is None else tensor[:p]


LAYERS: dict[type[nn.Module], type[Sorted]] = {
    layer.plain: layer for layer in (SortedLinear, SortedConv1d, SortedConv2d, SortedConv3d)
}
NORMS: dict[type[nn.Module], type[Sorted]] = {
    norm.plain: norm
    for norm in (
        SortedLayerNorm,
        SortedBatchNorm1d,
        SortedBatchNorm2d,
        SortedBatchNorm3d,
        SortedInstanceNorm1d,
        SortedInstanceNorm2d,
        SortedInstanceNorm3d,
    )
}
