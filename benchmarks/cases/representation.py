"""Representations beside latentis and fpsample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cases.case import Case, largest_difference

# ---- relreps: projection of many latents, and anchors


def latents(n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 768, generator=generator)
    return x, x[torch.randperm(n, generator=generator)[:m]]


def our_projection() -> Callable[[], Any]:
    from paperworks.representation import relative_projection

    x, anchors = latents(100_000, 768)
    return lambda: relative_projection(x, anchors)


def their_projection() -> Callable[[], Any]:
    from latentis.transform.projection import cosine_proj

    x, anchors = latents(100_000, 768)
    return lambda: cosine_proj(x, anchors=anchors)


def our_anchors() -> Callable[[], Any]:
    from paperworks.representation import select_anchors

    x, _ = latents(20_000, 1)
    return lambda: select_anchors(x, 300, "fps").numpy()


def their_anchors() -> Callable[[], Any]:
    import fpsample

    x = latents(20_000, 1)[0].numpy()
    return lambda: fpsample.fps_sampling(x, 300, start_idx=0).astype(np.int64)


def coverage(ours: np.ndarray, peer: np.ndarray) -> str:
    """The largest distance of a sample to its nearest anchor: what such anchors make small."""
    x, _ = latents(20_000, 1)
    radii = [torch.cdist(x, x[torch.from_numpy(ids)]).amin(1).max().item() for ids in (ours, peer)]
    return "covering radius {:.2f} | {:.2f}".format(*radii)


CASES = {
    "projection": Case(
        "relative projection, 100,000 x 768, 768 anchors",
        "latentis",
        {"ours": our_projection, "peer": their_projection},
        largest_difference,
    ),
    "anchors": Case(
        "farthest point sampling, 300 of 20,000 x 768",
        "fpsample",
        {"ours": our_anchors, "peer": their_anchors},
        coverage,
    ),
}
