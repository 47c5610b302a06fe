"""Relative representations: can a head move to an encoder that it was not trained with?

Encoders are trained apart; anchors are the same training inputs for all of them. A head or decoder
trained on encoder B then reads what encoder A says: "stitched", without any retraining.

- `heads`: frozen encoders. At desk scale two autoencoders and two classifiers (64-128-32, GELU) and
  a classifier of another width (64-128-48, ReLU) on digits; heads are those of the official code.
  `pairs` says which ordered pairs are averaged: encoders of equal width, or of unequal width, for
  which "absolute" is undefined and left out.
- `anchor_counts`: the same with fewer anchors.
- `autoencoders`: encoder and decoder trained end to end, two initialisations a seed. The decoder is
  LayerNorm, Linear, GELU, MLP for every method; only the width of its input differs.
- `quality`: classifiers of mixed width, rate and training time. Does the distance of a model's
  anchors to those of the best model rank the other models' losses? C8 is about models with one
  activation: that was decided on development seeds, where GELU, ReLU and tanh mixed gave a rank
  correlation of 0.3, since cosines to the origin then compare activations rather than quality. C9
  reports the mixed pool; "centred" (ours) takes the anchors' mean for the origin.

Every method has the same budget and nothing to tune but one: "affine" chooses its ridge on a fifth
of the anchors, held out. A method is a factory `method()` of an object with

    coordinates(z, anchors)    what heads are trained on: latents z (n, d) of a space in which the
                               anchors have latents (m, d) -> (n, k), differentiable
    translate(source, target)  a function that carries latents of one space into another, fitted on
                               the anchors' latents (m, d) in both

and a user's rival that derives from `Absolute` need define only one of them.

Differences from the paper. Desk: digits and small networks. Full: `transformers` checkpoints stand
in for timm's (ViT-B and ViT-S: ViT-B and DeiT-S; RexNet, ResNet-50-ViT, RegNetX: ConvNeXt-T,
ResNet-50, RegNetY), latents are the class token or the pooled features, and pictures are cut to
their central square at 224 pixels for all of them; autoencoders are MLPs; the quality proxy runs on
classifiers of MNIST and not of Cora; word vectors and texts are left out.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import data, nets
from paperworks.representation import (
    AffineTranslator,
    ProcrustesTranslator,
    RelativeHead,
    cka,
    procrustes_distance,
    relative_anchor_distance,
    relative_projection,
    select_anchors,
)
from paperworks.study import (
    Claim,
    Experiment,
    Run,
    Setting,
    Study,
    all_of,
    bars,
    grid,
    higher,
    lines,
    lower,
    report,
    within,
)
from paperworks.study.contract import Grid
from paperworks.study.run import Streams

Translation = Callable[[Tensor], Tensor]


class Absolute:
    """Latents as they are, as if every encoder had the same space."""

    def coordinates(self, z: Tensor, anchors: Tensor) -> Tensor:
        return z

    def translate(self, source: Tensor, target: Tensor) -> Translation:
        return lambda z: z


class Relative(Absolute):
    """The paper's method."""

    def coordinates(self, z: Tensor, anchors: Tensor) -> Tensor:
        return relative_projection(z, anchors)


class Procrustes(Absolute):
    """A rotation with scale and shift for each ordered pair of spaces."""

    def translate(self, source: Tensor, target: Tensor) -> Translation:
        return ProcrustesTranslator().fit(source, target).transform


class Affine(Absolute):
    """An affine map for each ordered pair of spaces, its ridge chosen on a fifth of the anchors."""

    def translate(self, source: Tensor, target: Tensor) -> Translation:
        held = torch.arange(len(source)) % 5 == 0
        variance = (source - source.mean(0)).square().sum().item() / source.shape[1]

        def score(translator: AffineTranslator) -> float:
            return F.mse_loss(translator.transform(source[held]), target[held]).item()

        best, _ = nets.pick(
            [variance * 10.0**power for power in range(-6, 2)],
            train=lambda ridge: AffineTranslator(ridge).fit(source[~held], target[~held]),
            score=score,
        )
        return AffineTranslator(best).fit(source, target).transform


