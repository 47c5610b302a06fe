"""README's Python runs as it stands, on a small model of a reader's own."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from paperworks.compress import reconstruct_

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def reader_s_own():
    """The names that README takes for granted."""
    generator = torch.Generator().manual_seed(0)

    def layer(a, b):
        return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())

    parts = {"stem": layer(8, 16), "layer1": layer(16, 16), "layer2": layer(16, 16)}
    X = torch.rand(60, 3, generator=generator)
    model = nn.Sequential(OrderedDict(parts, head=nn.Linear(16, 3)))
    inputs = torch.rand(64, 8, generator=generator)
    return {
        "torch": torch,
        "model": model,
        "model_a": model,
        "model_b": copy.deepcopy(model),
        "inputs": inputs,
        "loader": [(inputs, torch.arange(64) % 3)],
        "anchors": torch.rand(20, 8, generator=generator),
        "encoder_a": nn.Linear(8, 4),
        "encoder_b": nn.Linear(8, 6),
        "X": X.numpy(),
        "y": (X[:, 0] > X[:, 1]).long().numpy(),
        "X_test": X[:5].numpy(),
    }


@pytest.mark.parametrize("block", [b for b in BLOCKS if "paperworks.run" not in b])
def test_a_part_is_used_as_readme_says(block, monkeypatch):
    monkeypatch.setitem(reconstruct_.__kwdefaults__, "iters", 20)  # 2000 are for the reader
    exec(block, reader_s_own())
