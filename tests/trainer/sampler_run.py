"""What each of two ranks runs: `torchrun --nproc_per_node 2 -m tests.trainer.sampler_run FOLDER NAME...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate.utils import gather_object

from tests.trainer.test_sampler_resume import PullThePlug, make, run
from utils.launch import end_together, process_state


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    state = process_state()
    for name in names:
        seen, _ = run(make(name), folder / name, PullThePlug(6), epochs=3, log_every_n_steps=4)
        gathered = gather_object([(state.process_index, seen)])
        if state.is_main_process:
            (folder / f"{name}.json").write_text(json.dumps([seen for _, seen in sorted(gathered)]))
    end_together()


if __name__ == "__main__":
    main()
