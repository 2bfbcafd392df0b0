"""Two folders or manifests in, a table and a file of scores out."""

import json

import numpy as np
import pytest
import soundfile

from components.data import write_manifest
from components.metrics import Collection, FrechetAudioDistance, LogMelStatsEmbedder, SiSdr, evaluate, paired_references
from components.metrics.__main__ import build_metrics, main
from tests.components.metric_clips import RATE, tone
from tests.components.test_metrics_embedders import stored_run
from utils.compose import CONFIGS
from utils.errors import UserError

CONFIG_NAMES = sorted(path.stem for path in (CONFIGS / "metrics").glob("*.yaml"))
NUM_METRICS = {
    "control": 5,
    "enhancement": 5,
    "judged": 6,
    "recognised": 1,
    "super_resolution": 5,
    "text_to_audio": 5,
    "unpaired": 4,
}


def write(folder, seeds, noise=0.01, prefix="clip", **fields):
    """Tones with a manifest, `clips.jsonl`."""
    folder.mkdir(parents=True)
    records = []
    for seed in seeds:
        clip = tone(f"{prefix}{seed}", seconds=0.5, hertz=150 + 10 * seed, noise=noise, seed=seed)
        soundfile.write(folder / f"{clip.id}.wav", clip.samples, RATE)
        word, speaker = ("no", "yes", "maybe")[seed % 3], ("ann", "ben")[seed % 2]
        record = {"id": clip.id, "audio_path": f"{clip.id}.wav", "labels": {"word": word, "speaker": speaker}}
        records.append(record | {key: value.format(seed=seed) for key, value in fields.items()})
    write_manifest(folder / "clips.jsonl", records)
    return folder


def test_every_config_is_known_here():
    assert NUM_METRICS.keys() == set(CONFIG_NAMES)


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_a_config_builds_and_says_how_it_is_run(name, tmp_path):
    pytest.importorskip("pystoi")
    pytest.importorskip("pesq")
    metrics = build_metrics(name, sample_rate=RATE, judge_dir=str(stored_run(tmp_path / "run")))
    assert len(metrics) == NUM_METRICS[name]
    head = (CONFIGS / "metrics" / f"{name}.yaml").read_text().splitlines()
    assert any("python -m components.metrics" in line and f"--metrics {name}" in line for line in head[:3])


def test_folders_are_paired_by_id_and_scored(tmp_path, capsys):
    real = write(tmp_path / "real", range(12), noise=0.001)
    made = write(tmp_path / "made", range(2, 10), noise=0.03)
    (real / "clips.jsonl").unlink()
    (made / "clips.jsonl").unlink()
    out, items = tmp_path / "scores" / "all.json", tmp_path / "items.jsonl"
    assert main([str(made), str(real), "--metrics", "super_resolution", "--out", str(out), "--items", str(items)]) == 0
    content = json.loads(out.read_text())
    assert content["sets"]["num_pairs"] == 8
    assert content["sample_rate"] == RATE
    distance = content["scores"]["log_spectral_distance"]
    assert distance["num_used"] == 8
    assert 0 < distance["low"] < distance["value"] < distance["high"]
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    assert {row["id"] for row in rows} == {f"clip{i}" for i in range(2, 10)}
    assert np.mean([row["log_spectral_distance"] for row in rows]) == pytest.approx(distance["value"])
    assert "log_spectral_distance ↓" in capsys.readouterr().out


