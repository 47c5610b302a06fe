"""Codebook features on the finite-state machine: what they cost, say, and control.

A transformer is trained on walks of a random machine whose states are written as digits, each seed
on a machine of its own, and then trained on with codebooks in it, as long with each method.

- `predicting`: "base" goes on without codebooks, "mlp", "attn" and "attn_mlp" have them there.
  Metrics: `transition_accuracy`, the share of legal transitions in sampled walks; `loss`, of the
  next token on held-out walks, in nats. A method is `method(task)`, which gives the trained model;
  `task.base()` is the model to start from, `task.finetune(model)` trains it.
- `reading`: how precisely a state can be told where its last digit is read, from layer 0's MLP: by
  "codes", of the state's best code (highest F1) of the "mlp" model; by "neurons" of the "base"
  model, the outputs of that MLP, fewer than states, high or low; by its "hidden" units, more than
  states; by the latents of an "sae" on the outputs, whose L1 penalty is the best of three on
  validation walks. Neurons and latents may choose, for each
  state, unit and threshold on the very data they are measured on, as codes choose the code, at no
  less recall. Metrics: the mean over states of `precision`, and of the codes' `recall`. A method is
  `method(task, tokens, masks, recalls)`, which gives a precision for each state.
- `swapping`: the prediction after a state's last digit, when something of another walk is put in
  there: "codes" sets the MLP codes of the other walk, "mean_difference" adds the difference of mean
  MLP outputs at the two states to the "base" model, its strength chosen among four on validation
  walks, "none" changes nothing in the "mlp" model. Metric: `divergence_nats`, the mean
  Jensen-Shannon divergence to what the machine does after the other walk's state. A method is
  `method(task, layers, tokens, others, position)`, which gives probabilities (walks, tokens).
- `forcing`: the codes that best announce one token are forced at all generated positions ("codes"),
  or not ("none"). Metrics: `share` of the token among those generated, and `mentions`, the share of
  texts that contain it. A method is `method(task, model, topic)`, which gives the edits.

Differences from the paper. Desk: 64 states of two digits to base 8, and GPT-2 with two layers of
width 32 in place of GPT-NeoX, which learns the machine more slowly at this width. Choosing codes by
F1, and letting neurons take any threshold that reaches the recall, are ours. Full: the paper's
machine; TinyStories and WikiText-103 for losses and forced topics, whose codes are those that
announce the topic's first token (our reading).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.common.activations import collect_activations
from paperworks.data.names import require
from paperworks.representation import (
    CodebookModel,
    CodeEdit,
    FiniteStateMachine,
    codebook_param_groups,
    js_divergence,
    neuron_precision_at_recall,
    record_codes,
    steer,
    wrap_codebooks,
)
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    bars,
    drawn,
    grid,
    higher,
    lower,
    report,
    within,
)
from paperworks.study.figures import COLOURS
from paperworks.study.run import Streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

# --- a task ---------------------------------------------------------------------------------------

PENALTIES = (0.03, 0.1, 0.3)
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
RECIPE = (
    *("corpus", "network", "width", "layers", "heads", "states", "edges", "base", "length"),
    *("context", "batch", "lr", "steps", "finetune", "finetune_batch"),
)
"""The settings on which a trained model depends, codebooks apart."""


class Task:
    """A seed's sequences, and the models trained on them."""

    def __init__(self, setting: Setting, run: Streams) -> None:
        self.setting, self.run = setting, run
        self.recipe = {key: setting[key] for key in RECIPE if key in setting}
        self.test = self.sequences(setting.test, run.rng("test"))
        self.val = self.sequences(setting.test, run.rng("val"))

    def sequences(self, n: int, generator: torch.Generator) -> Tensor:
        """Tokens (n, context)."""
        raise NotImplementedError

    def untrained(self) -> nn.Module:
        raise NotImplementedError

    def batches(self, size: int, stream: str) -> Iterator[Tensor]:
        """Batches without end."""
        while True:
            yield self.sequences(size, self.run.rng(stream)).to(self.run.device)

    def loss(self, model: nn.Module, tokens: Tensor) -> Tensor:
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def train(self, model: nn.Module, groups: Any, steps: int, batches: Any) -> nn.Module:
        optimizer = torch.optim.AdamW(groups, self.setting.lr, weight_decay=0.01, fused=True)
        nets.fit(model, batches, self.loss, optimizer=optimizer, steps=steps)
        return model.eval()

    def base(self) -> nn.Module:
        """The model before fine-tuning."""
        model = self.untrained()
        if self.setting.steps:
            recipe = {k: v for k, v in self.recipe.items() if not k.startswith("finetune")}
            made = self.run.fixture(base_weights, seed=self.run.seed, **recipe)
            model.load_state_dict(made)
        return model.to(self.run.device).eval()

    def finetune(self, model: nn.Module) -> nn.Module:
        coded = isinstance(model, CodebookModel)
        groups = codebook_param_groups(model, self.setting.lr) if coded else model.parameters()
        batches = self.batches(self.setting.finetune_batch, "finetune")
        return self.train(model, groups, self.setting.finetune, batches)

    def coded(self, at: str, codes: int, k: int) -> nn.Module:
        """The base model with fresh codebooks; without any for no sites."""
        model = self.base()
        if at:
            with self.run.seeded("codes"):
                model = wrap_codebooks(model, at.split(), num_codes=codes, k=k)
        return model

    def trained(self, at: str, k: int | None = None) -> Any:
        """The base model fine-tuned with codebooks there."""
        codes = {"codes": self.setting.codes, "k": k or self.setting.k} if at else {}
        made = self.run.fixture(finetuned, seed=self.run.seed, at=at, **codes, **self.recipe)
        model = self.coded(at, self.setting.codes, k or self.setting.k)
        model.load_state_dict(made)
        return model.eval()

    @torch.no_grad()
    def test_loss(self, model: nn.Module) -> float:
        batches = self.test.to(self.run.device).split(self.setting.batch)
        total = sum(self.loss(model, tokens).item() * len(tokens) for tokens in batches)
        return total / len(self.test)

    def generate(self, model: Any, prompts: Tensor) -> Tensor:
        """Sampled texts of the length of the context."""
        with self.run.seeded("generation"):
            return model.generate(
                prompts.to(self.run.device),
                do_sample=True,
                top_k=0,
                max_new_tokens=self.setting.context - prompts.shape[1],
            ).cpu()


