"""Adapters of transformers, on tiny networks with random weights that are saved and loaded as real ones are."""

import numpy as np
import pytest
import torch

from components.metrics import (
    ClapEmbedder,
    ClapScore,
    Clip,
    KullbackLeibler,
    TransformersClassifier,
    TransformersEmbedder,
    embed_clips,
    pad_clips,
)
from tests.components.metric_clips import tone
from utils.errors import UserError

transformers = pytest.importorskip("transformers")

# importing and building networks of transformers takes seconds
pytestmark = pytest.mark.slow

TEXTS = ["a dog barks", "rain falls", "a dog"]
CLIPS = [tone(str(i), seconds=0.3 + 0.2 * i, hertz=150 * (i + 1), text=TEXTS[i]) for i in range(3)]


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted({word for text in TEXTS for word in text.split()})]
    text = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "projection_dim": 8, "pad_token_id": 1}  # fmt: skip
    audio = {"num_mel_bins": 64, "spec_size": 256, "patch_embeds_hidden_size": 16, "hidden_size": 32, "depths": [1, 1],
             "num_attention_heads": [2, 2], "window_size": 8, "projection_dim": 8, "num_classes": 4}  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    transformers.ClapModel(config).save_pretrained(folder)
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return str(folder)


def test_clap_embeds_sounds_and_texts_into_one_space_of_unit_vectors(clap):
    embedder = ClapEmbedder(clap)
    sounds, texts = embedder.embed(*pad_clips(CLIPS), 8_000), embedder.embed_text(TEXTS)
    assert sounds.shape == texts.shape == (3, 8)
    assert torch.linalg.norm(torch.cat([sounds, texts]), dim=1) == pytest.approx(1, abs=1e-5)
    alone = embedder.embed(*pad_clips(CLIPS[:1]), 8_000)
    torch.testing.assert_close(sounds[:1], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embedder.embed_text(TEXTS[2:]), texts[2:], atol=1e-5, rtol=1e-5)  # padded or not


def test_clap_is_transformers_own(clap):
    embedder, model = ClapEmbedder(clap), transformers.ClapModel.from_pretrained(clap).eval()
    clip = tone("a", seconds=0.5, rate=48_000)
    extractor = transformers.ClapFeatureExtractor.from_pretrained(clap)
    inputs = extractor(clip.samples, sampling_rate=48_000, return_tensors="pt")
    with torch.no_grad():
        theirs = model.get_audio_features(**inputs).pooler_output
    torch.testing.assert_close(embedder.embed(*pad_clips([clip]), 48_000), theirs, atol=1e-5, rtol=1e-5)


def test_clap_hears_all_of_a_long_clip_and_the_same_each_time(clap):
    embedder = ClapEmbedder(clap)
    halves = [tone("a", seconds=10, hertz=200, rate=48_000), tone("b", seconds=10, hertz=900, rate=48_000)]
    whole = Clip("ab", np.concatenate([half.samples for half in halves]), 48_000)
    one, other = (embedder.embed(*pad_clips([whole]), 48_000) for _ in range(2))
    assert torch.equal(one, other)
    mean = embed_clips(embedder, halves).mean(0)
    assert one[0].numpy() == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_clap_score_of_a_network(clap):
    metric = ClapScore(ClapEmbedder(clap))
    metric.update(CLIPS)
    result = metric.compute()
    assert -1 <= result.value <= 1
    assert result.num_used == 3


@pytest.fixture(scope="module")
def wav2vec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wav2vec")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, num_labels=3, id2label={0: "x", 1: "y", 2: "z"}, classifier_proj_size=8,
    )  # fmt: skip
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("layer", [-1, 1])
def test_a_transformers_encoder_is_averaged_over_time_without_padding(wav2vec, layer):
    embedder = TransformersEmbedder(wav2vec, layer=layer)
    together = embedder.embed(*pad_clips(CLIPS), 8_000)
    model = transformers.Wav2Vec2Model.from_pretrained(wav2vec).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(wav2vec)
    for clip, vector in zip(CLIPS, together):
        inputs = extractor(clip.at(16_000), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            hidden = model(inputs.input_values, output_hidden_states=True).hidden_states[layer]
        torch.testing.assert_close(vector, hidden[0].mean(0), atol=1e-5, rtol=1e-5)


def test_an_encoder_of_an_encoder_and_decoder_does(tmp_path):
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=80, vocab_size=50, pad_token_id=1, bos_token_id=2,
        eos_token_id=3, decoder_start_token_id=2,
    )  # fmt: skip
    transformers.WhisperModel(config).save_pretrained(tmp_path)
    transformers.WhisperFeatureExtractor().save_pretrained(tmp_path)
    assert TransformersEmbedder(str(tmp_path)).embed(*pad_clips(CLIPS), 8_000).shape == (3, 16)


def test_a_transformers_classifier_has_logits_and_classes(wav2vec):
    judge = TransformersClassifier(wav2vec)
    assert judge.classes == ["x", "y", "z"]
    assert judge.logits(*pad_clips(CLIPS), 8_000).shape == (3, 3)
    assert judge.embed(*pad_clips(CLIPS), 8_000).shape == (3, 16)
    metric = KullbackLeibler(judge, kind="sigmoid")
    metric.update(CLIPS, CLIPS)
    assert metric.compute().value == pytest.approx(0, abs=1e-9)


def test_weights_that_are_not_at_hand_are_told_and_not_fetched(tmp_path):
    with pytest.raises(UserError, match="name: no weights of 'nobody/nothing' at hand, and nothing is downloaded"):
        TransformersEmbedder("nobody/nothing").embed(*pad_clips(CLIPS), 8_000)
    with pytest.raises(UserError, match="name: no weights of"):
        ClapEmbedder(str(tmp_path)).embed_text(["a"])
