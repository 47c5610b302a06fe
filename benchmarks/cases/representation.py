"""Representations beside latentis, fpsample, scikit-learn, Torch-Pruning and others."""

from __future__ import annotations

import copy
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


# ---- convergent: correlations, matchings and sparse maps between units


def activations(n: int, p: int, q: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, p, generator=generator).relu()
    mix = torch.randn(p, q, generator=generator) / p**0.5
    return x, (x @ mix + torch.randn(n, q, generator=generator)).relu()


def our_correlation() -> Callable[[], Any]:
    from paperworks.representation import correlation

    x, y = activations(1_000_000, 256, 256)
    return lambda: correlation(x, y).numpy()


def their_correlation() -> Callable[[], Any]:
    x, y = (z.numpy() for z in activations(1_000_000, 256, 256))
    return lambda: np.corrcoef(x, y, rowvar=False)[:256, 256:]  # 512 x 512, four times the products


def our_wide_correlation() -> Callable[[], Any]:
    from paperworks.representation import correlation

    x, y = activations(50_000, 4096, 4096)  # memory beside the inputs: 1.4 correlation matrices
    return lambda: correlation(x, y).numpy()


def their_wide_correlation() -> Callable[[], Any]:
    x, y = (z.numpy() for z in activations(50_000, 4096, 4096))

    def centred_product() -> np.ndarray:
        a, b = (z.astype(np.float64) for z in (x, y))
        a -= a.mean(0)
        b -= b.mean(0)
        return a.T @ b / np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))

    return centred_product


def our_matching() -> Callable[[], Any]:
    from paperworks.representation import match_units

    similarity = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    return lambda: match_units(similarity).index_b.numpy()


def their_matching() -> Callable[[], Any]:
    import networkx

    similarity = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    graph = networkx.Graph()
    graph.add_weighted_edges_from(
        (i, 64 + j, c) for i, row in enumerate(similarity.tolist()) for j, c in enumerate(row)
    )

    def blossom() -> np.ndarray:  # what pure Python makes of it, as the official code does
        pairs = networkx.max_weight_matching(graph, maxcardinality=True)
        return np.array([max(pair) - 64 for pair in sorted(pairs, key=min)])

    return blossom


def same_total(ours: np.ndarray, peer: np.ndarray) -> str:
    similarity = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    rows = np.arange(64)
    return f"sum {similarity[rows, ours].sum():.4f} | {similarity[rows, peer].sum():.4f}"


def our_information() -> Callable[[], Any]:
    from paperworks.representation import mutual_information

    x, y = activations(20_000, 64, 64)
    return lambda: mutual_information(x, y, correct_bias=False).numpy()


def their_information() -> Callable[[], Any]:
    from sklearn.metrics import mutual_info_score

    from paperworks.representation.convergent.information import _binned  # the same bins

    x, y = (_binned(z, 10).numpy() for z in activations(20_000, 64, 64))
    return lambda: np.array([[mutual_info_score(a, b) for b in y] for a in x])


def our_sparse_map() -> Callable[[], Any]:
    from paperworks.representation import SparsePrediction

    x, y = (z.numpy() for z in activations(20_000, 256, 256))
    return lambda: SparsePrediction(0.05).fit(x, y).coef_


def their_sparse_map() -> Callable[[], Any]:
    from sklearn.linear_model import Lasso
    from sklearn.preprocessing import StandardScaler

    x, y = (z.numpy().astype(np.float64) for z in activations(20_000, 256, 256))
    scale = StandardScaler().fit_transform
    return lambda: Lasso(0.05, fit_intercept=False).fit(scale(x), scale(y)).coef_


# ---- ifm: merging a layer of 512 channels; narrowing to equal widths


def wide_layers(width: int = 512, layers: int = 4) -> tuple[torch.nn.Module, torch.Tensor]:
    from paperworks import nets

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nets.ConvNet(width, [width] * layers, norm="batch").eval()
    return model, torch.rand(1, width, 4, 4)


SWEEPS = 40


def our_merging() -> Callable[[], Any]:
    from paperworks.representation import IterativeFeatureMerging

    model, example = wide_layers()
    method = IterativeFeatureMerging(beta=1.0, max_ratio=SWEEPS / 512)
    return lambda: np.array(
        [(m.first[0], m.second[0]) for m in method.merge(model, example).history]
    )


