"""Train the two networks that are shipped; about ten minutes each on one core.

    python -m paperworks.incontext.pfn.train classifier
    python -m paperworks.incontext.pfn.train regressor

Each writes `<name>.safetensors` and `<name>.log` into `--out`, by default the package's folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from paperworks.incontext.pfn.bar import BarDistribution, CategoricalHead
from paperworks.incontext.pfn.model import PFN, save_pfn
from paperworks.incontext.pfn.priors import (
    BNNPrior,
    FunctionPrior,
    GPPrior,
    MixturePrior,
    Prior,
    log_uniform,
    sample_prior,
)
from paperworks.incontext.pfn.training import fit_pfn, standardize_context

FEATURES, POINTS, SEED = 10, 100, 0
HIDDEN = ([8], [32], [16, 16])


def classifier(generator: torch.Generator) -> tuple[PFN, Prior, dict[str, Any]]:
    """Binary labels of Bayesian neural networks of several shapes."""
    return _network(CategoricalHead(2)), _networks("binary"), {"steps": 4000}


def regressor(generator: torch.Generator) -> tuple[PFN, Prior, dict[str, Any]]:
    """Functions of Gaussian processes of many lengthscales, and of Bayesian neural networks."""
    processes = [_process(F) for F in range(1, FEATURES + 1)]
    prior = MixturePrior([*processes, _networks("regression")], [1.0] * FEATURES + [5.0])
    x, y = sample_prior(prior, 2000, 50, generator)
    _, y = standardize_context(x, y, 25)
    head = BarDistribution.from_samples(y, 100)
    return _network(head), prior, {"steps": 2000, "min_context": 4}


def _network(head: torch.nn.Module) -> PFN:
    return PFN(FEATURES, head, d_model=64, num_layers=4, num_heads=4, d_ff=128)


def _networks(task: str) -> MixturePrior:
    options: dict[str, Any] = {"task": task, "weight_std": log_uniform(0.3, 2.0), "min_features": 1}
    if task == "regression":
        options["noise"] = log_uniform(0.03, 1.0)
    return MixturePrior(
        [
            BNNPrior([FEATURES, *hidden], activation, inputs=inputs, **options)
            for hidden in HIDDEN
            for activation in ("tanh", "relu")
            for inputs in ("normal", "correlated")
        ]
    )


def _process(F: int) -> FunctionPrior:
    """Of F features, padded with zeros; distances grow as √F and lengthscales with them."""
    prior = MixturePrior(
        [
            GPPrior(
                kernel,
                lengthscale=log_uniform(0.2 * F**0.5, 4 * F**0.5),
                noise=log_uniform(1e-3, 0.3),
                num_features=F,
                inputs="normal",
            )
            for kernel in ("rbf", "matern32")
        ]
    )

    def padded(batch: int, n_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = prior.sample(batch, n_points, generator)
        return functional.pad(x, (0, FEATURES - F)), y

    return FunctionPrior(padded, f"GP of {F} features")


NETWORKS: dict[str, Callable[[torch.Generator], tuple[PFN, Prior, dict[str, Any]]]] = {
    "classifier": classifier,
    "regressor": regressor,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*NETWORKS])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)  # initial weights
    generator = torch.Generator().manual_seed(SEED)
    model, prior, options = NETWORKS[arguments.name](generator)
    options |= {"steps": arguments.steps} if arguments.steps else {}
    settings: dict[str, Any] = {"batch_size": 32, "num_points": POINTS, "lr": 1e-3, **options}
    history = fit_pfn(
        model, prior, context_sizes="uniform", standardize=True, generator=generator, **settings
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_pfn(model, arguments.out / f"{arguments.name}.safetensors")
    size = sum(p.numel() for p in model.parameters())
    every = max(1, history.steps // 20)
    means = torch.tensor(history.loss)[: history.steps // every * every].view(-1, every).mean(1)
    lines = [
        f"python -m paperworks.incontext.pfn.train {arguments.name}",
        f"seed {SEED}, torch {torch.__version__}, {size} parameters, {settings}",
        f"mean negative log-likelihood of {every} steps each:",
        *(f"{(i + 1) * every:6d} {mean:.4f}" for i, mean in enumerate(means.tolist())),
    ]
    (arguments.out / f"{arguments.name}.log").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
