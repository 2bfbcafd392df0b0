"""From frames to classes.  Shapes: B batch, L frames, D model, K classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from components.layers import length_mask


class PoolingHead(nn.Module):
    """Mean and maximum over the true frames, a hidden layer, and one linear classifier per target.

    Args:
        embed_dim: D of the backbone.
        num_classes: target -> K.
        hidden_dim: width of the embedding that the classifiers share.
        dropout: in front of the hidden layer and of the classifiers.
    """

    def __init__(
        self, embed_dim: int, num_classes: Mapping[str, int], hidden_dim: int = 128, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * embed_dim, hidden_dim), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.classifiers = nn.ModuleDict({target: nn.Linear(hidden_dim, k) for target, k in num_classes.items()})

    def forward(self, hidden: Tensor, hidden_lens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`[B, L, D]`, `[B]` to logits {target: `[B, K]`} and the embedding `[B, hidden_dim]`."""
        mask = length_mask(hidden_lens, hidden.shape[1]).unsqueeze(2)
        mean = (hidden * mask).sum(1) / hidden_lens.unsqueeze(1)
        maximum = hidden.masked_fill(~mask, torch.finfo(hidden.dtype).min).amax(1)
        embedding = self.hidden(torch.cat([mean, maximum], dim=1).to(hidden.dtype))
        dropped = self.dropout(embedding)
        return {target: classifier(dropped) for target, classifier in self.classifiers.items()}, embedding
