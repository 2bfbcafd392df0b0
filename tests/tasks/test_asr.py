"""The recognition task: what is measured, what is left out, what fits to what, and what a predictor hands out."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from components.augment import SpeedPerturb
from components.data import PadCollate, read_manifest, write_manifest
from components.decoding import CtcGreedy, CtcPrefixBeam, ParaformerDecoder, TransducerGreedy
from components.metrics.recognition_report import RecognitionReport
from components.models.asr import Encoded, Hypothesis
from components.optim import layer_wise_groups
from components.text import WordTokenizer
from tasks.asr import AsrPredictor, AsrTrainer, RecognitionPlots, TranscriptSamples
from tasks.asr.decoders import DECODERS, named_decoder
from tests.tasks.beeps import RATE, beeps, loader, recogniser, words, write_beeps
from tests.trainer.test_resume import PullThePlug, Unplugged
from trainer.callbacks import ModelCheckpoint, ProgressBar
from trainer.checkpoint import read_weights
from trainer.loading import begin_with
from trainer.prediction import predict_with
from utils.compose import CONFIGS
from utils.errors import UserError

DECODER_OF = {
    "ctc": "ctc_greedy",
    "hybrid": "joint_ctc_attention",
    "transducer": "transducer_greedy",
    "paraformer": "paraformer",
    "attention": "attention_beam",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> SimpleNamespace:
    """12 utterances to train on, 6 to validate."""
    folder = tmp_path_factory.mktemp("beeps")
    return SimpleNamespace(train=write_beeps(folder, "train", 12), val=write_beeps(folder, "val", 6, seed=1))


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


def trainer(corpus, model=None, exp_dir=None, augment=None, train=None, **options) -> AsrTrainer:
    """On the utterances of `corpus`, by CTC."""
    model = recogniser() if model is None else model
    data = loader(beeps(train or corpus.train, augment=augment or {}), shuffle=True, max_seconds=4.0)
    options = {"decoder": CtcGreedy(), "tokenizer": words(), "val_dataloader": loader(beeps(corpus.val)), "seed": 3,
               "max_steps": 3, "log_every_n_steps": 1} | options  # fmt: skip
    return AsrTrainer(model, data, partial(torch.optim.AdamW, lr=1e-3), exp_dir=exp_dir, **options)


def batch_of(manifest, number=3):
    data = beeps(manifest)
    return PadCollate(pad_values={"tokens": -100})([data[i] for i in range(number)])


# ----------------------------------------------------------------------------------------------------------- measured


def test_the_error_rates_of_validation_are_those_of_a_report_on_the_predictions(corpus):
    run = trainer(corpus, val_dataloader=loader(beeps(corpus.val, fields=["speaker"])))
    run.fit()
    predictor = AsrPredictor(CtcGreedy(), words(), fields=["speaker"])
    records, bad = predict_with(run.unwrapped_model, predictor, run.val_dataloader, "cpu")
    assert (len(records), bad) == (6, [])
    for unit, name in (("word", "wer"), ("char", "cer")):
        report = RecognitionReport(records, unit)
        assert run.metrics[f"val/{name}"] == report.counts.rate == predictor.score(records)[name]
    assert [one.value for one in RecognitionReport(records).slices if one.field == "speaker"] == ["a", "b"]


def test_tokens_are_counted_where_that_is_asked_for(corpus):
    run = trainer(corpus, error_units=["token"])
    run.fit()
    assert {"val/per", "val/length_ratio", "val/usable"} <= set(run.metrics)
    assert not {"val/wer", "val/cer"} & set(run.metrics)
    with pytest.raises(UserError, match=r"^trainer.error_units: word, char, token, not 'phone'"):
        trainer(corpus, error_units=["phone"])


def test_what_is_longer_than_its_audio_is_counted_and_learned_nothing_from(corpus, tmp_path):
    records = read_manifest(corpus.train)
    long = records[0] | {"id": "long", "text": " ".join(["low"] * 500)}
    given = [one | {"audio_path": str(corpus.train.parent / one["audio_path"])} for one in [*records, long]]
    write_manifest(tmp_path / "given.jsonl", given)
    losses = {}
    for name, manifest in (("clean", corpus.train), ("given", tmp_path / "given.jsonl")):
        torch.manual_seed(0)
        model = recogniser("model.heads.ctc.dropout=0.0", "model.encoder.norm=layer", "model.encoder.dropout=0.0",
                           "model.augment=null")  # fmt: skip
        data = loader(beeps(manifest), max_seconds=100.0)
        run = AsrTrainer(model, data, partial(torch.optim.SGD, lr=0.0), max_steps=1, decoder=CtcGreedy(),
                         tokenizer=words(), log_every_n_steps=1)  # fmt: skip
        run.fit()
        losses[name] = run.metrics["train/loss"]
    assert run.metrics["train/infeasible"] == pytest.approx(1 / 13)
    assert run.metrics["train/usable"] == pytest.approx(12 / 13)
    assert losses["given"] == pytest.approx(losses["clean"], rel=1e-5)


def test_an_utterance_that_one_head_can_not_use_still_counts_for_the_other(corpus):
    model = recogniser("model/heads=hybrid").eval()
    batch = batch_of(corpus.train, 2)
    batch["tokens"] = torch.full((2, 300), -100)
    batch["tokens"][0, :2], batch["tokens"][1] = torch.tensor([4, 5]), 4
    batch["token_lens"] = torch.tensor([2, 300])
    run = trainer(corpus, model)
    step = run._step(batch, model(batch))
    assert step.metrics["infeasible"][0] == 1
    assert step.num_items == 302
    assert torch.isfinite(step.loss)
    assert step.metrics["loss_ctc"][1] == 2
    assert step.metrics["loss_attention"][1] == 302


@pytest.mark.parametrize(("steps", "silent_steps", "told"), [(1, 500, 1), (3, 500, 1), (3, 2, 2)])
def test_a_model_that_says_nothing_is_told_of_when_it_should_have_learned(corpus, caplog, steps, silent_steps, told):
    model = recogniser()
    with torch.no_grad():
        for module in model.heads["ctc"].modules():
            if isinstance(module, nn.Linear):
                module.bias[0] = 50.0
    trainer(corpus, model, max_steps=steps, val_every_n_steps=1, silent_steps=silent_steps).fit()
    assert caplog.text.count("all blank: 100.0% of frames are blank") == told
    assert "learning rate that is too high" in caplog.text


def test_the_progress_bar_shows_the_metrics_it_is_asked_for(corpus, capfd):
    bar = ProgressBar(refresh_seconds=0.0, metrics=["val/cer", "train/infeasible"])
    trainer(corpus, callbacks={"progress": bar}).fit()
    shown = capfd.readouterr().err
    assert "val/cer=" in shown
    assert "train/infeasible=0" in shown
    assert "wer" not in shown
    assert "train/loss" not in shown


# ------------------------------------------------------------------------------------------------------- what fits


@pytest.mark.usefixtures("own_state")
@pytest.mark.parametrize("heads", DECODER_OF)
def test_half_precision_learns_and_decodes(corpus, heads):
    decoder = named_decoder(DECODER_OF[heads], words())
    run = trainer(corpus, recogniser(f"model/heads={heads}"), mixed_precision="bf16", decoder=decoder)
    run.fit()
    assert 0 < run.metrics["train/loss"] < 100
    assert run.metrics["val/wer"] >= 0


def test_a_decoder_for_a_head_that_is_not_there_is_refused(corpus):
    with pytest.raises(UserError, match=r"^decoder: it reads the head 'paraformer'; the model has ctc$"):
        trainer(corpus, decoder=ParaformerDecoder()).fit()
    with pytest.raises(UserError, match="it reads the head 'attention'"):
        AsrPredictor("attention_beam", words()).prepare(recogniser())


def test_data_without_transcripts_is_refused_in_a_sentence(corpus):
    batch = {key: value for key, value in batch_of(corpus.train).items() if not key.startswith("token")}
    with pytest.raises(UserError, match="the batch has no tokens: the records of its dataset have no transcripts"):
        recogniser()(batch)


@pytest.mark.parametrize("heads", ["hybrid", "transducer", "paraformer"])
def test_weights_of_another_vocabulary_are_refused_and_rows_of_shared_symbols_kept(corpus, tmp_path, heads):
    old, new = words(), WordTokenizer(["high", "loud", "low"])
    model, checkpoint = recogniser(f"model/heads={heads}"), ModelCheckpoint(every_n_epochs=1)
    trainer(corpus, model, tmp_path / "run", callbacks={"checkpoint": checkpoint}).fit()
    path = str(tmp_path / "run/checkpoints/last")
    before = read_weights(Path(path) / "model.safetensors")
    model = recogniser(f"model/heads={heads}", tokenizer=new)
    with pytest.raises(UserError, match="another vocabulary than this model's: name the tokenizer it was trained with"):
        begin_with(model, path, None)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    rows, patterns = {"old": old.tokens, "new": new.tokens}, ("heads.*output", "heads.*embedding")
    settings = {"path": path, "exclude": ["vocabulary"], "remap_rows": dict.fromkeys(patterns, rows)}
    begin_with(model, settings, None)
    after = model.state_dict()
    kept = [(new.tokens.index(symbol), old.tokens.index(symbol)) for symbol in ("<blank>", "high", "low")]
    of_symbols = [name for name in after if re.match("|".join(patterns), name)]
    assert len(of_symbols) == 5
    for name, value in after.items():
        if name in of_symbols:
            assert all(torch.equal(value[row], before[name][was]) for row, was in kept)
            assert torch.equal(value[new.tokens.index("loud")], fresh[name][new.tokens.index("loud")])
        else:
            assert torch.equal(value, fresh[name] if name == "vocabulary" else before[name]), name


@pytest.mark.parametrize("frozen", [("feature_extractor",), ("transformer",), ("feature_extractor", "transformer")])
def test_frozen_parts_of_a_pretrained_encoder_do_not_move(corpus, frozen):
    flags = [f"model.encoder.freeze_{part}=true" for part in frozen]
    model = recogniser(*flags, encoder="wav2vec2_tiny")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer(corpus, model, max_steps=2).fit()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    convolutions = {name for name in before if ".feature_extractor." in name}
    heads = {name for name in before if name.startswith("heads.")}
    transformer = set(before) - convolutions - heads
    assert heads <= moved
    assert bool(moved & convolutions) == ("feature_extractor" not in frozen)
    assert bool(moved & transformer) == ("transformer" not in frozen)


def test_lower_layers_learn_more_slowly(corpus):
    run = trainer(corpus, parameter_groups=partial(layer_wise_groups, lr=1e-3, decay=0.5), max_steps=1)
    run.fit()
    groups = run.units["model"].optimizer.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 5e-4, 2.5e-4, 1.25e-4])
    assert sum(len(group["params"]) for group in groups) == len(list(run.unwrapped_model.parameters()))


# ---------------------------------------------------------------------------------------------------- padding, resume


@pytest.mark.parametrize("heads", DECODER_OF)
@pytest.mark.parametrize("encoder", ["conformer", "wav2vec2_tiny"])
def test_an_utterance_in_a_batch_is_heard_as_it_is_alone(corpus, heads, encoder):
    model = recogniser(f"model/heads={heads}", encoder=encoder).eval()
    decoder = named_decoder(DECODER_OF[heads], words())
    batch = batch_of(corpus.val, 4)
    for row, length in zip(batch["waveform"], batch["audio_lens"].tolist()):
        row[:, length:] = torch.randn_like(row[:, length:])
    with torch.no_grad():
        together, found = model(batch), decoder(model, model.encode(batch))
        for i in range(4):
            num_samples, num_tokens = int(batch["audio_lens"][i]), int(batch["token_lens"][i])
            lens = {name: batch[name][i : i + 1] for name in ("audio_lens", "token_lens", "seed") if name in batch}
            alone = {"waveform": batch["waveform"][i : i + 1, :, :num_samples],
                     "tokens": batch["tokens"][i : i + 1, :num_tokens], **lens}  # fmt: skip
            single = model(alone)
            length = int(single.encoded.lens[0])
            assert length == int(together.encoded.lens[i]) == single.encoded.hidden.shape[1]
            assert torch.allclose(single.encoded.hidden[0], together.encoded.hidden[i, :length], atol=1e-5)
            assert not together.encoded.hidden[i, length:].any()
            for name, head in single.heads.items():
                assert head.per_item[0].item() == pytest.approx(together.heads[name].per_item[i].item(), rel=1e-5)
            assert decoder(model, single.encoded)[0][0].tokens == found[i][0].tokens


def test_a_run_that_was_stopped_ends_with_the_same_weights(corpus, tmp_path):
    """With SpecAugment, dropout, changed speeds and batches by length."""
    weights = {}
    for name, stops in (("whole", ()), ("parts", (3,))):
        for stop in (*stops, None):
            torch.manual_seed(0)
            callbacks = {"checkpoint": ModelCheckpoint(every_n_steps=1)}
            callbacks |= {"plug": PullThePlug(stop)} if stop is not None else {}
            model = recogniser("model/heads=paraformer", "model.augment.p=1.0")
            run = trainer(corpus, model, tmp_path / name, {"speed": SpeedPerturb()}, max_steps=7, auto_resume=True,
                          callbacks=callbacks)  # fmt: skip
            if stop is None:
                run.fit()
            else:
                with pytest.raises(Unplugged):
                    run.fit()
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
        weights[name] = (run.unwrapped_model.state_dict(), losses)
    whole, parts = weights["whole"], weights["parts"]
    assert whole[1] == parts[1]
    assert [step for step, _ in whole[1]] == [1, 2, 3, 4, 5, 6, 7]
    assert all(torch.equal(value, parts[0][name]) for name, value in whole[0].items())


# ------------------------------------------------------------------------------------------------------------ plots


def test_pictures_of_attention_and_of_the_predictor_are_left(corpus, tmp_path):
    plots = RecognitionPlots(attention=True, predictor=True, num_shown=2)
    model = recogniser("model/heads=paraformer")
    trainer(corpus, model, tmp_path, callbacks={"plots": plots}, decoder=ParaformerDecoder(), max_steps=1).fit()
    names = {path.name for path in (tmp_path / "samples").rglob("*.png")}
    assert len({name for name in names if name.startswith("attention_")}) == 2
    assert len({name for name in names if name.startswith("predictor_")}) == 2


def test_pictures_of_an_attention_decoder_and_none_without_a_flag(corpus, tmp_path):
    model = recogniser("model/heads=attention")
    options = {"decoder": named_decoder("attention_beam", words()), "max_steps": 1}
    for name, flag in (("some", True), ("none", False)):
        callbacks = {"plots": RecognitionPlots(attention=flag, num_shown=1)}
        trainer(corpus, model, tmp_path / name, callbacks=callbacks, **options).fit()
        assert len(list((tmp_path / name).rglob("attention_*.png"))) == flag


def test_what_was_said_is_shown_beside_what_was_heard(corpus, tmp_path):
    loaders = {"clean": loader(beeps(corpus.val)), "again": loader(beeps(corpus.val))}
    callbacks = {"transcripts": TranscriptSamples(num_shown=2)}
    trainer(corpus, exp_dir=tmp_path, callbacks=callbacks, val_dataloader=loaders, max_steps=1).fit()
    folder = tmp_path / "samples/step_00000001"
    assert {path.name for path in folder.iterdir()} == {"transcripts_clean.txt", "transcripts_again.txt"}
    shown = (folder / "transcripts_clean.txt").read_text().splitlines()
    texts = {record["id"]: record["text"] for record in read_manifest(corpus.val)}
    assert shown[1] == f"  said  {texts[shown[0]]}"
    assert shown[2].startswith("  heard ")
    assert len(shown) == 6


# ---------------------------------------------------------------------------------------------------------- predictor


def test_a_named_decoder_is_that_of_its_file():
    assert set(DECODERS) == {path.stem for path in (CONFIGS / "decoder").glob("*.yaml")}
    register = {"defaults": None, "tokenizer": None}
    for name in DECODERS:
        node = OmegaConf.load(CONFIGS / "decoder" / f"{name}.yaml")
        for base in node.pop("defaults", []):
            if base != "_self_":
                node = OmegaConf.merge(OmegaConf.load(CONFIGS / "decoder" / f"{base}.yaml"), node)
        node = OmegaConf.merge(node, {key: None for key in register if key in node})
        theirs, ours = instantiate(node), named_decoder(name, None)
        assert type(ours) is type(theirs)
        plain = {key: value for key, value in vars(theirs).items() if isinstance(value, (int, float, str, type(None)))}
        assert plain == {key: vars(ours)[key] for key in plain}, name


def test_a_decoder_is_named_with_options_at_the_prompt():
    decoder = AsrPredictor({"ctc_prefix_beam_lm": {"beam_size": 4, "hotwords": ["low mid"]}}, words()).decoder
    assert isinstance(decoder, CtcPrefixBeam)
    assert (decoder.beam_size, decoder.tokens_per_frame) == (4, 30)
    for choice, sentence in {
        "ctc_gredy": "'ctc_gredy' is none of attention_beam, .* .did you mean 'ctc_greedy'",
        ("ctc_prefix_beam", "beam"): r"decoder.ctc_prefix_beam.beam: no such option \(did you mean 'beam_size'",
    }.items():
        with pytest.raises(UserError, match=sentence):
            named_decoder(choice if isinstance(choice, str) else {choice[0]: {choice[1]: 3}}, words())
    with pytest.raises(UserError, match="is none of"):
        named_decoder({"ctc_greedy": None, "transducer_greedy": None}, words())


def test_records_are_json_and_hold_words_with_times(corpus):
    records = AsrPredictor("ctc_prefix_beam", words(), num_best=3)(recogniser().eval(), batch_of(corpus.val))
    assert records == json.loads(json.dumps(records))
    for record, known in zip(records, read_manifest(corpus.val)):
        assert (record["id"], record["reference"]) == (known["id"], known["text"])
        assert record["duration"] == pytest.approx(known["duration"])
        assert 1 <= len(record["n_best"]) <= 3
        assert record["hypothesis"] == record["n_best"][0]["text"] == " ".join(word["word"] for word in record["words"])
        assert all(0 <= word["begin"] <= word["end"] <= record["duration"] + 0.1 for word in record["words"])


def test_audio_alone_is_recognised_and_not_scored(corpus):
    batch = {key: value for key, value in batch_of(corpus.val).items() if key in ("id", "waveform", "audio_lens")}
    predictor = AsrPredictor(CtcGreedy(), words())
    records = predictor(recogniser().eval(), batch)
    assert all("reference" not in record for record in records)
    assert predictor.score(records) == {}
    made = SimpleNamespace(name="audio", records=records)
    assert predictor.evaluate(made, {}) == "audio: no reference is known, there is nothing to score"


def test_files_of_all_formats_and_a_report_are_left(corpus, tmp_path):
    predictor = AsrPredictor("ctc_greedy", words(), formats=["text", "n_best", "ctm", "srt", "textgrid"])
    records = json.loads(json.dumps(predictor(recogniser().eval(), batch_of(corpus.val))))
    made = SimpleNamespace(name="val", records=records, output=SimpleNamespace(records=tmp_path / "val.jsonl"))
    assert predictor.leave(made) == f"val: text, n_best, ctm, srt, textgrid -> {tmp_path / 'val'}"
    names = sorted(str(path.relative_to(tmp_path / "val")) for path in (tmp_path / "val").rglob("*") if path.is_file())
    assert names[-3:] == ["textgrid/val1.TextGrid", "textgrid/val2.TextGrid", "words.ctm"]
    assert len(names) == 9
    assert (tmp_path / "val/text.tsv").read_text().startswith(f"val0\t{records[0]['hypothesis']}\n")
    assert "WER" in predictor.evaluate(made, {"unit": None})
    assert "CER" in predictor.evaluate(made, {"unit": "char"})
    assert json.loads((tmp_path / "val.report/summary.json").read_text())["num_items"] == 3
    with pytest.raises(UserError, match=r"^formats: 'sub' is none of text, n_best, ctm, srt, textgrid"):
        AsrPredictor("ctc_greedy", words(), formats=["sub"])


class Says:
    """A decoder that hears a word in every half second of a chunk."""

    needs = ("ctc",)

    def __call__(self, model, encoded):
        each = round(0.5 / model.frame_seconds)
        spans = [[(i * 0.5, i * 0.5 + 0.5) for i in range(int(length) // each)] for length in encoded.lens]
        return [[Hypothesis([4 + i % 3 for i in range(len(own))], 0.0, own, [1.0] * len(own))] for own in spans]


@pytest.mark.parametrize("heads", [("ctc",), ("attention",)])
def test_a_long_recording_is_heard_in_chunks(heads):
    says = Says()
    says.needs = heads
    predictor = AsrPredictor(says, words(), chunk_seconds=2.0, context_seconds=0.5)
    waveform = torch.randn(2, 1, 10 * RATE)
    batch = {"id": ["long", "short"], "waveform": waveform, "audio_lens": torch.tensor([10 * RATE, 2 * RATE])}
    long, short = predictor(recogniser().eval(), batch)
    assert set(predictor.phases) == {"chunks"}
    begins = [word["begin"] for word in long["words"]]
    assert begins == sorted(begins)
    assert 18 <= len(begins) <= 21
    assert long["words"][-1]["end"] == pytest.approx(10.0, abs=0.6)
    assert (long["duration"], short["duration"]) == (10.0, 2.0)
    lens = torch.tensor([2 * RATE] * 2)
    cut = batch | {"waveform": waveform[..., : 2 * RATE], "audio_lens": lens}
    whole = AsrPredictor(says, words())(recogniser().eval(), cut)
    assert short["hypothesis"] == whole[1]["hypothesis"]


def test_the_page_tells_what_is_said_in_a_recording(corpus):
    pytest.importorskip("gradio")
    predictor, model = AsrPredictor("ctc_greedy", words()), recogniser().eval()
    [listen] = predictor.page(model, None).fns.values()
    text, rows = listen.fn(str(corpus.val.parent / "val/000.wav"))
    [record] = predictor(model, batch_of(corpus.val, 1))
    assert text == record["hypothesis"]
    assert [row[0] for row in rows] == text.split()


def test_what_is_heard_as_it_comes_is_what_is_heard_at_once(corpus):
    model = recogniser("model/heads=transducer", "model.encoder.chunk_frames=4", encoder="streaming_conformer").eval()
    batch = batch_of(corpus.val, 1)
    with torch.no_grad():
        features, lens = model.frontend(batch["waveform"], batch["audio_lens"])
        whole = TransducerGreedy()(model, model.encoder(features, lens))[0][0].tokens
    encoder, decoder, heard = model.encoder.stream(), TransducerGreedy().stream(model), []
    chunks = [encoder.push(part) for part in features.split(7, dim=1)] + [encoder.finish()]
    for hidden in chunks:
        heard += decoder.push(Encoded(hidden, torch.tensor([hidden.shape[1]])))[0].tokens
    assert heard == whole
    assert len(chunks) > 3


def test_references_of_phones_are_what_the_lexicon_says(corpus):
    tokenizer = WordTokenizer(["l", "o", "w"])
    batch = batch_of(corpus.val, 1) | {"tokens": torch.tensor([[4, 5, 6, -100]]), "text": ["low"]}
    [record] = AsrPredictor(CtcGreedy(), tokenizer, unit="token")(recogniser(tokenizer=tokenizer).eval(), batch)
    assert record["reference"] == "l o w"
