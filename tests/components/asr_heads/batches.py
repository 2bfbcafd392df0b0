"""Batches of made-up encoder frames, and models that are nothing but heads."""

from itertools import product
from types import SimpleNamespace

import torch

from components.models.asr.types import Encoded

DIM, VOCAB = 12, 7
LENS, TOKEN_LENS = torch.tensor([9, 4, 12, 6]), torch.tensor([3, 1, 5, 0])


def make_encoded(lens=LENS, dim=DIM, layers=(), seed=0):
    """Frames, and zeros behind them."""
    generator = torch.Generator().manual_seed(seed)
    inside = (torch.arange(int(lens.max())) < lens.unsqueeze(1)).unsqueeze(-1)
    hidden = [torch.randn(*inside.shape[:2], dim, generator=generator) * inside for _ in range(len(layers) + 1)]
    return Encoded(hidden[0], lens, dict(zip(layers, hidden[1:])))


def make_tokens(token_lens=TOKEN_LENS, vocab=VOCAB, seed=0):
    """Ordinary symbols, and -100 behind them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, vocab, (len(token_lens), int(token_lens.max())), generator=generator)
    return tokens.masked_fill(torch.arange(tokens.shape[1]) >= token_lens.unsqueeze(1), -100)


def dirtied(encoded, extra=3):
    """With garbage behind every utterance's frames."""

    def dirty(hidden):
        longer = torch.cat([hidden, torch.zeros(len(hidden), extra, hidden.shape[2])], dim=1)
        outside = torch.arange(longer.shape[1]) >= encoded.lens.unsqueeze(1)
        return torch.where(outside.unsqueeze(-1), torch.randn_like(longer) * 5, longer)

    return Encoded(dirty(encoded.hidden), encoded.lens, {n: dirty(hidden) for n, hidden in encoded.layers.items()})


def only(encoded, row):
    """One utterance by itself."""
    length = int(encoded.lens[row])
    layers = {n: hidden[row : row + 1, :length] for n, hidden in encoded.layers.items()}
    return Encoded(encoded.hidden[row : row + 1, :length], encoded.lens[row : row + 1], layers)


def model_of(**heads):
    return SimpleNamespace(heads=heads, frame_seconds=0.04)


def all_texts(symbols, longest):
    """Every text of up to so many symbols."""
    return [text for length in range(longest + 1) for text in product(symbols, repeat=length)]


def is_close_to_alone(head, encoded, tokens, token_lens):
    """Losses of a batch with garbage in its padding, against those of each utterance alone."""
    together = head(dirtied(encoded), tokens, token_lens)
    alone = [
        head(only(encoded, row), tokens[row : row + 1, : int(token_lens[row])], token_lens[row : row + 1])
        for row in range(len(tokens))
    ]
    torch.testing.assert_close(together.per_item, torch.cat([each.per_item for each in alone]), rtol=1e-5, atol=1e-5)
    assert together.usable.tolist() == [bool(each.usable) for each in alone]
