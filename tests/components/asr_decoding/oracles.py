"""Slow and plain computations that decoders are compared with."""

import itertools
import math
from collections import defaultdict

import torch


def collapse(path, blank_id=0):
    return tuple(token for token, _ in itertools.groupby(path) if token != blank_id)


def all_sequences(log_probs, length):
    """Every token sequence and its log-probability over all paths, of `[T, V]`."""
    found = defaultdict(list)
    for path in itertools.product(range(log_probs.shape[1]), repeat=length):
        found[collapse(path)].append(sum(float(log_probs[time, token]) for time, token in enumerate(path)))
    return {tokens: float(torch.tensor(scores, dtype=torch.float64).logsumexp(0)) for tokens, scores in found.items()}


def best_path(log_probs, length, tokens):
    """The most probable path of CTC through `tokens`: (score, path), or None."""
    found = [
        (sum(float(log_probs[time, token]) for time, token in enumerate(path)), path)
        for path in itertools.product(range(log_probs.shape[1]), repeat=length)
        if collapse(path) == tuple(tokens)
    ]
    return max(found, default=None)


def dictionary_beam(log_probs, size, bonus=lambda tokens: 0.0):
    """The prefix search with a dictionary of prefixes, one utterance `[T, V]`; `bonus` of a prefix decides with it."""
    beam = {(): (0.0, -math.inf)}
    for frame in log_probs.tolist():
        following = defaultdict(lambda: (-math.inf, -math.inf))
        for prefix, (blank, label) in beam.items():
            either = add(blank, label)
            collect(following, prefix, either + frame[0], -math.inf)
            for token, score in enumerate(frame[1:], start=1):
                again = prefix and token == prefix[-1]
                if again:
                    collect(following, prefix, -math.inf, label + score)
                collect(following, (*prefix, token), -math.inf, (blank if again else either) + score)
        ranked = sorted(following, key=lambda prefix: add(*following[prefix]) + bonus(prefix), reverse=True)
        beam = {prefix: following[prefix] for prefix in ranked[:size]}
    return [(prefix, add(*scores)) for prefix, scores in beam.items() if add(*scores) > -math.inf]


def add(first, second):
    high, low = max(first, second), min(first, second)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def collect(following, prefix, blank, label):
    had = following[prefix]
    following[prefix] = add(had[0], blank), add(had[1], label)


def backed_off(grams, words, order, unknown="<unk>"):
    """log10 of a sentence by an ARPA file's n-grams `{(words): (log10 p, log10 back-off)}`, word by word."""
    words = ["<s>", *(word if (word,) in grams else unknown for word in words), "</s>"]
    total = 0.0
    for at in range(1, len(words)):
        history = tuple(words[max(at - order + 1, 0) : at])
        while (*history, words[at]) not in grams:
            total += grams[history][1] if history in grams else 0.0
            history = history[1:]
        total += grams[(*history, words[at])][0]
    return total
