"""What turns waveforms into features or latents, for a whole corpus.

Shapes: B batch, C channels, T samples, L frames, D features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from utils.build import build
from utils.compose import COMPOSE_ERRORS, CONFIGS, Request
from utils.config import register_omegaconf_resolvers
from utils.errors import UserError
from utils.validate import check_or_raise

# Where a module, or its `config`, says which rate it wants.
_RATE_NAMES = ("sample_rate", "sampling_rate")


class Extractor:
    """A frozen module, asked for the features of one clip after the other or of several at once.

    Args:
        module: one of
            - `(waveform [B, 1, T], audio_lens [B]) -> (features [B, L, D], feature_lens [B])`, such as a frontend, for
              which padding makes no difference;
            - an object with `encode` of that signature;
            - an object with `encode(waveform [B, C, T])` alone, which knows no padding: it is given clips of equal
              length. It returns latents `[B, L, D]`, or an object with a `latent_dist` over `[B, D, L]` (diffusers'
              autoencoders), of which the mode is taken, so that nothing is random.
        device: where it computes.
    """

    def __init__(self, module: Any, device: str = "cpu") -> None:
        self.module, self.device = module, device
        if isinstance(module, nn.Module):
            module.to(device).eval().requires_grad_(False)
        self._call: Callable[..., Any] = module.encode if hasattr(module, "encode") else module
        if not callable(self._call):
            raise UserError(f"--extractor: a {type(module).__name__} can not be called and has no `encode`")
        self.knows_lengths = self._call is module or _takes_lengths(self._call)

    def __call__(self, waveforms: list[Tensor]) -> list[Tensor]:
        """`[1, T]` each to `[L, D]` each, on the CPU.

        Raises:
            UserError: what the module returns has not the promised form.
        """
        lens = torch.tensor([waveform.shape[-1] for waveform in waveforms])
        batch = pad_sequence([waveform[0] for waveform in waveforms], batch_first=True).unsqueeze(1).to(self.device)
        with torch.inference_mode():
            result = self._call(batch, lens.to(self.device)) if self.knows_lengths else self._call(batch)
            features, feature_lens = self._parts(result)
        return [clip[:length] for clip, length in zip(features.cpu(), feature_lens.tolist())]

    def _parts(self, result: Any) -> tuple[Tensor, Tensor]:
        name = type(self.module).__name__
        if self.knows_lengths:
            form = "(features [B, L, D], feature_lens [B])"
            if not isinstance(result, tuple) or len(result) != 2:
                raise UserError(f"--extractor: {name} returns a {type(result).__name__}, not {form}")
            features, feature_lens = result
        else:
            form = "latents [B, L, D] or an object with a latent_dist"
            has_distribution = hasattr(result, "latent_dist")
            features = result.latent_dist.mode().transpose(1, 2) if has_distribution else result
            if not isinstance(features, Tensor) or features.ndim != 3:
                raise UserError(f"--extractor: {name}.encode returns a {type(result).__name__}, not {form}")
            feature_lens = torch.full((len(features),), features.shape[1])
        if features.ndim != 3 or feature_lens.shape != features.shape[:1]:
            shapes = f"{list(features.shape)}, {list(feature_lens.shape)}"
            raise UserError(f"--extractor: {name} returns tensors of shapes {shapes}, not {form}")
        return features, feature_lens


def _takes_lengths(encode: Callable[..., Any]) -> bool:
    names = list(inspect.signature(encode).parameters)
    return len(names) >= 2 and "len" in names[1]


def load_node(name: str, settings: list[str], sample_rate: int | None) -> tuple[dict[str, Any], int | None]:
    """The checked config of an extractor, resolved, and the sample rate its file says, in Hz.

    Args:
        name: a YAML file with `_target_`, or with that at `extractor` or `model.frontend` (as in a run's config.yaml);
            an option of `configs/model/frontend`; or the dotted name of a class or function that makes one.
        settings: `key=value` on top.
        sample_rate: what `${sample_rate}` stands for, if not what the file says.

    Raises:
        UserError: there is none, or its config is not valid.
    """
    register_omegaconf_resolvers()
    try:
        root = _load(name)
        root = OmegaConf.merge(root, {} if sample_rate is None else {"sample_rate": sample_rate})
        root.extractor = OmegaConf.merge(root.extractor, OmegaConf.from_dotlist(settings))
        check_or_raise(OmegaConf.masked_copy(root, ["extractor", "sample_rate"]))
        node = OmegaConf.to_container(root.extractor, resolve=True)
    except COMPOSE_ERRORS as error:
        raise UserError(f"--extractor {name}: {str(error).splitlines()[0]}") from None
    return node, OmegaConf.select(root, "sample_rate")  # type: ignore[return-value]


def _load(name: str) -> DictConfig:
    if not name.endswith((".yaml", ".yml")):
        if "." in name:
            return OmegaConf.create({"extractor": {"_target_": name}})
        if not (CONFIGS / "model/frontend" / f"{name}.yaml").is_file():
            options = ", ".join(sorted(path.stem for path in (CONFIGS / "model/frontend").glob("*.yaml")))
            raise UserError(f"--extractor: {name!r} is neither a YAML file, nor a dotted name, nor one of {options}")
        composed = Request(CONFIGS, f"model/frontend/{name}").compose()
        return OmegaConf.create({"extractor": composed.model.frontend})
    try:
        config = OmegaConf.load(name)
    except OSError as error:
        raise UserError(f"--extractor: cannot read {name}: {error.strerror}") from None
    if "_target_" in config:
        return OmegaConf.create({"extractor": config})
    for place in ("extractor", "model.frontend"):
        if (node := OmegaConf.select(config, place)) is not None:
            return OmegaConf.merge(config, {"extractor": node})  # type: ignore[return-value]
    raise UserError(f"--extractor: {name} has no `_target_`, neither at the top nor at `extractor` or `model.frontend`")


def build_module(node: dict[str, Any]) -> Any:
    """The object that a node describes."""
    return build(OmegaConf.create({"extractor": node}), "extractor")


def rate_of(module: Any) -> int | None:
    """The sample rate that a module says it wants, in Hz."""
    for owner in (module, getattr(module, "config", None)):
        for name in _RATE_NAMES:
            if isinstance(rate := getattr(owner, name, None), int):
                return rate
    return None