class Walks(Task):
    """Of a finite-state machine."""

    def __init__(self, setting: Setting, run: Streams) -> None:
        self.machine = FiniteStateMachine(
            setting.states, setting.edges, setting.base, Streams(run.seed).rng("machine")
        )
        super().__init__(setting, run)

    def sequences(self, n: int, generator: torch.Generator) -> Tensor:
        walks = self.machine.sample(n, self.setting.length, generator)
        return self.machine.encode(walks)[:, : self.setting.context]

    def untrained(self) -> nn.Module:
        s = self.setting
        with Streams(self.run.seed).seeded("weights"):
            return nets.causal_lm(
                s.network, self.machine.vocab_size, s.width, s.layers, s.heads, s.context
            )

    def prompts(self, n: int) -> Tensor:
        return self.test[:1, :1].expand(n, 1)

    def topic(self) -> int:
        return int(self.setting.topic)

    def masks(self, tokens: Tensor) -> Tensor:
        """Where each state's last digit is: (states, positions of all sequences)."""
        digits = self.machine.digits
        states = self.machine.decode(tokens)
        at = torch.full(tokens.shape, -1)
        at[:, digits : 1 + digits * states.shape[1] : digits] = states
        return at.flatten() == torch.arange(self.machine.n_states).unsqueeze(1)


