"""Each recipe on a tiny tree of its corpus's true layout."""

import json
from pathlib import Path

import pytest

from components.data import read_manifest
from components.data.recipes import (
    prepare_audiocaps,
    prepare_audioset,
    prepare_clotho,
    prepare_environmental_sounds,
    prepare_fsd50k,
    prepare_impulse_responses,
    prepare_voicebank_demand,
)
from components.data.recipes.common import Corpus, check_splits, write_corpus
from components.data.splits import share_of
from tests.components.clips import write_clip
from utils.errors import UserError

ROOMS = Path("../shared/data/impulse_responses")


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def manifests(folder):
    return {path.stem: read_manifest(path) for path in folder.glob("*.jsonl") if path.stem != "left_out"}


def left_out(folder):
    lines = (folder / "left_out.jsonl").read_text().splitlines()
    return {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}


# ------------------------------------------------------------------------------------------------------- AudioCaps


def audiocaps_tree(folder):
    header = "audiocap_id,youtube_id,start_time,caption"
    write(
        folder / "dataset" / "train.csv",
        header,
        '1,r1nicOVtvkQ,130,"A woman talks, water pours"',
        "2,gone_video_,0,Rain",
    )
    write(folder / "dataset" / "val.csv", header, "3,-AbcDefGhIj,20,A dog barks", "4,-AbcDefGhIj,20,A dog is barking")
    write(
        folder / "dataset" / "test.csv",
        header,
        "5,Zzzzzzzzzz0,30,Wind",
        "6,Zzzzzzzzzz1,0,Waves",
        "7,Zzzzzzzzzz2,0,A car",
    )
    for name in (
        "train/r1nicOVtvkQ_130.wav",
        "val/Y-AbcDefGhIj.wav",
        "test/Zzzzzzzzzz0_30.000_40.000.flac",
        "test/6.wav",
    ):
        write_clip(folder / name, 0.2)
    (folder / "test" / "Zzzzzzzzzz2.wav").write_text("<html>not found</html>")


def test_audiocaps_by_any_of_the_usual_names(tmp_path):
    audiocaps_tree(tmp_path / "corpus")
    prepare_audiocaps(str(tmp_path / "out"), str(tmp_path / "corpus"))
    found = manifests(tmp_path / "out")
    assert {split: [(r["id"], r["caption"]) for r in records] for split, records in found.items()} == {
        "train": [("r1nicOVtvkQ_130", "A woman talks, water pours")],
        "val": [("-AbcDefGhIj_20", "A dog barks")],
        "test": [("Zzzzzzzzzz0_30", "Wind"), ("Zzzzzzzzzz1_0", "Waves")],
    }
    assert found["val"][0]["captions"] == ["A dog barks", "A dog is barking"]
    reasons = left_out(tmp_path / "out")
    assert reasons["gone_video__0"] == "no such file"
    assert "Zzzzzzzzzz2_0" in reasons
    about = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert about["left_out"] == len(reasons) == 2
    assert "MIT" in about["licence"]


def test_audiocaps_needs_its_audio_and_its_tables(tmp_path):
    with pytest.raises(UserError, match="handed out without its audio: give data_root=DIR"):
        prepare_audiocaps(str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"holds no train.csv: data_root must be a folder with train.csv"):
        prepare_audiocaps(str(tmp_path / "out"), str(tmp_path))
    audiocaps_tree(tmp_path / "corpus")
    write(tmp_path / "corpus" / "dataset" / "val.csv", "id,youtube_id,start_time,caption")
    with pytest.raises(UserError, match=r"val.csv: the column 'audiocap_id' is missing"):
        prepare_audiocaps(str(tmp_path / "out"), str(tmp_path / "corpus"))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------- Clotho


def clotho_tree(folder, wrapper="{}"):
    columns = ",".join(f"caption_{number}" for number in range(1, 6))
    for part in ("development", "validation", "evaluation"):
        name = f"A {part} sound.wav"
        write(folder / f"clotho_captions_{part}.csv", f"file_name,{columns}", f'{name},"Rain, hard",b,c,d,e')
        write_clip(folder / wrapper.format(part) / name, 0.2, 44_100)
    header = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"
    row = "A development sound.wav,rain;water,1,http,[0 1],me\xe9,http://creativecommons.org/licenses/by/3.0/"
    (folder / "clotho_metadata_development.csv").write_bytes(f"{header}\n{row}\n".encode("latin-1"))


