"""Run a trained model: `python inference.py exp_dir=... [+data_dict.<name>.<split>.<key>=...] [audio=...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import hydra_main
from utils.errors import UserError
from utils.launch import pick_device
from utils.results import results
from utils.stored_run import evaluations, load_run
from utils.trust import instantiate_untrusted

if TYPE_CHECKING:
    from omegaconf import DictConfig


@hydra_main(config_path="configs", config_name="inference")
def main(request: DictConfig) -> None:
    run = load_run(request.exp_dir).with_settings("infer_args", request.infer_args)
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
        output = Path(request.output or run.exp_dir / "predictions" / f"{evaluation.name}.jsonl")
        if hasattr(predictor, "write_to"):
            output = predictor.write_to(output)
        records, bad = predict_with(model, predictor, instantiate_untrusted(evaluation.loader), device)
        print(results(evaluation.name, records, bad, predictor.score(records), output))


if __name__ == "__main__":
    main()
