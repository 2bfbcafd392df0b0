"""What each of two processes runs: `torchrun --nproc_per_node 2 -m tests.tasks.two_recognisers FOLDER OUT.json`.

With one process the same function is called in place.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import torch
from torch.utils.data import DataLoader

from tasks.asr import AsrTrainer
from tasks.asr.decoders import named_decoder
from tests.tasks.beeps import beeps, loader, recogniser, words
from utils.launch import end_together

# heads -> decoder, and what makes their training a function of the batch alone
HEADS = {
    "hybrid": ("ctc_greedy", ["ctc.dropout=0.0", "attention.dropout=0.0"]),
    "paraformer": (
        "paraformer",
        ["ctc.dropout=0.0", *(f"paraformer.{part}.dropout=0.0" for part in ("predictor", "decoder")),
         "paraformer.sampling_ratio=0.0"],
    ),
    "transducer": (
        "transducer_greedy",
        ["ctc.dropout=0.0", "transducer.dropout=0.0", "transducer.predictor.dropout=0.0"],
    ),
}  # fmt: skip
ENCODERS = {
    "conformer": ("model.encoder.dropout=0.0", "model.encoder.norm=layer"),
    "wav2vec2_tiny": tuple(
        f"++model.encoder.config.{name}=0.0"
        for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
    ),
}


def validated_and_trained(folder: str, heads: str, encoder: str, world: int) -> dict[str, Any]:
    """Metrics of an untrained model on 11 utterances, and its weights after three updates of the same batches."""
    trainer = _trainer(folder, heads, encoder, world)
    trainer.fit()
    sums = {name: float(value.double().abs().sum()) for name, value in trainer.unwrapped_model.state_dict().items()}
    return {"metrics": _trainer(folder, heads, encoder, world).validate(), "weights": sums}


def _trainer(folder: str, heads: str, encoder: str, world: int) -> AsrTrainer:
    torch.manual_seed(0)
    decoder, settings = HEADS[heads]
    still = (*ENCODERS[encoder], *(f"model.heads.{setting}" for setting in settings))
    model = recogniser(f"model/heads={heads}", "model.augment=null", *still, encoder=encoder)
    val = loader(beeps(Path(folder) / "val.jsonl"), max_seconds=4.0)
    train = DataLoader(beeps(Path(folder) / "train.jsonl"), batch_size=4 // world, collate_fn=val.collate_fn)
    return AsrTrainer(
        model, train, partial(torch.optim.SGD, lr=1e-3), val_dataloader=val, decoder=named_decoder(decoder, words()),
        tokenizer=words(), max_steps=3, val_every_n_epochs=100, seed=0,
    )  # fmt: skip


def main() -> None:
    cases = (("hybrid", "conformer"), ("paraformer", "conformer"), ("transducer", "wav2vec2_tiny"))
    results = {" ".join(case): validated_and_trained(sys.argv[1], *case, 2) for case in cases}
    state = accelerate.PartialState()
    if state.is_main_process:
        Path(sys.argv[2]).write_text(json.dumps(results | {"num_processes": state.num_processes}))
    end_together()


if __name__ == "__main__":
    main()
