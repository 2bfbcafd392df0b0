"""Text encoders of the transformers library.  Shapes: B batch, S tokens, E width."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from components.models.audio_generator.conditions import Stream
from components.models.audio_generator.content_encoders.base import ContentEncoder, mean_pool, zero_behind
from utils.errors import UserError
from utils.imports import require


class TransformersTextEncoder(ContentEncoder):
    """Any encoder of transformers over text: T5's, BERT and its like, CLAP's text tower.

    Args:
        model: a local folder or the name of a hub repository, of which the encoder alone is taken (T5's decoder is not
            even read); or a model that has been built, by `transformers.ClapTextModel.from_pretrained` in YAML, say.
        tokenizer: the same, or a tokenizer; None for that of `model`.
        max_length: tokens at which a text is cut.
        frozen: neither trained nor in training mode.
        pooled: one vector a text instead of one a token: the model's own projected or pooled output, or the mean.

    Raises:
        UserError: `model` or `tokenizer` can not be read.
    """

    def __init__(
        self,
        model: str | nn.Module,
        tokenizer: str | Any | None = None,
        max_length: int = 128,
        frozen: bool = True,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        if tokenizer is None and not isinstance(model, str):
            raise UserError("tokenizer: a model that has been built does not say which it is: give one")
        self.tokenizer = _read("AutoTokenizer", model if tokenizer is None else tokenizer, "tokenizer")
        self.tokenizer.padding_side = "right"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = _read("AutoModelForTextEncoding", model, "model")
        self.max_length, self.frozen, self.pooled = max_length, frozen, pooled
        config = self.model.config
        projects = pooled and hasattr(self.model, "text_projection")
        self.embed_dim = config.projection_dim if projects else config.hidden_size
        if frozen:
            self.model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> TransformersTextEncoder:
        """Of a frozen encoder nothing is ever in training mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, entry: Sequence[str], lens: Tensor | None = None, **fields: Any) -> Stream:
        """Texts, B of them, to `[B, S, E]` and their lengths in tokens, or to `[B, E]` where pooled."""
        tokens = self.tokenizer(
            list(entry), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        mask, device = tokens["attention_mask"], self.model.device
        inputs = {"input_ids": tokens["input_ids"].to(device)}
        if not bool(mask.all()):  # still on the CPU
            inputs["attention_mask"] = mask.to(device)
        with torch.no_grad() if self.frozen else nullcontext():
            output = self.model(**inputs)
        lens = mask.sum(1).to(device)
        return self._pool(output, lens) if self.pooled else Stream(zero_behind(output.last_hidden_state, lens), lens)

    @staticmethod
    def _pool(output: Any, lens: Tensor) -> Stream:
        for name in ("text_embeds", "pooler_output"):
            if (vector := getattr(output, name, None)) is not None:
                return Stream(vector, None)
        return mean_pool(Stream(output.last_hidden_state, lens))


def _read(kind: str, source: Any, key: str) -> Any:
    if not isinstance(source, str):
        return source
    library = require("transformers", extra="generation")
    try:
        return getattr(library, kind).from_pretrained(source)
    except (OSError, ValueError) as error:
        told = str(error).strip().splitlines()[0]
        raise UserError(f"{key}: nothing for transformers' {kind} can be read from {source}: {told}") from None
