"""Small causal language models of `transformers`, with random weights."""

from __future__ import annotations

from typing import Any

from torch import nn


def causal_lm(
    architecture: str,
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    context: int,
) -> nn.Module:
    """A random causal language model of `transformers`: GPT-2 or GPT-NeoX of any size.

    Takes `input_ids` (batch, length) and gives an output with `logits` (batch, length, vocab_size);
    `generate`, key-value caches and `save_pretrained` are the library's. There is no dropout and no
    special token, the MLPs are four times as wide as the residual stream, and attention is computed
    in plain torch, the fastest way at this size. Weights are drawn as the library draws them, from
    torch's global generator.

    Args:
        architecture: "gpt2" (learned positions, embeddings tied to the output layer) or "gpt_neox"
            (rotary positions, attention and MLP side by side).
        vocab_size: number of tokens.
        width: width of the residual stream, a multiple of `heads`.
        layers: transformer blocks.
        heads: attention heads of each.
        context: longest input, in tokens.

    Raises:
        ValueError: an unknown architecture, a size that is no positive integer, a width that heads
            does not divide, or a width of a GPT-NeoX head below 8, the least that rotates.
        ImportError: the extra is not installed.

    >>> import torch
    >>> model = causal_lm("gpt2", vocab_size=11, width=16, layers=2, heads=2, context=8)
    >>> model(input_ids=torch.zeros(3, 5, dtype=torch.long)).logits.shape
    torch.Size([3, 5, 11])
    """
    if architecture not in _CONFIGS:
        raise ValueError(f"architecture must be one of {', '.join(_CONFIGS)}, got {architecture!r}")
    sizes = {
        "vocab_size": vocab_size,
        "width": width,
        "layers": layers,
        "heads": heads,
        "context": context,
    }
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
    if architecture == "gpt_neox" and width // heads < 8:
        raise ValueError(
            f"a head of gpt_neox must be at least 8 wide, got width {width} for {heads} heads"
        )
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "causal_lm needs transformers: pip install 'paperworks[language]'"
        ) from error
    config = _CONFIGS[architecture](**sizes) | _PLAIN
    kind = getattr(transformers, {"gpt2": "GPT2", "gpt_neox": "GPTNeoX"}[architecture] + "Config")
    return transformers.AutoModelForCausalLM.from_config(kind(**config)).eval()


_PLAIN: dict[str, Any] = {
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _gpt2(vocab_size: int, width: int, layers: int, heads: int, context: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": context,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _gpt_neox(vocab_size: int, width: int, layers: int, heads: int, context: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": context,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


_CONFIGS = {"gpt2": _gpt2, "gpt_neox": _gpt_neox}
