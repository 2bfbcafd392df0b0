"""Features to features: normalisation and stacking.  Shapes: B batch, L frames, F features."""

from __future__ import annotations

import torch
from torch import Tensor

from components.features.framing import behind_clips
from components.features.frontend import FeatureTransform
from components.features.statistics import FeatureStatistics
from utils.errors import UserError

_CONSTANT = 1e-8  # a variance below this is that of a feature that never moved: it is centred, not blown up


class GlobalCmvn(FeatureTransform):
    """Mean and variance normalisation by the statistics of a collection.

    The statistics are kept in the module's state, so a checkpoint holds them; the file is needed for building only.

    Args:
        statistics: what `python -m components.data cmvn` wrote. None: they come from a checkpoint, and are NaN before.
        size: F, needed where `statistics` is None.
        variance: whether to divide by the standard deviation too.

    Raises:
        UserError: the file is missing or holds something else, or neither a file nor a size is given.
    """

    def __init__(self, statistics: str | None = None, size: int | None = None, variance: bool = True) -> None:
        super().__init__()
        if statistics is None and size is None:
            raise UserError("GlobalCmvn: give statistics=FILE, or a size where they come from a checkpoint")
        self.statistics, self.variance = statistics, variance
        if statistics is None:
            mean, var = (torch.full((size,), torch.nan) for _ in range(2))
        else:
            found = FeatureStatistics.load(statistics)
            mean, var = torch.tensor(found.mean), torch.tensor(found.var)
            if size not in (None, len(mean)):
                raise UserError(f"size: {statistics} has {len(mean)} features, not {size}")
        self.register_buffer("mean", mean)
        self.register_buffer("var", var)

    def num_features(self, num_inputs: int) -> int:
        """F.

        Raises:
            UserError: the statistics are of another number of features.
        """
        if num_inputs != len(self.mean):
            whose = self.statistics or "GlobalCmvn's statistics"
            raise UserError(f"{whose}: made of {len(self.mean)} features, but {num_inputs} come in")
        return num_inputs

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, L, F]`, `[B]` to the same, normalised."""
        features = features - self.mean
        if self.variance:
            features = features * torch.where(self.var > _CONSTANT, self.var, 1.0).rsqrt()
        return features.masked_fill(behind_clips(features, feature_lens), 0), feature_lens


class UtteranceCmvn(FeatureTransform):
    """Mean and variance normalisation of each feature over a clip's own frames.

    Args:
        variance: whether to divide by the standard deviation too.
        eps: added to the variance: one frame, or silence, comes out as zeros.
    """

    def __init__(self, variance: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.variance, self.eps = variance, eps

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, L, F]`, zero behind each clip, `[B]` to the same, normalised."""
        outside, count = behind_clips(features, feature_lens), feature_lens.clamp(min=1).view(-1, 1, 1)
        features = (features - features.sum(1, keepdim=True) / count).masked_fill(outside, 0)
        if self.variance:
            features = features * torch.rsqrt(features.square().sum(1, keepdim=True) / count + self.eps)
        return features, feature_lens


class StackFrames(FeatureTransform):
    """Several neighbouring frames as one, at a lower rate: "LFR", low frame rate (Pundak & Sainath 2016).

    Frame `t` of `ceil(L / stride)` holds the frame `stride t - (size - 1) // 2` and the `size - 1` behind it, one after
    the other; before the first and behind the last frame of a clip these are repeated. The defaults are Paraformer's
    (Gao et al. 2022, arXiv:2206.08317): 7 x 10 ms every 60 ms.
    """

    def __init__(self, size: int = 7, stride: int = 6) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def num_features(self, num_inputs: int) -> int:
        """`size` times F."""
        return self.size * num_inputs

    def feature_lens(self, feature_lens: Tensor) -> Tensor:
        """`ceil(L / stride)`."""
        return (feature_lens + self.stride - 1) // self.stride

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, L, F]`, `[B]` to `[B, ceil(L / stride), size F]` and its lengths."""
        num_clips, num_frames, _ = features.shape
        device, num_stacks = features.device, -(-num_frames // self.stride)
        first = torch.arange(num_stacks, device=device) * self.stride - (self.size - 1) // 2
        source = (first.unsqueeze(1) + torch.arange(self.size, device=device)).view(1, -1)
        source = torch.minimum(source, feature_lens.view(-1, 1) - 1).clamp(min=0)
        stacked = features[torch.arange(num_clips, device=device).unsqueeze(1), source].view(num_clips, num_stacks, -1)
        feature_lens = self.feature_lens(feature_lens)
        return stacked.masked_fill(behind_clips(stacked, feature_lens), 0), feature_lens
