"""Fields of a batch to streams: what every content encoder keeps to, and what each is for."""

from __future__ import annotations

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from components.models.audio_generator.autoencoders import PatchAutoencoder
from components.models.audio_generator.conditions import Stream
from components.models.audio_generator.content_encoders import (
    CharEncoder,
    ClassEncoder,
    ContentEncoder,
    FrameEncoder,
    LatentEncoder,
    MidiEncoder,
    NumberEncoder,
    PhonemeEncoder,
    TransformersTextEncoder,
    VectorEncoder,
    WordEncoder,
    mean_pool,
    vocabulary_of,
)
from utils.build import build
from utils.compose import CONFIGS
from utils.errors import UserError
from utils.validate import validate

TEXTS = ["Say seven!", "", "say the word seven like anna", "unheard-of words"]
WORDS = ["say", "the", "word", "seven", "like", "anna", "!"]


def tokenizer(folder=None):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return fast if folder is None else fast.save_pretrained(folder)


def t5():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return T5EncoderModel(config)


def clap(projected: bool):
    from transformers import ClapTextConfig, ClapTextModel, ClapTextModelWithProjection

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ClapTextConfig(vocab_size=16, projection_dim=12, pad_token_id=0, max_position_embeddings=40, **sizes)
    return (ClapTextModelWithProjection if projected else ClapTextModel)(config)


class Case:
    """An encoder, a padded batch of four items for it, and each item alone."""

    def __init__(self, make, entry, lens=None, **fields):
        self.make, self.entry, self.lens, self.fields = make, entry, lens, fields

    def batch(self):
        return (self.entry, self.lens), self.fields

    def alone(self, i):
        if isinstance(self.entry, list):
            return ([self.entry[i]], None), {}
        own = None if self.lens is None else self.lens[i : i + 1]

        def cut(values):
            if self.lens is None or values.ndim < 2 or values.shape[-1] == 6:  # a vector a clip
                return values[i : i + 1]
            if values.ndim == 3 and values.shape[1] == 1:
                return values[i : i + 1, :, : int(own)]
            return values[i : i + 1, : int(own)]

        return (cut(self.entry), own), {name: cut(values) for name, values in self.fields.items()}


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    lens, audio_lens = torch.tensor([9, 1, 4, 7]), torch.tensor([300, 20, 150, 299])
    ids = torch.randint(0, 30, (4, 9))
    speaker = {"speaker_embedding": torch.randn(4, 6)}
    score = {"notes": torch.randint(0, 50, (4, 9)), "slurs": torch.randint(0, 2, (4, 9))}
    score["note_durations"] = torch.rand(4, 9)
    t5_text = lambda **options: TransformersTextEncoder(t5(), tokenizer(), **options)  # noqa: E731
    return {
        "words": Case(lambda: WordEncoder(WORDS, 32), TEXTS),
        "words, no layers": Case(lambda: WordEncoder(WORDS, 32, num_layers=0), TEXTS),
        "characters": Case(lambda: CharEncoder(embed_dim=32), TEXTS),
        "t5": Case(lambda: t5_text(frozen=False), TEXTS),
        "t5, pooled": Case(lambda: t5_text(frozen=False, pooled=True), TEXTS),
        "clap": Case(lambda: TransformersTextEncoder(clap(False), tokenizer(), frozen=False), TEXTS),
        "clap, pooled": Case(lambda: TransformersTextEncoder(clap(True), tokenizer(), 30, False, True), TEXTS),
        "phonemes": Case(lambda: PhonemeEncoder(30, 32), ids, lens),
        "phonemes, speaker": Case(lambda: PhonemeEncoder(30, 32, speaker_dim=6), ids, lens, **speaker),
        "score": Case(lambda: MidiEncoder(30, 50, 32), ids, lens, **score),
        "score, speaker": Case(lambda: MidiEncoder(30, 50, 32, speaker_dim=6), ids, lens, **score, **speaker),
        "frames": Case(lambda: FrameEncoder(3, 8), torch.randn(4, 9, 3), lens),
        "curve": Case(lambda: FrameEncoder(1, 8, num_layers=3, kernel_size=5), torch.randn(4, 9), lens),
        "latents": Case(lambda: LatentEncoder(PatchAutoencoder(8_000, 40), 8), torch.randn(4, 1, 300), audio_lens),
        "vector": Case(lambda: VectorEncoder(6, 8), torch.randn(4, 6)),
        "number": Case(lambda: NumberEncoder(0.0, 10.0, 8), torch.tensor([0.0, 2.5, 9.0, 30.0])),
        "class": Case(lambda: ClassEncoder(5, 8), torch.tensor([0, 4, 2, -100])),
    }


@pytest.fixture(params=cases())
def case(request) -> Case:
    torch.manual_seed(0)
    return cases()[request.param]


