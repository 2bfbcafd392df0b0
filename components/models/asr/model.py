"""Speech to losses and to what decoders read.

Shapes: B batch, T samples, L feature frames, F features, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from components.augment.spec_augment import SpecAugment
from components.models.asr.types import Encoded, HeadOutput
from utils.errors import UserError

Batch = Mapping[str, Any]

_FAR = 10_000  # seconds over which the length of a frame is taken


@dataclass(slots=True)
class AsrOutput:
    """Losses of a batch whose tokens are known.

    Attributes:
        per_item: `[B]`, the weighted sum of the heads' losses.
        heads: name -> what that head said.
        encoded: what they read, and decoders will, float32.
    """

    per_item: Tensor
    heads: dict[str, HeadOutput]
    encoded: Encoded


# So that FSDP, torch.export and their like find the tensors inside.
for kind in (Encoded, HeadOutput, AsrOutput):
    torch.export.register_dataclass(kind)


class AsrModel(nn.Module):
    """A frontend, an encoder, and one or several heads that read it.

    Args:
        frontend: `(waveform, audio_lens, seed) -> (features [B, L, F], feature_lens)`, with `num_features` for F.
        encoder: makes, from `input_dim`, a module `(features, feature_lens, layers=...) -> Encoded`.
        heads: name -> what makes, from `hidden_dim` and `vocab_size`, a module `(encoded, tokens, token_lens) ->
            HeadOutput`; None leaves one out. Decoders find them by these names: `ctc`, `attention`, `transducer`,
            `paraformer`.
        tokenizer: with `vocab_size` and `fingerprint`. The fingerprint is part of the weights: they load into a model
            with the same vocabulary only.
        loss_weights: name of a head -> weight of its loss, 1 where it is not named.
        augment: masks features in training, by the seed of each clip.

    Raises:
        UserError: there is no head, or a weight is for one that is not there.
    """

    vocabulary: Tensor

    def __init__(
        self,
        frontend: nn.Module,
        encoder: Callable[..., nn.Module],
        heads: Mapping[str, Callable[..., nn.Module] | None],
        tokenizer: Any,
        loss_weights: Mapping[str, float] | None = None,
        augment: SpecAugment | None = None,
    ) -> None:
        super().__init__()
        self.frontend, self.augment = frontend, augment
        self.encoder = encoder(input_dim=frontend.num_features)
        dims = {"hidden_dim": self.encoder.output_dim, "vocab_size": tokenizer.vocab_size}
        self.heads = nn.ModuleDict({name: make(**dims) for name, make in heads.items() if make is not None})
        self.loss_weights = dict.fromkeys(self.heads, 1.0) | dict(loss_weights or {})
        if unknown := set(self.loss_weights) - set(self.heads):
            raise UserError(f"model.loss_weights.{min(unknown)}: the model has only the heads {', '.join(self.heads)}")
        self._layers = sorted({layer for head in self.heads.values() for layer in getattr(head, "layers", ())})
        fingerprint = bytearray.fromhex(tokenizer.fingerprint)
        self.register_buffer("vocabulary", torch.frombuffer(fingerprint, dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_check_vocabulary)

    @cached_property
    def frame_seconds(self) -> float:
        """Seconds from one encoder frame to the next."""
        samples = torch.tensor([1, 2]) * (_FAR * self.frontend.sample_rate)
        lens = self.encoder.output_lens(self.frontend.feature_lens(samples))
        return _FAR / float(lens[1] - lens[0])

    def gradient_checkpointing_enable(self) -> None:
        """Trade time for memory in the encoder."""
        self.encoder.gradient_checkpointing_enable()

    def encode(self, batch: Batch) -> Encoded:
        """A batch with `waveform [B, 1, T]`, `audio_lens`, or with `features [B, L, F]`, `feature_lens`, and `seed`."""
        if "features" in batch:
            features, lens = batch["features"], batch["feature_lens"]
        else:
            features, lens = self.frontend(batch["waveform"], batch["audio_lens"], batch.get("seed"))
        if self.augment is not None:
            features = self.augment(features, lens, batch.get("seed"))
        return self.encoder(features, lens, layers=self._layers)

    def forward(self, batch: Batch) -> AsrOutput:
        """Losses of a batch with `tokens [B, N]`, -100 behind their ends, and `token_lens [B]` beside the audio.

        Raises:
            UserError: nobody wrote down what is said.
        """
        if "tokens" not in batch:
            raise UserError("the batch has no tokens: the records of its dataset have no transcripts to learn from")
        encoded = self.encode(batch)
        heads = {name: head(encoded, batch["tokens"], batch["token_lens"]) for name, head in self.heads.items()}
        weighted = (self.loss_weights[name] * output.per_item for name, output in heads.items())
        read = replace(encoded, hidden=encoded.hidden.float())  # decoders are not in the autocast of this forward
        return AsrOutput(torch.stack(list(weighted)).sum(0), heads, read)


def _check_vocabulary(model: AsrModel, state: dict[str, Any], prefix: str, *_: Any) -> None:
    found = state.get(f"{prefix}vocabulary")
    if found is not None and not torch.equal(found.cpu(), model.vocabulary.cpu()):
        raise UserError(
            "the checkpoint was trained with another vocabulary than this model's: name the tokenizer it was trained "
            "with, or carry the shared symbols over by pretrained={path, exclude: [vocabulary], remap_rows: ...}"
        )
