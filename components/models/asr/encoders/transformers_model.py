"""Reading and building speech models of the transformers library."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from utils.errors import UserError
from utils.imports import require

# Ours to set: see `PretrainedSpeechEncoder`.
_MASKING = ("apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_feature_prob")


def load_speech_model(pretrained: str | None, config: dict[str, Any], mask_time_prob: float) -> nn.Module:
    """A model of transformers, in float32, of an encoder-decoder the encoder alone.

    Args:
        pretrained: a local folder or the name of a hub repository; None: random weights.
        config: what differs from the config that is read, or from the library's default of its `model_type`.
        mask_time_prob: above 0 the model gets the vector that masked frames are replaced by.

    Raises:
        UserError: nothing can be read there, or the config is not the library's.
    """
    transformers = require("transformers", extra="asr")
    from huggingface_hub.errors import StrictDataclassError

    if taken := [key for key in _MASKING if key in config]:
        raise UserError(f"encoder.config.{taken[0]}: masking is the encoder's mask_time_prob and mask_time_length")
    settings = _ours(mask_time_prob) | config
    try:
        if pretrained is None:
            made = _default_config(transformers, settings)
            model = transformers.AutoModel.from_config(made)
        else:
            made = transformers.AutoConfig.from_pretrained(pretrained)
            _update(made, settings, config)
            model = transformers.AutoModel.from_pretrained(pretrained, config=made, dtype=torch.float32)
    except OSError as error:
        raise UserError(f"encoder.pretrained: no model can be read from {pretrained}: {_first_line(error)}") from None
    except StrictDataclassError as error:
        raise UserError(f"encoder.config: transformers refuses it: {_last_line(error)}") from None
    return model.get_encoder() if made.is_encoder_decoder else model


def _ours(mask_time_prob: float) -> dict[str, Any]:
    return {
        "apply_spec_augment": mask_time_prob > 0,
        "mask_time_prob": mask_time_prob,
        "mask_feature_prob": 0.0,
        "layerdrop": 0.0,
    }


def _default_config(transformers: Any, settings: dict[str, Any]) -> Any:
    kind = settings.pop("model_type", None)
    if kind is None:
        raise UserError("encoder: give pretrained=FOLDER_OR_HUB_NAME, or a config with a model_type, such as wav2vec2")
    try:
        made = transformers.AutoConfig.for_model(kind)
    except ValueError:
        near = _nearest(kind, transformers.CONFIG_MAPPING)
        raise UserError(f"encoder.config.model_type: transformers has no {kind!r}{near}") from None
    _update(made, settings, settings.keys() - _ours(0.0).keys())
    return type(made)(**made.to_diff_dict() | {key: getattr(made, key) for key in settings if hasattr(made, key)})


def _update(made: Any, settings: dict[str, Any], required: Iterable[str]) -> None:
    """Set what the config knows of.

    Raises:
        UserError: it knows nothing of what is required.
    """
    known = set(made.to_dict()) | set(made.attribute_map)
    for key in required:
        if key not in known:
            near = _nearest(key, known)
            raise UserError(f"encoder.config.{key}: the config of {made.model_type} has no such key{near}")
    for key, value in settings.items():
        if key in known and key != "model_type":
            setattr(made, key, value)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
