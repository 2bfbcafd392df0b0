"""Instructed datasets: targets, instructions, and the conditions that are made of them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from components.augment import AddNoise, RandomSpeed
from components.data import AudioDataset, PadCollate, write_manifest
from components.data.audio import load_audio
from components.data.generation import (
    Clip,
    Contour,
    Degraded,
    EnergyCurve,
    FixedCanvas,
    InPainting,
    InstructedDataset,
    Instructions,
    MultitaskDataset,
    NoiseFloor,
    NormalizeLevel,
    Phonemes,
    PitchCurve,
    RecordText,
    Score,
    SpectralTilt,
    StoredFeatures,
    SuperResolution,
)
from components.data.loader import make_dataloader
from components.data.samplers import Budget, MixtureBatchSampler
from components.metrics.pitch import YinPitch
from trainer.data import plan_loader
from utils.compose import CONFIGS
from utils.config import register_omegaconf_resolvers
from utils.errors import BadSample, UserError

RATE, HOP = 8000, 80
SPEECH = Path(__file__).resolve().parents[3] / "shared" / "data" / "speech"
TEMPLATES = ["say {text} like {speaker}", "{speaker} says {text}", "let {speaker} say {text}"]


def buzz(hertz, seconds=0.5, rate=RATE):
    """A voice-like tone: five harmonics, of constant or gliding pitch."""
    pitch = np.broadcast_to(np.asarray(hertz, dtype=np.float64), round(seconds * rate))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    return torch.from_numpy(0.1 * sum(np.sin(k * phase) / k for k in range(1, 6))).float().unsqueeze(0)


def clip_of(waveform, start=0.0, folder=Path(), **record):
    return Clip(waveform, RATE, {"id": "a", "duration": waveform.shape[-1] / RATE} | record, start, folder)


@pytest.fixture
def corpus(tmp_path):
    """Four clips of 0.3 to 0.6 s; the last has no speaker."""
    records = []
    for i, seconds in enumerate((0.3, 0.4, 0.5, 0.6)):
        glide = np.linspace(100 + 40 * i, 200 + 40 * i, round(seconds * RATE))
        soundfile.write(tmp_path / f"{i}.wav", buzz(glide, seconds)[0].numpy(), RATE)
        record = {"id": f"clip{i}", "audio_path": f"{i}.wav", "duration": seconds, "sample_rate": RATE}
        record |= {"text": ["one", "two", "three", "four"][i], "labels": {"word": "w", "size": str(i)}}
        records.append(record | ({"speaker": ["anna", "ben", "anna"][i]} if i < 3 else {}))
    write_manifest(tmp_path / "clips.jsonl", records)
    return tmp_path / "clips.jsonl"


def audio(corpus, training=True, **options):
    return AudioDataset(corpus, RATE, augment={} if training else None, **options)


# ------------------------------------------------------------------------------------------------- level and canvas


def test_the_level_is_that_of_what_sounds_and_silence_stays():
    tone = buzz(200)
    padded = torch.nn.functional.pad(0.01 * tone, (0, 8000))
    level = NormalizeLevel(0.1)
    assert level(tone, RATE).square().mean().sqrt() == pytest.approx(0.1, rel=0.01)
    assert torch.allclose(level(padded, RATE)[:, :4000], level(tone, RATE), rtol=1e-3, atol=1e-4)
    assert torch.equal(level(torch.zeros(1, 800), RATE), torch.zeros(1, 800))


def test_a_canvas_pads_crops_at_its_steps_or_refuses():
    canvas = FixedCanvas(0.1, multiple_of=HOP)
    assert torch.equal(canvas(torch.ones(1, 500), RATE), torch.nn.functional.pad(torch.ones(1, 500), (0, 300)))
    torch.manual_seed(0)
    ramp, starts = torch.arange(4000.0).unsqueeze(0), set()
    for _ in range(50):
        piece, start = canvas.fit(ramp, RATE)
        assert torch.equal(piece, ramp[:, start : start + 800])
        starts.add(start)
    assert len(starts) > 20
    assert all(start % HOP == 0 for start in starts)
    assert max(starts) <= 3200
    assert FixedCanvas(0.1, place="center").fit(ramp, RATE)[1] == 1600
    assert FixedCanvas(0.1, place="start").fit(ramp, RATE)[1] == 0
    assert FixedCanvas(0.1, pad_short=False)(torch.ones(1, 500), RATE).shape == (1, 500)
    with pytest.raises(BadSample, match=r"0\.50 s does not fit on a canvas of 0\.1 s"):
        FixedCanvas(0.1, too_long="refuse")(ramp, RATE)
    with pytest.raises(UserError, match="no canvas"):
        FixedCanvas(0.0)


def test_the_floor_of_noise_is_the_same_for_every_clip():
    floor = NoiseFloor(0.001)
    noise = floor(torch.zeros(1, 4000), RATE)
    assert noise.std() == pytest.approx(0.001, rel=0.05)
    assert torch.equal(floor(torch.ones(1, 4000), RATE), 1 + noise)


def test_a_tilt_turns_the_spectrum_about_one_kilohertz(monkeypatch):
    monkeypatch.setattr("components.data.generation.tilt.uniform", lambda low, high: high)
    time = torch.arange(RATE).unsqueeze(0) / RATE
    for hertz, decibels in ((500, -3.0), (1000, 0.0), (2000, 3.0)):
        tone = torch.sin(2 * np.pi * hertz * time)
        tilted = SpectralTilt(3.0)(tone, RATE)
        assert 20 * torch.log10(tilted.std() / tone.std()) == pytest.approx(decibels, abs=0.05)


# --------------------------------------------------------------------------------------------------------- sources


def band_db(waveform, low, high):
    power = torch.fft.rfft(waveform[0]).abs().square()
    hertz = torch.fft.rfftfreq(waveform.shape[-1], 1 / RATE)
    return 10 * torch.log10(power[(hertz >= low) & (hertz < high)].sum() + 1e-9)


def test_super_resolution_takes_the_upper_band_and_leaves_the_rest_in_its_place():
    torch.manual_seed(0)
    target = 0.1 * torch.randn(1, 4001)
    source = SuperResolution([4000])(clip_of(target))["source_waveform"]
    assert source.shape == target.shape
    assert source.dtype == torch.float32
    assert band_db(source, 2200, 4000) < band_db(target, 2200, 4000) - 40
    assert band_db(source - target, 100, 1700) < band_db(target, 100, 1700) - 30
    with pytest.raises(UserError, match="8000 Hz"):
        SuperResolution([8000])(clip_of(target))


def test_in_painting_silences_the_frames_of_its_mask_within_what_sounds():
    target = torch.nn.functional.pad(torch.ones(1, 3000), (0, 2600))
    task, sizes = InPainting(HOP, 0.1, 0.2), set()
    for seed in range(40):
        torch.manual_seed(seed)
        made = task(clip_of(target))
        mask = made["mask"]
        hidden = mask.repeat_interleave(HOP).bool()
        assert mask.shape == (70,)
        assert torch.equal(made["source_waveform"][0], target[0].masked_fill(hidden, 0))
        filled = torch.nonzero(mask).flatten()
        assert torch.equal(filled, torch.arange(filled[0], filled[-1] + 1))
        assert filled[-1] < 38
        sizes.add(len(filled))
    assert min(sizes) >= 10
    assert max(sizes) <= 20
    assert len(sizes) > 5
    tiny = task(clip_of(torch.ones(1, 100)))
    assert torch.equal(tiny["mask"], torch.ones(2))


def test_a_degraded_source_stays_aligned_and_has_the_ratio_asked_for():
    torch.manual_seed(0)
    target = buzz(150)
    source = Degraded({"noise": AddNoise(5.0, 5.0, p=1.0), "none": None})(clip_of(target))["source_waveform"]
    noise = source - target
    assert 10 * torch.log10(target.square().mean() / noise.square().mean()) == pytest.approx(5.0, abs=0.01)
    with pytest.raises(UserError, match="no longer aligned"):
        Degraded({"speed": RandomSpeed(0.5, 0.6)})(clip_of(target))
    with pytest.raises(UserError, match="without a step"):
        Degraded({"noise": None})


# -------------------------------------------------------------------------------------------------------- contours


def test_energy_is_in_decibels_from_the_floor_to_full_scale():
    waveform = torch.cat([torch.ones(1, 800), 0.1 * torch.ones(1, 800), torch.zeros(1, 850)], dim=1)
    curve = EnergyCurve(HOP, floor_db=-40.0)(waveform, RATE)
    assert curve.shape == (31,)
    assert curve[2:8].tolist() == pytest.approx([1.0] * 6, abs=1e-4)
    assert curve[12:18].tolist() == pytest.approx([0.5] * 6, abs=1e-3)
    assert curve[22:].tolist() == [0.0] * 9


@pytest.mark.parametrize("rate", [8000, 16_000])
@pytest.mark.parametrize("hertz", [75, 120, 210, 330])
def test_pitch_of_a_steady_voice_is_found_to_a_percent(hertz, rate):
    curve = PitchCurve(rate // 100)
    found = curve.hertz(buzz(hertz, rate=rate), rate)
    assert len(found) == 50
    assert (found[3:-4] / hertz).sub(1).abs().max() < 0.01
    share = curve(buzz(hertz, rate=rate), rate)
    assert share[10] == pytest.approx(0.2 + 0.8 * np.log(hertz / 60) / np.log(400 / 60), abs=0.01)


def test_pitch_follows_a_glide_and_is_zero_where_there_is_none():
    torch.manual_seed(0)
    glide = buzz(np.linspace(100, 250, 4000))
    waveform = torch.cat([glide, 0.05 * torch.randn(1, 4000), torch.zeros(1, 4000)], dim=1)
    found = PitchCurve(HOP).hertz(waveform, RATE)
    middle = torch.linspace(100, 250, 4000)[40::HOP]
    assert (found[3:46] / middle[3:46]).sub(1).abs().max() < 0.03
    assert (found[54:] > 0).float().mean() < 0.1
    assert found[102:].tolist() == [0.0] * 48


@pytest.mark.skipif(not (SPEECH / "librispeech").is_dir(), reason="needs the shared speech")
def test_pitch_of_speech_agrees_with_another_method():
    waveform = load_audio(SPEECH / "librispeech" / "2412-153948-0000.flac", 16_000)
    own = PitchCurve(160).hertz(waveform, 16_000).numpy()
    centred = np.pad(waveform[0].numpy()[80:], (0, 80))  # its frames are centred where ours begin
    theirs = YinPitch().track(centred, 16_000)[: len(own)]
    both = (own > 0) & (theirs > 0)
    assert both.sum() > 0.9 * (theirs > 0).sum()
    assert (np.abs(own[both] / theirs[both] - 1) < 0.05).mean() > 0.95


def test_curves_stand_side_by_side_at_the_latent_rate():
    made = Contour({"energy": EnergyCurve(HOP), "pitch": PitchCurve(HOP), "none": None})
    assert made.kinds == {"contour": 2}
    contour = made(clip_of(buzz(200, 0.5)))["contour"]
    assert contour.shape == (50, 2)
    assert contour.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------ from records


def test_phonemes_have_ids_and_durations_and_are_cut_with_the_target():
    record = {"phonemes": "sil s eh v ah n", "phoneme_durations": [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}
    task = Phonemes(["sil", "s", "eh", "v", "ah", "n"])
    made = task(clip_of(torch.zeros(1, 4800), **record))
    assert made["phonemes"].tolist() == [0, 1, 2, 3, 4, 5]
    assert made["phoneme_durations"].tolist() == pytest.approx([0.1] * 6)
    cropped = task(clip_of(torch.zeros(1, 2000), start=0.15, **record))
    assert cropped["phonemes"].tolist() == [1, 2, 3]
    assert cropped["phoneme_durations"].tolist() == pytest.approx([0.05, 0.1, 0.1], abs=1e-6)
    assert cropped["phoneme_durations"].sum() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no phonemes"),
        ({"phonemes": ["s", "zz"]}, "unknown phoneme zz"),
        ({"phonemes": "s s"}, "no phoneme_durations"),
        ({"phonemes": "s s", "phoneme_durations": [0.1]}, "bad phoneme_durations"),
        ({"phonemes": "s s", "phoneme_durations": [0.1, -0.1]}, "bad phoneme_durations"),
        ({"phonemes": "s s", "phoneme_durations": "long"}, "bad phoneme_durations"),
    ],
)
def test_records_without_usable_phonemes_are_named(record, reason):
    with pytest.raises(BadSample) as caught:
        Phonemes(["s"])(clip_of(torch.zeros(1, 800), **record))
    assert (caught.value.reason, caught.value.sample_id) == (reason, "a")


def test_a_score_brings_notes_and_is_not_cropped():
    record = {"phonemes": ["l", "a"], "phoneme_durations": [0.1, 0.4], "notes": [60, 60], "slurs": [0, 1]}
    record |= {"note_durations": [0.5, 0.5]}
    task = Score(["l", "a"])
    made = task(clip_of(torch.zeros(1, 4000), **record))
    assert made["notes"].tolist() == [60, 60]
    assert made["slurs"].dtype == torch.int64
    assert set(made) == set(task.kinds)
    with pytest.raises(BadSample, match="can not be cropped"):
        task(clip_of(torch.zeros(1, 800), start=0.1, **record))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_stored_features_are_cut_with_the_target(tmp_path, suffix):
    frames = torch.arange(100.0).unsqueeze(1).repeat(1, 3)
    if suffix == ".npy":
        np.save(tmp_path / "v.npy", frames.numpy())
    else:
        save_file({"video": frames}, tmp_path / "v.safetensors")
    record = {"features_path": f"v{suffix}", "features_key": "video"}
    task = StoredFeatures(3, frame_rate=25.0, stream="video")
    made = task(clip_of(torch.zeros(1, 8000), start=2.0, folder=tmp_path, **record))["video"]
    assert torch.equal(made, frames[50:75])
    with pytest.raises(BadSample, match="ends before 5"):
        task(clip_of(torch.zeros(1, 8000), start=5.0, folder=tmp_path, **record))
    with pytest.raises(BadSample, match=r"not \[L, 4\]"):
        StoredFeatures(4, 25.0)(clip_of(torch.zeros(1, 8000), folder=tmp_path, **record))
    with pytest.raises(BadSample, match="cannot read"):
        task(clip_of(torch.zeros(1, 8000), folder=tmp_path / "elsewhere", **record))


def test_stored_features_do_not_run_pickles(tmp_path):
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadSample, match="cannot read"):
        StoredFeatures(1, 25.0)(clip_of(torch.zeros(1, 800), folder=tmp_path, features_path="v.npy"))


def test_a_text_may_come_from_a_label_and_may_be_optional():
    clip = clip_of(torch.zeros(1, 800), labels={"word": "seven"})
    assert RecordText("word", stream="text")(clip) == {"text": "seven"}
    assert RecordText("caption", optional=True)(clip) == {}
    with pytest.raises(BadSample, match="has no 'caption'"):
        RecordText("caption")(clip)


@pytest.mark.skipif(not SPEECH.is_dir(), reason="needs the shared speech")
def test_phones_of_recorded_speech_are_read():
    lines = (SPEECH / "manifest_train.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "phonemes" in record]
    symbols = sorted({phone for record in records for phone in record["phonemes"].split()})
    dataset = InstructedDataset(
        AudioDataset(SPEECH / "manifest_train.jsonl", 16_000, fields=["phonemes"]),
        "phonemes_to_speech", ["say these sounds like {speaker}"], {"content": Phonemes(symbols, durations=False)},
    )  # fmt: skip
    assert len(dataset) == len(records) == 7
    item = dataset[0]
    assert [symbols[k] for k in item["phonemes"].tolist()] == records[0]["phonemes"].split()
    assert item["instruction"] == f"say these sounds like {records[0]['speaker']}"


# ------------------------------------------------------------------------------------------------------ instructions


def test_wordings_are_drawn_fixed_or_given(tmp_path):
    clip = clip_of(torch.zeros(1, 800), text="two", speaker="ben")
    torch.manual_seed(0)
    drawn = {Instructions(TEMPLATES)(clip) for _ in range(30)}
    assert drawn == {"say two like ben", "ben says two", "let ben say two"}
    assert Instructions(TEMPLATES, wording=1)(clip) == "ben says two"
    assert Instructions(TEMPLATES, wording="please {text}")(clip) == "please two"
    (tmp_path / "t.txt").write_text("# a comment\n\nonly {text}\n")
    assert Instructions(tmp_path / "t.txt")(clip) == "only two"


@pytest.mark.parametrize(
    ("templates", "wording", "sentence"),
    [
        ([], None, "there is no wording"),
        (["a"], 1, "there is no template 1"),
        (["say {text"], None, "'say {text' is none"),
        (["say {}"], None, "no name of a field"),
        ("nowhere.txt", None, "cannot read nowhere.txt"),
    ],
)
def test_templates_that_are_none_are_refused(templates, wording, sentence):
    with pytest.raises(UserError, match=sentence):
        Instructions(templates, wording)


def test_the_shipped_wordings_are_ten_a_task_and_held_out_ones_use_known_words():
    from omegaconf import OmegaConf

    from components.models.audio_generator.content_encoders.vocabulary import vocabulary_of

    values = {name: ["x"] for name in ("text", "speaker", "caption")}
    pool = OmegaConf.load(CONFIGS / "instructions" / "english.yaml")
    assert len(pool) >= 9
    for task, wordings in pool.items():
        assert (len(set(wordings.train)), len(set(wordings.held_out))) == (8, 2), task
        assert not set(wordings.train) & set(wordings.held_out)
        unknown = set(vocabulary_of(wordings.held_out, values)) - set(vocabulary_of(wordings.train, values))
        assert unknown == set(), task


# ---------------------------------------------------------------------------------------------------------- datasets


def test_an_item_has_its_target_instruction_streams_and_flags(corpus):
    dataset = InstructedDataset(
        audio(corpus, labels={"size": ["0", "1", "2"]}), "energy", TEMPLATES,
        {"text": RecordText("text"), "energy": Contour({"energy": EnergyCurve(HOP)})},
        streams={"text": "text", "contour": 1, "mask": "frames", "source_waveform": "waveform", "phonemes": "symbols"},
        wording=0, prepare={"level": NormalizeLevel(0.1)}, canvas=FixedCanvas(0.6), fields=["labels", "word"],
    )  # fmt: skip
    item = dataset[1]
    assert (item["id"], item["task"], item["instruction"]) == ("clip1", "energy", "say two like ben")
    assert item["waveform"].shape == (1, 4800)
    assert item["waveform"][:, 3200:].any().item() is False
    assert item["waveform"][:, :3200].square().mean().sqrt() == pytest.approx(0.1, rel=0.01)
    assert item["targets"] == {"size": 1}
    assert item["contour"].shape == (60, 1)
    assert {name[4:]: there for name, there in item.items() if name.startswith("has_")} == {
        "text": True, "contour": True, "mask": False, "source_waveform": False, "phonemes": False,
    }  # fmt: skip
    assert (item["source_waveform"].shape, item["mask"].shape) == ((1, 0), (0,))
    assert (item["labels"], item["word"]) == ({"word": "w", "size": "1"}, "w")
    assert dataset.durations.tolist() == [0.6] * 4
    assert dataset.fingerprint()["task"] == "energy"


def test_a_clip_whose_record_lacks_what_the_instruction_needs_is_left_out_and_named(corpus):
    dataset = InstructedDataset(audio(corpus), "tts", TEMPLATES)
    with pytest.raises(BadSample, match="clip3 can not be used: it has no 'speaker'") as caught:
        dataset[3]
    assert (caught.value.sample_id, caught.value.reason) == ("clip3", "no speaker")
    loader = plan_loader(make_dataloader(dataset, batch_size=4), seed=0, skip_bad=True)
    loader.start(0)
    (loaded,) = list(loader)
    assert [bad["reason"] for bad in loaded.bad] == ["no speaker"]
    assert len(loaded.batch["id"]) == 3
    refusing = InstructedDataset(audio(corpus), "tts", ["{text}"], canvas=FixedCanvas(0.35, too_long="refuse"))
    with pytest.raises(BadSample, match="does not fit") as caught:
        refusing[1]
    assert caught.value.sample_id == "clip1"


def test_conditions_of_a_crop_are_those_of_the_crop(corpus):
    whole = audio(corpus, training=False)[2]["waveform"]
    curve = EnergyCurve(HOP, window_length=HOP)
    dataset = InstructedDataset(
        audio(corpus), "t", ["x"],
        {"e": Contour({"energy": curve}), "gap": InPainting(HOP, 0.03, 0.05), "low": SuperResolution([4000], "low")},
        canvas=FixedCanvas(0.2, multiple_of=HOP),
    )  # fmt: skip
    starts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        item = dataset[2]
        matches = [s for s in range(0, 2401, HOP) if torch.equal(whole[:, s : s + 1600], item["waveform"])]
        assert len(matches) >= 1
        starts.add(matches[0])
        assert torch.equal(item["contour"][:, 0], curve(item["waveform"], RATE))
        keep = item["mask"].repeat_interleave(HOP) == 0
        assert torch.equal(item["source_waveform"][0, keep], item["waveform"][0, keep])
        assert item["low"].shape == item["waveform"].shape
    assert len(starts) > 5


def test_training_draws_by_the_generators_and_evaluation_by_the_clip(corpus):
    def make(training, seed=0):
        conditions = {"gap": InPainting(HOP, 0.05, 0.2)}
        return InstructedDataset(audio(corpus, training), "t", TEMPLATES, conditions, seed=seed)

    train, evaluation = make(True), make(False)
    assert (train.deterministic, evaluation.deterministic) == (False, True)

    def read(dataset, seed):
        torch.manual_seed(seed)
        return dataset[0]

    same, again, other = read(train, 1), read(train, 1), read(train, 2)
    assert torch.equal(same["mask"], again["mask"])
    assert same["seed"] == again["seed"] != other["seed"]
    first, second = read(evaluation, 1), read(evaluation, 2)
    assert torch.equal(first["mask"], second["mask"])
    assert (first["instruction"], first["seed"]) == (second["instruction"], second["seed"])
    assert first["seed"] != evaluation[1]["seed"]
    assert make(False, seed=1)[0]["seed"] != first["seed"]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    evaluation[0]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("conditions", "streams", "sentence"),
    [
        ({"a": RecordText("text")}, {"texts": "text"}, r"streams has no 'text' \(did you mean 'texts'\?\)"),
        ({"a": Contour({"e": EnergyCurve(HOP)})}, {"contour": 2}, "of kind 1, not 2"),
        ({"a": RecordText("text"), "b": RecordText("word", "text")}, None, "two conditions make 'text'"),
        ({}, {"x": "picture"}, "'picture' is neither"),
    ],
)
def test_streams_that_do_not_fit_are_refused(corpus, conditions, streams, sentence):
    with pytest.raises(UserError, match=sentence):
        InstructedDataset(audio(corpus), "t", ["x"], conditions, streams)


def multitask(corpus, training=True, **options):
    tasks = {
        "tts": partial(InstructedDataset, templates=["say {text}"], conditions={"text": RecordText("text")}),
        "gap": partial(InstructedDataset, templates=["fill"], conditions={"gap": InPainting(HOP)}),
        "energy": partial(
            InstructedDataset,
            templates=["as loud"],
            conditions={"text": RecordText("text"), "energy": Contour({"energy": EnergyCurve(HOP)})},
        ),
        "none": None,
    }
    return MultitaskDataset(audio(corpus, training), tasks, canvas=FixedCanvas(0.6), **options)


def test_tasks_share_their_clips_and_every_item_has_every_stream(corpus):
    dataset = multitask(corpus)
    assert list(dataset.named) == ["tts", "gap", "energy"]
    assert len(dataset) == 12
    assert dataset.streams == {"text": "text", "source_waveform": "waveform", "mask": "frames", "contour": 1}
    assert len({id(part.dataset) for part in dataset.datasets}) == 1
    keys = {frozenset(dataset[i]) for i in (0, 4, 8)}
    assert len(keys) == 1
    batch = PadCollate()([dataset[0], dataset[5], dataset[10]])
    assert batch["task"] == ["tts", "gap", "energy"]
    assert batch["text"] == ["one", "", "three"]
    assert batch["has_text"].tolist() == [True, False, True]
    assert batch["has_mask"].tolist() == [False, True, False]
    assert batch["source_waveform"].shape == (3, 1, 4800)
    assert batch["source_waveform_lens"].tolist() == [0, 4800, 0]
    assert (batch["mask"].shape, batch["mask_lens"].tolist()) == ((3, 60), [0, 60, 0])
    assert (batch["contour"].shape, batch["contour_lens"].tolist()) == ((3, 60, 1), [0, 0, 60])
    alone = PadCollate()([dataset[0], dataset[1]])
    assert (alone["contour"].shape, alone["mask"].shape) == ((2, 0, 1), (2, 0))
    assert alone["has_contour"].tolist() == [False, False]


def test_tasks_of_unlike_streams_and_no_tasks_are_refused(corpus):
    curves = {"e": EnergyCurve(HOP), "p": PitchCurve(HOP)}
    make = partial(InstructedDataset, templates=["x"])
    one, two = (partial(make, conditions={"c": Contour(dict(list(curves.items())[:count]))}) for count in (1, 2))
    with pytest.raises(UserError, match="task b: 'contour' is of kind 2, and of another task's 1"):
        MultitaskDataset(audio(corpus), {"a": one, "b": two})
    with pytest.raises(UserError, match="at least one"):
        MultitaskDataset(audio(corpus), {"a": None})


def test_a_mixture_has_tasks_in_given_shares_in_every_batch(corpus):
    sampler = partial(
        MixtureBatchSampler, budget=Budget(max_items=10, jitter=None), mode="sample", unit="samples",
        weights={"tts": 4, "gap": 4, "energy": 2}, num_items=40,
    )  # fmt: skip
    dataset = multitask(corpus)
    dataset.datasets[0].instructions = Instructions(["say {text}", "please say {text}"])
    loader = plan_loader(make_dataloader(dataset, batch_sampler=sampler), seed=0)
    loader.start(0)
    batches = [loaded.batch for loaded in loader]
    assert len(batches) == 4
    for batch in batches:
        assert batch["task"].count("energy") in (1, 2, 3)
        assert torch.equal(batch["has_mask"], torch.tensor([task == "gap" for task in batch["task"]]))
        assert batch["waveform"].shape == (10, 1, 4800)
    loader.start(0)
    again = [loaded.batch for loaded in loader]
    assert [batch["instruction"] for batch in again] == [batch["instruction"] for batch in batches]
    assert all(torch.equal(a["mask"], b["mask"]) for a, b in zip(again, batches))


def test_yaml_makes_a_mixed_dataset(corpus):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from utils.validate import validate

    register_omegaconf_resolvers()
    home = "components.data.generation"
    task = {"_target_": f"{home}.InstructedDataset", "_partial_": True}
    gap = {"_target_": f"{home}.InPainting", "hop_length": HOP}
    config = OmegaConf.create(
        {
            "templates": TEMPLATES,
            "dataset": {
                "_target_": f"{home}.MultitaskDataset",
                "dataset": {"_target_": "components.data.AudioDataset", "manifest": str(corpus), "sample_rate": RATE},
                "streams": {"mask": "frames", "source_waveform": "waveform", "text": "text", "features": 12},
                "canvas": {"_target_": f"{home}.FixedCanvas", "seconds": 0.6},
                "tasks": {
                    "tts": {**task, "templates": "${templates}", "wording": 2},
                    "gap": {**task, "templates": ["fill"], "conditions": {"gap": gap}},
                },
            },
        }
    )
    assert validate(config) == []
    dataset = instantiate(config.dataset, _convert_="all")
    assert dataset[1]["instruction"] == "let ben say two"
    assert dataset[4]["features"].shape == (0, 12)
    assert dataset[4]["mask"].shape == (60,)