class Texts(Task):
    """Of the hub, cut into blocks of tokens, with a model of the hub."""

    def __init__(self, setting: Setting, run: Streams) -> None:
        require("transformers", "language", what=setting.network)
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(setting.network)
        texts = data.load(setting.corpus, generator=run.rng("split"))
        self.parts: dict[str, Any] = {"train": texts.train, "val": texts.val, "test": texts.test}
        self.setting, self.run = setting, run
        self._streams = {part: self._blocks(part) for part in self.parts}
        self.recipe = {key: setting[key] for key in RECIPE if key in setting}
        self.test, self.val = (self._take(part, setting.test) for part in ("test", "val"))

    def sequences(self, n: int, generator: torch.Generator) -> Tensor:
        return self._take("train", n)

    def _take(self, part: str, n: int) -> Tensor:
        return torch.stack([next(self._streams[part]) for _ in range(n)])

    def _blocks(self, part: str) -> Iterator[Tensor]:
        """Texts in random order, one after the other, in blocks of the context; without end."""
        texts, length = self.parts[part], self.setting.context
        rest: list[int] = []
        while True:
            for some in torch.randperm(len(texts), generator=self.run.rng(part)).split(1000):
                for ids in self.tokenizer([texts[i][0] for i in some.tolist()])["input_ids"]:
                    rest += ids
                whole = len(rest) // length * length
                yield from torch.tensor(rest[:whole]).view(-1, length)
                rest = rest[whole:]

    def untrained(self) -> nn.Module:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.setting.network)

    def prompts(self, n: int) -> Tensor:
        return self.test[:n, : self.setting.prompt]

    def topic(self) -> int:
        return int(self.tokenizer(self.setting.topic)["input_ids"][0])


def task_of(setting: Setting, run: Streams) -> Any:
    return (Walks if setting.corpus == "machine" else Texts)(setting, run)


def base_weights(frun: Streams, **recipe: Any) -> dict[str, Tensor]:
    """Fixture: a model trained from scratch."""
    task = task_of(Setting(recipe, test=1), frun)
    model = task.untrained().to(frun.device)
    batches = task.batches(recipe["batch"], "batches")
    return task.train(model, model.parameters(), recipe["steps"], batches).state_dict()


def finetuned(
    frun: Streams, at: str, codes: int = 0, k: int = 0, **recipe: Any
) -> dict[str, Tensor]:
    """Fixture: the base model trained on, with codebooks at these sites."""
    task = task_of(Setting(recipe, test=1), frun)
    model = task.finetune(task.coded(at, codes, k))
    return {name: weights.clone() for name, weights in model.state_dict().items()}


# --- what models predict --------------------------------------------------------------------------


def trained(at: str, task: Any) -> nn.Module:
    return task.trained(at)


MODELS = {
    "base": partial(trained, ""),
    "mlp": partial(trained, "mlp"),
    "attn": partial(trained, "attn"),
    "attn_mlp": partial(trained, "attn mlp"),
}


def predicting(setting: Setting, run: Run) -> dict[str, float]:
    task = task_of(setting, run)
    run.witness(split=task.test, weights=task.base().state_dict())
    model = run.methods[setting.method](task)
    metrics = {"loss": task.test_loss(model)}
    if setting.corpus == "machine":
        walks = task.generate(model, task.prompts(setting.sampled))
        metrics["transition_accuracy"] = task.machine.legal_fraction(walks)
    return metrics


# --- what can be read -----------------------------------------------------------------------------


def reading(setting: Setting, run: Run) -> dict[str, Any]:
    task = Walks(setting, run)
    run.witness(split=task.test, weights=task.base().state_dict())
    _, recall, seen = best_codes(task, task.test)
    masks = task.masks(task.test)[seen]
    chosen = run.methods[setting.method](task, task.test, masks, recall)
    return {
        "precision": chosen.double().mean().item(),
        "recall": recall.double().mean().item(),
        **strip(task),
    }


