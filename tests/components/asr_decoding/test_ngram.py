import gzip
import math
import random

import pytest
import torch

from components.decoding import KenLm, NgramLm, estimate, write_arpa
from components.decoding.__main__ import main
from components.text import CharTokenizer
from tests.components.asr_decoding.oracles import backed_off
from utils.errors import UserError

ARPA = """
\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-1.2\t<unk>
-99\t<s>\t-0.3
-0.7\t</s>
-0.5\ta\t-0.2
-0.9 b -0.4

\\2-grams:
-0.25\t<s> a\t-0.1
-0.6\ta b\t-0.35
-0.45\tb </s>

\\3-grams:
-0.05\t<s> a b

\\end\\
"""


def random_sentences(count, words, seed=0):
    draw = random.Random(seed)
    chain = {word: draw.sample(words, 4) for word in words}
    for _ in range(count):
        sentence = [draw.choice(words)]
        while len(sentence) < draw.randint(1, 9):
            sentence.append(draw.choice(chain[sentence[-1]] if draw.random() < 0.8 else words))
        yield sentence


@pytest.fixture(scope="module")
def model():
    return estimate(random_sentences(400, [f"w{i}" for i in range(20)]), order=4)


@pytest.fixture
def arpa(model, tmp_path):
    write_arpa(model, tmp_path / "lm.arpa.gz")
    return tmp_path / "lm.arpa.gz"


def read_grams(path):
    grams, order = {}, 0
    for line in gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True):
        if line.endswith("-grams:\n"):
            order = int(line[1])
        elif order and line[0] in "-0123456789":
            score, *rest = line.split()
            grams[tuple(rest[:order])] = float(score), float(rest[order]) if len(rest) > order else 0.0
    return grams


SENTENCES = [
    *random_sentences(40, [f"w{i}" for i in range(20)], seed=1),
    ["w3", "nobody", "w4", "w4", "ever", "said", "w1"],
    [],
    ["this"],
]


def test_a_model_by_hand_is_backed_off_as_it_should_be(tmp_path):
    (tmp_path / "lm.arpa").write_text(ARPA)
    lm = NgramLm(tmp_path / "lm.arpa")
    assert (lm.words, lm.order) == (["<unk>", "<s>", "</s>", "a", "b"], 3)
    # a: bigram; b: trigram; </s> behind 'a b': its back-off and the bigram 'b </s>'
    assert lm.sentence(["a", "b"]) == pytest.approx(math.log(10) * (-0.25 - 0.05 - 0.35 - 0.45), abs=1e-5)
    # an unknown word behind <s>; then the empty history
    assert lm.sentence(["zz", "b"]) == pytest.approx(math.log(10) * (-0.3 - 1.2 - 0.9 - 0.45), abs=1e-5)


def test_sentences_score_as_word_by_word_with_the_file(arpa):
    lm, grams = NgramLm(arpa), read_grams(arpa)
    for words in SENTENCES:
        assert lm.sentence(words) == pytest.approx(math.log(10) * backed_off(grams, words, 4), abs=1e-4)


def test_sentences_score_as_with_kenlm(arpa, tmp_path):
    kenlm = pytest.importorskip("kenlm")
    (tmp_path / "lm.arpa").write_bytes(gzip.decompress(arpa.read_bytes()))
    theirs, lm = kenlm.Model(str(tmp_path / "lm.arpa")), NgramLm(arpa)
    asked = KenLm(tmp_path / "lm.arpa", [*lm.words, "absent"])
    for words in SENTENCES:
        expected = math.log(10) * theirs.score(" ".join(words))
        assert lm.sentence(words) == pytest.approx(expected, abs=1e-4)
        assert asked.sentence(words) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(UserError, match="knows none of the 1 words"):
        KenLm(tmp_path / "lm.arpa", ["absent"])


def test_kenlm_gives_rows_of_all_words_and_numbers_its_states_as_they_come(arpa, tmp_path):
    pytest.importorskip("kenlm")
    (tmp_path / "lm.arpa").write_bytes(gzip.decompress(arpa.read_bytes()))
    lm = KenLm(tmp_path / "lm.arpa", ["w1", "w2", "w3"])
    _, states = lm.step(torch.tensor([0, 0, 0]), torch.tensor([1, 2, 1]))
    assert states[0] == states[2] != states[1]
    assert lm.num_states == 3
    rows = lm.scores(states)
    for word in range(4):
        torch.testing.assert_close(rows[:, word], lm.step(states, torch.full_like(states, word))[0])


def test_all_words_at_once_score_as_one_by_one_and_sum_to_1(arpa):
    lm = NgramLm(arpa)
    states = torch.arange(lm.num_states).view(-1, 1)
    rows = lm.scores(states)
    assert rows.shape == (lm.num_states, 1, len(lm.words))
    for word in range(len(lm.words)):
        torch.testing.assert_close(rows[..., word], lm.step(states, torch.full_like(states, word))[0])
    predicted = [index for index, word in enumerate(lm.words) if word != "<s>"]
    torch.testing.assert_close(rows[..., predicted].logsumexp(2), torch.zeros(lm.num_states, 1), atol=2e-5, rtol=0)


def test_probabilities_of_every_history_sum_to_1(model):
    words = {gram[0] for gram in model.orders[0]}
    histories = [(), ("w1", "w2", "w3"), ("never", "seen"), *model.backoffs]
    for history in histories:
        assert sum(model.prob(history, word) for word in words) == pytest.approx(1.0, abs=1e-9)
    assert model.is_estimated == [False, False, True, True]  # hardly a word of so few has one context only


