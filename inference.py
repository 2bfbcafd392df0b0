"""Run a trained model: `python inference.py exp_dir=... [+data_dict.<name>.<split>.<key>=...] [audio=...]`.

Started by `accelerate launch` or torchrun, the processes share the items; see docs/inference.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import hydra_main
from utils.errors import UserError
from utils.launch import check_world, end_together
from utils.results import told_results
from utils.stored_run import evaluations, load_run

if TYPE_CHECKING:
    from omegaconf import DictConfig


@hydra_main(config_path="configs", config_name="inference")
def main(request: DictConfig) -> None:
    run = load_run(request.exp_dir).with_settings("infer_args", request.infer_args)
    if request.ui:
        from trainer.prediction import show_page

        show_page(run, request)
        return
    todo = evaluations(run, request)
    if request.output is not None and len(todo) > 1:
        raise UserError(f"output: one file for {len(todo)} sets; leave it out")
    check_world()

    from trainer.prediction import Trained

    trained = Trained.of(run, request.checkpoint, request.device)
    if trained.is_main_process:
        print(f"{run.exp_dir}, {trained.checkpoint.name}")
    for evaluation in todo:
        output = Path(request.output or run.exp_dir / "predictions" / f"{evaluation.name}.jsonl")
        made = trained.predict(evaluation, output, request.overwrite)
        if made is None:  # the main process tells
            continue
        print(told_results(made))
        if (left := made.leave()) is not None:
            print(left)
        if request.evaluate:
            print(made.evaluate(request.evaluation), flush=True)
    end_together()


if __name__ == "__main__":
    main()