def best_codes(task: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision and recall of each state's best code, and which states there are in the tokens."""
    table = record_codes(task.trained("mlp"), tokens)
    masks = task.masks(tokens)
    seen = masks.any(1)
    scores = [torch.stack(table.precision_recall(mask, "mlp_0")) for mask in masks[seen]]
    best = [score[:, f1(*score).argmax()] for score in scores]
    precision, recall = torch.stack(best, 1)
    return precision, recall, seen


def f1(precision: Tensor, recall: Tensor) -> Tensor:
    return 2 * precision * recall / (precision + recall).clamp(min=1e-9)


def codes(task: Any, tokens: Tensor, masks: Tensor, recalls: Tensor) -> Tensor:
    return best_codes(task, tokens)[0]


def neurons(task: Any, tokens: Tensor, masks: Tensor, recalls: Tensor, part: str = "") -> Tensor:
    model = task.trained("")
    layer = mlp_of(model, 0) + part
    acts = collect_activations(model, tokens, [layer])[layer].flatten(0, 1)
    return best_of(torch.cat([acts, -acts], 1), masks, recalls)


def best_of(acts: Tensor, masks: Tensor, recalls: Tensor) -> Tensor:
    return neuron_precision_at_recall(acts, masks, recalls).amax(1)


def sae(task: Any, tokens: Tensor, masks: Tensor, recalls: Tensor) -> Tensor:
    """The latents of the penalty that does best on validation walks, at the codes' recall there."""
    model = task.trained("")
    layer = mlp_of(model, 0)

    def outputs(tokens: Tensor) -> Tensor:
        return collect_activations(model, tokens.split(500), [layer])[layer].flatten(0, 1)

    train = outputs(task.sequences(task.setting.sae_walks, task.run.rng("sae")))
    val, test = outputs(task.val), outputs(tokens)
    _, val_recalls, seen = best_codes(task, task.val)
    val_masks = task.masks(task.val)[seen]

    def error(encode: Callable[[Tensor], Tensor]) -> float:
        return -best_of(encode(val), val_masks, val_recalls).mean().item()

    _, encode = nets.pick(PENALTIES, partial(sparse_autoencoder, task, train), error)
    return best_of(encode(test), masks, recalls)


def sparse_autoencoder(task: Any, x: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    """f = ReLU(W (x - b) + c), x̂ = D f + b, trained on ‖x - x̂‖² + λ Σ f; x to unit mean square."""
    size, latents, rng = x.shape[1], task.setting.latents, torch.Generator().manual_seed(0)
    scale = x.square().sum(1).mean().sqrt()
    x = x / scale
    D = F.normalize(torch.randn(latents, size, generator=rng), dim=1).requires_grad_()
    W = D.detach().clone().requires_grad_()
    b = x.mean(0).clone().requires_grad_()
    c = torch.zeros(latents).requires_grad_()
    optimizer = torch.optim.Adam([D, W, b, c], 1e-3)

    def encode(x: Tensor) -> Tensor:
        return F.relu((x - b) @ W.T + c)

    for _ in range(task.setting.sae_steps):
        rows = x[torch.randint(len(x), (256,), generator=rng)]
        f = encode(rows)
        error = (f @ F.normalize(D, dim=1) + b - rows).square().sum(1).mean()
        optimizer.zero_grad()
        (error + penalty * f.sum(1).mean()).backward()
        optimizer.step()
    return lambda x: encode(x / scale).detach()


def mlp_of(model: Any, layer: int) -> str:
    blocks = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}[model.config.model_type]
    return f"{blocks}.{layer}.mlp"


READERS = {
    "codes": codes,
    "neurons": neurons,
    "hidden": partial(neurons, part=".act"),
    "sae": sae,
}


def strip(task: Any) -> dict[str, list[float]]:
    """Digits and codes of a few walks that pass through one state at one time, for the figure."""
    digits, rows = task.machine.digits, 6
    states = task.machine.decode(task.test)
    middle = states.shape[1] // 2
    state = states[:, middle].mode().values
    chosen = task.test[states[:, middle] == state][:rows]
    table = record_codes(task.trained("mlp"), chosen)
    codes = table.ids["mlp_0"][:, 0].view(chosen.shape)
    shown = slice(1, 1 + digits * min(8, states.shape[1]))
    return {
        "strip_tokens": chosen[:, shown].flatten().double().tolist(),
        "strip_codes": codes[:, shown].flatten().double().tolist(),
        "strip_width": float(chosen[:, shown].shape[1]),
    }


# --- what can be controlled -----------------------------------------------------------------------


def swapping(setting: Setting, run: Run) -> dict[str, float]:
    task = Walks(setting, run)
    run.witness(split=task.test, weights=task.base().state_dict())
    method = run.methods[setting.method]
    layers = range(setting.layers) if setting.swapped == "all" else [int(setting.swapped)]
    return {"divergence_nats": divergence(task, task.test, partial(method, task, list(layers)))}


def divergence(task: Any, walks: Tensor, predict: Callable[..., Tensor]) -> float:
    """From what the machine does after the state of the other walk, at the middle of each."""
    digits = task.machine.digits
    middle = (walks.shape[1] - 1) // digits // 2
    position = digits * (middle + 1)
    tokens = walks[:, : position + 1]
    states = task.machine.decode(tokens)[:, middle]
    others, other_states = tokens.roll(1, 0), states.roll(1)
    differ = states != other_states
    target = F.pad(task.machine.next_digit(other_states[differ]), (0, 1))
    found = predict(tokens[differ], others[differ], position)
    return js_divergence(found.double(), target.double()).mean().item()


def unchanged(
    task: Any, layers: Sequence[int], tokens: Tensor, others: Tensor, position: int
) -> Tensor:
    return next_token(task.trained("mlp"), tokens)


def swapped_codes(
    task: Any, layers: Sequence[int], tokens: Tensor, others: Tensor, position: int
) -> Tensor:
    model = task.trained("mlp")
    next_token(model, others)
    edits = [
        CodeEdit(site, model.codebooks[site].ids, positions=position, slot="all")
        for site in (f"mlp_{layer}" for layer in layers)
    ]
    with steer(model, edits):
        return next_token(model, tokens)


def mean_difference(
    task: Any, layers: Sequence[int], tokens: Tensor, others: Tensor, position: int
) -> Tensor:
    """Adds α (mean MLP output at the other state - that at this one), α chosen on validation."""
    model = task.trained("")
    names = [mlp_of(model, layer) for layer in layers]
    walks = task.sequences(task.setting.sae_walks, task.run.rng("means"))
    acts = collect_activations(model, walks.split(500), names)
    masks = task.masks(walks).float()
    means = {
        name: masks @ acts[name].flatten(0, 1) / masks.sum(1, keepdim=True).clamp(min=1)
        for name in names
    }

    def steered(strength: float, tokens: Tensor, others: Tensor, position: int) -> Tensor:
        here, there = (task.machine.decode(t)[:, -1] for t in (tokens, others))

        def add(name: str, module: nn.Module, args: Any, output: Tensor) -> Tensor:
            shift = strength * (means[name][there] - means[name][here])
            return torch.cat([output[:, :position], output[:, position:] + shift[:, None]], 1)

        with ExitStack() as hooks:
            for name in names:
                module = model.get_submodule(name)
                hooks.callback(module.register_forward_hook(partial(add, name)).remove)
            return next_token(model, tokens)

    strength, _ = nets.pick(
        STRENGTHS,
        lambda s: partial(steered, s),
        lambda predict: divergence(task, task.val, predict),
    )
    return steered(strength, tokens, others, position)


@torch.no_grad()
def next_token(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits[:, -1].softmax(-1)


SWAPS = {"none": unchanged, "codes": swapped_codes, "mean_difference": mean_difference}


def forcing(setting: Setting, run: Run) -> dict[str, float]:
    task = task_of(setting, run)
    run.witness(split=task.test, weights=task.base().state_dict())
    model, topic = task.trained(setting.at), task.topic()
    prompts = task.prompts(setting.sampled)
    with steer(model, run.methods[setting.method](task, model, topic)):
        said = task.generate(model, prompts)[:, prompts.shape[1] :] == topic
    return {"share": said.double().mean().item(), "mentions": said.any(1).double().mean().item()}


def no_codes(task: Any, model: CodebookModel, topic: int) -> list[CodeEdit]:
    return []


def announcing_codes(task: Any, model: CodebookModel, topic: int) -> list[CodeEdit]:
    """The few codes that best say, by F1 on validation text, that the topic comes next."""
    table = record_codes(model, task.val.split(task.setting.batch))
    coming = torch.cat([task.val[:, 1:], task.val[:, :1]], 1).flatten() == topic
    scored = []
    for site in table.ids:
        score = f1(*table.precision_recall(coming, site))
        for place in score.flatten().topk(min(task.setting.forced, score.numel())).indices.tolist():
            head, code = divmod(place, score.shape[-1])
            edit = CodeEdit(site, code, head=head if score.dim() == 2 else None)
            scored.append((score.flatten()[place].item(), edit))
    scored.sort(key=lambda pair: -pair[0])
    return [edit for _, edit in scored[: task.setting.forced]]


FORCES = {"none": no_codes, "codes": announcing_codes}


# --- the study ------------------------------------------------------------------------------------


def codes_over_tokens(frame: DataFrame) -> Figure:
    """Walks through one state, a row each: digits, and below each the code of layer 0's MLP."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.patches import Rectangle

    rows = frame[(frame["experiment"] == "reading") & (frame["method"] == "codes")]
    canvas = Canvas(figsize=(7, 3.4), dpi=140, layout="constrained")
    axes = canvas.add_subplot()
    axes.set_axis_off()
    if rows.empty:
        axes.text(0.5, 0.5, "not run at this scale", ha="center")
        return canvas
    row = rows.sort_values("seed").iloc[0]
    width = int(row["strip_width"])
    tokens, codes = (
        [list(map(int, values[i : i + width])) for i in range(0, len(values), width)]
        for values in (row["strip_tokens"], row["strip_codes"])
    )
    counts: dict[int, int] = {}
    for code in (code for line in codes for code in line):
        counts[code] = counts.get(code, 0) + 1
    order = sorted(counts, key=lambda code: (-counts[code], code))
    colour = {code: COLOURS[i] for i, code in enumerate(order[:6])}
    for y, (line, ids) in enumerate(zip(tokens, codes)):
        for x, (token, code) in enumerate(zip(line, ids)):
            left = x + 0.25 * (x // 2)  # the digits of a state side by side
            known = colour.get(code)
            face = known or "0.93"
            axes.add_patch(Rectangle((left, -y), 0.94, 0.9, facecolor=face, edgecolor="none"))
            ink = "white" if known and known not in ("#E69F00", "#56B4E9", "#CC79A7") else "black"
            axes.text(left + 0.47, -y + 0.58, str(token), ha="center", va="center", color=ink)
            axes.text(
                left + 0.47, -y + 0.2, str(code), ha="center", va="center", color=ink, fontsize=6.5
            )
    axes.set_xlim(-0.1, width + 0.25 * (width // 2))
    axes.set_ylim(1 - len(tokens), 1)
    canvas.suptitle("Digits of walks, and the code that each switches on", fontsize=10)
    canvas.supxlabel(
        "a row a walk, all through one state in the middle; coloured: the six most frequent codes",
        fontsize=8,
        color="0.35",
    )
    return canvas


MACHINE: dict[str, Any] = {
    "corpus": "machine",
    "network": "gpt2",
    "width": 32,
    "layers": 2,
    "heads": 4,
    "states": 64,
    "edges": 6,
    "base": 8,
    "length": 8,
    "context": 17,
    "batch": 64,
    "lr": 2e-3,
    "steps": 1100,
    "finetune": 640,
    "finetune_batch": 32,
    "codes": 500,
    "k": 1,
    "test": 400,
}
TINY = MACHINE | {"states": 9, "edges": 2, "base": 3, "length": 4, "context": 9, "batch": 16}
TINY |= {"steps": 20, "finetune": 8, "finetune_batch": 16, "codes": 40, "test": 60}
TOKFSM = MACHINE | {
    "network": "gpt_neox",
    "width": 128,
    "layers": 4,
    "states": 100,
    "edges": 10,
    "base": 10,
    "length": 64,
    "context": 128,
    "batch": 512,
    "lr": 1e-3,
    "steps": 20_000,
    "finetune": 20_000,
    "finetune_batch": 512,
    "codes": 1000,
}
STORIES: dict[str, Any] = {
    "corpus": "hub:roneneldan/TinyStories",
    "network": "roneneldan/TinyStories-1Layer-21M",
    "context": 512,
    "batch": 24,
    "lr": 5e-4,
    "steps": 0,
    "finetune": 15_000,
    "finetune_batch": 24,
    "codes": 10_000,
    "k": 8,
    "test": 400,
}
WIKITEXT = STORIES | {
    "corpus": "hub:Salesforce/wikitext?config=wikitext-103-v1",
    "network": "EleutherAI/pythia-410m-deduped",
    "context": 1024,
}
SAE: dict[str, Any] = {"latents": 512, "sae_walks": 2000, "sae_steps": 500}
TINY_SAE: dict[str, Any] = {"latents": 20, "sae_walks": 60, "sae_steps": 3}
FEW: list[Any] = ["codes", "mean_difference"]


def swaps(layers: list[Any], recipe: dict[str, Any]) -> Any:
    return grid(method="none", swapped="all", **recipe) + grid(
        method=FEW, swapped=[*layers, "all"], **recipe
    )


predictions = Experiment(
    predicting,
    MODELS,
    smoke=grid(sampled=20, **TINY) + grid(method="mlp", sampled=20, **(TINY | {"k": 4})),
    desk=grid(sampled=400, **MACHINE) + grid(method="mlp", sampled=400, **(MACHINE | {"k": 4})),
    full=grid(sampled=1000, **TOKFSM)
    + grid(method="mlp", sampled=1000, **(TOKFSM | {"k": 4}))
    + grid(method=["base", "attn"], **STORIES)
    + grid(method=["base", "attn"], **WIKITEXT)
    + grid(method="mlp", **(WIKITEXT | {"k": 100})),
)
readings = Experiment(
    reading,
    READERS,
    smoke=grid(**TINY, **TINY_SAE),
    desk=grid(**(MACHINE | SAE | {"test": 150})),
    full=grid(**TOKFSM, **SAE),
)
swapped = Experiment(
    swapping,
    SWAPS,
    smoke=swaps(["0", "1"], TINY | {"sae_walks": 60}),
    desk=swaps(["0", "1"], MACHINE | {"sae_walks": 2000}),
    full=swaps(["0", "1", "2", "3"], TOKFSM | {"sae_walks": 2000}),
)
forced = Experiment(
    forcing,
    FORCES,
    smoke=grid(at="mlp", topic="2", forced=1, sampled=20, **TINY),
    desk=grid(at="mlp", topic="7", forced=1, sampled=400, **MACHINE),
    full=grid(at="mlp", topic="7", forced=1, sampled=1000, **TOKFSM)
    + grid(at="attn", topic=[" dragon", " fire"], forced=8, sampled=200, prompt=4, **STORIES)
    + grid(at="attn", topic=" football", forced=8, sampled=200, prompt=16, **WIKITEXT),
)

accuracy = predictions.metric("transition_accuracy")
loss = predictions.metric("loss", log=True)
precision = readings.metric("precision")
divergent = swapped.metric("divergence_nats", log=True)
SINGLE: list[Any] = ["0", "1", "2", "3"]

study = Study(
    "codebook",
    experiments=[predictions, readings, swapped, forced],
    claims=[
        Claim(
            "C1",
            "With codebooks on attention heads, the share of legal transitions is within 0.03 of "
            "the model's without",
            within(accuracy("attn", corpus="machine"), accuracy("base", corpus="machine"), 0.03),
            margin="ours",
        ),
        Claim(
            "C2",
            "With codebooks on attention heads and MLPs it is lower than on attention heads alone",
            lower(accuracy("attn_mlp", corpus="machine"), accuracy("attn", corpus="machine")),
        ),
        Claim(
            "C3",
            "Layer 0's best code tells a state with a precision higher, by at least 0.2, than the "
            "best neuron does at no less recall",
            higher(precision("codes"), precision("neurons"), by=0.2),
            margin="ours",
            note="Neurons are the 32 outputs of the MLP, fewer than states; beside its 128 hidden "
            "units (`hidden`) codes are hardly ahead. That choice, and how long models are trained "
            "on, were settled with development results in view.",
        ),
        Claim(
            "C4",
            "Setting all MLP codes at a state's last digit to those of another state at least "
            "halves the divergence from what follows that state",
            lower(divergent("codes", swapped="all"), divergent("none"), factor=0.5),
            margin="ours",
        ),
        Claim(
            "C5",
            "Setting the codes of all layers brings it closer than those of the best single layer",
            lower(divergent("codes", swapped="all"), divergent.min("codes", swapped=SINGLE)),
        ),
        Claim(
            "C6",
            "The loss with codebooks on MLPs is lower with k = 4 than with k = 1",
            lower(loss("mlp", corpus="machine", k=4), loss("mlp", corpus="machine", k=1)),
        ),
        Claim(
            "C7",
            "Precision of layer 0's codes less that of the latents of a sparse autoencoder",
            report(precision("codes") - precision("sae")),
        ),
    ],
    figures=[
        drawn(codes_over_tokens),
        bars(x="method", y="transition_accuracy", by="k", experiment=predictions),
        bars(x="method", y="precision", by=None, experiment=readings),
        bars(x="swapped", y="divergence_nats", by="method", experiment=swapped),
    ],
    demo=["C3"],
)
