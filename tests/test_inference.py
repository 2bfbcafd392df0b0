"""inference.py from the prompt: on two processes, killed and continued, scored, on wordings that were held out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).parents[1]
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
TEST = "+data_dict.spoken_voices.test.max_samples"
pytestmark = pytest.mark.slow


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"OSTINATO_CACHE": str(folder / "cache"), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def run(folder: Path, *arguments: str, launcher: tuple[str, ...] = (sys.executable,), script: str = "inference.py"):
    command = [*launcher, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a generator that has seen four batches, `run`."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("inference")
    voices = "data_dict.spoken_voices.num_takes={train:2,val:1,test:3,heard:1}"
    done = run(folder, "experiment=audio_generation/debug", "exp_dir=run", voices, script="train.py")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def infer(folder: Path, *arguments: str, **options) -> str:
    done = run(folder, "exp_dir=run", *arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_make_each_sound_once_and_the_same_as_one(workplace):
    told = infer(workplace, f"{TEST}=7", "batch_size=2", "output=two/x.jsonl", launcher=LAUNCH)
    assert told.count("x.jsonl") == 1  # one of them speaks
    assert "2 x cpu" in told
    infer(workplace, f"{TEST}=7", "output=one/x.jsonl")
    one, two = (lines(workplace / name / "x.jsonl") for name in ("one", "two"))
    assert len(two) == len({record["id"] for record in two}) == 7
    assert sorted(path.name for path in (workplace / "two").iterdir()) == ["x", "x.jsonl", "x.summary.json"]
    for own, other in zip(one, two, strict=True):
        assert own | {"peak": 0} == other | {"peak": 0}
        sounds = [soundfile.read(workplace / name / own["audio_path"])[0] for name in ("one", "two")]
        assert abs(sounds[0] - sounds[1]).max() < 2e-3
    summary = json.loads((workplace / "two" / "x.summary.json").read_text())
    assert (summary["num_items"], summary["performance"]["num_processes"]) == (7, 2)
    assert summary["weights_sha256"] == json.loads((workplace / "one" / "x.summary.json").read_text())["weights_sha256"]


def test_a_killed_inference_is_continued_and_a_spoilt_sound_made_again(workplace):
    command = [sys.executable, str(ROOT / "inference.py"), "exp_dir=run", f"{TEST}=12", "batch_size=1"]
    command += ["infer_args.num_steps=60", "output=killed/x.jsonl"]
    process = subprocess.Popen(command, cwd=workplace, env=environment(workplace), stdout=subprocess.DEVNULL)
    part = workplace / "killed" / "x.parts" / "rank_00000.jsonl"
    deadline = time.monotonic() + 120
    while not part.exists() or len(part.read_text().splitlines()) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_done = len(part.read_text().splitlines())
    assert num_done < 12
    sounds = sorted((workplace / "killed" / "x").rglob("*.wav"))
    assert num_done <= len(sounds) <= num_done + 1
    records = [json.loads(line)["records"][0] for line in part.read_text().splitlines()]
    kept, spoilt = (workplace / "killed" / record["audio_path"] for record in records[:2])
    before = kept.stat().st_mtime_ns
    spoilt.write_bytes(b"RIFF")
    told = infer(workplace, *command[3:])
    assert f"1 of {num_done} earlier results are made again, the first: killed/{records[1]['audio_path']}" in told
    assert f"12 predictions ({num_done - 1} kept)" in told
    assert kept.stat().st_mtime_ns == before
    assert soundfile.info(spoilt).duration == pytest.approx(0.8)
    assert len(lines(workplace / "killed" / "x.jsonl")) == 12
    changed = infer(workplace, *command[3:], "infer_args.num_steps=2")
    assert "made again, as settings differ: predictor.num_steps was 60, is 2" in changed


def test_what_is_there_is_scored_without_making_it_again(workplace):
    infer(workplace, "output=scored.jsonl", "infer_args.num_samples=2")
    [first, *_] = sorted((workplace / "scored").rglob("*.wav"))
    before = first.stat().st_mtime_ns
    told = infer(workplace, "output=scored.jsonl", "infer_args.num_samples=2", "evaluate=true",
                 "evaluation.metrics=unpaired", "evaluation.max_training_clips=5")  # fmt: skip
    assert first.stat().st_mtime_ns == before
    assert "frechet_distance" in told
    scores = json.loads((workplace / "scored.scores.json").read_text())
    assert scores["sets"]["text_to_speech"]["training"]["num_clips"] == 5
    records = lines(workplace / "scored.jsonl")
    assert len(records) == 2 * len({record["reference_id"] for record in records})
    assert all("memorisation" in record["scores"] for record in records)


def test_samplers_and_wordings_are_chosen_at_the_prompt(workplace):
    pytest.importorskip("diffusers")
    told = infer(workplace, f"{TEST}=3", "wordings=held_out", "infer_args.sampler=unipc", "infer_args.grid=sway",
                 "infer_args.guidance_scale=5.0", "infer_args.num_steps=25",
                 "infer_args.guidance_interval=[0,0.8]")  # fmt: skip
    assert "spoken_voices_test_held_out: 3 predictions" in told
    held_out = ("speak the word ", "i want to hear the word ")
    for record in lines(workplace / "run/predictions/spoken_voices_test_held_out.jsonl"):
        assert record["instruction"].startswith(held_out)
        assert (record["sampler"], record["num_steps"], record["guidance_scale"]) == ("unipc", 25, 5.0)


def test_sets_are_named_by_a_file_of_a_group(workplace):
    (workplace / "configs" / "data").mkdir(parents=True)
    entry = "defaults: [/inference, _self_]\n"
    (workplace / "configs" / "mine.yaml").write_text(entry)
    (workplace / "configs" / "data" / "few.yaml").write_text("spoken_voices: {test: {max_samples: 2}}\n")
    told = infer(workplace, "--config-path", "configs", "--config-name", "mine", "data@data_dict=few")
    assert "spoken_voices_test: 2 predictions" in told


def test_a_mistake_is_one_sentence(workplace):
    for argument, sentence in {
        "infer_args.sampler=unipcc": "error: sampler: 'unipcc' is none of euler, midpoint",
        "wordings=heldout": "error: wordings: the run has no 'heldout' of text_to_speech, only train, held_out",
        "+infer_args.top_k=3": "error: infer_args.top_k: the run's AudioGenerationPredictor has no such setting",
    }.items():
        done = run(workplace, "exp_dir=run", argument)
        assert done.returncode == 2
        assert sentence in done.stderr
