"""Activations of named layers: live in one forward, or streamed over many batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

Batch = Any
"""What a model is fed: a tensor, a tuple `(x, y, ...)` of which x is used, a dict of arguments."""


class ActivationRecorder:
    """Records what named layers return, or receive, while the model runs.

    For losses and measurements on intermediate layers of a network whose code you do not touch: one
    forward gives the output and the activations, so that dropout draws one mask and batch norm
    updates once.

    The tensors are the network's own, part of its graph: a loss on them trains the network, and
    `torch.autograd.grad` of its final loss with respect to them works. Each forward of the model
    starts afresh. The hooks are gone when the `with` block ends, however it ends.

    Args:
        model: any module.
        layers: names of submodules, as in `model.named_modules()`.
        of: "output" or "input" of the layers.
        transform: what to keep of a layer's output, or of its `(args, kwargs)` with `of="input"`.
            It is called inside the forward, so `torch.clone` keeps what a later layer overwrites.
            By default the tensor itself, or the first item of a tuple or list.

    Attributes:
        activations: for each layer what was recorded in the latest forward, in execution order.

    Raises:
        ValueError: a name that the model does not have; a layer that ran twice in one forward;
            on reading, a tensor that was changed in place since (`transform=torch.clone` helps).
        TypeError: a layer gives something that is no tensor, and no `transform` says what to keep.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> with ActivationRecorder(model, ["0", "1"]) as recorder:
    ...     loss = model(torch.rand(5, 2)).mean()
    >>> {name: tuple(a.shape) for name, a in recorder.activations.items()}
    {'0': (5, 3), '1': (5, 3)}
    >>> torch.equal(recorder.activations["0"].tanh(), recorder.activations["1"])
    True
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        *,
        of: Literal["output", "input"] = "output",
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if of not in ("output", "input"):
            raise ValueError(f"of must be 'output' or 'input', got {of!r}")
        self._model = model
        self._modules = find_modules(model, layers)
        self._of = of
        self._transform = transform
        self._handles: list[Any] = []
        self._recorded: dict[str, Any] = {}
        self._versions: dict[str, int] = {}

    @property
    def activations(self) -> dict[str, Any]:
        for name, value in self._recorded.items():
            if _version(value) != self._versions[name]:
                raise ValueError(
                    f"the {self._of} of layer {name!r} was changed in place after it was recorded: "
                    "pass transform=torch.clone, or record a layer after the change"
                )
        return dict(self._recorded)

    def __enter__(self) -> ActivationRecorder:
        self._handles.append(self._model.register_forward_pre_hook(self._restart))
        for name, module in self._modules.items():
            self._handles.append(self._watch(name, module))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _watch(self, name: str, module: nn.Module) -> Any:
        if self._of == "input":
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: self._record(name, (args, kwargs)), with_kwargs=True
            )
        return module.register_forward_hook(lambda _, args, output: self._record(name, output))

    def _restart(self, *_: Any) -> None:
        self._recorded.clear()

    def _record(self, name: str, value: Any) -> None:
        if name in self._recorded:
            raise ValueError(f"layer {name!r} ran twice in one forward: record what contains it")
        kept = self._transform(value) if self._transform else self._tensor(name, value)
        self._recorded[name] = kept
        self._versions[name] = _version(kept)

    def _tensor(self, name: str, value: Any) -> Tensor:
        if self._of == "input":
            args, kwargs = value
            value = args or tuple(kwargs.values())
        tensor = first_tensor(value)
        if tensor is None:
            raise TypeError(
                f"the {self._of} of layer {name!r} is {_describe(value)}, which neither is nor "
                "starts with a tensor: pass transform= to say what to keep"
            )
        return tensor


