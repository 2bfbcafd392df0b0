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

from tasks.asr import AsrTrainer
from tasks.asr.decoders import named_decoder
from tests.tasks.beeps import beeps, loader, recogniser, words
from utils.launch import end_together

# heads -> decoder, and what makes their training a function of the batch alone
HEADS = {
    "hybrid": ("ctc_greedy", ("ctc.dropout=0.0", "attention.dropout=0.0")),
    "paraformer": ("paraformer", ("ctc.dropout=0.0", "paraformer.predictor.dropout=0.0", "paraformer.decoder.dropout=0.0",
                                  "paraformer.sampling_ratio=0.0")),
    "transducer": ("transducer_greedy", ("ctc.dropout=0.0", "transducer.dropout=0.0", "transducer.predictor.dropout=0.0")),
}  # fmt: skip
ENCODERS = {
    "conformer": ("model.encoder.dropout=0.0", "model.encoder.norm=layer"),
    "wav2vec2_tiny": tuple(
        f"+model.encoder.config.{name}=0.0"
        for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
    ),
}


def validated_and_trained(folder: str, heads: str, encoder: str, world: int) -> dict[str, Any]:
    """Metrics of an untrained model on 11 utterances, and its weights after three updates of the same batches."""
    torch.manual_seed(0)
    decoder, settings = HEADS[heads]
    still = (*ENCODERS[encoder], *(f"model.heads.{setting}" for setting in settings))
    model = recogniser(f"model/heads={heads}", "model.augment=null", *still, encoder=encoder)
    manifest = Path(folder) / "val.jsonl"
    data = torch.utils.data.DataLoader(
        beeps(Path(folder) / "train.jsonl"), batch_size=4 // world, collate_fn=loader(beeps(manifest)).collate_fn
    )
    trainer = AsrTrainer(
        model, data, partial(torch.optim.SGD, lr=1e-3), val_dataloader=loader(beeps(manifest), max_seconds=4.0),
        decoder=named_decoder(decoder, words()), tokenizer=words(), max_steps=3, val_every_n_epochs=100,
    )  # fmt: skip
    before = trainer.validate()
    trainer.fit()
    weights = {name: float(value.double().abs().sum()) for name, value in trainer.unwrapped_model.state_dict().items()}
    return {"metrics": before, "weights": weights}


def main() -> None:
    cases = (("hybrid", "conformer"), ("paraformer", "conformer"), ("transducer", "wav2vec2_tiny"))
    results = {" ".join(case): validated_and_trained(sys.argv[1], *case, 2) for case in cases}
    state = accelerate.PartialState()
    if state.is_main_process:
        Path(sys.argv[2]).write_text(json.dumps(results | {"num_processes": state.num_processes}))
    end_together()


if __name__ == "__main__":
    main()
