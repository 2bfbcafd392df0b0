"""`python -m tasks.autoencoding.export EXP_DIR FOLDER [--checkpoint NAME]`: a trained autoencoder without its trainer.

The folder is one of diffusers: `model/autoencoder=oobleck model.autoencoder.pretrained=FOLDER` reads it, and so does
`AutoencoderOobleck.from_pretrained`.
"""

from __future__ import annotations

import argparse
import sys

from trainer.checkpoint import find
from trainer.loading import load_trained
from utils.errors import UserError
from utils.stored_run import load_run


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks.autoencoding.export", description=__doc__.partition("\n")[0])
    parser.add_argument("exp_dir", metavar="EXP_DIR")
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("--checkpoint", metavar="NAME", help="best where there is one, else last")
    options = parser.parse_args(arguments)
    try:
        run = load_run(options.exp_dir)
        model = run.build("model")
        checkpoint = find(options.checkpoint or run.default_checkpoint(), run.checkpoint_dir)
        load_trained(model, checkpoint, run.config.get("pretrained"))
        if not hasattr(getattr(model, "generator", None), "save_pretrained"):
            raise UserError(f"{run.exp_dir} is no run of an autoencoder that can be exported")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    model.generator.save_pretrained(options.folder)
    print(f"{run.exp_dir}, {checkpoint.name} -> {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