def collect_activations(
    model: nn.Module,
    batches: Tensor | Iterable[Batch],
    layers: Sequence[str],
    *,
    of: Literal["output", "input"] = "output",
    transform: Callable[[Any], Any] | None = None,
    reduce: Callable[[dict[str, Any], Batch], None] | None = None,
    early_stop: bool = False,
    max_rows: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """What named layers give over many batches, in evaluation mode and without gradients.

    By default the activations of all batches end up in the CPU's memory. Two things bound it: with
    `reduce` they are there one batch at a time, so hand it the `update` of whatever you accumulate;
    `max_rows` keeps a sample of them.

    Args:
        model: any module; its training flags are put back afterwards.
        batches: a tensor (one batch), or an iterable of tensors, of tuples `(x, y, ...)` of which x
            is fed, or of dicts fed as keyword arguments. What is fed goes to the model's device.
        layers: names of submodules.
        of: "output" or "input" of the layers.
        transform: what to keep of one batch, see `ActivationRecorder`; a mean over positions or a
            random subset keeps memory small.
        reduce: `reduce(activations, batch)`, called after each batch with the activations by name.
        early_stop: leave each forward as soon as every layer has run.
        max_rows: keep no more than so many rows (of the first dimension, after `transform`) of a
            layer: a uniform sample without repetition, in the order in which they came. Layers that
            give equally many rows a batch keep the same ones, in another network too if its
            generator is in the same state.
        generator: draws that sample.

    Returns:
        For each layer its activations, concatenated along the first dimension; empty with `reduce`.

    Raises:
        ValueError: an unknown name, no batches, a layer that did not run or ran twice, shapes that
            cannot be concatenated; `max_rows` below 1, without a generator, or with `reduce`.
        TypeError: a layer or `transform` gives no tensor, or a batch is none of the kinds above.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> x = torch.rand(10, 2)
    >>> kept = collect_activations(model, x.split(4), ["1"])
    >>> torch.allclose(kept["1"], model[:2](x))
    True
    >>> total = torch.zeros(3)
    >>> add = lambda activations, batch: total.add_(activations["1"].sum(0))
    >>> collect_activations(model, x.split(4), ["1"], reduce=add)
    {}
    >>> torch.allclose(total, kept["1"].sum(0))
    True
    """
    kept = _kept_rows(layers, max_rows, generator, reduce)

    def keep(activations: dict[str, Any], batch: Batch) -> None:
        for name, value in activations.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"transform gave {_describe(value)} for layer {name!r}, no tensor")
            kept[name].add(value)

    recorder = _CopyingRecorder(model, layers, of=of, transform=transform)
    recorder.early_stop = early_stop
    empty = True
    with evaluating(model), torch.no_grad(), recorder:
        for batch in [batches] if isinstance(batches, Tensor) else batches:
            empty = False
            args, kwargs = model_arguments(model, batch)
            with suppress(_EverythingRecorded):
                model(*args, **kwargs)
            activations = recorder.activations
            for name in layers:
                if name not in activations:
                    raise ValueError(f"layer {name!r} did not run in the forward of the model")
            (reduce or keep)(activations, batch)
    if empty:
        raise ValueError("batches is empty")
    return {} if reduce else {name: rows.joined() for name, rows in kept.items()}


def unit_rows(output: Any) -> Tensor:
    """A layer's output with one unit a column, one observation of all units a row.

    For `transform=` where every pixel or token counts as a sample of its own: maps (B, C, H, W)
    become (B·H·W, C), sequences (B, T, D) become (B·T, D), vectors (B, D) stay. Of a tuple or list
    the first item is taken.

    Raises:
        TypeError: there is no tensor.
        ValueError: a tensor of fewer than two dimensions.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    >>> rows = collect_activations(model, torch.rand(2, 1, 5, 5), ["1"], transform=unit_rows)["1"]
    >>> rows.shape
    torch.Size([18, 4])
    """
    x = first_tensor(output)
    if x is None:
        raise TypeError(
            f"expected a layer's output to be or start with a tensor, got {_describe(output)}"
        )
    if x.dim() < 2:
        raise ValueError(f"expected an output (B, units, ...), got shape {tuple(x.shape)}")
    units_last = x.movedim(1, -1) if x.dim() > 3 else x
    return units_last.reshape(-1, units_last.shape[-1])