def full_recomputation() -> Callable[[], Any]:
    """The same loop, with every distance computed anew from the merged weights."""
    model, _ = wide_layers()
    layers = [m for m in model if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]

    def merge() -> np.ndarray:
        weights = [
            layer.weight.detach().double().reshape(*layer.weight.shape[:2], -1) for layer in layers
        ]
        counts = [torch.ones(len(w), dtype=torch.float64) for w in weights[:-1]]
        names = [list(range(len(w))) for w in weights[:-1]]
        pairs = []
        for _ in range(SWEEPS):
            for g, c in enumerate(counts):
                rows, columns = weights[g], weights[g + 1]
                features = torch.cat([rows.flatten(1), columns.transpose(0, 1).flatten(1)], 1)
                gram = features @ features.T
                squares = gram.diagonal()
                distance = (squares + squares[:, None] - 2 * gram).fill_diagonal_(np.inf)
                i, j = sorted(divmod(int(distance.argmin()), len(c)))
                rest = [k for k in range(len(c)) if k not in (i, j)]
                mean = (c[i] * columns[:, i] + c[j] * columns[:, j]) / (c[i] + c[j])
                weights[g] = torch.cat([rows[rest], (rows[i] + rows[j])[None]])
                weights[g + 1] = torch.cat([columns[:, rest], mean[:, None]], 1)
                counts[g] = torch.cat([c[rest], (c[i] + c[j])[None]])
                pairs.append(sorted((names[g][i], names[g][j])))
                names[g] = [names[g][k] for k in rest] + [min(names[g][i], names[g][j])]
        return np.array(pairs)

    return merge


def same_merges(ours: np.ndarray, peer: np.ndarray) -> str:
    return f"{(ours == peer).all(1).mean():.0%} of {len(ours)} merges are the same"


def trained_digits() -> tuple[torch.nn.Module, Any]:
    from paperworks import data, nets

    digits = data.load("digits", sizes=(1300, 165, 332))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nets.ConvNet(1, [32, 32, 64, 64, 64], pool_after=[1, 3])
    nets.fit(
        model,
        data.batches(digits.train, 64, torch.Generator().manual_seed(0)),
        lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
        optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4),
        steps=500,
        schedule="cosine",
    )
    return model, digits


def predictions(model: torch.nn.Module, digits: Any) -> np.ndarray:
    with torch.no_grad():
        return (model.eval()(digits.test.x).argmax(1) == digits.test.y).double().numpy()


def our_narrowing() -> Callable[[], Any]:
    from paperworks.representation import IterativeFeatureMerging

    model, digits = trained_digits()
    method = IterativeFeatureMerging(beta=0.25)
    return lambda: predictions(method.merge(model, digits.test.x[:1]).model, digits)


def torch_pruning() -> Callable[[], Any]:
    """Torch-Pruning to the widths that ours comes to."""
    import torch_pruning as tp

    from paperworks.representation import IterativeFeatureMerging

    model, digits = trained_digits()
    example = digits.test.x[:1]
    widths = IterativeFeatureMerging(beta=0.25).merge(model, example).complexity

    def narrow() -> np.ndarray:
        small = copy.deepcopy(model)
        ratios = {small.get_submodule(n): 1 - kept / size for n, (kept, size) in widths.items()}
        pruner = tp.pruner.MagnitudePruner(
            small,
            example,
            importance=tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.0,
            pruning_ratio_dict=ratios,
            ignored_layers=[small[-1]],
        )
        pruner.step()
        return predictions(small, digits)

    return narrow


def accuracies(ours: np.ndarray, peer: np.ndarray) -> str:
    return f"accuracy {ours.mean():.3f} | {peer.mean():.3f}"


# ---- codebook: the look-up, and one layer forward and backward


def positions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 1024, generator=generator)
    return x, torch.randn(10_000, 1024, generator=generator)


def our_look_up() -> Callable[[], Any]:
    from paperworks.representation import nearest_codes

    x, codes = positions()
    return lambda: nearest_codes(x, codes).squeeze(1).numpy()


def their_quantizer(cosine: bool, **options: Any) -> Any:
    from vector_quantize_pytorch import VectorQuantize

    x, codes = positions()
    quantizer = VectorQuantize(
        dim=1024, codebook_size=10_000, use_cosine_sim=cosine, rotation_trick=False, **options
    )
    if cosine:
        codes = torch.nn.functional.normalize(codes, dim=1)
    quantizer._codebook.embed.data.copy_(codes.unsqueeze(0))
    return quantizer, x


def their_look_up() -> Callable[[], Any]:
    quantizer, x = their_quantizer(cosine=True)
    quantizer.eval()

    def look_up() -> Any:
        with torch.no_grad():
            return quantizer(x.unsqueeze(0))[1].squeeze(0).numpy()

    return look_up


def our_layer() -> Callable[[], Any]:
    from paperworks.representation import CodebookLayer

    x, codes = positions()
    layer = CodebookLayer(1024, 10_000, similarity="euclidean", layernorm=False)
    layer.codes.data.copy_(codes)

    def step() -> Any:
        layer.zero_grad()
        layer(x.requires_grad_()).square().mean().backward()
        return layer.ids[:, 0].numpy()

    return step


