"""Recognition from the prompt: a run that learns to hear three beeps, what inference.py makes of it, two processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import inference
import train
from components.data import read_manifest
from components.decoding.__main__ import main as decoding_command
from tests.tasks import two_recognisers
from tests.tasks.beeps import RATE, SIZES, TONES, speak, write_beeps
from tests.tasks.prompt import at_prompt
from tests.trainer.test_two_processes import torchrun

EXACT = {"val/wer", "val/cer", "val/length_ratio", "val/usable", "val/infeasible"}  # made of whole numbers
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a trained run, `run`, its corpus, and a long recording, `long.wav`."""
    folder = tmp_path_factory.mktemp("asr")
    for number, (split, count) in enumerate((("train", 96), ("val", 12), ("test", 12))):
        write_beeps(folder / "beeps", split, count, seed=number)
    spoken = np.random.default_rng(5).choice(list(TONES), 60).tolist()
    soundfile.write(folder / "long.wav", speak(spoken, seed=9), RATE)
    (folder / "long.txt").write_text(" ".join(spoken))
    done = at_prompt(
        train.main, folder, "experiment=asr/common_voice", "exp_dir=run", "recipes=null", "num_workers=0",
        "data_dict.common_voice.output_dir=beeps", f"sample_rate={RATE}", "tokenizer=word",
        "model/encoder=recurrent", *SIZES["recurrent"], "model.augment=null", "model.encoder.dropout=0.0",
        "train_dataloader.dataset.dataset.augment.speed=null", "max_seconds=6", "epochs=14", "optimizer.lr=5e-3",
        "warmup_params.warmup_steps=5", "trainer.mixed_precision=null", "trainer.val_every_n_epochs=7",
        "predictor.fields=[speaker]",
    )  # fmt: skip
    assert done.code == 0, done.err[-3000:]
    return folder


def infer(folder: Path, *arguments: str, **options):
    done = at_prompt(inference.main, folder, "exp_dir=run", *arguments, **options)
    assert done.code == 0, done.err[-3000:]
    return done.out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_learned_is_heard_and_scored(place):
    told = infer(place, "evaluate=true")
    assert "test: 12 predictions  wer 0  cer 0  ser 0  utterances 12" in told
    assert "WER 0.00 %" in told
    assert "speaker   a" in told
    records = lines(place / "run/predictions/test.jsonl")
    assert [record["hypothesis"] for record in records] == [
        record["text"] for record in read_manifest(place / "beeps/test.jsonl")
    ]
    assert json.loads((place / "run/predictions/test.report/summary.json").read_text())["wer"] == 0
    again = infer(place, "evaluate=true", "+evaluation.unit=char")
    assert "12 predictions (12 kept)" in again
    assert "CER 0.00 %" in again


def test_a_file_a_folder_a_manifest_and_a_list_on_standard_input(place):
    clips = [str(place / f"beeps/test/{number:03d}.wav") for number in range(3)]
    texts = [record["text"] for record in read_manifest(place / "beeps/test.jsonl")]
    for audio, count, stdin in (
        (clips[0], 1, ""),
        (str(place / "beeps/test"), 12, ""),
        (str(place / "beeps/test.jsonl"), 12, ""),
        ("-", 2, f"{clips[0]}\n\n{clips[1]}\n"),
    ):
        told = infer(place, f"audio={audio}", "output=said.jsonl", stdin=stdin)
        records = lines(place / "said.jsonl")
        assert [record["hypothesis"] for record in records] == texts[:count]
        assert ("wer 0" in told) == audio.endswith(".jsonl")  # nothing is known of plain files


