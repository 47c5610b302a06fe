"""Exchanging modules inside a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

Match = type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class SurgeryReport:
    """What `replace_modules` did.

    Attributes:
        replaced: the new module under each name that was replaced, in the model's order. A module
            that stood under two names does so again.
        parameters_before: numbers in the model's parameters before the exchange.
        parameters_after: the same after it.

    >>> _, report = replace_modules(nn.Sequential(nn.Linear(8, 8)), nn.Linear, lambda *_: nn.Tanh())
    >>> print(report)
    1 module replaced, 72 parameters before, 0 after
      0: Tanh
    """

    replaced: dict[str, nn.Module]
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        n = len(self.replaced)
        lines = [f"  {name}: {type(module).__name__}" for name, module in self.replaced.items()]
        head = (
            f"{n} module{'s' * (n != 1)} replaced, {self.parameters_before:,} parameters before, "
            f"{self.parameters_after:,} after"
        )
        return "\n".join([head, *lines])


def replace_modules(
    model: nn.Module, match: Match, make: Callable[[str, nn.Module], nn.Module]
) -> tuple[nn.Module, SurgeryReport]:
    """A copy of a model in which the modules that match are exchanged for others.

    For converting a network whose code you do not touch: other activations, cheaper layers, an
    adapter behind every projection. Hooks, modes and everything else that `copy.deepcopy` keeps
    stay. Where a match contains another, the outer one is replaced. A module that is used under
    several names is made once and stays shared.

    Args:
        model: any module; it is not changed.
        match: a module class, several, or a function of name and module. Names are those of
            `model.named_modules()`, `""` for the model itself.
        make: `make(name, module)` returns the module to put there. It is handed the copy's module,
            which it may keep inside the new one; device and dtype are its business. The new module
            gets the old one's training mode.

    Returns:
        The copy, and a report of what was replaced.

    Raises:
        ValueError: nothing matches.
        TypeError: the model is no module, `match` is neither classes nor a function, or `make`
            returns something that is no module.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> smooth, report = replace_modules(model, nn.ReLU, lambda name, old: nn.GELU())
    >>> smooth[1], model[1], list(report.replaced)
    (GELU(approximate='none'), ReLU(), ['1'])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    matches = _predicate(match)
    changed = copy.deepcopy(model)
    found = _outermost(changed, matches)
    if not found:
        raise ValueError("match fits no module of the model, see model.named_modules()")
    made: dict[nn.Module, nn.Module] = {}
    for name, old in found.items():
        if old not in made:
            made[old] = _made(make, name, old)
        if name:
            changed.set_submodule(name, made[old])
        else:
            changed = made[old]
    replaced = {name: made[old] for name, old in found.items()}
    return changed, SurgeryReport(replaced, _size(model), _size(changed))


def _predicate(match: Match) -> Callable[[str, nn.Module], bool]:
    classes = match if isinstance(match, tuple) else (match,)
    if all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in classes):
        return lambda name, module: isinstance(module, classes)  # type: ignore[arg-type]
    if callable(match) and not isinstance(match, type):
        return match
    raise TypeError(f"match must be module classes or a function of name and module, got {match!r}")


def _outermost(model: nn.Module, matches: Callable[[str, nn.Module], bool]) -> dict[str, nn.Module]:
    """Matches by name without those inside another; a shared module has all of its names."""
    found: dict[str, nn.Module] = {}
    inside = None
    for name, module in model.named_modules(remove_duplicate=False):  # parents before children
        if inside is not None and (inside == "" or name.startswith(f"{inside}.")):
            continue
        if matches(name, module):
            found[name], inside = module, name
    return found


def _made(make: Callable[[str, nn.Module], nn.Module], name: str, old: nn.Module) -> nn.Module:
    training = old.training
    new = make(name, old)
    if not isinstance(new, nn.Module):
        raise TypeError(
            f"make must return a torch.nn.Module, got {type(new).__name__} for {name!r}"
        )
    return new.train(training)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
