"""`python -m components.decoding ngram`: an n-gram language model of a text, as an ARPA file.

python -m components.decoding ngram corpus.txt lm.arpa order=3
python -m components.decoding ngram corpus.txt tokens.arpa order=6 tokenizer=tokenizer.json
"""

from __future__ import annotations

import argparse
import gzip
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.decoding.fusion import SPACE
from components.text.tokenizer import load_tokenizer
from components.text.training import texts_of
from utils.errors import UserError
from utils.io import replacing

_SETTINGS = ("order", "tokenizer", "units", "field")
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
_FALLBACK = (0.5, 1.0, 1.5)
_NOT_PREDICTED = -99.0  # log10 of the probability of a sentence's begin, by convention

Gram = tuple[str, ...]


@dataclass
class NgramModel:
    """Probabilities and back-off weights, not logarithms.

    Attributes:
        orders: for each order n-gram -> probability of its last word behind the others.
        backoffs: history -> what the shorter history's probabilities are multiplied by for words not seen behind it.
        discounts: of each order, for n-grams counted once, twice and more often.
        is_estimated: for each order whether its discounts come from the counts, or are the usual ones of small texts.
    """

    orders: list[dict[Gram, float]]
    backoffs: dict[Gram, float]
    discounts: list[tuple[float, float, float]]
    is_estimated: list[bool]

    def prob(self, history: Sequence[str], word: str) -> float:
        """P(word | history); the history may be longer than what the model looks at."""
        gram = (*history, word)[-len(self.orders) :]
        weight = 1.0
        while gram not in self.orders[len(gram) - 1]:
            if len(gram) == 1:
                return weight * self.orders[0][(UNKNOWN,)]
            weight *= self.backoffs.get(gram[:-1], 1.0)
            gram = gram[1:]
        return weight * self.orders[len(gram) - 1][gram]


def estimate(sentences: Iterable[Sequence[str]], order: int) -> NgramModel:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1999, "An empirical study of smoothing techniques", eq. 26).

    Lower orders count in how many different contexts an n-gram was seen, and the lowest is mixed with a uniform
    distribution over the vocabulary with `<unk>` and `</s>`: the probabilities behind every history sum to 1.

    Args:
        sentences: lists of words.
        order: n.

    Raises:
        UserError: there is no word, a word is one of `<s>`, `</s>`, or the order is below 1.
    """
    if order < 1:
        raise UserError(f"order={order}: it must be at least 1")
    counts = _count(sentences, order)
    discounts, is_estimated = zip(*(_discounts(level) for level in counts))
    vocabulary = {gram[0] for gram in counts[0]} | {UNKNOWN, END}
    uniform = 1.0 / len(vocabulary)
    orders: list[dict[Gram, float]] = []
    backoffs: dict[Gram, float] = {}
    for level, discount in zip(counts, discounts):
        totals: defaultdict[Gram, int] = defaultdict(int)
        removed: defaultdict[Gram, float] = defaultdict(float)
        for gram, count in level.items():
            totals[gram[:-1]] += count
            removed[gram[:-1]] += _taken(count, discount)
        weights = {history: removed[history] / total for history, total in totals.items()}
        probs = {}
        for gram, count in level.items():
            shorter = orders[-1][gram[1:]] if orders else uniform
            history = gram[:-1]
            probs[gram] = (count - _taken(count, discount)) / totals[history] + weights[history] * shorter
        if not orders:
            probs |= {(word,): weights[()] * uniform for word in sorted(vocabulary) if (word,) not in probs}
        else:
            backoffs |= weights
        orders.append(probs)
    return NgramModel(orders, backoffs, list(discounts), list(is_estimated))


def _count(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    """How often n-grams were seen, of the highest order or from a sentence's begin; else in how many contexts."""
    seen: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for number, words in enumerate(sentences, start=1):
        if wrong := {BEGIN, END}.intersection(words):
            raise UserError(f"sentence {number}: {min(wrong)} can not be a word, begin and end are added by themselves")
        padded = (BEGIN, *words, END)
        for size, level in enumerate(seen, start=1):
            level.update(padded[at : at + size] for at in range(len(padded) - size + 1))
    if not any(gram[0] not in (BEGIN, END) for gram in seen[0]):
        raise UserError("the text has no words")
    counts = [seen[-1]]
    for size in range(order - 1, 0, -1):
        contexts = Counter(gram[1:] for gram in seen[size])
        counts.insert(0, Counter({gram: contexts.get(gram) or count for gram, count in seen[size - 1].items()}))
    del counts[0][(BEGIN,)]  # nothing predicts it
    return counts


