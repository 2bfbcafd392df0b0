"""Which frames may attend to which.  Shapes: L queries, S keys, B batch."""

from __future__ import annotations

import torch
from torch import Tensor

from components.layers.masking import length_mask


def visible_frames(
    queries: Tensor,
    keys: Tensor,
    window: int | None = None,
    chunk: int | None = None,
    left_chunks: int | None = None,
) -> Tensor | None:
    """Frames that see a band, or the chunks up to their own, as a bool mask `[L, S]`; None where all see all.

    Chunks are those of U2 (Zhang et al. 2020, arXiv:2012.05481, 3.2): a frame sees the whole of its own chunk, and of
    what was before. Both together leave what both leave. A frame always sees itself.

    Args:
        queries: their places in time, int `[L]`.
        keys: likewise, `[S]`.
        window: frames of the band around a frame: `window // 2` before it, itself, and the rest behind it.
        chunk: frames of a chunk; the first begins at place 0.
        left_chunks: chunks before its own that a frame sees; None: all.
    """
    visible = None
    if window is not None:
        ahead = keys - queries.unsqueeze(1)
        visible = (ahead >= -(window // 2)) & (ahead < window - window // 2)
    if chunk is not None:
        chunks_back = (queries // chunk).unsqueeze(1) - keys // chunk
        seen = chunks_back >= 0
        if left_chunks is not None:
            seen = seen & (chunks_back <= left_chunks)
        visible = seen if visible is None else visible & seen
    return visible


def padding_of(lens: Tensor, num_frames: int) -> Tensor | None:
    """bool `[B, num_frames]`, True where there is nothing; None where everything is known to be full without waiting
    for a device: then attention needs no mask and normalisation is the library's own."""
    if lens.device.type == "cpu" and bool((lens >= num_frames).all()):
        return None
    return ~length_mask(lens, num_frames)


def attention_mask(padding: Tensor | None, visible: Tensor | None) -> Tensor | None:
    """What `scaled_dot_product_attention` takes, of `padding [B, S]` and `visible [L, S]`, either None; bool, True
    where a query may look, to be broadcast to `[B, H, L, S]`."""
    if padding is None:
        return visible
    content = ~padding[:, None, None, :]
    if visible is None:
        return content
    # A query in the padding may have only padding in its band: it sees itself, as an empty row has no softmax.
    itself = torch.eye(*visible.shape, dtype=torch.bool, device=visible.device)
    return visible & content | itself