def test_a_bigram_model_by_hand():
    """Kneser-Ney of 'a b' and 'a': too small for its own discounts, so 0.5 is taken of what was counted once."""
    model = estimate([["a", "b"], ["a"]], order=2)
    assert model.discounts == [(0.5, 1.0, 1.5)] * 2
    assert model.is_estimated == [False, False]
    # contexts: 'a' follows <s>; 'b' follows a; </s> follows a and b: 1, 1, 2 of 4; taken .5, .5, 1 of 4
    unigrams = {"a": 0.5 / 4 + 2 / 4 / 4, "b": 0.5 / 4 + 2 / 4 / 4, "</s>": 1 / 4 + 2 / 4 / 4, "<unk>": 2 / 4 / 4}
    for word, prob in unigrams.items():
        assert model.prob([], word) == pytest.approx(prob)
    # behind 'a': b once, </s> once
    assert model.prob(["a"], "b") == pytest.approx(0.5 / 2 + 0.5 * unigrams["b"])
    assert model.prob(["a"], "a") == pytest.approx(0.5 * unigrams["a"])
    assert model.prob(["<s>"], "a") == pytest.approx((2 - 1.0) / 2 + 0.5 * unigrams["a"])


def test_a_text_is_more_probable_than_its_words_in_another_order(model):
    said = list(random_sentences(50, [f"w{i}" for i in range(20)]))
    mixed = [random.Random(0).sample(words, len(words)) for words in said]

    def score(sentences):
        return sum(
            math.log(model.prob(["<s>", *words[:at]], word)) for words in sentences for at, word in enumerate(words)
        )

    assert score(said) > score(mixed) + 100


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("\\data\\", ""), "no line .data."),
        (("ngram 2=3", "ngram 2=x"), ":4: 'ngram 2=x' is not of the form"),
        (("-0.6\ta b\t-0.35", "-0.6\ta c\t-0.35"), ":16: the word 'c' is not among the 1-grams"),
        (("-0.5\ta\t-0.2", "much\ta\t-0.2"), "has no number"),
        (("-0.5\ta\t-0.2", "-0.5\tb\t-0.2"), "the word 'b' comes a second time"),
        (("ngram 2=3", "ngram 2=4"), "none of the 4 n-grams of order 2"),
        (("ngram 2=3", "ngram 2=2"), "beyond the number of n-grams"),
        (("\\end\\", ""), "is cut off"),
        (("-0.25\t<s> a\t-0.1", "-0.25\t<s> b\t-0.1"), "has the n-gram '<s> a b' but not the shorter one"),
        (("-0.45\tb </s>", "-0.45\ta b"), "order 2 twice"),
        (("ngram 3=1\n", "ngram 3=1\nngram 4=0\n"), "has 3 orders"),
    ],
)
def test_a_file_that_is_no_arpa_file_is_told_with_its_line(tmp_path, change, told):
    (tmp_path / "lm.arpa").write_text(ARPA.replace(*change))
    with pytest.raises(UserError, match=told):
        NgramLm(tmp_path / "lm.arpa")


def test_files_that_can_not_be_read_are_told(tmp_path, arpa):
    with pytest.raises(UserError, match="No such file"):
        NgramLm(tmp_path / "none.arpa")
    (tmp_path / "cut.gz").write_bytes(arpa.read_bytes()[:500])
    with pytest.raises(UserError, match="can not read the language model"):
        NgramLm(tmp_path / "cut.gz")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text in UTF-8"):
        NgramLm(tmp_path / "bytes")


@pytest.mark.parametrize(
    ("sentences", "order", "told"), [([], 2, "no words"), ([["a", "</s>"]], 2, "</s>"), ([["a"]], 0, "at least 1")]
)
def test_what_no_model_can_be_made_of_is_told(sentences, order, told):
    with pytest.raises(UserError, match=told):
        estimate(sentences, order)


def test_the_command_writes_models_of_words_and_of_tokens(tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("To be\nor not to be\n")
    tokenizer = CharTokenizer("Tabenort ")
    tokenizer.save(tmp_path / "tokenizer.json")
    corpus, named = str(tmp_path / "corpus.txt"), f"tokenizer={tmp_path / 'tokenizer.json'}"
    assert main(["ngram", corpus, str(tmp_path / "words.arpa"), "order=2"]) == 0
    assert main(["ngram", corpus, str(tmp_path / "chars.arpa.gz"), "order=3", named]) == 0
    assert "2-grams: 7" in capsys.readouterr().out
    assert {"To", "to", "be", "or", "not"} < set(NgramLm(tmp_path / "words.arpa").words)
    chars = NgramLm(tmp_path / "chars.arpa.gz")
    assert {"T", "o", "▁"} < set(chars.words)
    assert chars.sentence(list("to▁be")) > chars.sentence(list("eb▁ot"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [(["order=x"], "order=x"), (["units=tokens"], "units=tokens"), (["order=0"], "at least 1")],
)
def test_the_command_tells_what_is_wrong(tmp_path, capsys, settings, told):
    (tmp_path / "corpus.txt").write_text("a b\n")
    assert main(["ngram", str(tmp_path / "corpus.txt"), str(tmp_path / "lm.arpa"), *settings]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "lm.arpa").exists()


def test_commands_are_listed_and_a_mistyped_one_is_met(capsys):
    assert main([]) == 0
    assert "ngram" in capsys.readouterr().out
    assert main(["ngrm"]) == 2
    assert "did you mean 'ngram'" in capsys.readouterr().err
