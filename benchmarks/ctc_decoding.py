"""Milliseconds per utterance of CTC beam searches: ours, flashlight-text and pyctcdecode in one run. One command:

    python -m benchmarks.ctc_decoding

One thread; the contestants take turns, so that all see the same machine; medians over the rounds. Utterances are of
T frames over V tokens, log-probabilities as of an undecided model, and every search keeps K prefixes and looks at all
tokens. With the language model (LM), the same 3-gram over words, each prunes as it is meant to: ours and flashlight
look at 30 tokens of a frame, pyctcdecode has its own limits; flashlight says no word that is not in its lexicon. A
library that is not installed is passed over.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.decoding import (
    NgramLm,
    Spelling,
    SumOfScorers,
    WordLm,
    align,
    estimate,
    greedy,
    pad_tokens,
    prefix_beam_search,
    write_arpa,
)
from components.text import CharTokenizer

LM_WEIGHT, TOKENS_PER_FRAME = 0.5, 30
Search = Callable[[Tensor, Tensor], object]


def draw(batch: int, num_frames: int, vocab_size: int) -> Tensor:
    """Log-probabilities `[B, T, V]` with a blank that is likely in two frames of three."""
    generator = torch.Generator().manual_seed(0)
    logits = 2.5 * torch.randn(batch, num_frames, vocab_size, generator=generator)
    logits[..., 0] += 8.0 * (torch.rand(batch, num_frames, generator=generator) < 2 / 3)
    return logits.log_softmax(2)


def make_tokenizer(vocab_size: int) -> CharTokenizer:
    """A space and as many letters as make a vocabulary of that size."""
    return CharTokenizer([" ", *(chr(0x4E00 + index) for index in range(vocab_size - 5))])


def write_lm(tokenizer: CharTokenizer, folder: Path) -> tuple[Path, list[str]]:
    """A 3-gram over words of one to four letters, and the words."""
    generator = random.Random(0)
    letters = tokenizer.symbols[1:]
    words = sorted({"".join(generator.choices(letters, k=generator.randint(1, 4))) for _ in range(2000)})
    sentences = [generator.choices(words, k=generator.randint(3, 12)) for _ in range(3000)]
    write_arpa(estimate(sentences, order=3), folder / "lm.arpa")
    return folder / "lm.arpa", words


def searches(tokenizer: CharTokenizer, size: int, folder: Path) -> tuple[dict[str, Search], list[str]]:
    """Name -> search, of those that are installed; and the names of the others."""
    arpa, words = write_lm(tokenizer, folder)
    scorer = SumOfScorers([WordLm(NgramLm(arpa), Spelling.of(tokenizer), LM_WEIGHT)])
    found: dict[str, Search] = {
        "ours": lambda frames, lens: prefix_beam_search(frames, lens, size),
        "ours, LM": lambda frames, lens: prefix_beam_search(frames, lens, size, TOKENS_PER_FRAME, scorer),
        "ours, greedy": greedy,
    }
    missing = []
    for name, make in (("flashlight", flashlight), ("pyctcdecode", pyctcdecode)):
        try:
            found |= make(tokenizer, size, arpa, words, folder)
        except ImportError as error:
            missing.append(f"{name}: {error}")
    return found, missing


def flashlight(tokenizer: CharTokenizer, size: int, arpa: Path, words: list[str], folder: Path) -> dict[str, Search]:
    import flashlight.lib.text  # noqa: F401  # torchaudio hides that it is missing until it decodes
    from torchaudio.models.decoder import ctc_decoder

    symbols = [token if token != " " else "|" for token in tokenizer.tokens]
    common = {"tokens": symbols, "blank_token": symbols[0], "sil_token": "|", "nbest": 1, "beam_size": size}
    found: dict[str, Search] = {"flashlight": ctc_decoder(lexicon=None, beam_threshold=1e9, **common)}
    try:
        import kenlm  # noqa: F401
    except ImportError:
        return found
    lexicon = folder / "lexicon.txt"
    lexicon.write_text("".join(f"{word}\t{' '.join(word)} |\n" for word in words), encoding="utf-8")
    common |= {"lexicon": str(lexicon), "lm": str(arpa), "lm_weight": LM_WEIGHT, "beam_size_token": TOKENS_PER_FRAME}
    return found | {"flashlight in its lexicon, LM": ctc_decoder(**common)}


def pyctcdecode(tokenizer: CharTokenizer, size: int, arpa: Path, words: list[str], folder: Path) -> dict[str, Search]:
    import logging

    from pyctcdecode import build_ctcdecoder

    logging.getLogger("pyctcdecode").setLevel(logging.ERROR)
    labels = ["", "⁇", "<", ">", *tokenizer.symbols]

    def search(decoder: Any, **limits: float) -> Search:
        def run(frames: Tensor, lens: Tensor) -> object:
            rows = (row[:length].numpy() for row, length in zip(frames, lens.tolist()))
            return [decoder.decode_beams(row, beam_width=size, **limits) for row in rows]

        return run

    found = {"pyctcdecode": search(build_ctcdecoder(labels), beam_prune_logp=-1e9, token_min_logp=-1e9)}
    try:
        import kenlm  # noqa: F401
    except ImportError:
        return found
    return found | {"pyctcdecode, LM": search(build_ctcdecoder(labels, str(arpa), words, alpha=LM_WEIGHT, beta=0.0))}


def alignments(frames: Tensor, lens: Tensor) -> dict[str, Callable[[], object]]:
    """Forced alignment of random transcriptions of a fifth as many tokens as frames: a batch, and one by one."""
    from torchaudio.functional import forced_align

    generator = random.Random(0)
    sequences = [[generator.randrange(4, frames.shape[2]) for _ in range(int(length) // 5)] for length in lens]
    tokens, token_lens = pad_tokens(sequences)
    targets = [torch.tensor([sequence], dtype=torch.int32) for sequence in sequences]
    return {
        "ours, alignment": lambda: align(frames, lens, tokens, token_lens),
        "torchaudio, alignment": lambda: [forced_align(row[None], target) for row, target in zip(frames, targets)],
    }


def time_each(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(rounds + 1):
        for name, run in work.items():
            started = time.process_time()
            run()
            if round_:  # the first one warms up
                taken[name].append((time.process_time() - started) * 1000)
    return {name: statistics.median(values) for name, values in taken.items()}


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per utterance by search and batch, and which libraries are missing."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        found, missing = searches(make_tokenizer(options.tokens), options.beam, Path(folder))
        for batch in options.batches:
            frames = draw(batch, options.frames, options.tokens)
            lens = torch.full((batch,), options.frames, dtype=torch.int32)
            work = {name: partial(search, frames, lens) for name, search in found.items()} | alignments(frames, lens)
            for name, taken in time_each(work, options.rounds).items():
                rows.setdefault(name, {})[str(batch)] = taken / batch
    return {"settings": vars(options) | {"out": str(options.out)}, "ms_per_utterance": rows, "missing": missing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--beam", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ctc_decoding.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))
    rows = result["ms_per_utterance"]
    print("| search |" + "".join(f" B={batch}, ms | times ours |" for batch in options.batches))
    print("|---|" + "---|---|" * len(options.batches))
    for name, row in rows.items():
        _, comma, kind = name.partition(",")
        ours = rows[f"ours{comma}{kind}"]
        cells = (f" {row[key]:.2f} | {row[key] / ours[key]:.2f} |" for key in map(str, options.batches))
        print(f"| {name} |" + "".join(cells))
    for line in result["missing"]:
        print(f"not installed: {line}")


if __name__ == "__main__":
    main()
