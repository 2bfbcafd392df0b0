"""What every encoder is held to."""

from __future__ import annotations

import torch
from torch import nn

LENS = torch.tensor([50, 37, 9, 1])


def noisy_batch(lens, num_features, garbage=1e4):
    """A batch with garbage behind each clip."""
    x = torch.randn(len(lens), int(lens.max()), num_features)
    for i, length in enumerate(lens.tolist()):
        x[i, length:] = garbage
    return x


def stir(module):
    """Parameters that begin at zero or one are moved, so that none is without effect."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1 or float(parameter.abs().sum()) == 0:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.3)
    return module


def assert_alone_as_in_batch(encoder, x, lens, layers=(), tolerance=1e-5):
    """Each clip of a padded batch is as it is alone, its length by formula, and nothing is behind it."""
    together = encoder(x, lens, layers=layers)
    assert torch.equal(together.lens, encoder.output_lens(lens))
    assert together.hidden.shape[1] == int(together.lens.max())
    for i, length in enumerate(lens.tolist()):
        alone = encoder(x[i : i + 1, :length], lens[i : i + 1], layers=layers)
        own = int(alone.lens)
        assert alone.hidden.shape == (1, own, encoder.output_dim)
        pairs = [(alone.hidden, together.hidden)] + [(alone.layers[n], together.layers[n]) for n in layers]
        for by_itself, among_others in pairs:
            torch.testing.assert_close(by_itself[0], among_others[i, :own], atol=tolerance, rtol=0)
            assert not among_others[i, own:].any()
    return together


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
