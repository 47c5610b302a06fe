"""Codebooks inside a transformer, or any other network."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paperworks.common.activations import (
    Batch,
    collect_activations,
    find_modules,
    first_tensor,
)
from paperworks.representation.codebook.layers import CodebookLayer, GroupCodebook

Codebook = CodebookLayer | GroupCodebook
Way = Literal["output", "input"]


@dataclass(frozen=True)
class Site:
    """Where a codebook goes.

    Args:
        module: dotted name of a module in the model.
        of: put it on the "output" or on the "input" of that module.
        groups: so many code books side by side, one a head.
        dim: width there; without it the module's own `out_features` or `in_features`, or what one
            forward shows.
    """

    module: str
    of: Way = "output"
    groups: int = 1
    dim: int | None = None


def wrap_codebooks(
    model: nn.Module,
    at: Sequence[str] = ("attn", "mlp"),
    layers: Literal["all"] | Sequence[int] = "all",
    num_codes: int = 1000,
    k: int = 1,
    *,
    sites: Sequence[str | Site] | Mapping[str, str | Site] | None = None,
    mlp_groups: int = 1,
    example: Batch | None = None,
    **options: Any,
) -> CodebookModel:
    """A copy of a network with codebook layers in its hidden states, to be fine-tuned with them.

    Reach for it when you hold a transformer and want to list what its hidden states say, or force
    what they say while it generates: after fine-tuning (`codebook_param_groups`), `record_codes`
    reads the codes and `steer` sets them. The residual stream itself stays continuous.

    GPT-2, GPT-Neo and GPT-NeoX of `transformers` are known by name, and their sites are called
    "mlp_0", "attn_1", ... ; for every other network name the modules in `sites`. Codes are drawn
    from torch's global generator, as an `nn.Embedding`'s are. arXiv 2310.17230, section 2.

    Args:
        model: any module; it is copied, and its weights, mode, dtype and device are kept.
        at: kinds of sites in known architectures. "attn": what each head gives before the output
            projection, a code book a head; "mlp": the MLP's output before it is added;
            "mlp_hidden": its hidden units; "qkv": queries, keys and values, together for a head in
            GPT-NeoX, each
            for all heads in GPT-2 (our reading); "block": what a whole block gives.
        layers: numbers of the blocks, or "all".
        num_codes: C of each code book.
        k: how many codes stand for a position.
        sites: modules to take instead, by dotted name (dots become underscores in the site's name),
            or by a name of your own; a `Site` says more.
        mlp_groups: so many code books on chunks of each MLP output ("mlp").
        example: a batch for one forward, where widths cannot be read off the modules of `sites`.
        **options: `similarity`, `loss`, `mse_weight`, `beta`, `layernorm` of `CodebookLayer`.

    Returns:
        A `CodebookModel`; call it as you call the model.

    Raises:
        TypeError: model is no module, or already has codebooks.
        ValueError: an architecture that is not known and no sites, a kind or layer or module that
            is not there, a width that groups do not divide or that cannot be found, or what
            `CodebookLayer` refuses.

    >>> from paperworks.nets import MLP
    >>> model = wrap_codebooks(MLP([4, 8, 3]), sites=["0"], num_codes=10)
    >>> model(torch.rand(5, 4)).shape, model.codebooks["0"].ids.shape
    (torch.Size([5, 3]), torch.Size([5, 1]))
    """
    if not isinstance(model, nn.Module) or isinstance(model, CodebookModel):
        raise TypeError(f"model must be a module without codebooks, got {type(model).__name__}")
    if sites is None:
        found = _known_sites(model, at, layers, mlp_groups)
    else:
        found = _named_sites(model, sites)
    if not found:
        raise ValueError("sites, or at and layers, name no place for a codebook")
    found = _with_widths(model, found, example)
    parameter = next(model.parameters(), torch.empty(0))
    codebooks = {}
    for name, site in found.items():
        assert site.dim is not None
        if site.groups == 1:
            codebook: Codebook = CodebookLayer(site.dim, num_codes, k, **options)
        else:
            codebook = GroupCodebook(site.dim, site.groups, num_codes, k, **options)
        codebooks[name] = codebook.to(parameter).train(model.training)
    made = {"num_codes": num_codes, "k": k} | options
    return CodebookModel(copy.deepcopy(model), codebooks, found, made)


class CodebookModel(nn.Module):
    """A network with codebooks at some sites; `wrap_codebooks` makes it.

    It is called as the network is, and has whatever else the network has: `generate` with its
    cache, `config`, `device`. An `attention_mask` (batch, length) keeps padding out of usage and
    reconstruction error.

    Attributes:
        model: the network. Its own weights keep their names.
        codebooks: by site, the `CodebookLayer` or `GroupCodebook` there.
        sites: by name, where each is.
        enabled: whether activations pass through the codebooks.
    """

    def __init__(
        self,
        model: nn.Module,
        codebooks: Mapping[str, Codebook],
        sites: Mapping[str, Site],
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.codebooks = nn.ModuleDict(codebooks)
        self.sites = dict(sites)
        self._options = dict(options)
        self._now = _Now()
        model.register_forward_pre_hook(_Watch(self._now), with_kwargs=True)
        modules = find_modules(model, [site.module for site in sites.values()], "site")
        for name, site in sites.items():
            hook = _Hook(codebooks[name], self._now, site)
            if site.of == "input":
                modules[site.module].register_forward_pre_hook(hook.on_input)
            else:
                modules[site.module].register_forward_hook(hook.on_output)
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or name.startswith("__"):
                raise
            return getattr(self.model, name)

    @property
    def enabled(self) -> bool:
        return self._now.enabled

    def disable(self) -> None:
        """Let activations pass as they are: the network alone, bit for bit."""
        self._now.enabled = False

    def enable(self) -> None:
        """Undo `disable`."""
        self._now.enabled = True

    def set_k(self, k: int) -> None:
        """Let k codes stand for a position, at every site; a schedule may lower it in training."""
        codebooks: Any = self.codebooks.values()
        for codebook in codebooks:
            codebook.k = k
        self._options["k"] = k

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Save the network as its own `save_pretrained` does, and the codebooks beside it.

        The network by itself is then loaded by `from_pretrained` as ever; `load_codebooks` puts the
        codebooks back. `options` are those of the network's own method.
        """
        getattr(self.model, "save_pretrained")(folder, **options)  # noqa: B009
        sites = {name: asdict(site) for name, site in self.sites.items()}
        tensors = {name: t.contiguous() for name, t in self.codebooks.state_dict().items()}
        made = json.dumps({"sites": sites, "options": self._options})
        save_file(tensors, Path(folder) / _FILE, {"codebooks": made})


def load_codebooks(model: nn.Module, folder: str | Path) -> CodebookModel:
    """Put codebooks that `CodebookModel.save_pretrained` saved into the network saved with them.

    Args:
        model: what `from_pretrained(folder)` gave; it is copied.
        folder: where it was saved.

    Raises:
        ValueError: no codebooks are saved there, or they are of another network.

    >>> import tempfile
    >>> from paperworks.nets import causal_lm
    >>> wrapped = wrap_codebooks(causal_lm("gpt2", 11, 16, 2, 2, 8), num_codes=20)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     wrapped.save_pretrained(folder)
    ...     loaded = load_codebooks(type(wrapped.model).from_pretrained(folder), folder)
    >>> torch.equal(loaded.codebooks["mlp_1"].codes, wrapped.codebooks["mlp_1"].codes)
    True
    """
    path = Path(folder) / _FILE
    if not path.is_file():
        raise ValueError(f"folder {str(folder)!r} holds no {_FILE}")
    with safe_open(path, "pt") as file:
        made = json.loads((file.metadata() or {}).get("codebooks", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not made:
        raise ValueError(f"{path} was not written by save_pretrained of a CodebookModel")
    sites = {name: Site(**site) for name, site in made["sites"].items()}
    wrapped = wrap_codebooks(model, sites=sites, **made["options"])
    wrapped.codebooks.load_state_dict(tensors)
    return wrapped


def codebook_param_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: codebooks without weight decay, everything else with it.

    The LayerNorms inside codebooks learn everywhere; in the official optimiser those of MLP
    codebooks are left out, by oversight or not, and stay at 1 and 0. arXiv 2310.17230, appendix.

    Args:
        model: a `CodebookModel`, or any module that contains codebook layers.
        lr: one rate for all; 5e-4 in the paper's language experiments.
        weight_decay: of what is not a codebook.

    Raises:
        ValueError: model has no codebook that can be trained.

    >>> model = nn.Sequential(nn.Linear(4, 4), CodebookLayer(4, 10))
    >>> [len(group["params"]) for group in codebook_param_groups(model, lr=1e-3)]
    [2, 3]
    """
    own = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, CodebookLayer | GroupCodebook)
        for parameter in module.parameters()
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in own], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in own], "weight_decay": 0.0},
    ]
    if not groups[1]["params"]:
        raise ValueError("model has no codebook that can be trained: see wrap_codebooks")
    return [group | {"lr": lr} for group in groups if group["params"]]


def initialize_codes_(
    model: CodebookModel,
    batches: Tensor | Iterable[Batch],
    examples: int = 1000,
    generator: torch.Generator | None = None,
) -> None:
    """Put the codes of every site at k-means centres of its activations, before fine-tuning.

    arXiv 2310.17230, appendix: mini-batch k-means on 1,000 examples; optional there.

    Args:
        model: with fresh codebooks.
        batches: see `record_codes`; as many are read as bring `examples` activations.
        examples: activations of each site, at least as many as there are codes.
        generator: a CPU generator; without one, the same start every time.

    Raises:
        ValueError: fewer examples than codes.

    >>> from paperworks.nets import MLP
    >>> model = wrap_codebooks(MLP([4, 8, 3]), sites=["0"], num_codes=5)
    >>> initialize_codes_(model, torch.rand(50, 4))
    """
    for codebook, x in _inputs(model, batches, examples, generator):
        codebook.initialize_(x, generator)


def replace_unused_codes_(
    model: CodebookModel,
    batch: Batch,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> int:
    """Move codes that training never chose since the last call onto activations of this batch.

    See `CodebookLayer.replace_unused_`. Call it every r steps; the paper leaves it off.

    Args:
        model: in training.
        batch: what the model is fed: a tensor, a tuple (x, ...), or a dict of arguments.
        noise: ρ, added to the new codes, in the units of LayerNorm's output.
        generator: a CPU generator; without one, the same draw every time.

    Returns:
        How many codes moved.

    >>> from paperworks.nets import MLP
    >>> model = wrap_codebooks(MLP([4, 8, 3]), sites=["0"], num_codes=5)
    >>> replace_unused_codes_(model, torch.rand(50, 4))
    5
    """
    inputs = _inputs(model, [batch], None, generator)
    return sum(codebook.replace_unused_(x, noise, generator) for codebook, x in inputs)


_FILE = "codebooks.safetensors"


@dataclass
class _Now:
    """What the hooks know of the forward that runs."""

    enabled: bool = True
    mask: Tensor | None = None
    past: int = 0


@dataclass
class _Watch:
    """Before a forward: which positions are padding, how many the cache already holds."""

    now: _Now

    def __call__(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self.now.mask = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        cache = kwargs.get("past_key_values")
        length = getattr(cache, "get_seq_length", None)
        self.now.past = 0 if length is None else int(length())


@dataclass
class _Hook:
    """Sends what passes a site through its codebook; an object, so that copies copy it."""

    codebook: Codebook
    now: _Now
    site: Site

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self._coded(output) if self.now.enabled else None

    def on_input(self, module: nn.Module, args: Any) -> Any:
        return self._coded(args) if self.now.enabled else None

    def _coded(self, value: Any) -> Any:
        x = first_tensor(value)
        if x is None:
            raise TypeError(f"the {self.site.of} of {self.site.module!r} starts with no tensor")
        z = self.codebook(x, self._mask(x))
        return z if isinstance(value, Tensor) else type(value)((z, *value[1:]))

    def _mask(self, x: Tensor) -> Tensor | None:
        mask = self.now.mask
        if mask is None or x.dim() != 3:
            return None
        return mask[:, -x.shape[1] :]  # with a cache the mask is of the whole text


@dataclass(frozen=True)
class _Architecture:
    """Where the blocks of a model of `transformers` are, and the sites of one."""

    blocks: str
    heads: str
    kinds: dict[str, tuple[str, Way]]
    qkv_groups: int | None = None


_ARCHITECTURES = {
    "gpt2": _Architecture(
        "transformer.h",
        "n_head",
        {
            "attn": ("attn.c_proj", "input"),
            "mlp": ("mlp", "output"),
            "mlp_hidden": ("mlp.c_proj", "input"),
            "qkv": ("attn.c_attn", "output"),
            "block": ("", "output"),
        },
        qkv_groups=3,
    ),
    "gpt_neo": _Architecture(
        "transformer.h",
        "num_heads",
        {
            "attn": ("attn.attention.out_proj", "input"),
            "mlp": ("mlp", "output"),
            "mlp_hidden": ("mlp.c_proj", "input"),
            "block": ("", "output"),
        },
    ),
    "gpt_neox": _Architecture(
        "gpt_neox.layers",
        "num_attention_heads",
        {
            "attn": ("attention.dense", "input"),
            "mlp": ("mlp", "output"),
            "mlp_hidden": ("mlp.dense_4h_to_h", "input"),
            "qkv": ("attention.query_key_value", "output"),
            "block": ("", "output"),
        },
    ),
}


def _known_sites(
    model: nn.Module, at: Sequence[str], layers: Literal["all"] | Sequence[int], mlp_groups: int
) -> dict[str, Site]:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in _ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {kind!r} (known: {', '.join(_ARCHITECTURES)}): pass sites=, "
            "the dotted names of the modules whose output shall become codes"
        )
    if isinstance(at, str):
        raise TypeError(f"at must be a sequence of kinds, got the string {at!r}")
    known = _ARCHITECTURES[kind]
    for name in at:
        if name not in known.kinds:
            raise ValueError(f"at: {kind} has {', '.join(known.kinds)}, got {name!r}")
    modules = dict(model.named_modules())
    short = known.blocks.partition(".")[2]  # of the model without its head
    blocks = known.blocks if known.blocks in modules else short
    count = len(modules[blocks])
    numbers = range(count) if isinstance(layers, str) and layers == "all" else layers
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise ValueError(f"layers: the model has {count}, from 0, got {number!r}")
    heads = getattr(config, known.heads)
    groups = {"attn": heads, "mlp": mlp_groups, "qkv": known.qkv_groups or heads}
    return {
        f"{name}_{number}": Site(
            f"{blocks}.{number}.{known.kinds[name][0]}".rstrip("."),
            known.kinds[name][1],
            groups.get(name, 1),
            _width(name, config),
        )
        for number in numbers
        for name in at
    }


def _width(kind: str, config: Any) -> int:
    width: int = config.hidden_size
    if kind == "qkv":
        return 3 * width
    if kind != "mlp_hidden":
        return width
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return inner or 4 * width


def _named_sites(
    model: nn.Module, sites: Sequence[str | Site] | Mapping[str, str | Site]
) -> dict[str, Site]:
    if isinstance(sites, str):
        raise TypeError(f"sites must be a sequence or mapping of names, got the string {sites!r}")
    listed = [Site(s) if isinstance(s, str) else s for s in _values(sites)]
    names = list(sites) if isinstance(sites, Mapping) else [_plain(s.module) for s in listed]
    find_modules(model, [site.module for site in listed], "site")
    for name, site in zip(names, listed):
        if site.of not in ("input", "output"):
            raise ValueError(f"site {name!r}: of must be 'output' or 'input', got {site.of!r}")
        if not name or "." in name or hasattr(nn.ModuleDict, name) or names.count(name) > 1:
            raise ValueError(f"site {name!r}: give it a name of its own, {{name: module}}, no dots")
    return dict(zip(names, listed))


def _values(sites: Sequence[str | Site] | Mapping[str, str | Site]) -> list[str | Site]:
    return list(sites.values()) if isinstance(sites, Mapping) else list(sites)


def _plain(module: str) -> str:
    return module.replace(".", "_")


def _with_widths(
    model: nn.Module, sites: dict[str, Site], example: Batch | None
) -> dict[str, Site]:
    """The sites, each with its width."""
    modules = find_modules(model, [site.module for site in sites.values()], "site")
    dims = {}
    for name, site in sites.items():
        attribute = "out_features" if site.of == "output" else "in_features"
        dims[name] = site.dim or getattr(modules[site.module], attribute, None)
    unknown = [name for name, dim in dims.items() if not isinstance(dim, int)]
    if unknown and example is None:
        raise ValueError(
            f"the width at site {unknown[0]!r} cannot be read off its module: pass example=, a "
            "batch for one forward, or a Site with dim"
        )
    if unknown:
        dims |= _seen_widths(model, {name: sites[name] for name in unknown}, example)
    return {name: Site(s.module, s.of, s.groups, dims[name]) for name, s in sites.items()}


def _seen_widths(model: nn.Module, sites: dict[str, Site], example: Batch) -> dict[str, int]:
    widths: dict[str, int] = {}
    ways: tuple[Way, ...] = ("output", "input")
    for of in ways:
        names = {name: site.module for name, site in sites.items() if site.of == of}
        if names:
            seen = collect_activations(
                model,
                [example],
                [*dict.fromkeys(names.values())],
                of=of,
            )
            widths |= {name: seen[module].shape[-1] for name, module in names.items()}
    return widths


def _inputs(
    model: CodebookModel,
    batches: Tensor | Iterable[Batch],
    examples: int | None,
    generator: torch.Generator | None,
) -> list[tuple[Codebook, Tensor]]:
    """Each codebook and what reaches it, (rows, dim), padding left out."""
    check_model(model)
    codebooks: Any = {f"codebooks.{name}": book for name, book in model.codebooks.items()}
    generator = generator or torch.Generator().manual_seed(0)

    def rows(call: tuple[Any, Any]) -> Tensor:
        x, mask = call[0]
        return x.flatten(0, -2) if mask is None else x[mask]

    found = collect_activations(
        model,
        batches,
        list(codebooks),
        of="input",
        transform=rows,
        max_rows=examples,
        generator=generator,
    )
    return [(codebooks[path], x.to(codebooks[path].codes.device)) for path, x in found.items()]


def check_model(model: CodebookModel) -> None:
    if not isinstance(model, CodebookModel):
        raise TypeError(f"model must come from wrap_codebooks, got {type(model).__name__}")
