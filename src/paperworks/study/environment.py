"""What a trial ran on, and the stamp under which metrics must repeat bit for bit."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
from importlib.metadata import version
from typing import Any

from paperworks import __version__
from paperworks.study.errors import UserError

SPEAKS_OF_NO_BITS = {"paperworks"}
"""What the stamp leaves out: our own code is the fingerprint's business."""


def environment(device: str = "cpu") -> dict[str, str]:
    """What the metrics of a trial may depend on besides its code, setting and seed.

    Args:
        device: where trials compute: `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        UserError: there is no such device here.

    >>> environment()["device"]
    'cpu'
    """
    return dict(_environment(device))


def stamp(environment: dict[str, str]) -> str:
    """A short hash of an environment: trials of one stamp repeat exactly and may be paired.

    >>> here = environment()
    >>> stamp(here) == stamp({**here, "paperworks": "9.9"})
    True
    """
    told = {key: value for key, value in environment.items() if key not in SPEAKS_OF_NO_BITS}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def _environment(device: str) -> dict[str, str]:
    import torch

    libc = " ".join(platform.libc_ver()).strip()
    mkl = re.search(r"Math Kernel Library Version (\S+?)-", torch.__config__.show())
    return {
        "os": f"{platform.system()} {platform.mac_ver()[0] or libc or platform.release()}",
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": str(torch.__version__),
        **{name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
        "blas": f"{_numpy_blas()}, torch with {f'MKL {mkl[1]}' if mkl else 'its own'}",
        "device": _device_name(device),
        "paperworks": __version__,
    }


def _numpy_blas() -> str:
    """Name, version, and the processor whose kernels it chose, which capability does not tell."""
    import numpy as np
    from threadpoolctl import threadpool_info

    built: Any = np.show_config(mode="dicts")
    blas = built["Build Dependencies"]["blas"]
    kernels = [lib.get("architecture") for lib in threadpool_info() if "numpy" in lib["filepath"]]
    return " ".join(filter(None, [blas["name"], blas["version"], *kernels[:1]]))


def _device_name(device: str) -> str:
    import torch

    try:
        kind = torch.device(device).type
        if kind == "cuda":
            return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
        if kind == "mps" and not torch.backends.mps.is_available():
            raise RuntimeError("this torch or this machine has no MPS")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used here: {reason}") from None
    return device