@pytest.mark.parametrize("wrapper", ["{}", "clotho_audio_{}", "clotho_audio_files/{}"])
def test_clotho_has_five_captions_a_clip(tmp_path, wrapper):
    clotho_tree(tmp_path / "corpus", wrapper)
    prepare_clotho(str(tmp_path / "out"), data_root=str(tmp_path / "corpus"))
    found = manifests(tmp_path / "out")
    assert [r["caption"] for r in found["train"]] == ["Rain, hard", "b", "c", "d", "e"]
    assert {len(r["captions"]) for records in found.values() for r in records} == {5}
    assert (len(found["val"]), len(found["test"])) == (1, 1)
    assert found["train"][0]["keywords"] == ["rain", "water"]
    assert found["train"][0]["licence"].endswith("by/3.0/")
    prepare_clotho(str(tmp_path / "out"), data_root=str(tmp_path / "corpus"), each_caption=False)
    assert len(manifests(tmp_path / "out")["train"]) == 1


def test_clotho_without_a_folder_is_refused(tmp_path):
    clotho_tree(tmp_path / "corpus")
    (tmp_path / "corpus" / "validation").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds no folder validation"):
        prepare_clotho(str(tmp_path / "out"), data_root=str(tmp_path / "corpus"))


# ---------------------------------------------------------------------------------------------------------- FSD50K


def fsd50k_tree(folder):
    truth = folder / "FSD50K.ground_truth"
    write(
        truth / "dev.csv",
        "fname,labels,mids,split",
        '64760,"Electric_guitar,Music","/m/02sgy,/m/04rlf",train',
        "16399,Bark,/m/05tny_,val",
    )
    write(truth / "eval.csv", "fname,labels,mids", "37199,Bark,/m/05tny_", "37200,Bark,/m/05tny_")
    write(truth / "vocabulary.csv", "0,Bark,/m/05tny_", "1,Electric_guitar,/m/02sgy", "2,Music,/m/04rlf")
    write(
        folder / "FSD50K.metadata" / "dev_clips_info_FSD50K.json", '{"64760": {"title": "riff.wav", "license": "CC0"}}'
    )
    for name in ("dev_audio/64760", "dev_audio/16399", "eval_audio/37199"):
        write_clip(folder / f"FSD50K.{name}.wav", 0.2, 44_100)


def test_fsd50k_has_several_tags_a_clip(tmp_path):
    fsd50k_tree(tmp_path / "corpus")
    prepare_fsd50k(str(tmp_path / "out"), data_root=str(tmp_path / "corpus"))
    found = manifests(tmp_path / "out")
    assert {split: [r["tags"] for r in records] for split, records in found.items()} == {
        "train": [["Electric_guitar", "Music"]],
        "val": [["Bark"]],
        "test": [["Bark"]],
    }
    assert (found["train"][0]["licence"], found["train"][0]["mids"]) == ("CC0", ["/m/02sgy", "/m/04rlf"])
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["Bark", "Electric_guitar", "Music"]
    assert left_out(tmp_path / "out") == {"37200": "no such file"}


def test_a_split_of_fsd50k_that_is_none_is_named(tmp_path):
    fsd50k_tree(tmp_path / "corpus")
    write(
        tmp_path / "corpus" / "FSD50K.ground_truth" / "dev.csv", "fname,labels,mids,split", "64760,Bark,/m/05tny_,dev"
    )
    with pytest.raises(UserError, match=r"dev.csv: the clip 64760 has the split 'dev'"):
        prepare_fsd50k(str(tmp_path / "out"), data_root=str(tmp_path / "corpus"))


# -------------------------------------------------------------------------------------------------------- AudioSet


