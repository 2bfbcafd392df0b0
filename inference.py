"""Run a trained model: `python inference.py exp_dir=... [+data_dict.<name>.<split>.<key>=...] [audio=...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import hydra_main
from utils.errors import UserError
from utils.io import write_jsonl
from utils.launch import pick_device
from utils.stored_run import evaluations, load_run
from utils.trust import instantiate_untrusted

if TYPE_CHECKING:
    from omegaconf import DictConfig


@hydra_main(config_path="configs", config_name="inference")
def main(request: DictConfig) -> None:
    run = load_run(request.exp_dir)
    todo = evaluations(run, request)
    if request.output is not None and len(todo) > 1:
        raise UserError(f"output: one file for {len(todo)} sets; leave it out")

    from trainer.checkpoint import find
    from trainer.loading import load_trained
    from trainer.prediction import predict_with

    checkpoint = find(request.checkpoint or run.default_checkpoint(), run.checkpoint_dir)
    model, predictor = run.build("model"), run.build("predictor")
    load_trained(model, checkpoint, run.config.get("pretrained"))
    device = pick_device(request.device)
    print(f"{run.exp_dir}, {checkpoint.name}")
    for evaluation in todo:
        if evaluation.recipe is not None:
            instantiate_untrusted(evaluation.recipe)
        records, bad = predict_with(model, predictor, instantiate_untrusted(evaluation.loader), device)
        output = Path(request.output or run.exp_dir / "predictions" / f"{evaluation.name}.jsonl")
        output.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(output, records)
        scores = "  ".join(f"{metric} {value:.4g}" for metric, value in predictor.score(records).items())
        print(f"{evaluation.name}: {len(records)} predictions  {scores}  -> {output}")
        if bad:
            named = output.with_suffix(".bad.jsonl")
            write_jsonl(named, bad)
            print(f"{evaluation.name}: {len(bad)} bad samples left out, the first: {bad[0]['detail']}  -> {named}")


if __name__ == "__main__":
    main()
