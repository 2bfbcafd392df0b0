import random

import pytest
import torch

from components.decoding import (
    HotwordTrie,
    KenLm,
    NgramLm,
    SumOfScorers,
    TokenLm,
    WordInsertion,
    WordLm,
    estimate,
    prefix_beam_search,
    score_sequences,
    write_arpa,
)
from components.decoding.spelling import Spelling
from components.text import ByteTokenizer, CharTokenizer, PhonemeTokenizer, WordTokenizer
from utils.errors import UserError

CPU = torch.device("cpu")
WORDS = ["ab", "abc", "b", "cab", "ca", "aé"]
CHARS = CharTokenizer("abcé ")


class Pieces(CharTokenizer):
    """Pieces as of byte-pair encoding, without a library."""

    def __init__(self):
        super().__init__(["▁a", "▁ab", "▁c", "a", "b", "c", "ab", "é", "▁", "▁b"])

    def split(self, text):
        pieces = []
        for word in text.split():
            rest = "▁" + word
            while rest:
                longest = max((symbol for symbol in self.symbols if rest.startswith(symbol)), key=len)
                pieces.append(longest)
                rest = rest[len(longest) :]
        return pieces

    def join(self, symbols):
        return "".join(symbols).replace("▁", " ").strip()

    def _is_gap(self, symbol):
        return False

    def _opens_word(self, symbol):
        return symbol.startswith("▁")


TOKENIZERS = {
    "characters": CHARS,
    "pieces": Pieces(),
    "bytes": ByteTokenizer(),
    "words": WordTokenizer([*WORDS, "new"]),
    "phones": PhonemeTokenizer(["a", "b", "c", "é", "|"]),
    "no spaces": CharTokenizer("abcé"),
}


def lm_of(tmp_path, sentences, order=3):
    write_arpa(estimate(sentences, order), tmp_path / "lm.arpa")
    return NgramLm(tmp_path / "lm.arpa")


def sentences_of(words, count=60, seed=0):
    draw = random.Random(seed)
    return [draw.choices(words, weights=range(1, len(words) + 1), k=draw.randint(1, 6)) for _ in range(count)]


def random_tokens(tokenizer, count=40, seed=0):
    """Sequences of ordinary symbols and the unknown one, of any length from nothing on."""
    draw = random.Random(seed)
    usable = [1, *range(4, tokenizer.vocab_size)]
    if isinstance(tokenizer, ByteTokenizer):
        usable = [4 + byte for byte in b"abc   "]
    return [draw.choices(usable, k=draw.randint(0, 14)) for _ in range(count)]