class _Rows:
    """All rows of a layer, or a sample: those with the smallest of random keys."""

    def __init__(self, name: str, most: int | None, generator: torch.Generator | None) -> None:
        self._name = name
        self._most = most
        self._generator = generator
        self._parts: list[Tensor] = []
        self._keys = torch.empty(0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        if self._most is None:
            self._parts.append(rows.cpu())
            return
        keys = torch.rand(len(rows), generator=self._generator, dtype=torch.float64)
        if len(self._keys) == self._most:  # later rows are rarely small enough: move only those
            small = keys < self._keys.max()
            keys, rows = keys[small], rows[small.to(rows.device)]
        self._parts.append(rows.cpu())
        self._keys = torch.cat([self._keys, keys])
        if len(self._keys) > self._most:
            chosen = self._keys.topk(self._most, largest=False).indices.sort().values
            self._keys, self._parts = self._keys[chosen], [self.joined()[chosen]]

    def joined(self) -> Tensor:
        return _concatenate(self._name, self._parts)


def _kept_rows(
    layers: Sequence[str],
    most: int | None,
    generator: torch.Generator | None,
    reduce: Callable[..., None] | None,
) -> dict[str, _Rows]:
    if most is None:
        return {name: _Rows(name, None, None) for name in layers}
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"max_rows must be a positive integer, got {most!r}")
    if generator is None or reduce is not None:
        missing = "needs generator=" if reduce is None else "keeps rows, reduce= keeps none"
        raise ValueError(f"max_rows {missing}")
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return {name: _Rows(name, most, torch.Generator().manual_seed(seed)) for name in layers}


class _CopyingRecorder(ActivationRecorder):
    """Copies what it records, so that later in-place layers do no harm; can end the forward."""

    early_stop = False

    def _record(self, name: str, value: Any) -> None:
        super()._record(name, value)
        kept = self._recorded[name]
        if isinstance(kept, Tensor):
            self._recorded[name] = kept.detach().clone()
            self._versions[name] = 0
        if self.early_stop and len(self._recorded) == len(self._modules):
            raise _EverythingRecorded


class _EverythingRecorded(BaseException):
    """Ends a forward; no `except Exception` inside a model shall stop it."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule's own training flag again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def find_modules(
    model: nn.Module, names: Sequence[str], what: str = "layer"
) -> dict[str, nn.Module]:
    """The submodules of these names.

    Raises:
        ValueError: a name is not there, with the nearest that are.
        TypeError: `names` is one string.

    >>> find_modules(nn.Sequential(nn.ReLU()), ["0"])
    {'0': ReLU()}
    """
    if isinstance(names, str):
        raise TypeError(f"expected a sequence of {what} names, got the string {names!r}")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules:
            near = get_close_matches(str(name), modules, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see model.named_modules()"
            raise ValueError(f"{what} {name!r} not found: {hint}")
    return {name: modules[name] for name in names}


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or a tuple's or list's first item; None if that is no tensor."""
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def model_arguments(model: nn.Module, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that feed a batch to a model, on the model's device.

    Raises:
        TypeError: the batch is no tensor, no tuple or list that starts with one, and no dict.

    >>> model_arguments(nn.ReLU(), (torch.ones(2), "label"))
    ((tensor([1., 1.]),), {})
    """
    device = next((p.device for p in (*model.parameters(), *model.buffers())), None)

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        return (), {name: moved(value) for name, value in batch.items()}
    x = first_tensor(batch)
    if x is None:
        raise TypeError(
            "a batch must be a tensor, a tuple (x, y, ...) or a dict of arguments, got "
            f"{_describe(batch)}"
        )
    return (moved(x),), {}


def _version(value: Any) -> int:
    """How often a tensor was written to in place; nobody counts under `inference_mode`."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _concatenate(name: str, parts: list[Tensor]) -> Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1 or parts[0].dim() == 0:
        raise ValueError(
            f"layer {name!r} gives shapes {[tuple(part.shape) for part in parts[:4]]}, which "
            "cannot be concatenated: pass transform= or reduce="
        )
    return torch.cat(parts)


def _describe(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} with keys {list(value)[:6]}"
    if isinstance(value, tuple | list):
        return f"a {kind} of {[type(item).__name__ for item in value][:6]}"
    return f"a {kind}"
