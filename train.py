"""Train what a config describes: `accelerate launch train.py [experiment=<task>/<name>] [key=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.build import build, build_parts, build_trainer, run_name, run_overrides, run_recipes
from utils.config import hydra_main
from utils.launch import check_world, end_together
from utils.save import fingerprints, resolve_exp_dir, save_run
from utils.seed import seed_everything
from utils.validate import check_or_raise, num_targets

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from trainer import Trainer


@hydra_main(config_path="configs", config_name="default")
def main(config: DictConfig) -> None:
    check_or_raise(config)
    if config.validate_only:
        print(f"config is valid: {num_targets(config)} targets")
        return
    check_world()
    exp_dir = resolve_exp_dir(config, run_name())
    run_recipes(config)
    seed_everything(config.seed)
    parts = build_parts(config)
    adapt = build(config, "adapt")
    if config.pretrained is not None or adapt is not None:
        from trainer.loading import begin_with

        begin_with(parts["model"], config.pretrained, adapt)
    trainer = build_trainer(config, parts, exp_dir)
    save_run(config, exp_dir, run_overrides(), fingerprints(parts))
    trainer.fit()
    if trainer.is_main_process:
        if left_out := trainer.bad_samples.summary():
            print(left_out)
        print(closing_line(trainer, exp_dir))
    end_together()


def closing_line(trainer: Trainer, exp_dir: Path) -> str:
    """What was reached, where it is, and what to type next."""
    where = exp_dir.relative_to(Path.cwd()) if exp_dir.is_relative_to(Path.cwd()) else exp_dir
    best = trainer.best
    reached = f"{best.metric} {best.value:.4g} at step {best.step}" if best else f"{trainer.state.global_step} steps"
    return f"{reached} | {where} | next: python inference.py exp_dir={where}"


if __name__ == "__main__":
    main()