def their_layer() -> Callable[[], Any]:
    quantizer, x = their_quantizer(cosine=False, learnable_codebook=True, ema_update=False)
    x = x.unsqueeze(0).requires_grad_()

    def step() -> Any:
        quantizer.zero_grad()
        z, ids, loss = quantizer(x)
        (z.square().mean() + loss.sum()).backward()
        return ids.squeeze(0).numpy()

    return step


def same_codes(ours: np.ndarray, peer: np.ndarray) -> str:
    return f"same code at {(ours == peer).mean():.1%} of positions"


# ---- collapse: metrics of a large layer


def collapsed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(100, 2048, generator=generator)
    labels = torch.arange(50_000) % 100
    features = means[labels] + torch.randn(50_000, 2048, generator=generator)
    return features, labels, torch.randn(100, 2048, generator=generator)


def our_collapse() -> Callable[[], Any]:
    from paperworks.representation import collapse_metrics

    features, labels, weight = collapsed()

    def metrics() -> np.ndarray:
        values = collapse_metrics(features, labels, weight)
        return np.array([values["nc1"], values["nc2_w"]])

    return metrics


def plain_collapse() -> Callable[[], Any]:
    """The scatter matrices themselves, and a pseudo-inverse, as scripts for NC1 have it."""
    features, labels, weight = collapsed()
    k = len(weight)

    def metrics() -> np.ndarray:
        sums = torch.zeros(k, features.shape[1]).index_add_(0, labels, features)
        means = sums / labels.bincount()[:, None]
        deviations = features - means[labels]
        within = deviations.T @ deviations / len(features)
        centred = means - features.mean(0)
        between = (centred.T @ centred / k).double()
        inverse = torch.linalg.pinv(between, rtol=1e-6, hermitian=True).float()
        gram = weight @ weight.T
        frame = torch.eye(k) - 1 / k
        nc2 = torch.linalg.norm(gram / gram.norm() - frame / frame.norm())
        return np.array([(within @ inverse).trace().item() / k, nc2.item()])

    return metrics


# ---- know2vec: probing, ranking, transferability scores


def zoo_of(n: int) -> tuple[dict[str, Any], torch.Tensor]:
    from paperworks import nets

    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {str(i): nets.MLP([64, 256, 256, 10]) for i in range(n)}
    return models, torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))


def our_probing() -> Callable[[], Any]:
    from paperworks.representation import probe_zoo

    models, pool = zoo_of(10)
    return lambda: np.stack(
        [k.features.numpy() for k in probe_zoo(models, pool, 10, lambda x: x, top=1).values()]
    )


def their_probing() -> Callable[[], Any]:
    models, pool = zoo_of(10)

    @torch.no_grad()
    def pair_by_pair() -> np.ndarray:
        found = torch.empty(len(models), 1, 10, 10, 64)
        for m, model in enumerate(models.values()):
            p = model(pool).softmax(1)
            answered = torch.nn.functional.one_hot(p.argmax(1), 10).bool()
            surest = torch.where(answered, p, -1.0).argmax(0)
            fallback = p.argmax(0)
            nodes = pool[torch.where(answered.any(0), surest, fallback)]
            for i in range(10):
                for j in range(10):
                    near, far = 0.0, 1.0
                    for _ in range(12 * (i != j)):
                        t = (near + far) / 2
                        stays = model(torch.lerp(nodes[i], nodes[j], t)[None]).argmax() == i
                        near, far = (t, far) if stays else (near, t)
                    found[m, 0, i, j] = torch.lerp(nodes[i], nodes[j], far if i != j else 0.0)
        return found.numpy()

    return pair_by_pair


def our_ranking() -> Callable[[], Any]:
    from paperworks.representation import ModelRetriever, QueryEncoder

    retriever = ModelRetriever({}, [])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        retriever.query_encoder_ = QueryEncoder(1000)
    retriever.names = [str(i) for i in range(1000)]
    retriever.vectors_ = torch.randn(1000, 256, generator=torch.Generator().manual_seed(0))
    query = torch.randn(1, 4, 1000, generator=torch.Generator().manual_seed(1))
    return lambda: retriever.scores(query).numpy()


def their_ranking() -> Callable[[], Any]:
    models, x = zoo_of(1000)

    @torch.no_grad()
    def every_model() -> np.ndarray:
        return np.array([[float(m(x[:20]).amax(1).mean()) for m in models.values()]])

    return every_model


def scored() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 512, generator=generator)
    probs = torch.randn(5000, 1000, generator=generator).softmax(1)
    return x, probs, torch.randint(20, (5000,), generator=generator)


def our_leep() -> Callable[[], Any]:
    from paperworks.representation import leep

    _, probs, y = scored()
    return lambda: leep(probs, y).numpy()