def _taken(count: int, discount: tuple[float, float, float]) -> float:
    return discount[min(count, 3) - 1]


def _discounts(level: Counter[Gram]) -> tuple[tuple[float, float, float], bool]:
    """Chen and Goodman's closed form from how many n-grams were counted once, twice, ...; or the usual ones."""
    times = Counter(level.values())
    once, twice, thrice, four = (times[n] for n in (1, 2, 3, 4))
    if not (once and twice and thrice and four):
        return _FALLBACK, False
    share = once / (once + 2 * twice)
    found = (1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * four / thrice)
    if not all(0 < discount < count for count, discount in enumerate(found, start=1)):
        return _FALLBACK, False
    return found, True


def write_arpa(model: NgramModel, path: str | Path) -> None:
    """Write the model, gzipped where the name ends in `.gz`, whole or not at all."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with replacing(path) as temporary, opened(temporary, "wt", encoding="utf-8") as file:
        file.writelines(_arpa_lines(model))


def _arpa_lines(model: NgramModel) -> Iterator[str]:
    highest = len(model.orders)
    orders = [dict(level) for level in model.orders]
    orders[0][(BEGIN,)] = 10**_NOT_PREDICTED
    yield "\\data\\\n"
    for size, level in enumerate(orders, start=1):
        yield f"ngram {size}={len(level)}\n"
    for size, level in enumerate(orders, start=1):
        yield f"\n\\{size}-grams:\n"
        for gram in sorted(level):
            backoff = f"\t{math.log10(model.backoffs.get(gram, 1.0)):.7g}" if size < highest else ""
            yield f"{math.log10(level[gram]):.7g}\t{' '.join(gram)}{backoff}\n"
    yield "\n\\end\\\n"


# ------------------------------------------------------------------------------------------------------------- command


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    order = options.settings.get("order", "3")
    if not order.isdigit():
        raise UserError(f"order={order}: it must be a whole number")
    model = estimate(_sentences(options.corpus, options.settings), int(order))
    write_arpa(model, options.arpa)
    for size, level in enumerate(model.orders, start=1):
        source = (
            "from the counts" if model.is_estimated[size - 1] else "the usual ones, the text is too small for its own"
        )
        discounts = ", ".join(f"{value:.3f}" for value in model.discounts[size - 1])
        print(f"{size}-grams: {len(level)}, discounts {discounts} ({source})")
    print(f"-> {options.arpa}")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m components.decoding ngram",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="With a tokenizer the n-grams are of its tokens (units=tokens), or of words normalised as it does "
        "(units=words). field=text: of the records of a manifest.",
    )
    parser.add_argument("corpus", type=Path, help="a .txt with a sentence to a line, or a manifest")
    parser.add_argument("arpa", type=Path, help="the model to write; gzipped where it ends in .gz")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of order=3, tokenizer=FILE, units, field")
    options = parser.parse_args(arguments)
    pairs = [setting.partition("=") for setting in options.settings]
    for key, _, value in pairs:
        if key not in _SETTINGS or not value:
            parser.error(f"{key!r}: what can be set is {', '.join(f'{name}=' for name in _SETTINGS)}")
    options.settings = {key: value for key, _, value in pairs}
    return options


def _sentences(corpus: Path, settings: dict[str, str]) -> Iterator[list[str]]:
    texts = texts_of(corpus, settings.get("field", "text"))
    file = settings.get("tokenizer")
    units = settings.get("units", "tokens" if file else "words")
    if units not in ("tokens", "words") or (units == "tokens" and not file):
        raise UserError(f"units={units}: it is words, or tokens where there is a tokenizer=FILE")
    tokenizer = load_tokenizer(file) if file else None
    for text in texts:
        if units == "tokens":
            words = [piece.replace(" ", SPACE) for piece in tokenizer.pieces(text)]
        else:
            text = text if isinstance(text, str) else " ".join(text)
            words = (tokenizer.normalize(text) if tokenizer else text).split()
        if words:
            yield words
