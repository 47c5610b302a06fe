"""Scalable neural network kernels: layers whose inputs and parameters meet in a dot product only.

Sehanobish, Choromanski, Zhao, Dubey, Likhosherstov 2023, ICLR 2024, arXiv 2310.13225. `SNNKLinear`
stands in for a dense layer with its activation, `add_adapters` and `uptrain` work on a transformer,
`BundledRegressor` and `bundle` make one linear map of a stack. `UniversalRandomFeatures` and
`ArcCosineFeatures` are what they rest on; `LowRankLinear` and `HoulsbyAdapter` are the rivals.
"""

from paperworks.compress.snnk.adapters import (
    HoulsbyAdapter,
    SNNKAdapter,
    add_adapters,
    uptrain,
)
from paperworks.compress.snnk.bundling import BundledRegressor, bundle
from paperworks.compress.snnk.features import (
    ArcCosineFeatures,
    RandomFeatures,
    UniversalRandomFeatures,
)
from paperworks.compress.snnk.fourier import FourierMeasure, FourierSeries, fit_fourier
from paperworks.compress.snnk.layers import LowRankLinear, SNNKLinear

__all__ = [
    "ArcCosineFeatures",
    "BundledRegressor",
    "FourierMeasure",
    "FourierSeries",
    "HoulsbyAdapter",
    "LowRankLinear",
    "RandomFeatures",
    "SNNKAdapter",
    "SNNKLinear",
    "UniversalRandomFeatures",
    "add_adapters",
    "bundle",
    "fit_fourier",
    "uptrain",
]
