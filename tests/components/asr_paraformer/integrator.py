"""Integrate-and-fire by its definition, frame by frame in float64."""

import torch


def integrate(hidden, alphas, max_tokens, threshold=1.0):
    """`[B, T, D]` and `[B, T]` to `[B, N, D]`, float64."""
    rows = torch.zeros(len(hidden), max_tokens, hidden.shape[2], dtype=torch.float64)
    for b, (frames, weights) in enumerate(zip(hidden.double(), alphas.double())):
        token, room = 0, threshold
        for frame, left in zip(frames, weights.tolist()):
            while left > 0 and token < max_tokens:
                taken = min(left, room)
                rows[b, token] += taken * frame
                left, room = left - taken, room - taken
                if room <= 0:
                    token, room = token + 1, threshold
    return rows


def utterance(num_frames, integral, *, batch=2, dim=3, seed=0, dtype=torch.float64):
    """Random frames, and weights in [0, 2) times their mean that sum to `integral`."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, num_frames, dim, generator=generator, dtype=dtype)
    alphas = torch.rand(batch, num_frames, generator=generator, dtype=torch.float64)
    return hidden, alphas * (integral / alphas.sum(1, keepdim=True))