METHODS = {"absolute": Absolute, "relative": Relative, "procrustes": Procrustes, "affine": Affine}


def carry(method: Absolute, z: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Latents z of the source's space in the coordinates that the target's head reads."""
    into = method.translate(source, target)
    return method.coordinates(into(z), into(source))


# ---- data and networks


def load(frun: Streams, name: str, train: float, test: float) -> data.DataSet:
    """The split of this seed: shares of the data set, or of the parts that it brings."""
    return data.load(name, sizes=(train, 0.0, test), generator=frun.rng("split"))


def flat(part: data.Split | data.MapSplit, device: torch.device) -> data.Split:
    """A part in memory, its pictures as rows of pixels."""
    x, y = part.tensors()
    return data.Split(x.flatten(1), y, part.ids).to(device)


def learn(
    model: nn.Module,
    split: data.Split,
    loss: Callable[[nn.Module, Any], Tensor],
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
    lr: float,
    clip: float | None = None,
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    batches = data.batches(split, batch, generator)
    nets.fit(model, batches, loss, optimizer=optimizer, steps=steps, clip=clip)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def reconstruction(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[0])


def latents(
    frun: Streams, *, encoder: str, images: dict[str, Any], steps: int
) -> dict[str, Tensor]:
    """What an encoder makes of the training and the test part; a fixture.

    `encoder` is `kind-width-activation-copy`, trained here, or a checkpoint `OWNER/NAME`.
    """
    pictures = load(frun, **images)
    own = "/" not in encoder
    model = trained(frun, encoder, pictures, steps) if own else pretrained(encoder)
    model.to(frun.device).eval()

    def encode(part: data.Split | data.MapSplit) -> Tensor:
        chunks = (part[rows].tensors()[0] for rows in torch.arange(len(part)).split(256))
        with torch.no_grad():
            return torch.cat([model(x.to(frun.device)).cpu() for x in chunks])

    return {
        "train": encode(pictures.train),
        "test": encode(pictures.test),
        "y_train": pictures.train.y,
        "y_test": pictures.test.y,
        "ids": pictures.train.ids,
    }


def objective(encoder: str) -> str:
    """What an encoder was trained for; the checkpoints are all classifiers."""
    return "classifier" if "/" in encoder else encoder.split("-")[0]


def trained(frun: Streams, name: str, pictures: data.DataSet, steps: int) -> nn.Module:
    """The first half of an autoencoder, or all but the last layer of a classifier."""
    kind, width, activation, _ = name.split("-")
    split = flat(pictures.train, frun.device)
    pixels = split.x.shape[1]
    loss, rest = {
        "autoencoder": (reconstruction, [128, pixels]),
        "classifier": (cross_entropy, [len(pictures.classes)]),
    }[kind]
    with frun.seeded(f"weights of {name}"):
        model = nets.MLP([pixels, 128, int(width), *rest], activation).to(frun.device)
    learn(model, split, loss, frun.rng(f"batches of {name}"), steps=steps, batch=128, lr=1e-3)
    return nn.Sequential(nn.Flatten(), model[:3])


class Pretrained(nn.Module):
    """A vision model of `transformers`: pictures in [0, 1] to class token or pooled features."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        output = self.model(pixel_values=(x - self.mean) / self.std)
        tokens = output.last_hidden_state
        return tokens[:, 0] if tokens.dim() == 3 else output.pooler_output.flatten(1)


def pretrained(name: str) -> nn.Module:
    from transformers import AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    processor, _ = ImageProcessingMixin.get_image_processor_dict(name)
    model = AutoModel.from_pretrained(name)
    return Pretrained(model, processor["image_mean"], processor["image_std"])


# ---- trials


def spaces_of(setting: Setting, run: Run) -> dict[str, dict[str, Tensor]]:
    """Each encoder's latents of both parts, and of the anchors: the same samples for all."""
    images, steps = images_of(setting), setting.encoder_steps
    spaces: dict[str, dict[str, Tensor]] = {
        name: run.fixture(latents, seed=run.seed, encoder=name, images=images, steps=steps)
        for name in setting.encoders.split()
    }
    ids = next(iter(spaces.values()))["ids"]
    if not all(torch.equal(space["ids"], ids) for space in spaces.values()):
        raise RuntimeError("the encoders' training parts differ: anchors would not correspond")
    run.witness(split=ids, weights={name: space["test"] for name, space in spaces.items()})
    chosen = select_anchors(ids, setting.anchors, generator=run.rng("anchors"))
    return {
        name: {key: value.to(run.device) for key, value in space.items()}
        | {"anchors": space["train"][chosen].to(run.device)}
        for name, space in spaces.items()
    }


def heads(setting: Setting, run: Run) -> dict[str, float]:
    method = run.methods[setting.method]()
    spaces = spaces_of(setting, run)
    same_width = setting.pairs == "same_width"
    pairs = [
        (a, b)
        for a, b in itertools.permutations(spaces, 2)
        if (spaces[a]["train"].shape[1] == spaces[b]["train"].shape[1]) == same_width
    ]
    options: dict[str, Any] = {key: setting[key] for key in ("steps", "batch", "lr")}

    def head_of(space: dict[str, Tensor]) -> nn.Module:
        r = method.coordinates(space["train"], space["anchors"])
        classes = int(space["y_train"].max()) + 1
        with run.seeded("weights"):
            head = RelativeHead(r.shape[1], classes, setting.hidden).to(run.device)
        split = data.Split(r, space["y_train"])
        learn(head, split, cross_entropy, run.rng("batches"), **options)
        return head

    def accuracy(name: str, r: Tensor) -> float:
        with torch.no_grad():
            return (head[name](r).argmax(1) == spaces[name]["y_test"]).double().mean().item()

    head = {name: head_of(spaces[name]) for name in dict.fromkeys(b for _, b in pairs)}
    own = {
        b: accuracy(b, method.coordinates(spaces[b]["test"], spaces[b]["anchors"])) for b in head
    }
    stitched = {
        (a, b): accuracy(
            b, carry(method, spaces[a]["test"], spaces[a]["anchors"], spaces[b]["anchors"])
        )
        for a, b in pairs
    }
    kin = [(a, b) for a, b in pairs if objective(a) == objective(b)]
    return {
        "stitched_accuracy": mean(stitched.values()),
        "unstitched_accuracy": mean(own.values()),
        "kin_stitched_accuracy": mean(stitched[pair] for pair in kin),
        "kin_unstitched_accuracy": mean(own[b] for _, b in kin),
    }


class AutoEncoder(nn.Module):
    """An autoencoder through a method's coordinates; anchors are encoded anew at every call."""

    def __init__(
        self, method: Absolute, encoder: nn.Module, decoder: nn.Module, anchors: Tensor
    ) -> None:
        super().__init__()
        self.method, self.encoder, self.decoder = method, encoder, decoder
        self.register_buffer("anchors", anchors)

    @torch.no_grad()
    def encode_anchors(self) -> Tensor:
        return self.encoder(self.anchors)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.method.coordinates(self.encoder(x), self.encode_anchors()))

    def decode_latents_of(self, other: AutoEncoder, x: Tensor) -> Tensor:
        source, target = other.encode_anchors(), self.encode_anchors()
        return self.decoder(carry(self.method, other.encoder(x), source, target))


