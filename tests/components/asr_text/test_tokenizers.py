import json
import pickle
import random
import string
import sys

import pytest

from components.text import (
    ByteTokenizer,
    CharTokenizer,
    Normalize,
    PhonemeTokenizer,
    SentencePieceTokenizer,
    WordTokenizer,
    count_unknown,
    load_tokenizer,
    read_phones,
    row_map,
    train_tokenizer,
)
from utils.errors import UserError

LINES = ["the cat sat on the mat", "the dog ate the cat", "a mat for the dog", "on the mat sat a cat", "cats and dogs"]


def pieces(kind="bpe", **options):
    pytest.importorskip("sentencepiece")
    return train_tokenizer(LINES, kind, vocab_size=23, **options)


def of_every_kind():
    yield CharTokenizer("abcdefghijklmnopqrstuvwxyz '", Normalize(case="lower"))
    yield WordTokenizer(["the", "cat", "sat"])
    yield ByteTokenizer()
    yield PhonemeTokenizer(["t", "ʃ", "tʃ", "iː", "z"])
    yield PhonemeTokenizer(["t", "ʃ", "tʃ", "iː", "z", "|"], parted_by="words")
    yield PhonemeTokenizer(lexicon={"the": "ð ə", "cat": "k æ t"})


KINDS = list(of_every_kind())


