"""Which block of one network may be followed by which block of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

Stitch = tuple[int, int, int]
"""The last block of the source, the first block of the target, the layer between them."""


@dataclass(frozen=True)
class StitchConfig:
    """One path through a stitchable network: an anchor alone, or a source stitched to a target.

    Attributes:
        source: the anchor that begins; its embedding and its blocks up to `i` of the stage run.
        target: the anchor that ends, from block `k` of the stage on; for an anchor alone the same.
        stage: where the path changes over; None for an anchor alone, like the rest.
        i, k: blocks inside the stage, both inclusive.
        layer: which stitching layer lies between, counted over the whole network.
    """

    source: int
    target: int
    stage: int | None = None
    i: int | None = None
    k: int | None = None
    layer: int | None = None

    @property
    def is_anchor(self) -> bool:
        return self.layer is None


def paired_stitches(depth: int, window: int = 2, stride: int = 1) -> list[Stitch]:
    """Stitches between two networks of equal depth: blocks at like places are joined.

    A window slides over the block indices. Each ordered pair in it that was not seen before is a
    stitch, and those of one window share a layer; a window without a new pair has none. The source
    runs up to block i inclusive, the target from block k inclusive: (i, i) makes a network one
    block deeper than either, (i, i + 1) one as deep.

    Args:
        depth: blocks of each network.
        window: how many blocks apart two may be, plus one.
        stride: how far the window moves; layers get fewer and serve more pairs.

    Returns:
        `(i, k, layer)` in the order of the windows.

    Raises:
        ValueError: an argument is no positive integer.

    Source: arXiv 2302.06586, section 3.3, paired stitching.

    >>> paired_stitches(3)
    [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 2, 1), (2, 1, 1), (2, 2, 1)]
    """
    _check(depth=depth, window=window, stride=stride)
    seen: set[tuple[int, int]] = set()
    stitches: list[Stitch] = []
    layer = 0
    for start in range(0, depth, stride):
        inside = range(start, min(start + window, depth))
        new = [(i, k) for i in inside for k in inside if (i, k) not in seen]
        stitches += [(i, k, layer) for i, k in new]
        seen.update(new)
        layer += bool(new)
    return stitches


def unpaired_stitches(depth_src: int, depth_dst: int) -> list[Stitch]:
    """Stitches from a shallow network to a deeper one: each block to those that lie nearest.

    Block j of the target is near block `floor(j depth_src / depth_dst)` = i of the source; the
    stitches are the (i, j) with j > i, and those from one i share a layer.

    Args:
        depth_src: blocks of the source.
        depth_dst: blocks of the target, more than that.

    Returns:
        `(i, j, layer)` by j.

    Raises:
        ValueError: an argument is no positive integer, or the target is not the deeper one.

    Source: arXiv 2302.06586, section 3.3, unpaired stitching; that (0, 0) is left out follows the
    official code.

    >>> unpaired_stitches(2, 4)
    [(0, 1, 0), (1, 2, 1), (1, 3, 1)]
    """
    _check(depth_src=depth_src, depth_dst=depth_dst)
    if depth_src >= depth_dst:
        raise ValueError(
            f"depth_src must be less than depth_dst, got {depth_src} and {depth_dst}: networks of "
            "equal depth have paired_stitches, and a deep one is not stitched to a shallower"
        )
    nearest = [j * depth_src // depth_dst for j in range(depth_dst)]
    return [(i, j, i) for j, i in enumerate(nearest) if j > i]


def stage_stitches(depth_src: int, depth_dst: int, window: int, stride: int) -> list[Stitch]:
    """Paired where the depths are equal, unpaired where they are not."""
    if depth_src == depth_dst:
        return paired_stitches(depth_src, window, stride)
    return unpaired_stitches(depth_src, depth_dst)


def enumerate_configs(
    depths: Sequence[Sequence[int]],
    window: int,
    stride: int,
    nearest: bool,
    direction: str,
) -> list[StitchConfig]:
    """The anchors, then the stitches pair of anchors by pair, stage by stage.

    Args:
        depths: for each anchor, cheapest first, the number of blocks of each stage.
    """
    n = len(depths)
    pairs = [(a, a + 1) for a in range(n - 1)] if nearest else list(combinations(range(n), 2))
    if direction == "slow_to_fast":
        pairs = [(c, a) for a, c in pairs]
    configs = [StitchConfig(anchor, anchor) for anchor in range(n)]
    layers = 0
    for source, target in pairs:
        for stage in range(max(1, len(depths[source]) - 1)):  # of several stages not the last
            between = depths[source][stage], depths[target][stage]
            stitches = stage_stitches(*between, window, stride)
            configs += [
                StitchConfig(source, target, stage, i, k, layers + layer)
                for i, k, layer in stitches
            ]
            layers += len({layer for *_, layer in stitches})
    return configs


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive integer, got {count!r}")
