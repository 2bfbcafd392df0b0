"""What docs/recognition.md and the heads of the recognition experiments tell people to type is valid."""

from __future__ import annotations

import pytest

from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers
from utils.validate import validate

HEADS = sorted(path.stem for path in (CONFIGS / "model/heads").glob("*.yaml"))
PLATEAU = ("lr_scheduler=plateau", "lr_scheduler.patience=10", "trainer.lr_scheduler_monitor=val/loss")
STEPS = "+lr_scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 2}"
STOP = "callbacks.early_stopping={_target_: trainer.callbacks.EarlyStopping, monitor: val/wer, patience: 5}"
THAW = "+callbacks.freeze={_target_: trainer.callbacks.Freeze, patterns: [encoder], until_step: 1000}"
GROUPS = (
    "trainer.parameter_groups={_target_: components.optim.layer_wise_groups, _partial_: true, lr: 1e-4, decay: 0.9}"
)
ROWS = "{old: OLD/artefacts/tokenizer.json, new: new.json}"
NEW_VOCABULARY = f"pretrained={{path: OLD, exclude: [vocabulary], remap_rows: {{heads.*output: {ROWS}}}}}"
FROM_FILE = ("tokenizer=file", "tokenizer.path=new.json", "~tokenizer.manifest")
PHONES = ("tokenizer=phoneme_vocabulary", "tokenizer.symbols=phones.json", "~tokenizer.manifest")
FOLDER = ("data_dict=custom_folder", "corpus=custom_folder", "data_root=DIR")
PRETRAINED = ("model/frontend=samples", "model/encoder=pretrained", "model.augment=null")
PROMPTS = [
    *(("ctc_digits", f"model/heads={heads}") for heads in HEADS),
    ("ctc_digits", "model/encoder=conformer", "model.encoder.attention_window=32", "plots.attention=true"),
    ("ctc_digits", "model/heads=hybrid", "model/asr_head@model.heads.attention=attention_bidirectional"),
    ("ctc_digits", "decoder=ctc_prefix_beam_lm", "decoder.word_lm=lm.arpa", "predictor.decoder=ctc_prefix_beam"),
    ("paraformer_digits", "model.heads.paraformer.use_predictor=false", "decoder.lengths=ctc"),
    ("phonemes_wav2vec2", *PHONES, *PLATEAU, STOP, THAW, "optimizer=sgd"),
    ("phonemes_wav2vec2", "lr_scheduler=none", STEPS, "debug=profile"),
    ("phonemes_wav2vec2", "+augment@train_dataloader.dataset.dataset.augment=phonemes", "+noise_dir=N", "+rir_dir=R"),
    ("common_voice", *FROM_FILE, NEW_VOCABULARY),
    ("common_voice", *FOLDER),
    ("common_voice", *PRETRAINED, GROUPS, "model.encoder.mask_time_prob=0.05"),
    ("common_voice", "model/encoder=streaming_conformer", "model/frontend=kaldi_fbank"),
    ("librispeech", "model/heads=transducer_large", "decoder=transducer_greedy", "predictor.decoder=transducer_beam"),
    ("librispeech", "model/heads=ctc", "predictor.decoder=ctc_prefix_beam", "tokenizer=unigram"),
    ("aishell", "model/heads=hybrid_large", "decoder=ctc_greedy", "predictor.decoder=attention_rescoring"),
    ("aishell", "model/frontend=kaldi_fbank_lfr", "model/encoder=sanm_large", "model/heads=paraformer_large"),
    ("aishell", "model.heads.paraformer.risk={_target_: components.losses.ParallelMinimumRisk}", "optimizer.lr=2e-5"),
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=" ".join)
def test_a_prompt_is_valid(prompt):
    register_omegaconf_resolvers()
    experiment, *overrides = prompt
    config = compose_task(Request(CONFIGS, "default", (f"experiment=asr/{experiment}", *overrides)))
    assert validate(config) == []
