"""Speech encoders of transformers: tiny, with random weights, offline."""

from __future__ import annotations

import pytest
import torch

from components.models.asr.encoders import PretrainedSpeechEncoder, record_attention
from utils.errors import UserError

from .checks import assert_alone_as_in_batch, noisy_batch

pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LAYER_NORM = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
NO_DROPOUT = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)
BERT = {"model_type": "wav2vec2-bert"} | {k: v for k, v in SIZES.items() if "conv" not in k}
WHISPER = {
    "model_type": "whisper",
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 64,
}

# kind -> width of the features, arguments
KINDS = {
    "wav2vec2, layer norm": (1, {"config": {"model_type": "wav2vec2"} | SIZES | LAYER_NORM}),
    "wav2vec2, group norm": (1, {"config": {"model_type": "wav2vec2"} | SIZES}),
    "hubert, group norm": (1, {"config": {"model_type": "hubert"} | SIZES}),
    "hubert, layer norm": (1, {"config": {"model_type": "hubert"} | SIZES | LAYER_NORM}),
    "wavlm, group norm": (1, {"config": {"model_type": "wavlm"} | SIZES, "normalize": False}),
    "wavlm, layer norm": (1, {"config": {"model_type": "wavlm"} | SIZES | LAYER_NORM}),
    "unispeech": (1, {"config": {"model_type": "unispeech"} | SIZES}),
    "unispeech-sat": (1, {"config": {"model_type": "unispeech-sat"} | SIZES}),
    "wav2vec2-bert": (160, {"config": BERT}),
    "whisper": (1, {"config": WHISPER}),
    "whisper, mel bands": (80, {"config": WHISPER}),
    "whisper, whole window": (1, {"config": WHISPER | {"max_source_positions": 75}, "whole_window": True}),
}
SAMPLES = torch.tensor([16_000, 9_001, 4_000, 100])  # the last is shorter than any receptive field


def make(kind, **changes):
    torch.manual_seed(0)
    width, arguments = KINDS[kind]
    return PretrainedSpeechEncoder(width, **arguments | changes)