def audioset_tree(folder, num_videos=20):
    comments = [
        "# Segments csv created Sun Mar  5 10:54:31 2017",
        "# num_ytids=3",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    rows = [f'vid{number:08}, 30.000, 40.000, "/m/09x0r,/t/dd00088"' for number in range(num_videos)]
    write(folder / "csv" / "balanced_train_segments.csv", *comments, *rows)
    write(folder / "csv" / "eval_segments.csv", *comments, '--4gqARaEJE, 0.000, 10.000, "/m/068hy"')
    write(
        folder / "class_labels_indices.csv",
        "index,mid,display_name",
        '0,/m/09x0r,"Speech"',
        "1,/t/dd00088,Gush",
        '2,/m/068hy,"Domestic animals, pets"',
    )
    for number in range(num_videos):
        write_clip(folder / "balanced" / f"Yvid{number:08}.wav", 0.1)
    write_clip(folder / "eval" / "--4gqARaEJE_0_10000.flac", 0.1)


def test_audioset_holds_out_a_share_of_the_videos(tmp_path):
    audioset_tree(tmp_path / "corpus")
    prepare_audioset(str(tmp_path / "out"), str(tmp_path / "corpus"), val_share=0.3)
    found = manifests(tmp_path / "out")
    assert len(found["train"]) + len(found["val"]) == 20
    assert {r["youtube_id"] for r in found["val"]} == {
        f"vid{number:08}" for number in range(20) if share_of(f"vid{number:08}") < 0.3
    }
    assert found["train"][0]["tags"] == ["Speech", "Gush"]
    assert found["test"][0]["tags"] == ["Domestic animals, pets"]
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines()[0] == "Speech"


def test_audioset_takes_names_from_the_ontology_too(tmp_path):
    audioset_tree(tmp_path / "corpus")
    (tmp_path / "corpus" / "class_labels_indices.csv").unlink()
    names = {"/m/09x0r": "Speech", "/t/dd00088": "Gush"}
    write(
        tmp_path / "corpus" / "ontology.json",
        json.dumps([{"id": i, "name": n, "child_ids": []} for i, n in names.items()]),
    )
    with pytest.raises(UserError, match=r"eval_segments.csv:4: the label '/m/068hy' has no name"):
        prepare_audioset(str(tmp_path / "out"), str(tmp_path / "corpus"))


# ----------------------------------------------------------------------------------------------- VoiceBank + DEMAND


def voicebank_tree(folder, wrapper=""):
    for name, speakers in (("trainset_28spk", ("p226", "p228")), ("testset", ("p232",))):
        for speaker in speakers:
            for kind in ("clean", "noisy"):
                write_clip(folder / f"{kind}_{name}_wav{wrapper}" / f"{speaker}_001.wav", 0.2, 48_000)
            write(folder / f"{name}_txt{wrapper}" / f"{speaker}_001.txt", "Please call Stella.")


@pytest.mark.parametrize("inside", [False, True])
def test_voicebank_is_pairs_of_noisy_and_clean(tmp_path, inside):
    voicebank_tree(tmp_path / "corpus")
    if inside:  # each archive unpacked into a folder of its name
        for path in list((tmp_path / "corpus").iterdir()):
            path.rename(tmp_path / path.name)
            (tmp_path / "corpus" / path.name).mkdir()
            (tmp_path / path.name).rename(tmp_path / "corpus" / path.name / path.name)
    prepare_voicebank_demand(str(tmp_path / "out"), data_root=str(tmp_path / "corpus"))
    found = manifests(tmp_path / "out")
    assert {split: [(r["speaker"], r["text"]) for r in records] for split, records in found.items()} == {
        "train": [("p228", "Please call Stella.")],
        "val": [("p226", "Please call Stella.")],
        "test": [("p232", "Please call Stella.")],
    }
    pair = found["test"][0]
    assert "noisy_testset_wav" in pair["audio_path"]
    assert Path(pair["target_path"]).is_file()
    assert "clean_testset_wav" in pair["target_path"]


def test_half_a_pair_is_left_out(tmp_path):
    voicebank_tree(tmp_path / "corpus")
    write_clip(tmp_path / "corpus" / "noisy_testset_wav" / "p257_001.wav", 0.2, 48_000)
    write_clip(tmp_path / "corpus" / "noisy_testset_wav" / "p257_002.wav", 0.3, 48_000)
    write_clip(tmp_path / "corpus" / "clean_testset_wav" / "p257_002.wav", 0.2, 48_000)
    prepare_voicebank_demand(str(tmp_path / "out"), data_root=str(tmp_path / "corpus"))
    assert left_out(tmp_path / "out") == {
        "p257_001": "no clean recording",
        "p257_002": "clean and noisy differ in length",
    }


# ------------------------------------------------------------------------------------------------ impulse responses


def openslr_tree(folder):
    real = folder / "real_rirs_isotropic_noises"
    for name in (
        "air_type1_air_binaural_lecture_0_1",
        "RVB2014_type1_rir_largeroom1_far_angla",
        "RVB2014_type1_noise_largeroom1_1",
    ):
        write_clip(real / f"{name}.wav", 0.1, channels=2)
    listed = "RIRS_NOISES/real_rirs_isotropic_noises"
    write(
        real / "rir_list",
        f"--rir-id 1 --room-id air_lecture {listed}/air_type1_air_binaural_lecture_0_1.wav",
        f"--rir-id 2 --room-id largeroom1 {listed}/RVB2014_type1_rir_largeroom1_far_angla.wav",
    )
    write(real / "noise_list", f"--noise-id 1 --noise-type isotropic {listed}/RVB2014_type1_noise_largeroom1_1.wav")
    for size in ("small", "medium", "large"):
        write_clip(folder / "simulated_rirs" / f"{size}room" / "Room001" / "Room001-00001.wav", 0.1)
    write_clip(folder / "pointsource_noises" / "noise-free-sound-0000.wav", 0.1)


@pytest.mark.parametrize("root", ["RIRS_NOISES", ""])
def test_the_lists_of_openslr_say_what_is_a_response(tmp_path, root):
    openslr_tree(tmp_path / "corpus" / "RIRS_NOISES")
    prepare_impulse_responses(str(tmp_path / "out"), data_root=str(tmp_path / "corpus" / root))
    found = manifests(tmp_path / "out")
    assert {r["id"]: r["room"] for r in found["impulse_responses"]} == {
        "small-Room001-00001": "small-Room001",
        "medium-Room001-00001": "medium-Room001",
        "large-Room001-00001": "large-Room001",
        "air_type1_air_binaural_lecture_0_1": "air_lecture",
        "RVB2014_type1_rir_largeroom1_far_angla": "largeroom1",
    }
    assert [r["part"] for r in found["noises"]] == ["isotropic", "point_source"]
    prepare_impulse_responses(str(tmp_path / "out"), parts=["real"], data_root=str(tmp_path / "corpus" / root))
    assert len(manifests(tmp_path / "out")["impulse_responses"]) == 2


def test_parts_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="parts: simulated and real are to be had, not measured"):
        prepare_impulse_responses(str(tmp_path / "out"), parts=["measured"], data_root=str(tmp_path))
    with pytest.raises(UserError, match="holds no impulse response"):
        prepare_impulse_responses(str(tmp_path / "out"), data_root=str(tmp_path))