@pytest.mark.parametrize("tokenizer", KINDS, ids=lambda tokenizer: tokenizer.kind)
def test_the_four_special_ids_are_the_same_everywhere(tokenizer):
    assert tokenizer.tokens[:4] == ["<blank>", "<unk>", "<bos>", "<eos>"]
    assert (tokenizer.blank_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == len(tokenizer.tokens) == len(set(tokenizer.tokens))


@pytest.mark.parametrize("tokenizer", KINDS, ids=lambda tokenizer: tokenizer.kind)
def test_one_file_holds_everything(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "tokenizer.json")
    again = load_tokenizer(tmp_path / "new" / "tokenizer.json")
    assert type(again) is type(tokenizer)
    assert again.content() == tokenizer.content()
    assert again.fingerprint == tokenizer.fingerprint
    for text in ("the cat sat", "tʃiːz tiːz", "tʃ iː z", "x"):
        assert again.encode(text) == tokenizer.encode(text) == pickle.loads(pickle.dumps(tokenizer)).encode(text)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_have_our_special_ids_and_one_file_too(kind, tmp_path):
    tokenizer = pieces(kind)
    assert tokenizer.vocab_size == 23
    assert tokenizer.tokens[:4] == ["<blank>", "<unk>", "<bos>", "<eos>"]
    for line in LINES:
        ids = tokenizer.encode(line)
        assert tokenizer.decode(ids) == line
        assert [span.word for span in tokenizer.word_spans(ids)] == line.split()
        assert min(ids) >= 4
    tokenizer.save(tmp_path / "t.json")
    assert load_tokenizer(tmp_path / "t.json").encode(LINES[0]) == tokenizer.encode(LINES[0])
    assert pickle.loads(pickle.dumps(tokenizer)).encode(LINES[0]) == tokenizer.encode(LINES[0])
    assert pieces(kind).fingerprint == tokenizer.fingerprint


def test_pieces_know_what_is_unknown_or_fall_back_to_bytes():
    tokenizer = pieces()
    ids = tokenizer.encode("cat ü")
    assert ids[-1] == tokenizer.unk_id
    assert tokenizer.decode(ids) == "cat \ufffd"
    assert count_unknown(tokenizer, ["cat ü"]).by_symbol == {"ü": 1}
    sentencepiece = pytest.importorskip("sentencepiece")
    assert sentencepiece
    whole = train_tokenizer(LINES, "bpe", vocab_size=300, byte_fallback=True)
    assert whole.decode(whole.encode("cat ü")) == "cat ü"
    assert count_unknown(whole, ["cat ü"]).num_unknown == 0


def test_a_model_of_others_gets_our_ids(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    options = {"vocab_size": 30, "model_type": "bpe", "minloglevel": 2}
    prefix = str(tmp_path / "theirs")
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_prefix=prefix, **options)
    theirs = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    ours = SentencePieceTokenizer(f"{prefix}.model")
    assert ours.vocab_size == 30 - 3 + 4
    assert [ours.tokens[i] for i in ours.encode(LINES[0])] == theirs.encode(LINES[0], out_type=str)
    assert ours.decode(ours.encode(LINES[0])) == LINES[0]


def test_too_many_pieces_are_refused_in_a_sentence():
    pytest.importorskip("sentencepiece")
    with pytest.raises(UserError, match="vocab_size=5000: sentencepiece refuses: Vocabulary size too high"):
        train_tokenizer(LINES, "bpe", vocab_size=5000)
    with pytest.raises(UserError, match=r"can not read the model nowhere.model"):
        SentencePieceTokenizer("nowhere.model")
    with pytest.raises(UserError, match="sentencepiece can not read it"):
        SentencePieceTokenizer(b"no model")


def test_characters_go_there_and_back_whatever_the_text():
    draw = random.Random(0)
    alphabet = string.ascii_lowercase + " 'ßéøñ中文ё"
    tokenizer = CharTokenizer(alphabet)
    for _ in range(200):
        text = " ".join("".join(draw.choices(alphabet, k=draw.randint(0, 30))).split())
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert [span.word for span in tokenizer.word_spans(ids)] == text.split()
        assert tokenizer.decode([0, *ids, 3, -100, -100]) == text


def test_bytes_know_every_text():
    tokenizer = ByteTokenizer()
    text = "naïve 中文 🙂"
    ids = tokenizer.encode(text)
    assert [i - 4 for i in ids] == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert [(span.word, span.end - span.begin) for span in tokenizer.word_spans(ids)] == [
        ("naïve", 6),
        ("中文", 6),
        ("🙂", 4),
    ]
    assert tokenizer.decode(ids[:3]) == "na\ufffd"


def test_where_no_space_parts_words_every_symbol_is_one():
    mandarin = CharTokenizer("甚至出现", Normalize(spaces="remove"))
    ids = mandarin.encode("甚至 出现")
    assert [tuple(span) for span in mandarin.word_spans(ids)] == [
        ("甚", 0, 1),
        ("至", 1, 2),
        ("出", 2, 3),
        ("现", 3, 4),
    ]
    words = WordTokenizer(["seven", "one"])
    assert [tuple(span) for span in words.word_spans(words.encode("one seven six"))] == [
        ("one", 0, 1),
        ("seven", 1, 2),
        ("\ufffd", 2, 3),
    ]


def test_blank_begin_and_end_can_not_be_written():
    words = WordTokenizer(["a"])
    assert words.encode("<blank> a <eos> <unk>") == [1, 4, 1, 1]
    assert count_unknown(words, ["<unk> a"]).num_unknown == 1


@pytest.mark.parametrize(
    ("symbols", "sentence"),
    [
        (["a", "a"], "'a' is there twice"),
        (["a", ""], "one is empty"),
        (["a", True], "True is no text; in YAML, put it into quotes"),
        (["<blank>"], "'<blank>' is one of ours"),
        ([], "the vocabulary has not one"),
    ],
)
def test_symbols_that_can_not_be_are_refused(symbols, sentence):
    with pytest.raises(UserError, match=sentence):
        WordTokenizer(symbols)


def test_an_id_beyond_the_vocabulary_is_refused():
    with pytest.raises(UserError, match="the id 9 is beyond the vocabulary of 5"):
        WordTokenizer(["a"]).decode([4, 9])


def test_a_changed_file_is_noticed(tmp_path):
    path = tmp_path / "t.json"
    CharTokenizer("abc").save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"tokens": [*content["tokens"][:-1], "d"]}))
    with pytest.raises(UserError, match=r"t.json is not what was written"):
        load_tokenizer(path)
    del content["fingerprint"]
    path.write_text(json.dumps(content | {"tokens": [*content["tokens"][:-1], "d"]}))
    assert load_tokenizer(path).symbols == ["a", "b", "d"]
    path.write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer of ours"):
        load_tokenizer(path)
    with pytest.raises(UserError, match=r"can not read the tokenizer .*nowhere.json: No such file"):
        load_tokenizer(tmp_path / "nowhere.json")


def test_the_fingerprint_is_of_what_it_does():
    assert CharTokenizer("abc").fingerprint == CharTokenizer(["a", "b", "c"]).fingerprint
    others = [CharTokenizer("acb"), CharTokenizer("abc", Normalize(case="lower")), WordTokenizer(["a", "b", "c"])]
    assert len({CharTokenizer("abc").fingerprint, *(other.fingerprint for other in others)}) == 4
    one, two = (PhonemeTokenizer(["a"], lexicon={"x": "a", word: "a"}) for word in "yz")
    assert one.fingerprint != two.fingerprint


# -------------------------------------------------------------------------------------------------------------- phones


