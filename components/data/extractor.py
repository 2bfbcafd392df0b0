"""What turns waveforms into features or latents, for a whole corpus.

Shapes: B batch, C channels, T samples, L frames, D features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from utils.build import build
from utils.compose import COMPOSE_ERRORS, CONFIGS, Request
from utils.compose_errors import one_sentence
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


def load_node(
    option: str, name: str, settings: Sequence[str], sample_rate: int | None
) -> tuple[dict[str, Any], int | None]:
    """The checked config of a module that makes features, resolved, and the sample rate its file says, in Hz.

    Args:
        option: of the command, such as "extractor": `--extractor` in messages, and a key where the file may have it.
        name: a YAML file with `_target_`, or with that at `option` or `model.frontend` (as in a run's config.yaml);
            an option of `configs/model/frontend`; or the dotted name of a class or function that makes one.
        settings: `key=value` on top.
        sample_rate: what `${sample_rate}` stands for, if not what the file says.

    Raises:
        UserError: there is none, or its config is not valid.
    """
    register_omegaconf_resolvers()
    if wrong := [setting for setting in settings if "=" not in setting]:
        raise UserError(f"{wrong[0]!r}: expected key=value")
    root = _load(option, name)
    OmegaConf.set_struct(root, False)  # a mistyped setting is told by the check below
    given = {} if sample_rate is None else {"sample_rate": sample_rate}
    root = OmegaConf.merge(root, given, {option: OmegaConf.from_dotlist(list(settings))})
    try:
        content = OmegaConf.to_container(root[option], resolve=True)
    except OmegaConfBaseException as error:
        missing = f"{one_sentence(error)}: give --sample-rate HZ, or the missing key"
        raise UserError(f"--{option} {name}: {missing}") from None
    check_or_raise(OmegaConf.create({option: content}))
    return content, OmegaConf.select(root, "sample_rate")  # type: ignore[return-value]


def _load(option: str, name: str) -> DictConfig:
    if not name.endswith((".yaml", ".yml")):
        if "." in name:
            return OmegaConf.create({option: {"_target_": name}})
        if not (CONFIGS / "model/frontend" / f"{name}.yaml").is_file():
            options = ", ".join(sorted(path.stem for path in (CONFIGS / "model/frontend").glob("*.yaml")))
            raise UserError(f"--{option}: {name!r} is neither a YAML file, nor a dotted name, nor one of {options}")
        return OmegaConf.create({option: Request(CONFIGS, f"model/frontend/{name}").compose().model.frontend})
    try:
        config = OmegaConf.load(name)
    except OSError as error:
        raise UserError(f"--{option}: cannot read {name}: {error.strerror}") from None
    except (*COMPOSE_ERRORS, UnicodeDecodeError) as error:
        raise UserError(f"--{option}: {name} is not valid YAML: {' '.join(str(error).split())}") from None
    if "_target_" in config:
        return OmegaConf.create({option: config})
    for place in (option, "model.frontend"):
        if (node := OmegaConf.select(config, place)) is not None:
            return OmegaConf.merge(config, {option: node})  # type: ignore[return-value]
    raise UserError(f"--{option}: {name} has no `_target_`, neither at the top nor at `{option}` or `model.frontend`")


def build_module(option: str, node: Mapping[str, Any]) -> Any:
    """The object that a node of `load_node` describes.

    Raises:
        UserError: what it is made of does not go together, or a file of it can not be read.
    """
    try:
        return build(OmegaConf.create({option: node}), option)
    except InstantiationException as error:
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise UserError(f"--{option}: {' '.join(str(error.__cause__).split())}") from None
        raise


def rate_of(module: Any) -> int | None:
    """The sample rate that a module says it wants, in Hz."""
    for owner in (module, getattr(module, "config", None)):
        for name in _RATE_NAMES:
            if isinstance(rate := getattr(owner, name, None), int):
                return rate
    return None