def test_decoders_and_files_are_chosen_at_the_prompt(place):
    told = infer(place, "+data_dict.common_voice.test.max_samples=4", "+infer_args.decoder.ctc_prefix_beam.beam_size=4",
                 "+infer_args.num_best=3", "+infer_args.formats=[text,n_best,ctm,srt,textgrid]")  # fmt: skip
    folder = place / "run/predictions/common_voice_test"
    assert f"common_voice_test: text, n_best, ctm, srt, textgrid -> {folder.relative_to(place)}" in told
    assert len((folder / "text.tsv").read_text().splitlines()) == 4
    assert len(lines(folder / "n_best.jsonl")[0]["n_best"]) == 3
    assert len(list((folder / "srt").iterdir())) == 4
    for argument, sentence in {
        "+infer_args.decoder=ctc_prefixbeam": "error: predictor: decoder: 'ctc_prefixbeam' is none of attention_beam",
        "+infer_args.decoder=transducer_greedy": "error: decoder: it reads the head 'transducer'; the model has ctc",
        "+infer_args.formats=[vtt]": "formats: 'vtt' is none of text, n_best, ctm, srt, textgrid",
    }.items():
        done = at_prompt(inference.main, place, "exp_dir=run", "output=wrong.jsonl", argument)
        assert done.code == 2
        assert sentence in done.err


def test_a_language_model_and_hotwords_change_what_is_heard(place):
    """One that has never met "low" and a hotword that is nowhere in the audio, at weights out of all proportion."""
    (place / "text.txt").write_text("mid high mid\nhigh mid high\n" * 5)
    tokenizer = place / "run/artefacts/tokenizer.json"
    made = [
        "ngram",
        str(place / "text.txt"),
        str(place / "lm.arpa"),
        "order=2",
        f"tokenizer={tokenizer}",
        "units=words",
    ]
    assert decoding_command(made) == 0
    option = "+infer_args.decoder.ctc_prefix_beam_lm"
    for settings, word in (
        ((f"{option}.word_lm=lm.arpa", f"{option}.word_lm_weight=20.0"), "low"),
        ((f"{option}.hotwords=[low low low low low low]", f"{option}.hotword_weight=40.0"), "mid"),
    ):
        infer(place, "output=changed.jsonl", "overwrite=true", *settings)
        changed = lines(place / "changed.jsonl")
        before, after = (" ".join(record[key] for record in changed) for key in ("reference", "hypothesis"))
        assert after.count(word) < before.count(word)


@pytest.mark.parametrize("decoder", ["ctc_greedy", "ctc_prefix_beam"])
def test_a_long_recording_is_heard_in_chunks_as_if_it_were_whole(place, decoder):
    spoken = (place / "long.txt").read_text()
    infer(place, f"audio={place / 'long.wav'}", "output=long.jsonl", "+infer_args.chunk_seconds=3.0",
          "+infer_args.context_seconds=1.0", f"+infer_args.decoder={decoder}", "+infer_args.formats=[srt]")  # fmt: skip
    [record] = lines(place / "long.jsonl")
    assert record["duration"] > 12
    assert record["hypothesis"] == spoken
    begins = [word["begin"] for word in record["words"]]
    assert begins == sorted(begins)
    [captions] = (place / "long/srt").iterdir()
    assert captions.read_text().startswith("1\n00:00:00,")
    summary = json.loads((place / "long.summary.json").read_text())
    assert summary["performance"]["rtf"]["phases"].keys() == {"chunks"}


def test_two_processes_count_and_learn_the_same_as_one(tmp_path):
    write_beeps(tmp_path, "train", 12)
    write_beeps(tmp_path, "val", 11, seed=1)
    done = torchrun("-m", "tests.tasks.two_recognisers", str(tmp_path), str(tmp_path / "out.json"),
                    ACCELERATE_USE_CPU="true")  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    together = json.loads((tmp_path / "out.json").read_text())
    assert together.pop("num_processes") == 2
    for case, of_two in together.items():
        alone = two_recognisers.validated_and_trained(str(tmp_path), *case.split(), 1)
        assert alone["metrics"].keys() == of_two["metrics"].keys() >= EXACT
        for name, value in alone["metrics"].items():
            expected = value if name in EXACT else pytest.approx(value, rel=1e-5)
            assert of_two["metrics"][name] == expected, (case, name)
        for name, value in alone["weights"].items():
            assert of_two["weights"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), (case, name)
