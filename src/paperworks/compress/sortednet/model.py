"""A network that holds all of its sub-models, one of them active."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from paperworks.common.activations import Batch
from paperworks.common.surgery import replace_modules
from paperworks.compress.cost import macs
from paperworks.compress.sortednet.layers import Sorted
from paperworks.compress.sortednet.spec import Config, Size, SortedSpec
from paperworks.compress.sortednet.stacks import SortedStack


@dataclass(frozen=True)
class Rule:
    """What a dimension cuts of one layer.

    Attributes:
        layer: its name.
        attribute: of the layer, how many are active.
        dim: the dimension.
        full: how many there are.
        units: equal parts that these are and that stay whole: channels, groups, heads or blocks.
    """

    layer: str
    attribute: str
    dim: str
    full: int
    units: int

    def active(self, size: Size, largest: Size) -> int:
        """How many are active at a size.

        Raises:
            ValueError: no whole number of units.
        """
        units = self.units * size / largest
        if round(units) < 1 or not math.isclose(units, round(units), rel_tol=1e-6):
            raise ValueError(f"{size} of {largest} would be {units:g} of {self.units}")
        return self.full // self.units * round(units)


class SortedModel(nn.Module):
    """A network that holds every sub-model of a `SortedSpec`; `to_sorted` makes it.

    Calling it calls the network at the active sub-model, at first the largest. Slices of weights
    are views: nothing is copied, and one `state_dict` serves all.

    Attributes:
        model: the network, with sorted layers in the places of plain ones.
        spec: its sub-models.
        config: the active one.
        rules: what each dimension cuts, layer by layer.

    Source: arXiv 2309.00255.

    >>> import torch
    >>> from paperworks.compress import to_sorted
    >>> mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    >>> x = torch.rand(2, 64)
    >>> model = to_sorted(mlp, SortedSpec({"width": [32, 64, 128]}), example=x)
    >>> with model.at({"width": 32}):
    ...     y = model(x)
    >>> small = model.materialize({"width": 32})
    >>> small[0], torch.allclose(small(x), y, atol=1e-6)
    (Linear(in_features=64, out_features=32, bias=True), True)
    >>> model.cost({"width": 32}, x[:1]), model.select(max_params=5000)
    (2368, {'width': 64})
    """

    def __init__(self, model: nn.Module, spec: SortedSpec, rules: Sequence[Rule]) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.rules = list(rules)
        self.config: Config = spec.largest
        self._layers = [model.get_submodule(rule.layer) for rule in self.rules]
        self._active: dict[tuple[Size, ...], list[int]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def set(self, b: Mapping[str, Size]) -> None:
        """Make b the active sub-model.

        Raises:
            ValueError: b is not in the spec.
            TypeError: b is no mapping.
        """
        self.spec.check(b)
        key = tuple(b[dim] for dim in self.spec.dims)
        if key not in self._active:
            largest = self.spec.largest
            self._active[key] = [r.active(b[r.dim], largest[r.dim]) for r in self.rules]
        for layer, rule, active in zip(self._layers, self.rules, self._active[key]):
            object.__setattr__(layer, rule.attribute, active)  # a module's own is slow
        self.config = dict(b)

    @contextmanager
    def at(self, b: Mapping[str, Size]) -> Iterator[SortedModel]:
        """Make b the active sub-model inside a `with` block; see `set`.

        Batch norms: `with model.at(b): torch.optim.swa_utils.update_bn(loader, model)` estimates
        the statistics of b; materialize b before you do so for another.
        """
        before = self.config
        self.set(b)
        try:
            yield self
        finally:
            self.set(before)

    def materialize(self, b: Mapping[str, Size]) -> nn.Module:
        """The sub-model b as a plain network of its own, with copies of its weights.

        Raises:
            ValueError: b is not in the spec.
        """
        with self.at(b):
            model = self.model
            if any(isinstance(module, SortedStack) for module in model.modules()):
                model, _ = replace_modules(model, SortedStack, _shortened)  # the less to copy
            if any(isinstance(module, Sorted) for module in model.modules()):
                model, _ = replace_modules(model, Sorted, _narrowed)
            keep_modes_(model, self.model)
            _tell_depth_(model, self)
            return model

    def num_parameters(self, b: Mapping[str, Size]) -> int:
        """How many numbers the parameters of the sub-model b have; shared ones count once."""
        with self.at(b):
            return _numbers(self.model, set())

    def cost(self, b: Mapping[str, Size], example: Batch) -> int:
        """Multiply-adds of one forward of the sub-model b; see `paperworks.compress.macs`."""
        with self.at(b):
            return macs(self.model, example)

    def select(
        self,
        *,
        max_params: int | None = None,
        max_macs: int | None = None,
        example: Batch | None = None,
        score: Callable[[SortedModel], float] | None = None,
    ) -> Config:
        """The largest sub-model within a budget: no search and no training.

        With one dimension there is one. With several, some of those that fit may be in no other
        that fits: the best of these by `score` is taken, or without it the one with the most
        multiply-adds if `example` is there, else with the most parameters.

        Args:
            max_params: how many numbers its parameters may have.
            max_macs: how many multiply-adds it may need for `example`.
            example: what the model is fed, see `cost`.
            score: `score(model)`, higher is better: say, accuracy on validation data. It is called
                with the sub-model active.

        Raises:
            ValueError: no budget, `max_macs` without `example`, or no sub-model fits.
        """
        if max_params is None and max_macs is None:
            raise ValueError("select needs a budget: max_params or max_macs")
        if max_macs is not None and example is None:
            raise ValueError("max_macs needs an example of the model's inputs")
        params = [self.num_parameters(b) for b in self.spec.configs]
        costs = params if example is None else [self.cost(b, example) for b in self.spec.configs]
        fitting = {
            i: b
            for i, b in enumerate(self.spec.configs)
            if (max_params is None or params[i] <= max_params)
            and (max_macs is None or costs[i] <= max_macs)
        }
        if not fitting:
            needs = {"max_params": (max_params, params[0]), "max_macs": (max_macs, costs[0])}
            budget, least = zip(
                *((f"{k}={most}", str(n)) for k, (most, n) in needs.items() if most is not None)
            )
            raise ValueError(
                f"no sub-model fits {', '.join(budget)}: the smallest needs {', '.join(least)}"
            )
        maximal = {
            i: b
            for i, b in fitting.items()
            if not any(b != c and all(b[t] <= c[t] for t in b) for c in fitting.values())
        }
        if score is None or len(maximal) == 1:
            return maximal[max(maximal, key=lambda i: costs[i])]
        return max(maximal.values(), key=lambda b: self._scored(b, score))

    @contextmanager
    def sharing_blocks(self) -> Iterator[None]:
        """Inside, the blocks run once for several depths.

        The first forward must be at the largest depth of interest. Later ones at smaller depths,
        with the same inputs and other sizes, take what that forward had behind their last block and
        run only what comes before and after the blocks. Gradients flow through all.
        """
        with ExitStack() as stack:
            for module in self.model.modules():
                if isinstance(module, SortedStack):
                    stack.enter_context(module.recording())
            yield

    def _scored(self, b: Config, score: Callable[[SortedModel], float]) -> float:
        with self.at(b):
            return score(self)


def keep_modes_(model: nn.Module, like: nn.Module) -> None:
    """Training flags as in a model with the same names."""
    training = {name: module.training for name, module in like.named_modules()}
    for name, module in model.named_modules():
        module.training = training.get(name, module.training)


def _narrowed(name: str, layer: Any) -> nn.Module:
    return layer.narrowed()


def _shortened(name: str, stack: Any) -> nn.Module:
    return stack.plain(stack.blocks())


def _tell_depth_(model: nn.Module, whole: SortedModel) -> None:
    """Configurations of `transformers` models name the number of layers."""
    rule = next((rule for rule in whole.rules if rule.dim == "depth"), None)
    for module in model.modules() if rule else ():
        config = getattr(module, "config", None)
        if getattr(config, "num_hidden_layers", None) == rule.full:  # type: ignore[union-attr]
            config.num_hidden_layers = whole.model.get_submodule(rule.layer).active_blocks  # type: ignore[union-attr]


def _numbers(module: nn.Module, seen: set[int]) -> int:
    """Numbers in the active parameters that are not in `seen`, which takes them up."""
    if id(module) in seen:
        return 0
    seen.add(id(module))
    if isinstance(module, Sorted):
        return module.active_numbers()
    own = [p for p in module._parameters.values() if p is not None and id(p) not in seen]
    seen.update(map(id, own))
    children = module.blocks().values() if isinstance(module, SortedStack) else module.children()
    return sum(p.numel() for p in own) + sum(_numbers(child, seen) for child in children)