def batch_for(kind):
    width = KINDS[kind][0]
    lens = SAMPLES if width == 1 else (SAMPLES // 200).clamp(min=1)
    return noisy_batch(lens, width), lens


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_encoded_alone_as_in_a_batch_with_garbage_behind_it(kind):
    encoder = make(kind).eval()
    x, lens = batch_for(kind)
    together = assert_alone_as_in_batch(encoder, x, lens, layers=[1, 2])
    torch.testing.assert_close(together.layers[2], together.hidden)
    assert (together.layers[1] - together.hidden).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_at_the_rate_it_says(kind):
    encoder = make(kind)
    lens = encoder.output_lens(torch.tensor([160_000, 320_000]))
    assert 160_000 / float(lens[1] - lens[0]) == pytest.approx(encoder.subsampling)


@pytest.mark.parametrize("kind", ["wav2vec2, layer norm", "wav2vec2, group norm", "hubert, layer norm"])
def test_without_padding_it_is_what_transformers_makes(kind):
    encoder, x = make(kind).eval(), torch.randn(2, 8000, 1)
    reference = PretrainedSpeechEncoder(1, config=KINDS[kind][1]["config"], normalize=False).eval()
    plain = type(encoder.model)(encoder.model.config).eval()
    plain.load_state_dict(encoder.model.state_dict())  # the names are the library's, norms of ours included
    reference.load_state_dict(encoder.state_dict())
    samples = x.squeeze(-1)
    normal = (samples - samples.mean(1, keepdim=True)) / (samples.var(1, keepdim=True, correction=0) + 1e-7).sqrt()
    lens = torch.tensor([8000, 8000])
    torch.testing.assert_close(encoder(x, lens).hidden, plain(normal).last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(reference(x, lens).hidden, plain(samples).last_hidden_state, atol=1e-5, rtol=0)


def test_whisper_in_its_whole_window_is_what_transformers_makes():
    encoder, x = make("whisper, whole window").eval(), torch.randn(1, 10_000, 1)
    features, _ = encoder.backbone.log_mel(x.mT, torch.tensor([10_000]))
    expected = encoder.model(features.mT).last_hidden_state[:, :31]
    torch.testing.assert_close(encoder(x, torch.tensor([10_000])).hidden, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_on_short_clips_and_every_parameter_gets_a_gradient(kind):
    masking = {} if "whisper" in kind else {"mask_time_prob": 0.5}
    encoder = make(kind, **masking)
    encoder.gradient_checkpointing_enable()
    x, lens = batch_for(kind)
    encoder(x, lens).hidden.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    "kind", ["wav2vec2, layer norm", "hubert, group norm", "wavlm, layer norm", "whisper", "wav2vec2-bert"]
)
def test_what_is_frozen_neither_learns_nor_leaves_eval_mode(kind):
    both = make(kind, freeze_feature_extractor=True, freeze_transformer=True)
    assert not any(p.requires_grad for p in both.parameters())
    first, then = (both(*batch_for(kind)).hidden for _ in range(2))
    assert both.training
    assert torch.equal(first.isnan(), then.isnan())
    assert not any(module.training for child in both.model.children() for module in child.modules())

    front = make(kind, freeze_feature_extractor=True)
    frozen = {name for name, p in front.model.named_parameters() if not p.requires_grad} - {"embed_positions.weight"}
    assert {name.split(".")[0] for name in frozen} <= {"feature_extractor", "feature_projection", "conv1", "conv2"}
    assert frozen
    transformer = make(kind, freeze_transformer=True)
    learns = {name for name, p in transformer.model.named_parameters() if p.requires_grad}
    assert learns == frozen


@pytest.mark.parametrize("kind", ["wav2vec2, group norm", "wavlm, layer norm", "whisper", "wav2vec2-bert"])
def test_attention_maps_are_the_weights_of_every_layer(kind):
    encoder = make(kind).eval()
    x, lens = batch_for(kind)
    usual, implementation = encoder(x, lens), encoder.model.config._attn_implementation
    with record_attention(encoder) as maps:
        recorded = encoder(x, lens)
    torch.testing.assert_close(usual.hidden, recorded.hidden, atol=1e-5, rtol=0)
    frames, own = usual.hidden.shape[1], int(usual.lens[1])
    assert {number: weights.shape for number, weights in maps.items()} == dict.fromkeys((1, 2), (4, 2, frames, frames))
    torch.testing.assert_close(maps[2][1, :, :own, :own].sum(-1), torch.ones(2, own))
    assert encoder.model.config._attn_implementation == implementation


def test_masking_is_ours_in_spans_and_follows_the_seed():
    encoder = make("wav2vec2, layer norm", mask_time_prob=0.3, mask_time_length=4)
    lens = torch.tensor([300, 200, 3])

    def drawn(seed):
        torch.manual_seed(seed)
        return torch.stack([encoder._draw_mask(lens, 300) for _ in range(50)])

    masks = drawn(0)
    assert torch.equal(masks, drawn(0))
    assert not masks[:, 1, 200:].any()
    assert not masks[:, 2].any()
    assert masks[:, 0].float().mean().item() == pytest.approx(1 - (1 - 0.3 / 4) ** 4, abs=0.02)
    edges = torch.nn.functional.pad(masks[:, :2].long(), (1, 1)).diff(dim=-1)
    starts, ends = ((edges == way).nonzero()[:, -1] for way in (1, -1))
    assert (ends - starts).min() == 4


def test_masking_is_off_in_eval_and_changes_training():
    encoder = make(
        "wav2vec2, layer norm", mask_time_prob=0.5, config=KINDS["wav2vec2, layer norm"][1]["config"] | NO_DROPOUT
    )
    x, lens = batch_for("wav2vec2, layer norm")
    assert (encoder(x, lens).hidden - encoder(x, lens).hidden).abs().max() > 1e-3
    encoder.eval()
    assert torch.equal(encoder(x, lens).hidden, encoder(x, lens).hidden)


@pytest.mark.parametrize("kind", ["wav2vec2, group norm", "wavlm, layer norm", "wav2vec2-bert", "whisper"])
def test_weights_come_from_a_folder(kind, tmp_path):
    first = make(kind).eval()
    source = first.model
    if kind == "whisper":
        from transformers import WhisperModel

        source = WhisperModel(first.model.config)
        source.encoder.load_state_dict(first.model.state_dict())
    source.save_pretrained(tmp_path)
    torch.manual_seed(1)
    second = PretrainedSpeechEncoder(KINDS[kind][0], pretrained=str(tmp_path), normalize=kind != "wavlm").eval()
    x, lens = batch_for(kind)
    torch.testing.assert_close(second(x, lens).hidden, first(x, lens).hidden)


def test_the_config_changes_what_is_read(tmp_path):
    make("wav2vec2, layer norm").model.save_pretrained(tmp_path)
    read = PretrainedSpeechEncoder(1, pretrained=str(tmp_path), config={"hidden_dropout": 0.7})
    assert read.model.config.hidden_dropout == 0.7
    assert read.model.config.layerdrop == 0.0
    assert read.model.encoder.layers[0].dropout.p == 0.7


def test_no_random_number_of_numpy_is_drawn_in_training():
    import numpy

    encoder = make("wav2vec2, layer norm", mask_time_prob=0.5)
    before = numpy.random.get_state()[1].copy()
    encoder(*batch_for("wav2vec2, layer norm"))
    assert (numpy.random.get_state()[1] == before).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give pretrained=FOLDER_OR_HUB_NAME, or a config with a model_type"),
        ({"config": {"model_type": "wav2vec3"}}, r"no 'wav2vec3' \(did you mean 'wav2vec2'\?\)"),
        ({"config": {"model_type": "wav2vec2", "hiden_size": 8}}, r"no such key \(did you mean 'hidden_size'\?\)"),
        ({"config": {"model_type": "wav2vec2", "mask_time_prob": 0.1}}, "masking is the encoder's mask_time_prob"),
        ({"config": {"model_type": "wav2vec2", "conv_dim": [8]}}, "transformers refuses it"),
        ({"pretrained": "/nowhere/at/all"}, "no model can be read from /nowhere/at/all"),
        (
            {"config": {"model_type": "bert"} | {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}},
            "none of the",
        ),
        (
            {"config": {"model_type": "wav2vec2", "add_adapter": True} | SIZES},
            "add_adapter: what it adds sees the padding",
        ),
        ({"config": {"model_type": "wav2vec2"} | SIZES, "input_dim": 80}, "wav2vec2 takes waveforms"),
        ({"config": BERT}, "wav2vec2-bert takes 160 features a frame, not 1"),
        ({"config": WHISPER, "input_dim": 40}, "whisper takes waveforms \\(1\\) or 80 mel bands, not 40"),
        ({"config": WHISPER, "mask_time_prob": 0.1}, "has no vector"),
        ({"config": WHISPER, "input_dim": 80, "whole_window": True}, "silence only for waveforms"),
        ({"config": {"model_type": "hubert"} | SIZES, "whole_window": True}, "only whisper has one, hubert has not"),
    ],
)
def test_what_can_not_be_is_said(arguments, message):
    with pytest.raises(UserError, match=message):
        PretrainedSpeechEncoder(**arguments)


def test_a_clip_longer_than_whispers_window_is_refused():
    encoder = make("whisper, whole window").eval()
    with pytest.raises(UserError, match=r"hears 1.5 s at most, this batch has 2 s"):
        encoder(torch.randn(1, 32_000, 1), torch.tensor([32_000]))