@pytest.mark.skipif(not ROOMS.is_dir(), reason="needs the shared impulse responses")
def test_a_folder_of_measured_responses(tmp_path):
    prepare_impulse_responses(str(tmp_path / "out"), data_root=str(ROOMS))
    assert len(manifests(tmp_path / "out")["impulse_responses"]) == 8


# ---------------------------------------------------------------------------------------------------------- ESC-50


def test_esc50_may_be_called_by_either_spelling(tmp_path):
    write(
        tmp_path / "corpus" / "meta" / "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take",
        *(f"{fold}-1-A-0.wav,{fold},0,{name},True,0,A" for fold, name in ((1, "dog"), (2, "hand_saw"), (3, "cat"))),
    )
    for fold in (1, 2, 3):
        write_clip(tmp_path / "corpus" / "audio" / f"{fold}-1-A-0.wav", 0.1)
    for spelling in ("dog", "dog_bark"):
        out = tmp_path / spelling
        classes = [spelling, "hand_saw", "cat"]
        prepare_environmental_sounds(str(out), str(tmp_path), classes, 1, 2, str(tmp_path / "corpus"))
        labels = {split: records[0]["labels"]["sound"] for split, records in manifests(out).items()}
        assert labels == {"test": spelling, "val": "hand_saw", "train": "cat"}


# ---------------------------------------------------------------------------------------------- what all of them do


def test_a_corpus_is_looked_over_before_it_is_written(tmp_path):
    clip = {"id": "a", "audio_path": "/a.wav", "duration": 1.0, "sample_rate": 8_000}
    with pytest.raises(UserError, match="the id a of the train split comes twice"):
        check_splits({"train": [clip, clip]})
    with pytest.raises(UserError, match="a of the val split is a clip of the train split too"):
        check_splits({"train": [clip], "val": [clip]})
    check_splits({"train": [clip], "val": [clip]}, overlapping=True)
    check_splits({"train": [clip], "val": [clip | {"offset": 1.0}]})
    with pytest.raises(UserError, match="a of the train split has an impossible duration, nan"):
        check_splits({"train": [clip | {"duration": float("nan")}]})
    with pytest.raises(UserError, match="the val split would be empty"):
        write_corpus(tmp_path, Corpus("c", "l", "s"), {"train": [clip], "val": []})


def test_what_no_recipe_made_is_not_replaced(tmp_path):
    openslr_tree(tmp_path / "corpus")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="mine holds something that no recipe made"):
        prepare_impulse_responses(str(tmp_path / "mine"), data_root=str(tmp_path / "corpus"))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
