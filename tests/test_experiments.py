"""Every shipped experiment takes real steps from the prompt, and what it leaves behind is run by inference.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

import train as train_script
from tests.components.clips import write_clip
from tests.tasks.beeps import write_beeps
from tests.tasks.prompt import at_prompt
from trainer.checkpoint import read_weights

ROOT = Path(__file__).parents[1]
FOUND = sorted(
    str(p.relative_to(ROOT / "configs/experiment"))[:-5] for p in (ROOT / "configs/experiment").rglob("*.yaml")
)
FEW_WORDS = (
    "data_dict.spoken_words.words=[zero,one,two,three]",
    "data_dict.spoken_words.num_takes={train:1,val:1,test:1,heard:1}",
)
FEW_VOICES = (
    "data_dict.spoken_voices.words=[one,two]",
    "data_dict.spoken_voices.num_takes={train:3,val:1,test:0,heard:1}",
)
STRINGS = (
    "corpus=digit_strings",
    "data_root=strings",
    "data_dict.digit_strings.num_strings={train:8,val:2,test:2,unseen:2}",
)
BATCHES = ("train_dataloader.batch_size=4",)
# Corpora for days of training, in their place a few beeps, and a layer of 32 in the place of twelve of 256.
BEEPS = (
    "recipes=null",
    "data_dict.${corpus}.output_dir=beeps",
    "sample_rate=8000",
    "num_workers=0",
    "max_seconds=8",
    "model.encoder.dim=32",
    "model.encoder.num_layers=1",
    "model.encoder.feed_forward_dim=32",
    "trainer.mixed_precision=null",
)
UNJUDGED = ("recipes.judge=null", "callbacks.demonstration.judges=null", "trainer.val_every_n_steps=2")
SMALL = {
    "asr/aishell": (*BEEPS, "model.heads.paraformer.decoder.num_layers=1", "model.heads.paraformer.decoder.ff_dim=32"),
    "asr/attention_digits": STRINGS + BATCHES,
    "asr/common_voice": BEEPS,
    "asr/ctc_digits": STRINGS + BATCHES,
    "asr/debug": STRINGS + BATCHES,
    "asr/folder": ("data_root=said", "data_dict.custom_folder.validation_split=0.2", "max_seconds=4"),
    "asr/librispeech": (
        *BEEPS,
        "tokenizer.vocab_size=16",
        "model.heads.ctc.intermediate_layers=[1]",
        "model.heads.attention.dim=32",
        "model.heads.attention.num_layers=1",
        "model.heads.attention.ff_dim=32",
    ),
    "asr/paraformer_digits": (*STRINGS, *BATCHES, "plots.attention=true", "plots.predictor=true"),
    "asr/paraformer_lossy_cif": STRINGS + BATCHES,
    "asr/phonemes_wav2vec2": (*STRINGS, "max_seconds=16", "model.encoder.config.num_hidden_layers=1"),
    "asr/transducer_digits": STRINGS + BATCHES,
    "audio_generation/debug": (),
    "audio_generation/enhancement": ("data_root=digits", *UNJUDGED),
    "audio_generation/multitask": ("data_root=digits", *UNJUDGED),
    "audio_generation/phonemes": (*FEW_VOICES, *UNJUDGED),
    "audio_generation/spoken_digits": ("data_root=digits", *UNJUDGED),
    "audio_generation/spoken_voices": (*FEW_VOICES, *UNJUDGED),
    "autoencoding/debug": (),
    "autoencoding/oobleck_overfit": (
        "model.generator.hidden_size=8",
        "model.generator.decoder_channels=8",
        "model.discriminator.num_channels=4",
    ),
    "tagging/concat": FEW_WORDS,
    "tagging/debug": (),
    "tagging/environmental_sounds": ("data_root=sounds", "trainer.val_every_n_epochs=1"),
    "tagging/folder": ("data_root=sounds",),
    "tagging/judge_spoken_digits": ("data_root=digits",),
    "tagging/judge_spoken_digits_mfcc": ("data_root=digits",),
    "tagging/judge_spoken_voices": FEW_VOICES,
    "tagging/judge_spoken_voices_mfcc": FEW_VOICES,
    "tagging/spoken_digits": ("data_root=digits",),
    "tagging/spoken_words": FEW_WORDS,
}
# By task: what is trained, what is watched, which pictures are left.
TELLS = {
    "tagging": ("train/loss", "val/accuracy", "confusion_*.png"),
    "asr": ("train/loss", "val/length_ratio", None),
    "audio_generation": ("train/loss", "val/loss", "spectrograms.png"),
    "autoencoding": ("train/generator_loss", "val/spectral", "*.png"),
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with tiny corpora in the layouts of the true ones."""
    folder = tmp_path_factory.mktemp("workplace")
    for i, (digit, take) in enumerate((d, t) for d in range(4) for t in (0, 1, 10, 11, *range(20, 30))):
        write_clip(folder / "digits/recordings" / f"{digit}_theo_{take}.wav", 0.3, 8_000, seed=i % 5)
    for i, name in enumerate(("001 - Dog bark", "002 - Rain")):
        for fold in (1, 2, 3, 4):
            for clip in range(4):
                write_clip(folder / "sounds" / name / f"{fold}-{clip}{i}-A.ogg", 1.0, 44_100, seed=i)
    for speaker in ("theo", "lucas"):
        for digit, take in ((d, t) for d in (0, 3) for t in (0, 10, 20)):
            write_clip(folder / "strings/recordings" / f"{digit}_{speaker}_{take}.wav", 0.3, 8_000, seed=digit)
    for number in range(20):
        path = write_clip(folder / "said" / f"{number}.flac", 0.5, 16_000, seed=number % 3)
        path.with_suffix(".txt").write_text(("one", "two", "three")[number % 3])
    for number, split in enumerate(("train", "val", "test")):
        write_beeps(folder / "beeps", split, 8, seed=number)
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OSTINATO_CACHE": str(folder / "cache"),
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def train(folder: Path, *arguments: str) -> Path:
    done = run(folder, "accelerate", "launch", "--cpu", str(ROOT / "train.py"), *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    reached, where, then = done.stdout.strip().splitlines()[-1].split(" | ")
    assert then == f"next: python inference.py exp_dir={where}"
    assert reached
    return folder / where


def train_here(folder: Path, *arguments: str) -> Path:
    """The same in this process, which takes seconds less."""
    done = at_prompt(train_script.main, folder, *arguments)
    assert done.code == 0, done.err[-4000:]
    return folder / done.out.strip().splitlines()[-1].split(" | ")[1]


def test_every_experiment_is_known_here():
    assert sorted(SMALL) == FOUND
    assert len(FOUND) == 29


@pytest.mark.parametrize("experiment", sorted(SMALL))
def test_an_experiment_takes_steps_and_leaves_what_is_promised(workplace, experiment):
    task = experiment.split("/")[0]
    is_spoken = task != "asr" and "digits" not in experiment and "sounds" not in experiment
    if is_spoken and not importlib.util.find_spec("espeakng_loader"):
        pytest.skip("the corpus is spoken by espeakng-loader")
    small = [item.replace("${corpus}", experiment.split("/")[1]) for item in SMALL[experiment]]
    few = (f"experiment={experiment}", "max_steps=2", "trainer.log_every_n_steps=1", *small)
    exp_dir = train(workplace, *few) if task == "audio_generation" else train_here(workplace, *few)
    lines = [json.loads(line) for line in (exp_dir / "metrics.jsonl").read_text().splitlines()]
    loss, watched, picture = TELLS[task]
    assert [line["step"] for line in lines if loss in line] == [1, 2]
    assert any(watched in line for line in lines)
    environment = json.loads((exp_dir / "environment.json").read_text())
    assert '"sha256"' in json.dumps(environment["data"]["train_dataloader"])
    assert (exp_dir / "checkpoints/last/model.safetensors").is_file()
    assert list((exp_dir / "tensorboard").iterdir())
    if picture is not None and "judge" not in experiment:  # which leaves no samples
        assert list((exp_dir / "samples").rglob(picture))
        assert list((exp_dir / "samples").rglob("*.wav"))


def test_a_generator_makes_what_is_asked_for_at_the_prompt(workplace):
    exp_dir = train(workplace, "experiment=audio_generation/debug", "exp_dir=makes")
    infer = (sys.executable, str(ROOT / "inference.py"), f"exp_dir={exp_dir}")
    done = run(workplace, *infer, "+data_dict.spoken_voices.test.max_samples=3", "infer_args.seed=1")
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (exp_dir / "predictions/spoken_voices_test.jsonl").read_text().splitlines()]
    assert len(records) == 3
    assert records[0]["labels"].keys() == {"word", "speaker"}
    sounds = [exp_dir / "predictions" / record["audio_path"] for record in records]
    assert all(soundfile.info(sound).duration == pytest.approx(0.8) for sound in sounds)
    done = run(workplace, *infer, 'prompt="say one like anna"', "output=one.wav", "infer_args.num_steps=3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert soundfile.info(workplace / "one.wav").samplerate == 8_000
    assert json.loads((workplace / "one.jsonl").read_text())["instruction"] == "say one like anna"
    done = run(workplace, *infer, "infer_args.steps=3")
    assert "error: infer_args.steps: no such key; did you mean 'infer_args.num_steps'?" in done.stderr


def test_the_same_command_twice_gives_the_same_weights(workplace):
    command = ("experiment=tagging/spoken_digits", "data_root=digits", "max_steps=3")
    runs = [train(workplace, *command, f"exp_dir={name}") for name in ("once", "twice")]
    once, twice = (read_weights(run / "checkpoints/last/model.safetensors") for run in runs)
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_inference_on_the_corpus_on_files_and_on_a_folder(workplace):
    exp_dir = train(workplace, "experiment=tagging/spoken_digits", "data_root=digits", "max_steps=2", "exp_dir=heard")
    infer = (sys.executable, str(ROOT / "inference.py"), f"exp_dir={exp_dir}")
    done = run(workplace, *infer, "+data_dict.spoken_digits.test.max_samples=3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "spoken_digits_test: 3 predictions  accuracy" in done.stdout
    records = [json.loads(line) for line in (exp_dir / "predictions/spoken_digits_test.jsonl").read_text().splitlines()]
    assert len(records) == 3
    assert {"id", "predictions", "targets"} <= set(records[0])
    assert 0 < records[0]["predictions"]["word"]["score"] <= 1

    first, second = (str(workplace / f"digits/recordings/{name}_theo_0.wav") for name in (0, 1))
    for audio, number in ((f"[{first},{second}]", 2), (str(workplace / "digits/recordings"), 56), (first, 1)):
        done = run(workplace, *infer, f"audio={audio}", "output=said.jsonl")
        assert done.returncode == 0, done.stderr[-3000:]
        assert len((workplace / "said.jsonl").read_text().splitlines()) == number
