"""Decoders by the names of their files in `configs/decoder`, for a model that is trained already."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from components import decoding
from components.models.asr import AsrModel
from utils.errors import UserError
from utils.names import did_you_mean

# name -> class, and where it differs from the class's own, what the file says
_NAMED: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "attention_beam": (decoding.AttentionBeam, {}),
    "attention_rescoring": (decoding.AttentionRescoring, {}),
    "attention_sampling": (decoding.AttentionSampling, {"top_p": 0.9}),
    "ctc_greedy": (decoding.CtcGreedy, {}),
    "ctc_prefix_beam": (decoding.CtcPrefixBeam, {}),
    "ctc_prefix_beam_lm": (decoding.CtcPrefixBeam, {"beam_size": 20, "tokens_per_frame": 30}),
    "joint_ctc_attention": (decoding.JointCtcAttention, {}),
    "paraformer": (decoding.ParaformerDecoder, {}),
    "paraformer_beam": (decoding.ParaformerDecoder, {"beam_size": 10, "tokens_per_position": 10}),
    "paraformer_sampling": (decoding.ParaformerSampling, {"top_p": 0.9}),
    "transducer_beam": (decoding.TransducerBeam, {}),
    "transducer_greedy": (decoding.TransducerGreedy, {}),
}
DECODERS = tuple(_NAMED)


def named_decoder(choice: str | Mapping[str, Mapping[str, Any] | None], tokenizer: Any) -> Any:
    """A decoder by its name, or by its name with options that differ: `{ctc_prefix_beam: {beam_size: 20}}`.

    Args:
        choice: one of `DECODERS`, with the options of that decoder's class.
        tokenizer: the model's, for decoders that spell words.

    Raises:
        UserError: there is no decoder of that name, there are several, or it has no such option.
    """
    named = {choice: None} if isinstance(choice, str) else {str(name): options for name, options in choice.items()}
    name = next(iter(named), "")
    if len(named) != 1 or name not in _NAMED:
        raise UserError(f"decoder: {choice!r} is none of {', '.join(DECODERS)}{did_you_mean(name, DECODERS)}")
    kind, settings = _NAMED[name]
    options = dict(named[name] or {})
    known = list(inspect.signature(kind).parameters)
    if unknown := [option for option in options if option not in known]:
        raise UserError(f"decoder.{name}.{unknown[0]}: no such option{did_you_mean(unknown[0], known)}")
    spelling = {"tokenizer": tokenizer} if "tokenizer" in known else {}
    return kind(**(spelling | settings | options))


def check_heads(decoder: Any, model: AsrModel) -> None:
    """Refuse a decoder for a model without what it reads.

    Raises:
        UserError: the model lacks a head.
    """
    if missing := [name for name in decoder.needs if name not in model.heads]:
        raise UserError(f"decoder: it reads the head {missing[0]!r}; the model has {', '.join(model.heads)}")