def their_leep() -> Callable[[], Any]:
    _, probs, y = (t.numpy() for t in scored())

    def loop() -> np.ndarray:
        joint = np.zeros((20, probs.shape[1]))
        for p, c in zip(probs, y):
            joint[c] += p / len(y)
        conditional = joint / joint.sum(0)
        return np.array(np.mean([np.log(conditional[c] @ p) for p, c in zip(probs, y)]))

    return loop


def our_logme() -> Callable[[], Any]:
    from paperworks.representation import logme

    x, _, y = scored()
    return lambda: np.array(logme(x, y))


def their_logme() -> Callable[[], Any]:
    x, _, y = (t.numpy() for t in scored())

    def loop() -> np.ndarray:
        f = x.astype(np.float64)
        n, d = f.shape
        u, s, _ = np.linalg.svd(f, full_matrices=False)
        sigma, evidences = s**2, []
        for c in range(20):
            t = (y == c).astype(np.float64)
            z = u.T @ t
            rest, alpha, beta = t @ t - z @ z, 1.0, 1.0
            for _ in range(100):
                before = alpha / beta
                gamma = (sigma / (sigma + before)).sum()
                m2 = (sigma * z**2 / (before + sigma) ** 2).sum()
                error = (z**2 / (1 + sigma / before) ** 2).sum() + rest
                alpha, beta = gamma / m2, (n - gamma) / error
                if abs(alpha / beta - before) <= 1e-6 * before:
                    break
            ratio = alpha / beta
            m2 = (sigma * z**2 / (ratio + sigma) ** 2).sum()
            error = (z**2 / (1 + sigma / ratio) ** 2).sum() + rest
            e = n / 2 * np.log(beta / 2 / np.pi) + d / 2 * np.log(alpha)
            e -= (beta * error + alpha * m2 + np.log(alpha + beta * sigma).sum()) / 2
            evidences.append(e / n)
        return np.array(np.mean(evidences))

    return loop


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
    "correlation": Case(
        "correlation of units, 1,000,000 x 256 with 256",
        "numpy.corrcoef",
        {"ours": our_correlation, "peer": their_correlation},
        largest_difference,
    ),
    "wide_correlation": Case(
        "correlation of units, 50,000 x 4,096 with 4,096",
        "numpy in float64",
        {"ours": our_wide_correlation, "peer": their_wide_correlation},
        largest_difference,
    ),
    "unit_matching": Case(
        "one-to-one matching of 64 units",
        "networkx",
        {"ours": our_matching, "peer": their_matching},
        same_total,
    ),
    "information": Case(
        "mutual information of 64 x 64 units, 20,000 rows",
        "scikit-learn",
        {"ours": our_information, "peer": their_information},
        largest_difference,
    ),
    "sparse_map": Case(
        "lasso from 256 units to 256, 20,000 rows",
        "scikit-learn Lasso",
        {"ours": our_sparse_map, "peer": their_sparse_map},
        largest_difference,
    ),
    "merging": Case(
        f"feature merging, 4 layers of 512 channels, {SWEEPS} sweeps",
        "full recomputation",
        {"ours": our_merging, "peer": full_recomputation},
        same_merges,
        repeats=1,
    ),
    "narrowing": Case(
        "digits network to the same widths without training",
        "Torch-Pruning",
        {"ours": our_narrowing, "peer": torch_pruning},
        accuracies,
    ),
    "codes": Case(
        "nearest of 10,000 codes, 4,096 x 1,024",
        "vector-quantize-pytorch",
        {"ours": our_look_up, "peer": their_look_up},
        same_codes,
    ),
    "codebook-layer": Case(
        "codebook layer forward and backward, 4,096 x 1,024, 10,000 codes",
        "vector-quantize-pytorch",
        {"ours": our_layer, "peer": their_layer},
        same_codes,
    ),
    "collapse": Case(
        "neural collapse metrics, 50,000 x 2,048, 100 classes",
        "scatter matrices in PyTorch",
        {"ours": our_collapse, "peer": plain_collapse},
        largest_difference,
    ),
    "probing": Case(
        "probing 10 models of 10 classes, pool of 2,000",
        "pair by pair",
        {"ours": our_probing, "peer": their_probing},
        largest_difference,
    ),
    "ranking": Case(
        "ranking 1,000 models for one task",
        "20 samples through every model",
        {"ours": our_ranking, "peer": their_ranking},
        lambda ours, peer: "0 | 20,000 inputs to models",
    ),
    "leep": Case(
        "LEEP, 5,000 samples, 1,000 source classes",
        "sample by sample",
        {"ours": our_leep, "peer": their_leep},
        largest_difference,
    ),
    "logme": Case(
        "LogME, 5,000 x 512, 20 classes",
        "class by class",
        {"ours": our_logme, "peer": their_logme},
        largest_difference,
    ),
}
