"""What a trial is handed besides its setting: random streams, fixtures, methods, places."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

ARTEFACT_LIMIT = 1_000_000  # bytes


def derive(seed: int, *names: str) -> int:
    """A seed below 2**63 for the stream of these names; other names, unrelated numbers."""
    text = "/".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Streams:
    """Named random streams of one seed.

    A stream depends on the seed and its name alone, so that a method which draws one number more
    shifts nobody else's. Customary names: `split`, `weights`, `batches`, `method`.
    """

    def __init__(
        self, seed: int, device: torch.device | str = "cpu", data_digest: str = ""
    ) -> None:
        self.seed = seed
        self.device = torch.device(device)
        self._data_digest = data_digest
        self._generators: dict[str, torch.Generator] = {}

    def rng(self, name: str) -> torch.Generator:
        """The CPU generator of this stream; asked for again, the same one, further on."""
        if name not in self._generators:
            self._generators[name] = torch.Generator().manual_seed(derive(self.seed, name))
        return self._generators[name]

    def random_state(self, name: str) -> int:
        """A number for scikit-learn's `random_state`; the same at every call."""
        return derive(self.seed, name) % 2**32

    @contextmanager
    def seeded(self, name: str) -> Iterator[None]:
        """Let torch's global generator follow this stream: for modules that draw their weights.

        Build the module on the CPU inside and move it afterwards, so that every device starts from
        the same weights.
        """
        stream, before = self.rng(name), torch.get_rng_state()
        torch.set_rng_state(stream.get_state())
        try:
            yield
        finally:
            stream.set_state(torch.get_rng_state())
            torch.set_rng_state(before)

    def fixture(self, build: Callable[..., Any], *, seed: int = 0, **args: Any) -> Any:
        """What `build(streams, **args)` returns, computed once and kept on disk.

        `build` gets the streams of its own `seed` (pass `seed=run.seed` for one fixture a seed) and
        returns nested dicts and lists of tensors, numbers and strings, such as a `state_dict`.
        Every method and cell shares it; two workers that ask at once wait for one computation.
        """
        from paperworks.study.fixtures import fixture

        return fixture(build, args, Streams(seed, self.device, self._data_digest))


class Run(Streams):
    """One trial's surroundings.

    Attributes:
        seed: the trial's seed.
        device: where the trial should compute.
        methods: name -> method, a user's rivals included.
    """

    def __init__(
        self,
        seed: int,
        *,
        device: torch.device | str = "cpu",
        methods: Mapping[str, Any] | None = None,
        data_digest: str = "",
        checkpoint: Path | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(seed, device, data_digest)
        self.methods = dict(methods or {})
        self.witnesses: dict[str, str] = {}
        self.artefacts: dict[str, bytes] = {}
        self._checkpoint = checkpoint
        self._report = report

    @property
    def checkpoint(self) -> Path:
        """A folder that survives a kill of the run and goes when the trial has finished."""
        if self._checkpoint is None:
            raise RuntimeError("this run keeps no checkpoint")
        self._checkpoint.mkdir(parents=True, exist_ok=True)
        return self._checkpoint

    def progress(self, done: int, total: int) -> None:
        """Tell whoever watches how far the trial is."""
        if self._report is not None:
            self._report(done, total)

    def witness(self, **values: Any) -> None:
        """Record digests of what competing methods of a seed must share: split, initial weights."""
        self.witnesses |= {name: digest(value) for name, value in values.items()}

    def artefact(self, name: str, data: Any) -> None:
        """Keep a picture (PNG bytes), tensors (dict) or a JSON value with the trial.

        Raises:
            ValueError: a name of other characters than letters, digits, '_' and '-', bytes that are
                no PNG, or more than 1 MB.
        """
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"artefact name {name!r}: use letters, digits, '_' and '-'")
        if isinstance(data, bytes):
            if not data.startswith(b"\x89PNG"):
                raise ValueError(f"artefact {name!r}: bytes must be a PNG picture")
            suffix, content = "png", data
        elif isinstance(data, Mapping) and data and all(map(torch.is_tensor, data.values())):
            kept = {key: value.detach().cpu().contiguous() for key, value in data.items()}
            suffix, content = "safetensors", save(kept)
        else:
            suffix, content = "json", json.dumps(data, allow_nan=False).encode()
        if len(content) > ARTEFACT_LIMIT:
            raise ValueError(f"artefact {name!r} has {len(content):,} bytes, at most 1,000,000 fit")
        self.artefacts[f"{name}.{suffix}"] = content


def digest(value: Any) -> str:
    """Twelve hex digits that two nested structures of tensors and plain values share iff equal."""
    hasher = hashlib.sha256()

    def feed(part: Any) -> None:
        if isinstance(part, Mapping):
            hasher.update(b"{")  # no sequence begins so
            for key in sorted(part, key=repr):
                feed(key)
                feed(part[key])
        elif isinstance(part, list | tuple):
            for item in part:
                feed(item)
        elif torch.is_tensor(part) or hasattr(part, "__array__"):
            tensor = torch.as_tensor(part).detach().cpu().contiguous()
            hasher.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            hasher.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        else:
            hasher.update(repr(part).encode())
        hasher.update(b"\0")

    feed(value)
    return hasher.hexdigest()[:12]