def autoencoders(setting: Setting, run: Run) -> dict[str, float]:
    method = run.methods[setting.method]()
    pictures = load(run, **images_of(setting))
    split, test = (flat(part, run.device) for part in (pictures.train, pictures.test))
    pixels, d = split.x.shape[1], setting.latent
    rng = run.rng("anchors")
    anchors = split.x[select_anchors(split.x, setting.anchors, "stratified", split.y, rng)]

    def build() -> AutoEncoder:
        with run.seeded("weights"):
            encoder = nets.MLP([pixels, 128, d], "gelu").to(run.device)
        k = method.coordinates(encoder(anchors), encoder(anchors)).shape[1]
        with run.seeded("weights of decoders"):  # whose widths differ, unlike the encoders'
            rest = nets.MLP([d, 128, pixels], "gelu")
            decoder = nn.Sequential(nn.LayerNorm(k), nn.Linear(k, d), nn.GELU(), rest)
        return AutoEncoder(method, encoder, decoder.to(run.device), anchors)

    a, b = models = build(), build()
    run.witness(split=split.ids, weights=[model.encoder.state_dict() for model in models])
    options: dict[str, Any] = {key: setting[key] for key in ("steps", "batch", "lr", "clip")}
    for model in models:
        learn(model, split, reconstruction, run.rng("batches"), **options)

    def error(pictures: Tensor) -> float:
        return F.mse_loss(pictures, test.x).item()

    with torch.no_grad():
        return {
            "stitched_mse": mean(
                error(y.decode_latents_of(x, test.x)) for x, y in ((a, b), (b, a))
            ),
            "unstitched_mse": mean(error(model(test.x)) for model in models),
            "mean_image_mse": error(split.x.mean(0).expand_as(test.x)),
        }