def alive(encoder: nn.Module) -> nn.Module:
    """With biases that are not zero, so that padding would show."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


@torch.no_grad()
def test_an_item_of_a_padded_batch_is_encoded_as_it_is_alone(case):
    encoder = alive(case.make()).eval()
    arguments, fields = case.batch()
    assert set(fields) == set(encoder.more_fields)
    stream = encoder(*arguments, **fields)
    assert isinstance(stream, Stream)
    assert stream.values.shape[-1] == encoder.embed_dim
    assert (stream.lens is None) == (stream.values.ndim == 2)
    for i in range(4):
        arguments, fields = case.alone(i)
        alone = encoder(*arguments, **fields)
        if stream.lens is None:
            torch.testing.assert_close(stream.values[i], alone.values[0], atol=1e-5, rtol=1e-5)
            continue
        length = int(stream.lens[i])
        assert length == int(alone.lens) == alone.values.shape[1] >= 1
        torch.testing.assert_close(stream.values[i, :length], alone.values[0], atol=1e-5, rtol=1e-5)
        assert stream.values[i, length:].abs().sum() == 0


def test_all_of_an_encoder_learns(case):
    encoder = alive(case.make()).train()
    arguments, fields = case.batch()
    stream = encoder(*arguments, **fields)
    (stream.values * torch.randn_like(stream.values)).sum().backward()
    still = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # of CLAP: a pooler beside the tokens, or places and types that no text of these reaches
    assert [name for name in still if "pooler" not in name] == []
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


def test_an_encoder_computes_in_half_precision(case):
    encoder = case.make().eval()
    arguments, fields = case.batch()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        values = encoder(*arguments, **fields).values
    assert values.isfinite().all()


# -------------------------------------------------------------------------------------------------------------- text


def test_a_vocabulary_is_made_of_templates_and_what_may_stand_in_them():
    values = {"word": ["Seven", "twenty-one"], "speaker": ["anna"]}
    made = vocabulary_of(["Say {word}, like {speaker}!", "{word}"], values)
    assert made == ["!", ",", "anna", "like", "say", "seven", "twenty-one"]
    with pytest.raises(UserError, match="a field 'who', for which there are no values"):
        vocabulary_of(["{who} says {word}"], values)


def test_words_are_lower_cased_composed_and_unknown_ones_are_one_symbol():
    encoder = WordEncoder(["café", "say", "it's"], 16)
    tokens, lens = encoder.vocabulary.encode([encoder.symbols_of(t) for t in ("SAY cafe\u0301", "It's  tea", "")])
    assert tokens.tolist() == [[1, 4, 3], [1, 5, 2], [1, 0, 0]]
    assert lens.tolist() == [3, 3, 1]


def test_characters_beside_the_alphabet_are_one_symbol():
    encoder = CharEncoder("ab", 16)
    tokens, _ = encoder.vocabulary.encode([encoder.symbols_of("aBcß")])
    assert tokens.tolist() == [[1, 3, 4, 2, 2]]


def test_some_words_are_taken_for_unknown_in_training_alone():
    encoder = WordEncoder(WORDS, 16, num_layers=0, unknown_share=0.5)
    lines = ["say the word seven like anna"] * 50
    unknown = encoder.eval()(["tea"]).values[0, 1]
    assert not (encoder(lines).values == unknown).all(-1).any()
    taken = (encoder.train()(lines).values == unknown).all(-1)
    assert not taken[:, 0].any()  # the start stays
    assert 0.35 < float(taken[:, 1:].float().mean()) < 0.65


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: WordEncoder(["a", "b", "a"]), "'a' is in it twice"),
        (lambda: WordEncoder([]), "not one symbol"),
        (lambda: WordEncoder(["a"], 20, num_heads=4), "4 heads do not divide 20"),
        (lambda: PhonemeEncoder(5, 16, kernel_size=4), "kernel_size must be odd"),
        (lambda: FrameEncoder(5, 16, kernel_size=4), "kernel_size must be odd"),
        (lambda: NumberEncoder(1.0, 1.0), "minimum must lie below maximum"),
        (lambda: TransformersTextEncoder(t5()), "tokenizer: a model that has been built"),
        (lambda: TransformersTextEncoder("nowhere/at-all/here", tokenizer()), "AutoModelForTextEncoding"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(make, reason):
    with pytest.raises(UserError, match=reason):
        make()


def test_a_text_encoder_is_read_from_a_folder_without_its_decoder(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    whole = T5ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    tokenizer(tmp_path)
    encoder = TransformersTextEncoder(str(tmp_path))
    assert encoder.embed_dim == 16
    assert not any("decoder" in name for name, _ in encoder.named_parameters())
    assert torch.equal(encoder.model.shared.weight, whole.shared.weight)


def test_a_frozen_text_encoder_stays_as_it_is():
    encoder = TransformersTextEncoder(t5(), tokenizer())
    model = nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    first, second = (encoder(TEXTS).values for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_a_long_text_is_cut():
    assert TransformersTextEncoder(t5(), tokenizer(), max_length=3)(["say the word seven"]).lens.tolist() == [3]


def test_a_full_batch_gives_attention_no_mask(monkeypatch):
    seen = []
    attention = nn.functional.scaled_dot_product_attention

    def spy(*args, attn_mask=None, **options):
        seen.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr("components.layers.attention.scaled_dot_product_attention", spy)
    encoder = WordEncoder(WORDS, 16)
    encoder(["say seven", "say anna"])
    encoder(["say seven", "say"])
    assert seen[0] is None
    assert seen[1] is not None


# ----------------------------------------------------------------------------------------------------------- configs

OPTIONS = {
    "char": (),
    "clap_text": None,  # from the hub
    "class": ("num_classes=5",),
    "frame": ("num_features=3",),
    "latent": (),
    "midi": (),
    "number": (),
    "phoneme": (),
    "t5": None,
    "vector": ("num_features=6",),
    "word": ("vocabulary={_target_: components.models.audio_generator.vocabulary_of, templates: [say yes]}",),
}


def test_all_shipped_encoders_are_tried():
    assert sorted(path.stem for path in (CONFIGS / "model/content_encoder").glob("*.yaml")) == sorted(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_shipped_encoder_is_valid_and_says_how_large_it_is(name):
    path = CONFIGS / "model/content_encoder" / f"{name}.yaml"
    assert "parameters" in "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    settings = OmegaConf.from_dotlist(list(OPTIONS[name] or ()))
    config = OmegaConf.create({"encoder": OmegaConf.merge(OmegaConf.load(path), settings)})
    assert validate(config) == []
    if OPTIONS[name] is None:
        return
    encoder = build(config, "encoder")
    if name == "latent":
        encoder = encoder(autoencoder=PatchAutoencoder(8_000, 40))
    assert isinstance(encoder, ContentEncoder)


# ------------------------------------------------------------------------------------------------------------ others


def test_the_autoencoder_of_latents_is_shared_and_no_part_of_the_encoder():
    autoencoder = PatchAutoencoder(8_000, 4)
    model = nn.ModuleDict({"autoencoder": autoencoder, "source": LatentEncoder(autoencoder, 8)})
    assert list(model["source"].state_dict()) == ["projection.weight", "projection.bias"]
    waveform, lens = torch.randn(2, 1, 40), torch.tensor([40, 8])
    before = model["source"](waveform, lens).values
    autoencoder.fit_statistics([torch.randn(9, 4) + 5])
    assert not torch.allclose(model["source"](waveform, lens).values, before)
    copied = copy.deepcopy(model)
    assert copied["source"]._shared[0] is copied["autoencoder"] is not autoencoder


def test_numbers_beyond_the_range_count_as_its_ends_and_others_are_told_apart():
    encoder = NumberEncoder(0.0, 10.0, 16).eval()
    values = encoder(torch.tensor([-3.0, 0.0, 4.0, 4.1, 10.0, 12.0])).values
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[4], values[5])
    assert (values[2] - values[3]).abs().max() > 1e-3
    torch.testing.assert_close(encoder(torch.tensor([4])).values, values[2:3])  # whole numbers too


def test_unknown_classes_have_a_vector_of_their_own():
    values = ClassEncoder(3, 8)(torch.tensor([-100, -1, 0, 2])).values
    assert torch.equal(values[0], values[1])
    assert len({tuple(row.tolist()) for row in values}) == 3


def test_a_speaker_is_heard_in_every_phoneme():
    encoder = PhonemeEncoder(10, 16, num_layers=0, speaker_dim=4).eval()
    phonemes, speakers = torch.ones(2, 5, dtype=torch.long), torch.randn(2, 4)
    values = encoder(phonemes, speaker_embedding=speakers).values
    assert (values[0] - values[1]).abs().amax(-1).min() > 1e-3
    nobody = encoder(phonemes, speaker_embedding=torch.zeros(2, 4)).values
    assert torch.equal(encoder(phonemes).values, nobody)


def test_the_mean_of_tokens_leaves_padding_out():
    values = torch.arange(12.0).view(2, 3, 2)
    pooled = mean_pool(Stream(values, torch.tensor([3, 1])))
    assert pooled.lens is None
    assert pooled.values.tolist() == [[2.0, 3.0], [6.0, 7.0]]
    assert mean_pool(Stream(values, torch.tensor([3, 0]))).values[1].tolist() == [0.0, 0.0]
    assert torch.equal(mean_pool(Stream(values[:, 0], None)).values, values[:, 0])
