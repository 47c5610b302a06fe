"""A folder of models: weights in safetensors, and a card for each that says what it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paperworks.compress.storage import load_tensors, save_tensors
from paperworks.nets import MLP, ConvNet, MobileNet, ResidualMLP, ResNet

_NETWORKS: dict[str, type[nn.Module]] = {
    network.__name__: network for network in (MLP, ConvNet, MobileNet, ResidualMLP, ResNet)
}


class ModelZoo(Mapping[str, nn.Module]):
    """A folder of models that other people can use without trusting its author.

    Each model is two files: NAME.safetensors with its weights, and NAME.json, its card:

    - `network`: its class in `paperworks.nets`, one of MLP, ConvNet, MobileNet, ResidualMLP,
      ResNet;
    - `arguments`: the keyword arguments of that class;
    - `flatten`: true for a network of `nn.Sequential(nn.Flatten(), network)`, as an MLP of pictures
      is;
    - `task`: names of its classes, in the order of its outputs;
    - anything else that JSON can hold: data, licence, accuracy, remarks.

    A zoo is a mapping of names to networks, read one at a time, and whatever takes a zoo takes any
    mapping of names to functions as well. Nothing is unpickled, and no code is found by a name that
    a card gives: a model of another class needs `load(name, build=...)`, with your own function.
    The format is ours.

    Args:
        folder: where the files are; `add` makes it.

    >>> import tempfile
    >>> from paperworks.nets import MLP
    >>> zoo = ModelZoo(tempfile.mkdtemp())
    >>> card = {"network": "MLP", "arguments": {"sizes": [4, 8, 3]}, "task": ["ant", "bee", "cat"]}
    >>> zoo.add("small", MLP([4, 8, 3]), card)
    >>> zoo.names, zoo.card("small")["task"]
    (['small'], ['ant', 'bee', 'cat'])
    >>> zoo.load("small")(torch.rand(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def add(self, name: str, model: nn.Module, card: Mapping[str, Any]) -> None:
        """Write a model; one of this name is replaced.

        Raises:
            TypeError: model is no module, or card no mapping that JSON can hold.
            ValueError: a name of other characters than letters, digits, "_", "-" and ".", or a card
                whose network has other weights than the model.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"name must be of letters, digits, '_', '-' and '.', got {name!r}")
        try:
            text = json.dumps(dict(card), indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"card of {name!r} must be a mapping JSON can hold: {error}") from error
        weights = model.state_dict()
        if "network" in card:
            _fill(_built(name, json.loads(text)), weights, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(weights, self.folder / f"{name}.safetensors")
        partial = self.folder / f"{name}.json.partial"
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(self.folder / f"{name}.json")

    @property
    def names(self) -> list[str]:
        """Names of all models that have a card, in alphabetical order."""
        return sorted(file.stem for file in self.folder.glob("*.json"))

    def card(self, name: str) -> dict[str, Any]:
        """What is said of a model.

        Raises:
            ValueError: there is no such model, or its card is no JSON object.
        """
        if name not in self.names:
            known = ", ".join(self.names) or "none"
            raise ValueError(f"no model {name!r} in {self.folder}, there is: {known}")
        file = self.folder / f"{name}.json"
        try:
            card = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON: {error}") from error
        if not isinstance(card, dict):
            raise ValueError(f"{file} must hold a JSON object, got {type(card).__name__}")
        return card

    def load(
        self, name: str, build: Callable[[dict[str, Any]], nn.Module] | None = None
    ) -> nn.Module:
        """A model in evaluation mode, in main memory, in the precision of its weights.

        Args:
            name: which one.
            build: makes an untrained network from a card, for classes not of `paperworks.nets`.

        Raises:
            FileNotFoundError: it has a card and no weights.
            ValueError: there is no such model, its files were cut off or are no model's, its card
                names no known network, or its weights are another network's.
        """
        card = self.card(name)
        weights = load_tensors(self.folder / f"{name}.safetensors")
        model = _built(name, card) if build is None else build(card)
        return _fill(model, weights, name).eval()

    def predictors(self) -> dict[str, nn.Module]:
        """All models, loaded at once: for many questions to small ones."""
        return dict(self)

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self.names:
            raise KeyError(name)
        return self.load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"ModelZoo({str(self.folder)!r}): {len(self)} models"


def _built(name: str, card: Mapping[str, Any]) -> nn.Module:
    """The network of a card without weights: it takes no memory, and draws no number."""
    kind = card.get("network")
    if kind not in _NETWORKS:
        raise ValueError(
            f"card of {name!r} names the network {kind!r}, none of {', '.join(_NETWORKS)}: "
            "load(name, build=...) takes your own function"
        )
    arguments = card.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"card of {name!r}: arguments must be an object, got {arguments!r}")
    try:
        with torch.device("meta"):
            network = _NETWORKS[kind](**arguments)
    except Exception as error:  # whatever a stranger's arguments do
        raise ValueError(f"card of {name!r}: {kind} of {arguments} fails: {error}") from error
    return nn.Sequential(nn.Flatten(), network) if card.get("flatten") else network


def _fill(model: nn.Module, weights: Mapping[str, Any], name: str) -> nn.Module:
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"weights of {name!r} are not of its network: {error}") from error
    return model