def between_anchors(a: Tensor, b: Tensor, center: bool = False) -> float:
    r_a, r_b = (relative_projection(z, z, center=center) for z in (a, b))
    return relative_anchor_distance(r_a, r_b)


DISTANCES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "relative": between_anchors,
    "centred": partial(between_anchors, center=True),
    "cka": lambda a, b: 1 - cka(a, b, debiased=True).item(),
    "procrustes": lambda a, b: procrustes_distance(a, b).item(),
}


def quality(setting: Setting, run: Run) -> dict[str, float]:
    recipe = {key: setting[key] for key in ("activations", "anchors", "models", "steps")}
    pool = run.fixture(classifiers, seed=run.seed, images=images_of(setting), **recipe)
    run.witness(weights=[model["anchors"] for model in pool])
    best, *others = sorted(pool, key=lambda model: model["loss"])
    distance = DISTANCES[setting.distance]
    distances = [distance(model["anchors"], best["anchors"]) for model in others]
    losses = [model["loss"] for model in others]
    return {
        "rank_correlation": float(spearmanr(distances, losses).statistic),
        "best_loss": best["loss"],
        "worst_loss": losses[-1],
    }


def classifiers(
    frun: Streams,
    *,
    images: dict[str, Any],
    activations: str,
    anchors: int,
    models: int,
    steps: int,
) -> list[dict[str, Any]]:
    """Classifiers of mixed quality: latents of the anchors and test loss of each; a fixture."""
    pictures = load(frun, **images)
    split, test = (flat(part, frun.device) for part in (pictures.train, pictures.test))
    chosen = select_anchors(split.x, anchors, generator=frun.rng("anchors"))

    def draw(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=frun.rng("recipes")))]

    pool = []
    for duration in torch.logspace(-1.5, 0, models).mul(steps).ceil().int().tolist():
        width, activation = draw(16, 32, 48), draw(*activations.split())
        with frun.seeded("weights"):
            sizes = [split.x.shape[1], 128, width, len(pictures.classes)]
            model = nets.MLP(sizes, activation).to(frun.device)
        rng, lr = frun.rng("batches"), draw(3e-4, 1e-3, 3e-3)
        learn(model, split, cross_entropy, rng, steps=duration, batch=128, lr=lr)
        with torch.no_grad():
            loss = cross_entropy(model, test.tensors()).item()
            pool.append({"anchors": model[:3](split.x[chosen]), "loss": loss})
    return pool


