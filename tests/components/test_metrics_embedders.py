"""Embedders: padding is never seen, work is shared, and what is missing is said."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from components.features import LogMel
from components.metrics import (
    Clip,
    FrechetAudioDistance,
    InceptionScore,
    KernelAudioDistance,
    LogMelStatsEmbedder,
    MelCanvasEmbedder,
    ModuleEmbedder,
    StoredTagger,
    TorchScriptEmbedder,
    clips_of_batch,
    embed_clips,
    pad_clips,
)
from components.models.tagger import ConvNet, PoolingHead, Tagger
from tests.components.metric_clips import RATE, Samples, carrying, tone
from utils.errors import UserError

CLIPS = [tone(str(i), seconds=0.2 + 0.13 * i, hertz=100 + 50 * i, seed=i) for i in range(4)]


def tagger(seed=0):
    torch.manual_seed(seed)
    head = partial(PoolingHead, hidden_dim=8)
    return Tagger(LogMel(RATE, 256, 80, 20), partial(ConvNet, channels=[4, 8]), head, {"word": 3, "speaker": 2})


EMBEDDERS = {
    "stats": LogMelStatsEmbedder(RATE),
    "stats_without_level": LogMelStatsEmbedder(RATE, subtract_level=True),
    "stats_at_another_rate": LogMelStatsEmbedder(16_000),
    "canvas": MelCanvasEmbedder(RATE, seconds=0.4),
    "tagger": ModuleEmbedder(tagger(), RATE),
}


@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_padded_batch_gives_the_same_as_each_clip_alone(name):
    embedder = EMBEDDERS[name]
    waveform, lens = pad_clips(CLIPS)
    waveform[:, :, :] += (torch.arange(waveform.shape[2]) >= lens.view(-1, 1, 1)) * 0.3  # whatever lies behind
    together = embedder.embed(waveform, lens, RATE)
    for i, clip in enumerate(CLIPS):
        alone = embedder.embed(*pad_clips([clip]), RATE)[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)


def test_stats_are_mean_and_deviation_of_the_log_mels():
    clip = CLIPS[1]
    features, _ = LogMel(RATE, 256, 80, 64)(*pad_clips([clip]))
    expected = torch.cat([features[0].double().mean(0), features[0].double().std(0, correction=0)])
    torch.testing.assert_close(
        LogMelStatsEmbedder(RATE).embed(*pad_clips([clip]), RATE)[0], expected, atol=1e-6, rtol=0
    )


def test_the_canvas_measures_the_root_mean_square_of_log_mels_whatever_the_level():
    embedder = MelCanvasEmbedder(RATE, seconds=0.2)
    clip, other = CLIPS[0], CLIPS[2]
    louder = Clip("louder", 3 * clip.samples, RATE)
    one, same, another = embed_clips(embedder, [clip, louder, other])
    assert np.linalg.norm(one - same) < 1e-3
    assert one.shape == (21 * 40,)
    cells = (one - another) * np.sqrt(21 * 40)
    assert np.linalg.norm(one - another) == pytest.approx(np.sqrt(np.square(cells).mean()))


def test_clips_of_several_rates_and_lengths_keep_their_order_and_are_embedded_once():
    class Counting(ModuleEmbedder):
        num_clips = 0

        def embed(self, waveform, audio_lens, sample_rate):
            Counting.num_clips += len(waveform)
            return super().embed(waveform, audio_lens, sample_rate)

    embedder = Counting(tagger(), RATE)
    clips = [tone("fast", seconds=0.3, rate=16_000), *(tone(str(i), seconds=0.5 - 0.01 * i) for i in range(20))]
    first = embed_clips(embedder, clips)
    again = embed_clips(embedder, clips[::-1])
    assert np.array_equal(first, again[::-1])
    assert Counting.num_clips == 21
    alone = embed_clips(embedder, [tone("3", seconds=0.47)])[0]
    assert first[4] == pytest.approx(alone, abs=1e-5)


def test_metrics_with_equal_embedders_share_the_work(monkeypatch):
    calls = []
    embed = LogMelStatsEmbedder.embed
    monkeypatch.setattr(LogMelStatsEmbedder, "embed", lambda *arguments: calls.append(1) or embed(*arguments))
    clips = [tone(str(i), seed=i) for i in range(4)]
    for metric in (FrechetAudioDistance(LogMelStatsEmbedder(RATE)), KernelAudioDistance(LogMelStatsEmbedder(RATE))):
        metric.update(clips, clips)
    assert len(calls) == 1


def test_a_module_in_training_is_used_as_in_evaluation_and_left_in_training():
    module = tagger().train()
    embedder = ModuleEmbedder(module, RATE, target="word")
    one, other = (embedder.logits(*pad_clips(CLIPS), RATE) for _ in range(2))
    assert torch.equal(one, other)  # dropout would differ
    assert module.training
    assert one.shape == (4, 3)


def test_which_logits_must_be_clear():
    with pytest.raises(UserError, match="target: expected one of word, speaker, of which Tagger has logits, got None"):
        ModuleEmbedder(tagger(), RATE).logits(*pad_clips(CLIPS), RATE)

    class Plain(nn.Module):
        def forward(self, waveform, audio_lens):
            return waveform[:, 0, :3]

    with pytest.raises(UserError, match="Plain gives no class logits: take a classifier"):
        ModuleEmbedder(Plain(), RATE).logits(*pad_clips(CLIPS), RATE)
    with pytest.raises(UserError, match="the embedder LogMelStatsEmbedder has no class logits"):
        InceptionScore(LogMelStatsEmbedder(RATE)).update(CLIPS)


def test_weights_are_loaded_strictly(tmp_path):
    from safetensors.torch import save_file

    save_file(tagger(seed=1).state_dict(), tmp_path / "a.safetensors")
    loaded = ModuleEmbedder(tagger(seed=0), RATE, weights=tmp_path / "a.safetensors")
    expected = ModuleEmbedder(tagger(seed=1), RATE)
    assert torch.equal(*(embedder.embed(*pad_clips(CLIPS), RATE) for embedder in (loaded, expected)))
    with pytest.raises(UserError, match=r"weights: there is no file .*b\.safetensors"):
        ModuleEmbedder(tagger(), RATE, weights=tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="does not fit Linear"):
        ModuleEmbedder(nn.Linear(1, 1), RATE, weights=tmp_path / "a.safetensors")


class Foreign(nn.Module):
    def forward(self, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        frames = samples[:, : samples.shape[1] // 80 * 80].reshape(-1, 80)
        return {"embedding": frames, "logits": frames.mean(0, keepdim=True)[:, :5]}


def test_a_torch_script_network_is_heard_clip_by_clip(tmp_path):
    torch.jit.script(Foreign()).save(str(tmp_path / "net.pt"))
    embedder = TorchScriptEmbedder(str(tmp_path / "net.pt"), RATE)
    vectors, logits = embed_clips(embedder, CLIPS), embed_clips(embedder, CLIPS, "logits")
    for clip, vector, row in zip(CLIPS, vectors, logits):
        expected = clip.samples[: len(clip.samples) // 80 * 80].reshape(-1, 80).mean(0)
        assert vector == pytest.approx(expected, abs=1e-6)
        assert row == pytest.approx(expected[:5], abs=1e-6)


def test_an_absent_or_broken_network_is_told_with_what_does_without(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*vggish\.pt.*LogMelStatsEmbedder, which needs none"):
        embed_clips(TorchScriptEmbedder(str(tmp_path / "vggish.pt"), RATE), CLIPS)
    (tmp_path / "broken.pt").write_bytes(b"not a network")
    with pytest.raises(UserError, match="is no TorchScript module"):
        embed_clips(TorchScriptEmbedder(str(tmp_path / "broken.pt"), RATE), CLIPS)


def stored_run(folder):
    """A tagging run as training leaves it, without the training."""
    import yaml
    from safetensors.torch import save_file

    model = {
        "_target_": "components.models.tagger.Tagger",
        "frontend": {"_target_": "components.features.LogMel", "sample_rate": RATE, "n_fft": 256, "hop_length": 80,
                     "n_mels": 20},
        "backbone": {"_target_": "components.models.tagger.ConvNet", "_partial_": True, "channels": [4, 8]},
        "head": {"_target_": "components.models.tagger.PoolingHead", "_partial_": True, "hidden_dim": 8},
        "num_classes": {"word": 3, "speaker": 2},
    }  # fmt: skip
    labels = {"word": ["no", "yes", "maybe"], "speaker": ["ann", "ben"]}
    step = folder / "checkpoints" / "step_00000003"
    step.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"sample_rate": RATE, "labels": labels, "model": model}))
    save_file(tagger(seed=3).state_dict(), step / "model.safetensors")
    (folder / "checkpoints" / "last").symlink_to(step.name)
    return folder


def test_a_stored_tagger_is_the_tagger_with_its_classes(tmp_path):
    judge = StoredTagger(str(stored_run(tmp_path / "run")), "word")
    expected = ModuleEmbedder(tagger(seed=3), RATE, "word")
    assert torch.equal(judge.logits(*pad_clips(CLIPS), RATE), expected.logits(*pad_clips(CLIPS), RATE))
    assert torch.equal(judge.embed(*pad_clips(CLIPS), RATE), expected.embed(*pad_clips(CLIPS), RATE))
    assert judge.classes == ["no", "yes", "maybe"]
    with pytest.raises(UserError, match=r"tells speaker, word, not 'wrod' \(did you mean 'word'\?\)"):
        _ = StoredTagger(judge.exp_dir, "wrod").classes


def test_a_folder_that_is_no_tagging_run_is_told(tmp_path):
    with pytest.raises(UserError, match="exp_dir: there is no folder"):
        _ = StoredTagger(str(tmp_path / "none")).classes
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="is no tagging run"):
        _ = StoredTagger(str(tmp_path)).classes


def test_clips_of_a_batch_are_cut_to_their_lengths():
    waveform, lens = pad_clips(CLIPS)
    batch = {"id": ["a", "b", "c", "d"], "waveform": waveform, "audio_lens": lens, "text": ["x", "", "y", "z"]}
    clips = clips_of_batch(batch, RATE)
    assert [len(clip.samples) for clip in clips] == lens.tolist()
    assert np.array_equal(clips[2].samples, CLIPS[2].samples)
    assert (clips[0].text, clips[3].id, clips[0].labels) == ("x", "d", {})


def test_what_a_clip_remembers_stays_behind_when_it_travels():
    import pickle

    clip = carrying(np.ones((1, 3)))[0]
    embed_clips(Samples(), [clip])
    travelled = pickle.loads(pickle.dumps(clip))
    assert clip._memo
    assert not travelled._memo
    assert np.array_equal(travelled.samples, clip.samples)


def test_a_result_is_json():
    metric = FrechetAudioDistance(LogMelStatsEmbedder(RATE), num_draws=5, num_splits=2)
    metric.update(CLIPS, CLIPS)
    content = json.loads(json.dumps(metric.compute().as_dict(), allow_nan=False))
    assert content["num_used"] == 4
    assert "per_item" not in content
