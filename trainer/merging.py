"""`python -m trainer.merging EXP_DIR FOLDER [--checkpoint NAME]`: a run's model as one checkpoint of plain weights.

Low-rank updates are added to the weights they belong to, averaged weights are preferred, and frozen parameters that the
run's checkpoints leave out are there: the folder needs neither the run nor what that began with.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from trainer import checkpoint as checkpoints
from trainer.loading import load_trained
from utils.errors import UserError
from utils.stored_run import load_run


def merge(exp_dir: str, folder: Path, checkpoint: str | None = None) -> Path:
    """Write the checkpoint, and the run's `config.yaml` beside it; returns what it was made from.

    Args:
        folder: it must not be there yet; `pretrained=FOLDER` and `inference.py exp_dir=... checkpoint=FOLDER` read it.
        checkpoint: best where there is one, else last.

    Raises:
        UserError: there is no such run or checkpoint, it can not be loaded, or `folder` is there.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already; name another folder")
    run = load_run(exp_dir)
    found = checkpoints.find(checkpoint or run.default_checkpoint(), run.checkpoint_dir)
    model = run.build("model")
    load_trained(model, found, run.config.get("pretrained"))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    checkpoints.save_weights(model.state_dict(), partial / "model.safetensors")
    shutil.copyfile(run.exp_dir / "config.yaml", partial / "config.yaml")
    step = json.loads((found / "manifest.json").read_text())["global_step"]
    checkpoints.publish(partial, folder, step, merged_from=str(found))
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.merging", description=__doc__.partition("\n")[0])
    parser.add_argument("exp_dir", metavar="EXP_DIR")
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--checkpoint", metavar="NAME", help="best where there is one, else last")
    options = parser.parse_args(arguments)
    try:
        found = merge(options.exp_dir, options.folder, options.checkpoint)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{found} -> {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