def images_of(setting: Setting) -> dict[str, Any]:
    return {"name": setting.data, "train": setting.train, "test": setting.test}


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


# ---- the study

# 1,300 and 497 pictures
digits: dict[str, Any] = {"data": "digits", "train": 0.7234, "test": 0.2766}

frozen: dict[str, Any] = {
    "encoders": "autoencoder-32-gelu-a autoencoder-32-gelu-b "
    "classifier-32-gelu-a classifier-32-gelu-b classifier-48-relu-a",
    "encoder_steps": 600,
    "anchors": 200,
    "hidden": 200,
    "steps": 600,
    "batch": 32,
    "lr": 1e-3,
} | digits
frozen_smoke: dict[str, Any] = frozen | {"encoder_steps": 4, "anchors": 20, "steps": 2}
frozen_hub: dict[str, Any] = {
    "encoders": "google/vit-base-patch16-224 facebook/deit-small-patch16-224 "
    "facebook/convnext-tiny-224 microsoft/resnet-50 facebook/regnet-y-040",
    "encoder_steps": 0,
    "anchors": 768,
    "hidden": 768,
    "batch": 32,
    "lr": 1e-4,
}
cifar: dict[str, Any] = {
    "data": "hub:uoft-cs/cifar100?size=224",
    "train": 1.0,
    "test": 1.0,
    "steps": 15_620,
}
imagenet: dict[str, Any] = {
    "data": "hub:ILSVRC/imagenet-1k?size=224&channels=3",
    "train": 0.2,
    "test": 1.0,
    "steps": 80_000,
}

end_to_end: dict[str, Any] = {
    "latent": 64,
    "anchors": 300,
    "batch": 128,
    "lr": 1e-3,
    "clip": 10.0,
} | digits
pictures_hub = [
    "hub:ylecun/mnist?size=28",
    "hub:zalando-datasets/fashion_mnist?size=28",
    "hub:uoft-cs/cifar10",
    "hub:uoft-cs/cifar100",
]

mixed: dict[str, Any] = {
    "activations": ["gelu", "gelu relu tanh"],
    "anchors": 200,
    "models": 13,
} | digits


def all_pairs(recipe: Mapping[str, Any]) -> Grid:
    return grid(pairs="same_width", **recipe) + grid(
        pairs="cross_width", method=["relative", "procrustes", "affine"], **recipe
    )


def counts(recipe: Mapping[str, Any], *anchors: int) -> Grid:
    axes = {**recipe, "anchors": list(anchors)}
    return grid(method=["relative", "affine"], pairs="same_width", **axes)


def distances(recipe: Mapping[str, Any]) -> Grid:
    return grid(distance=list(DISTANCES), **recipe)


stitching = Experiment(
    heads,
    METHODS,
    smoke=all_pairs(frozen_smoke),
    desk=all_pairs(frozen),
    full=all_pairs(frozen_hub | cifar) + all_pairs(frozen_hub | imagenet),
)
anchor_counts = Experiment(
    heads,
    METHODS,
    name="anchor_counts",
    smoke=counts(frozen_smoke, 10, 20),
    desk=counts(frozen, 10, 50, 200),
    full=counts(frozen_hub | cifar, 10, 50, 200, 768),
)
reconstructing = Experiment(
    autoencoders,
    METHODS,
    smoke=grid(**(end_to_end | {"anchors": 20, "steps": 2})),
    desk=grid(**(end_to_end | {"steps": 1000})),
    full=grid(
        **(
            end_to_end
            | {"data": pictures_hub, "train": 1.0, "test": 1.0}
            | {"latent": 500, "anchors": 500, "steps": 45_000}
        )
    ),
)
proxy = Experiment(
    quality,
    smoke=distances(mixed | {"models": 4, "steps": 4}),
    desk=distances(mixed | {"steps": 400}),
    full=distances(
        mixed
        | {"data": pictures_hub[0], "train": 1.0, "test": 1.0, "anchors": 300}
        | {"models": 101, "steps": 5000}
    ),
)