def test_the_longest_phone_is_taken_as_wav2vec2_takes_it(tmp_path):
    vocabulary = {
        "<pad>": 0,
        "<s>": 1,
        "</s>": 2,
        "<unk>": 3,
        "|": 4,
        "t": 5,
        "ʃ": 6,
        "tʃ": 7,
        "iː": 8,
        "i": 9,
        "z": 10,
    }
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(vocabulary))
    ours = PhonemeTokenizer(path, parted_by="words")
    assert ours.symbols == ["|", "t", "ʃ", "tʃ", "iː", "i", "z"]
    assert ours.pieces("tʃiːz ʃit") == ["tʃ", "iː", "z", "|", "ʃ", "i", "t"]
    assert ours.pieces("tʃyz") == ["tʃ", "y", "z"]
    assert ours.encode("y") == [ours.unk_id]
    ids = ours.encode("tʃiːz ʃit")
    assert ours.decode(ids) == "tʃiːz ʃit"
    assert [tuple(span) for span in ours.word_spans(ids)] == [("tʃiːz", 0, 3), ("ʃit", 4, 7)]


@pytest.mark.slow
def test_phones_are_split_as_the_tokenizer_of_transformers_splits_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    phones = ["a", "t", "s", "ts", "tsː", "ʃ", "tʃ", "aɪ", "ɪ", "ː"]
    vocabulary = {symbol: i for i, symbol in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *phones])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    theirs = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    ours = PhonemeTokenizer(tmp_path / "vocab.json", parted_by="words")
    draw = random.Random(0)
    for _ in range(100):
        text = " ".join("".join(draw.choices("atsʃɪː", k=draw.randint(1, 8))) for _ in range(3))
        expected = theirs.convert_ids_to_tokens(theirs(text).input_ids)
        # Theirs loses the boundary before a symbol of several characters.
        assert [p for p in ours.pieces(text) if p != "|"] == [p for p in expected if p != "|"]
        assert ours.decode(ours.encode(text)) == text


def test_phones_that_are_parted_are_taken_as_they_are_parted():
    tokenizer = PhonemeTokenizer(["t", "ʃ", "tʃ", "iː"])
    assert tokenizer.pieces("t ʃ iː") == ["t", "ʃ", "iː"]
    assert tokenizer.pieces(["tʃ", "iː"]) == ["tʃ", "iː"]
    assert tokenizer.decode(tokenizer.encode("tʃiː")) == "tʃ iː"
    assert len(tokenizer.word_spans(tokenizer.encode("tʃ iː"))) == 2


def test_a_lexicon_turns_words_into_phones(tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text(";;; CMUdict\nREAD  R IY1 D\nREAD(1)  R EH1 D\nA  AH0 # article\n\n")
    tokenizer = PhonemeTokenizer(lexicon=lexicon)
    assert tokenizer.symbols == ["AH0", "D", "IY1", "R"]
    assert tokenizer.pieces("Read a book") == ["R", "IY1", "D", "AH0", "book"]
    assert count_unknown(tokenizer, ["Read a book"]).by_symbol == {"book": 1}
    bounded = PhonemeTokenizer(["R", "IY1", "D", "AH0", "|"], lexicon=lexicon)
    assert bounded.pieces("read a") == ["R", "IY1", "D", "|", "AH0"]
    lexicon.write_text("READ\n")
    with pytest.raises(UserError, match=r"lexicon.txt:1: 'READ' has no phones"):
        PhonemeTokenizer(lexicon=lexicon)


def test_vocabulary_files_in_many_manners(tmp_path):
    (tmp_path / "tokens.txt").write_text("<eps> 0\n<blk> 1\nAA 2\nB 3\n#0 4\n")
    (tmp_path / "phones.txt").write_text("AA\nB\n")
    (tmp_path / "list.json").write_text('["[PAD]", "AA", "B", "[UNK]"]')
    for name in ("tokens.txt", "phones.txt", "list.json"):
        assert read_phones(tmp_path / name) == ["AA", "B"]
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UserError, match="neither a list of symbols nor a mapping"):
        read_phones(tmp_path / "bad.json")
    with pytest.raises(UserError, match=r"the vocabulary has no '\|'"):
        PhonemeTokenizer(["a"], parted_by="words")
    with pytest.raises(UserError, match="needs symbols, or a lexicon"):
        PhonemeTokenizer()


# --------------------------------------------------------------------------------------------------- another vocabulary


def test_a_change_of_vocabulary_keeps_the_rows_of_shared_symbols():
    old, new = CharTokenizer("abc "), CharTokenizer(" bcde")
    rows = row_map(old, new)
    assert rows.kept == {0: 0, 1: 1, 2: 2, 3: 3, 4: 7, 5: 5, 6: 6}
    assert (rows.fresh, rows.dropped) == (["d", "e"], ["a"])
    assert str(rows) == "7 symbols keep their rows; 2 are new (d, e); 1 are gone (a)"
    for row, before in row_map(old.tokens, new.tokens).kept.items():
        assert new.tokens[row] == old.tokens[before]


def test_without_sentencepiece_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"sentencepiece is not installed: pip install -e '\.\[asr\]'"):
        train_tokenizer(LINES, "bpe", vocab_size=23)
