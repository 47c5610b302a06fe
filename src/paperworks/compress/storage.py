"""Small numbers packed into bytes, and files of tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

FORMAT = {"format": "pt", "paperworks": "1"}
"""Metadata of the files: safetensors' own word for PyTorch, and this layout's version."""


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Write whole numbers of few bits one behind the other, without gaps.

    Value i takes the bits `i * bits` to `(i + 1) * bits - 1` of the stream, its lowest bit first;
    byte j holds the stream's bits `8j` to `8j + 7`, lowest first.

    Args:
        values: whole numbers in [0, 2**bits), of any shape and integer type.
        bits: 1 to 8.

    Returns:
        uint8, shape `(ceil(numel * bits / 8),)`, on the device of the values.

    Raises:
        ValueError: bits out of range, values that are no whole numbers or need more bits.

    >>> pack_bits(torch.tensor([1, 0, 3, 2]), bits=2)
    tensor([177], dtype=torch.uint8)
    """
    _check_bits(bits)
    if values.is_floating_point() or values.is_complex():
        raise ValueError(f"values must be whole numbers, got {values.dtype}")
    least, most = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    if least < 0 or most >= 2**bits:
        raise ValueError(f"values must be in [0, {2**bits}) for {bits} bits, got {least} to {most}")
    flat = values.flatten().to(torch.uint8)
    if 8 % bits == 0:  # whole numbers fit into a byte
        padded = functional.pad(flat, (0, -flat.numel() % (8 // bits)))
        return (padded.view(-1, 8 // bits) << _places(8, flat, bits)).sum(1, dtype=torch.uint8)
    stream = flat[:, None] >> _places(bits, flat) & 1
    padded = functional.pad(stream.flatten(), (0, -flat.numel() * bits % 8))
    return (padded.view(-1, 8) << _places(8, flat)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, shape: Iterable[int]) -> Tensor:
    """The numbers that `pack_bits` packed, as uint8 of this shape.

    Raises:
        ValueError: bits out of range, or another number of bytes than the shape takes.

    >>> unpack_bits(torch.tensor([177], dtype=torch.uint8), bits=2, shape=(2, 2))
    tensor([[1, 0],
            [3, 2]], dtype=torch.uint8)
    """
    _check_bits(bits)
    shape = tuple(shape)
    size = math.prod(shape)
    expected = math.ceil(size * bits / 8)
    if packed.dtype != torch.uint8 or packed.shape != (expected,):
        raise ValueError(
            f"packed must be uint8 of shape ({expected},) for {bits} bits a number and shape "
            f"{shape}, got {packed.dtype} of shape {tuple(packed.shape)}"
        )
    if 8 % bits == 0:
        numbers = packed[:, None] >> _places(8, packed, bits) & (2**bits - 1)
        return numbers.flatten()[:size].view(shape)
    stream = (packed[:, None] >> _places(8, packed) & 1).flatten()[: size * bits]
    return (stream.view(size, bits) << _places(bits, packed)).sum(1, dtype=torch.uint8).view(shape)


def save_tensors(tensors: Mapping[str, Tensor], file: str | Path) -> None:
    """Write a compressed model's tensors to a safetensors file.

    For what a method stores (`integer_state_dict`, `sparse_state_dict`) and for the `state_dict` of
    a smaller model; any reader of safetensors opens it. The file has the size that `footprint` says
    and a header of about a hundred bytes a tensor. It appears whole or not at all.

    Args:
        tensors: names and tensors; those that share memory are written once each.
        file: its path; an existing file is replaced.

    Raises:
        TypeError: a value that is no tensor.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> save_tensors({"weight": torch.ones(2)}, file)
    >>> load_tensors(file)
    {'weight': tensor([1., 1.])}
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors[{name!r}] must be a tensor, got {type(tensor).__name__}")
    first: dict[Any, str] = {}
    same_as = {name: first.setdefault(_place(t), name) for name, t in tensors.items()}
    kept = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items() if same_as[n] == n}
    aliases = {name: other for name, other in same_as.items() if name != other}
    partial = Path(f"{file}.partial")
    save_file(kept, partial, metadata={**FORMAT, "aliases": json.dumps(aliases)})
    partial.replace(file)


def load_tensors(file: str | Path) -> dict[str, Tensor]:
    """The tensors that `save_tensors` wrote, in main memory.

    Nothing in the file is executed or unpickled. Tensors that shared memory do so again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no safetensors file, was cut off, or was written by another program.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file, or was cut off: {error}") from error
    if metadata.get("paperworks") != FORMAT["paperworks"]:
        raise ValueError(
            f"{file} was not written by save_tensors of this version: its metadata are {metadata}"
        )
    aliases = json.loads(metadata["aliases"])
    return tensors | {name: tensors[other] for name, other in aliases.items()}


def _check_bits(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"bits must be in [1, 8], got {bits!r}")


def _places(end: int, like: Tensor, step: int = 1) -> Tensor:
    """By how much to shift: 0, step, ... below `end`."""
    return torch.arange(0, end, step, dtype=torch.uint8, device=like.device)


def _place(tensor: Tensor) -> Any:
    """Equal for tensors that are the same numbers at the same place; empty ones have none."""
    if not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