def test_unpaired_sets_are_compared_and_what_is_missing_is_said(tmp_path, capsys):
    real = write(tmp_path / "real", range(16), prefix="real")
    made = write(tmp_path / "made", range(8), prefix="made")
    arguments = [str(made / "clips.jsonl"), str(real / "clips.jsonl"), "frechet_distance.num_draws=5"]
    assert main([*arguments, "--metrics", "unpaired", "--out", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores["frechet_distance"]["details"]["num_reference"] == 16
    assert scores["frechet_distance"]["details"]["floor_num_clips"] == 8
    assert scores["memorisation"]["value"] is None
    assert scores["memorisation"]["num_skipped"] == {"needs the training clips": 8}
    assert "the floor is for 8 against 8 clips" in capsys.readouterr().out


def test_training_clips_find_copies(tmp_path):
    real = write(tmp_path / "real", range(20, 36), prefix="real")
    training = write(tmp_path / "training", range(16), prefix="train")
    made = write(tmp_path / "made", range(4), prefix="made")  # the very clips, under other names
    arguments = [str(made), str(real), "--training", str(training), "--metrics", "unpaired"]
    assert main([*arguments, "--out", str(tmp_path / "scores.json")]) == 0
    memorisation = json.loads((tmp_path / "scores.json").read_text())["scores"]["memorisation"]
    assert (memorisation["value"], memorisation["details"]["num_copies"]) == (1.0, 4)
    assert memorisation["details"]["nearest"][0]["training_id"].endswith("train0")


def test_a_stored_tagger_judges(tmp_path):
    run = stored_run(tmp_path / "run")
    made, real = (write(tmp_path / name, range(6)) / "clips.jsonl" for name in ("made", "real"))
    arguments = [str(made), str(real), "--metrics", "judged", "--judge", str(run)]
    assert main([*arguments, "--out", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores["word_accuracy"]["num_used"] == scores["speaker_accuracy"]["num_used"] == 6
    assert scores["word_accuracy"]["ceiling"] == scores["word_accuracy"]["value"]  # the same clips
    assert scores["kl"]["value"] == pytest.approx(0, abs=1e-9)
    assert scores["speaker_similarity"]["details"]["num_speakers"] == 2


def test_a_generators_results_name_their_references(tmp_path):
    write(tmp_path / "real", range(3), prefix="real", noise=0.001)
    made = write(tmp_path / "made", range(3), prefix="made", reference_path="../real/real{seed}.wav", text="seven")
    assert main([str(made / "clips.jsonl"), "si_sdr.highest=50", "stoi=null", "pesq=null", "--metrics", "enhancement",
                 "--out", str(tmp_path / "scores.json")]) == 0  # fmt: skip
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert set(scores) == {"si_sdr", "log_spectral_distance", "log_spectral_distance_speech"}
    assert scores["si_sdr"]["num_used"] == 3
    assert scores["si_sdr"]["value"] > 10


def test_several_samples_of_one_content_share_a_reference_which_counts_once(tmp_path):
    real = write(tmp_path / "real", range(4), noise=0.001)
    made = write(tmp_path / "made", range(2), prefix="made", reference_id="clip1")
    generated, reference = (Collection.read(name, path / "clips.jsonl") for name, path in (("g", made), ("r", real)))
    metrics = {"si_sdr": SiSdr(), "fad": FrechetAudioDistance(LogMelStatsEmbedder(RATE), num_draws=2, num_splits=2)}
    seen = []
    results = evaluate(metrics, generated, reference, progress=lambda done, total: seen.append((done, total)))
    assert results["si_sdr"].num_used == 2
    assert results["fad"].details["num_reference"] == 4
    assert seen[-1] == (6, 6)


def test_a_part_of_a_collection_is_taken_from_all_over_it(tmp_path):
    folder = write(tmp_path / "made", range(9))
    part = Collection.read("generated", folder / "clips.jsonl", max_clips=3)
    assert [record["id"] for record in part.records] == ["clip0", "clip3", "clip6"]
    assert len(Collection.read("generated", folder / "clips.jsonl", max_clips=30).records) == 9


def test_references_are_found_by_path_id_and_reference_id(tmp_path):
    reference = [{"id": "a", "audio_path": str(tmp_path / "a.wav")}, {"id": "b", "audio_path": str(tmp_path / "b.wav")}]
    generated = [
        {"id": "b"},
        {"id": "x", "reference_id": "a"},
        {"id": "y", "reference_path": "b.wav"},
        {"id": "z", "reference_path": "c.wav", "text": "see"},
        {"id": "unknown"},
    ]
    found = paired_references(generated, reference, tmp_path)
    own = {"id": "z (reference)", "audio_path": str(tmp_path / "c.wav"), "text": "see"}
    assert found == [1, 0, 1, own, None]


def test_audio_that_can_not_be_read_is_left_out_and_counted(tmp_path, capsys):
    real = write(tmp_path / "real", range(4))
    made = write(tmp_path / "made", range(5))
    (made / "clip1.wav").write_bytes(b"RIFF")
    (real / "clip2.wav").unlink()
    options = ["--metrics", "super_resolution", "--out", str(tmp_path / "scores.json"), "--sample-rate", str(RATE)]
    for folder in (made, real):
        records = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
        write_manifest(folder / "clips.jsonl", [r | {"duration": 0.5, "sample_rate": RATE} for r in records])
    assert main([str(made / "clips.jsonl"), str(real / "clips.jsonl"), *options]) == 0
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["scores"]["log_spectral_distance"]["num_used"] == 2
    assert content["scores"]["log_spectral_distance"]["num_skipped"] == {"no reference that can be read": 2}
    assert sum(content["sets"]["generated"]["left_out"].values()) == 1
    assert content["sets"]["reference"]["left_out"] == {"no such file": 1}
    assert "reference: left out 1 no such file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["frechet_distance.num_drawss=5"], r"num_drawss: unknown argument .* \(did you mean 'num_draws'\?\)"),
        (["frechet_distanc=null"], r"frechet_distanc: no such metric \(did you mean 'frechet_distance'\?\)"),
        (["kernel_distance.kernel=linear"], "kernel: expected gaussian or polynomial, got 'linear'"),
        (["plainly"], "'plainly': expected key=value"),
        (["kernel_distance.embedder.n_mels=many"], "n_mels: expected a whole number, got 'many'"),
    ],
)
def test_mistakes_in_settings_are_one_sentence(settings, told):
    with pytest.raises(UserError, match=told):
        build_metrics("unpaired", settings, sample_rate=RATE)


def test_mistakes_at_the_prompt_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="--metrics: 'unpared' is none of control, enhancement, judged"):
        build_metrics("unpared")
    with pytest.raises(UserError, match=r"--metrics: there is no file none\.yaml"):
        build_metrics("none.yaml")
    with pytest.raises(UserError, match=r"judge_dir.*--judge"):
        build_metrics("judged", sample_rate=RATE)
    (tmp_path / "mine.yaml").write_text("a: {_target_: components.metrics.YinPitch}\n")
    with pytest.raises(UserError, match=r"metrics\.a: a YinPitch is no metric"):
        build_metrics(str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match="does not exist"):
        main([str(tmp_path / "nowhere"), "--metrics", "unpaired"])