stitched = stitching.metric("stitched_accuracy")
unstitched = stitching.metric("unstitched_accuracy")
kin_stitched = stitching.metric("kin_stitched_accuracy")
kin_unstitched = stitching.metric("kin_unstitched_accuracy")
by_count = anchor_counts.metric("stitched_accuracy")
error = reconstructing.metric("stitched_mse", log=True)
mean_image = reconstructing.metric("mean_image_mse", log=True)
ranking = proxy.metric("rank_correlation")

study = Study(
    "relreps",
    experiments=[stitching, anchor_counts, reconstructing, proxy],
    claims=[
        Claim(
            "C1",
            "Between encoders of equal width, a stitched head on relative representations is more "
            "accurate than one on absolute latents by at least 0.5",
            higher(
                stitched.mean("relative", pairs="same_width"),
                stitched.mean("absolute", pairs="same_width"),
                by=0.5,
            ),
            margin="ours",
        ),
        Claim(
            "C2",
            "Between encoders trained for the same objective, relative stitching is within 0.10 of "
            "the accuracy without stitching",
            within(kin_stitched.mean("relative"), kin_unstitched.mean("relative"), 0.10),
            margin="ours",
        ),
        Claim(
            "C3",
            "Without stitching, heads on relative representations are within 0.02 of heads on "
            "absolute latents, or more accurate",
            higher(
                unstitched.mean("relative", pairs="same_width"),
                unstitched.mean("absolute", pairs="same_width"),
                by=-0.02,
            ),
            margin="ours",
        ),
        Claim(
            "C4",
            "Between encoders of unequal width (32 and 48) relative stitching is more accurate "
            "than 0.7",
            higher(stitched.mean("relative", pairs="cross_width"), 0.7),
            margin="ours",
        ),
        Claim(
            "C5",
            "Stitched relative autoencoders reconstruct with at most a fifth of the error of "
            "absolute ones, and better than the mean picture",
            all_of(
                lower(error.mean("relative"), error.mean("absolute"), factor=0.2),
                lower(error.mean("relative"), mean_image.mean("relative")),
            ),
            margin="ours",
        ),
        Claim(
            "C6",
            "Relative stitching is more accurate with 200 anchors than with 10",
            higher(by_count("relative", anchors=200), by_count("relative", anchors=10)),
        ),
        Claim(
            "C7",
            "Stitched accuracy of relative representations less that of an affine translation for "
            "each pair",
            report(
                stitched.mean("relative", pairs="same_width")
                - stitched.mean("affine", pairs="same_width")
            ),
        ),
        Claim(
            "C8",
            "Over 12 models of mixed quality, the distance of relative anchors to the best model "
            "has a rank correlation above 0.5 with the loss",
            higher(ranking(distance="relative", activations="gelu"), 0.5),
            margin="ours",
            note="The models differ in width, rate and training time, and share one activation. "
            "C9 mixes activations too.",
        ),
        Claim(
            "C9",
            "The same rank correlation where the models' activations are mixed, GELU, ReLU and "
            "tanh",
            report(ranking(distance="relative", activations="gelu relu tanh")),
            note="The cosine is not blind to shifts, and latents of these activations differ most "
            "in how far they lie from the origin. Centring restores the correlation.",
        ),
    ],
    figures=[
        bars(x="pairs", y="stitched_accuracy", by="method", experiment=stitching),
        lines(x="anchors", y="stitched_accuracy", by="method", experiment=anchor_counts),
        bars(x="method", y="stitched_mse", by=None, experiment=reconstructing),
        bars(x="distance", y="rank_correlation", by="activations", experiment=proxy),
    ],
    data=data.Accepts("image", min_classes=2),
    demo=["C1", "C4"],
)