def written_words(tokenizer, tokens):
    """The words of tokens with their letters next to each other."""
    return [span.word.replace(" ", "") for span in tokenizer.word_spans(tokens)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_word_model_scores_the_words_that_are_written_and_charges_unknown_ones(tmp_path, name):
    lm, tokenizer = lm_of(tmp_path, sentences_of(WORDS)), TOKENIZERS[name]
    sequences = random_tokens(tokenizer)
    scores = score_sequences(WordLm(lm, Spelling.of(tokenizer), 0.7, unknown=-3.0), sequences, CPU)
    for tokens, score in zip(sequences, scores.tolist()):
        if name == "pieces":  # a piece that is a boundary alone is no word
            words = tokenizer.decode(tokens).split()
        else:
            words = written_words(tokenizer, tokens)
        missing = sum(word not in WORDS for word in words)
        assert score == pytest.approx(0.7 * lm.sentence(words) - 3.0 * missing, abs=1e-4), words


def test_a_word_that_can_not_become_one_is_charged_at_once(tmp_path):
    scorer = WordLm(lm_of(tmp_path, sentences_of(WORDS)), Spelling.of(CHARS), 1.0, unknown=-3.0)
    state = scorer.start(1, CPU)
    charges = []
    for token in CHARS.encode("abbb ab"):
        state, adjustment = scorer.advance(state, torch.tensor([[token]]))
        charges.append(float(adjustment))
    assert charges == [0.0, 0.0, -3.0, 0.0, 0.0, 0.0, 0.0]


def test_a_token_model_scores_the_symbols(tmp_path):
    symbols = [[symbol.replace(" ", "▁") for symbol in CHARS.pieces(" ".join(words))] for words in sentences_of(WORDS)]
    lm = lm_of(tmp_path, symbols, 4)
    sequences = random_tokens(CHARS)
    scores = score_sequences(TokenLm(lm, CHARS.tokens, 0.4), sequences, CPU)
    for tokens, score in zip(sequences, scores.tolist()):
        words = [CHARS.tokens[token].replace(" ", "▁") for token in tokens]
        assert score == pytest.approx(0.4 * lm.sentence(words), abs=1e-4)


def test_rows_that_are_not_kept_are_computed_anew(tmp_path, monkeypatch):
    lm = lm_of(tmp_path, sentences_of(list("abc")), 4)
    sequences = random_tokens(CHARS)
    all_kept = score_sequences(TokenLm(lm, CHARS.tokens, 1.0), sequences, CPU)
    monkeypatch.setattr("components.decoding.fusion._ROWS_AT_ONCE", 4 * len(CHARS.tokens))
    scorer = TokenLm(lm, CHARS.tokens, 1.0)
    few_kept = score_sequences(scorer, sequences, CPU)
    assert len(scorer._rows) < lm.num_states
    torch.testing.assert_close(few_kept, all_kept)


def test_a_binary_of_kenlm_fuses_as_the_arpa_file(tmp_path):
    pytest.importorskip("kenlm")
    lm = lm_of(tmp_path, sentences_of(list("abc")), 3)
    asked = KenLm(tmp_path / "lm.arpa", ["a", "b", "c"])
    sequences = random_tokens(CHARS)
    for make in (lambda one: TokenLm(one, CHARS.tokens, 1.0), lambda one: WordLm(one, Spelling.of(CHARS), 1.0)):
        torch.testing.assert_close(
            score_sequences(make(asked), sequences, CPU), score_sequences(make(lm), sequences, CPU), atol=1e-4, rtol=0
        )


def test_a_model_in_capitals_is_not_silently_useless(tmp_path):
    with pytest.raises(UserError, match="spell no word"):
        WordLm(lm_of(tmp_path, [["AB", "B"]], 2), Spelling.of(CHARS), 1.0)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_are_counted_for_their_bonus(name):
    tokenizer = TOKENIZERS[name]
    sequences = random_tokens(tokenizer)
    scores = score_sequences(WordInsertion(0.5, Spelling.of(tokenizer)), sequences, CPU).tolist()
    for tokens, score in zip(sequences, scores):
        words = tokenizer.decode(tokens).split() if name == "pieces" else tokenizer.word_spans(tokens)
        assert score == pytest.approx(0.5 * len(words))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_hotwords_earn_their_weight_for_each_occurrence_as_whole_words(name):
    tokenizer = TOKENIZERS[name]
    hotwords = {"ab": 1.5, "ab ab": 0.75, "b": 2.0, "ab b ab": 1.25}
    if name == "no spaces":
        hotwords = {"ab": 1.5, "aba": 0.75, "b": 2.0}
    elif name == "phones":
        hotwords = {"a b": 1.5, "b": 2.0, "a b | a b": 0.75}
    scorer = HotwordTrie(hotwords, tokenizer)
    patterns = []
    for hotword, weight in hotwords.items():
        tokens = tokenizer.encode(hotword)
        num_tokens = sum(bool(tokenizer.word_spans([token])) for token in tokens)
        patterns.append((written_words(tokenizer, tokens), weight * num_tokens))
    sequences = random_tokens(tokenizer, 300)
    earned = []
    for tokens, score in zip(sequences, score_sequences(scorer, sequences, CPU).tolist()):
        words = written_words(tokenizer, tokens)
        if name == "pieces":
            words = tokenizer.decode(tokens).split()
        expected = sum(
            reward * sum(words[at : at + len(pattern)] == pattern for at in range(len(words)))
            for pattern, reward in patterns
        )
        assert score == pytest.approx(expected, abs=1e-4), words
        earned.append(expected)
    assert sum(value > 0 for value in earned) > 5


def test_a_beginning_earns_its_share_and_pays_it_back():
    scorer = HotwordTrie(["cab"], CHARS, weight=2.0)
    state, total, seen = scorer.start(1, CPU), 0.0, []
    for token in CHARS.encode("ca cab a"):
        total += float(scorer.extend(state, torch.tensor([[token]])))
        state, _ = scorer.advance(state, torch.tensor([[token]]))
        seen.append(total + 6.0 / 5)  # the empty prefix has the share of a space
    assert seen[:3] == pytest.approx([6 * 2 / 5, 6 * 3 / 5, 6 / 5])
    assert seen[3:7] == pytest.approx([6 * 2 / 5, 6 * 3 / 5, 6 * 4 / 5, 6 + 6 / 5])
    assert seen[7] == pytest.approx(6.0)


def test_the_beam_finds_a_hotword_that_the_frames_alone_do_not():
    """An utterance that sounds like 'cab' a little less than like 'cac'."""
    probs = torch.full((5, CHARS.vocab_size), 0.002)
    for time, symbol in enumerate("ca"):
        probs[time, CHARS.encode(symbol)[0]] = 0.9
    probs[2, CHARS.encode("b")[0]], probs[2, CHARS.encode("c")[0]] = 0.4, 0.5
    probs[3:, 0] = 0.9
    frames, lens = probs.log().unsqueeze(0), torch.tensor([5])
    assert CHARS.decode(prefix_beam_search(frames, lens, 5)[0][0].tokens) == "cac"
    for weight in (0.2, 3.0):
        scorer = SumOfScorers([HotwordTrie(["cab"], CHARS, weight)])
        best = prefix_beam_search(frames, lens, 5, scorer=scorer)[0][0]
        assert CHARS.decode(best.tokens) == "cab"
        assert best.scores["hotwords"] == pytest.approx(3 * weight, abs=1e-5)


@pytest.mark.parametrize("name", ["characters", "pieces"])
def test_fused_scores_of_the_beam_are_those_of_the_whole_transcriptions(tmp_path, name):
    tokenizer = TOKENIZERS[name]
    scorers = [
        WordLm(lm_of(tmp_path, sentences_of(WORDS)), Spelling.of(tokenizer), 0.6, -4.0),
        WordInsertion(0.8, Spelling.of(tokenizer)),
        HotwordTrie(["cab"], tokenizer, 1.5),
    ]
    frames = torch.randn(3, 30, tokenizer.vocab_size, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    frames[..., 1:4] = -torch.inf
    for utterance in prefix_beam_search(frames, torch.tensor([30, 12, 0]), 12, scorer=SumOfScorers(scorers)):
        assert [one.score for one in utterance] == sorted((one.score for one in utterance), reverse=True)
        for one in utterance:
            assert one.score == pytest.approx(sum(one.scores.values()), abs=1e-3)


def test_hotwords_that_are_too_many_or_empty_are_told(monkeypatch):
    with pytest.raises(UserError, match="no letters"):
        HotwordTrie([" "], CHARS)
    monkeypatch.setattr("components.decoding.hotwords._MOST_CELLS", 10)
    with pytest.raises(UserError, match="too many"):
        HotwordTrie(["cab"], CHARS)
