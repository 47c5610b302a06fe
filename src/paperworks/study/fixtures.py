"""Fixtures: what many trials need and one may compute, such as a trained network.

A file a fixture, named by what it depends on: the function's code, its arguments, its seed, the
user's data, the environment. Whoever comes first computes it under a lock; a reader sees a whole
file or none. Tensors lie in safetensors, everything else as JSON in the file's header.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from paperworks.study.environment import environment, stamp
from paperworks.study.fingerprint import function_fingerprint
from paperworks.study.run import Streams, derive

TWISTER = 625
"""The state of a Mersenne twister: 624 numbers of 32 bits and its position."""

CPU = torch.device("cpu")
UNREADABLE = (OSError, SafetensorError, KeyError, ValueError)
"""What reading raises when the file is missing, cut short or no fixture: compute it then."""


def cache_folder() -> Path:
    """Where fixtures and checkpoints lie: $PAPERWORKS_CACHE, or the user's cache directory."""
    return Path(os.environ.get("PAPERWORKS_CACHE") or user_cache_path("paperworks"))


def fixture(build: Callable[..., Any], args: dict[str, Any], streams: Streams) -> Any:
    """`build(streams, **args)`, from disk when it is there."""
    path = (
        cache_folder() / "fixtures" / f"{build.__name__}-{_key(build, args, streams)}.safetensors"
    )
    with contextlib.suppress(*UNREADABLE):
        return _read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            return _read(path)  # somebody else was first
        except UNREADABLE:
            with isolated_generators(derive(streams.seed, "global"), streams.device):
                value = build(streams, **args)
            _write(path, value)
            return _read(path)  # what every later trial will see, bit for bit


def _key(build: Callable[..., Any], args: dict[str, Any], streams: Streams) -> str:
    parts = [
        build.__module__,
        build.__qualname__,
        function_fingerprint(build),
        args,
        streams.seed,
        streams._data_digest,
        stamp(environment(str(streams.device))),
    ]
    try:
        text = json.dumps(parts, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"fixture {build.__name__}: arguments must be JSON values, got {args!r}"
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _write(path: Path, value: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_flatten(value, tensors), allow_nan=False)
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file(tensors, part, metadata={"tree": tree})
    os.replace(part, path)


def _read(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()["tree"])
        return _restore(tree, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if torch.is_tensor(value):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # tied tensors part ways
        return {"tensor": name}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"a fixture's dicts need strings as keys, got {list(value)[:5]}")
        return {"dict": {key: _flatten(item, tensors) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_flatten(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(
        "a fixture returns dicts and lists of tensors, numbers and strings, not "
        f"{type(value).__name__}"
    )


def _restore(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _restore(item, tensors) for key, item in content.items()}
    if kind == "list":
        return [_restore(item, tensors) for item in content]
    return content


class GlobalDraw(RuntimeError):
    """Something drew from a global generator that methods would share."""


@contextlib.contextmanager
def isolated_generators(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed the global generators inside, the device's too; put them back as they were afterwards.

    (Of devices CUDA's are put back; others are seeded for each trial anyway.)

    torch's may be drawn from (dropout does). numpy's and Python's may not: they are seeded so that
    nothing depends on what ran before, and a draw from them is an error, because methods that share
    such a generator would shift each other's numbers.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    on_cuda = torch.cuda.get_rng_state_all() if device.type == "cuda" else []
    if device.type == "cpu":  # torch.manual_seed also keeps a call, for ever, a sleeping device
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    start = _global_position()
    try:
        yield
        if _global_position() != start:
            raise GlobalDraw(
                "drew from the global generator of numpy or random: draw from run.rng(name), or "
                "pass random_state=run.random_state(name)"
            )
    finally:
        torch.set_rng_state(before[0])
        torch.cuda.set_rng_state_all(on_cuda)
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def _global_position() -> tuple[Any, ...]:
    """Where the global generators of numpy and Python are; numpy's is read where it lies.

    Asking numpy for it takes thirty times as long, and every trial asks twice.
    """
    twister = np.random.get_bit_generator().ctypes.state_address  # type: ignore[attr-defined]
    return ctypes.string_at(twister, 4 * TWISTER), random.getstate()
