"""What a step costs around the model. `python -m benchmarks.trainer_overhead [--rounds 7] [--out FILE.json]`.

One process, contestants interleaved round by round in changing order; medians over rounds. All must end with the same
weights, so they did the same arithmetic.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import warnings
from pathlib import Path

import torch

from benchmarks.contestants import CONTESTANTS, ITEMS, MODELS, Clock, Items

STEPS = {"tiny": 1500, "medium": 60}
WARMUP = {"tiny": 200, "medium": 10}


def one_run(size: str, name: str) -> tuple[float, float, float]:
    """Wall and CPU seconds per step, and a digest of the final weights."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    torch.manual_seed(0)
    clock = Clock(WARMUP[size])
    model = MODELS[size](clock)
    data = ITEMS.get(name, Items)(STEPS[size] * 8)
    with tempfile.TemporaryDirectory() as folder, _silence():
        CONTESTANTS[name](model, data, STEPS[size], Path(folder))
    return *clock.per_step(), sum(p.double().sum().item() for p in model.parameters())


@contextlib.contextmanager
def _silence():
    """Bars are drawn all the same, into the void."""
    with open(os.devnull, "w") as void, contextlib.redirect_stdout(void), contextlib.redirect_stderr(void):
        yield


def measure(size: str, names: list[str], rounds: int) -> list[dict[str, object]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    weights: dict[str, float] = {}
    for round_ in range(rounds + 1):
        for name in names if round_ % 2 else reversed(names):
            wall, cpu, weights[name] = one_run(size, name)
            if round_:  # the first round imports
                times[name].append((wall, cpu))
    base = times["torch loop"]
    rows = []
    for name in names:
        wall_ratio = statistics.median(t[0] / b[0] for t, b in zip(times[name], base))
        cpu_ratio = statistics.median(t[1] / b[1] for t, b in zip(times[name], base))
        rows.append(
            {
                "size": size, "contestant": name,
                "wall_us": statistics.median(t[0] for t in times[name]) * 1e6, "wall_ratio": wall_ratio,
                "cpu_us": statistics.median(t[1] for t in times[name]) * 1e6, "cpu_ratio": cpu_ratio,
                "cpu_ratio_range": [min(t[1] / b[1] for t, b in zip(times[name], base)),
                                    max(t[1] / b[1] for t, b in zip(times[name], base))],
                "same_weights": abs(weights[name] - weights["torch loop"]) < 1e-6,
            }
        )  # fmt: skip
    return rows


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| model | contestant | CPU us/step | ratio (range) | wall us/step | ratio | same weights |",
        "|---" * 7 + "|",
    ]
    for r in rows:
        low, high = r["cpu_ratio_range"]  # type: ignore[misc]
        lines.append(
            f"| {r['size']} | {r['contestant']} | {r['cpu_us']:.0f} | **{r['cpu_ratio']:.2f}** ({low:.2f}-{high:.2f}) "
            f"| {r['wall_us']:.0f} | {r['wall_ratio']:.2f} | {'yes' if r['same_weights'] else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trainer_overhead.json"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = [row for size in options.sizes for row in measure(size, options.contestants, options.rounds)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"torch": torch.__version__, "rounds": options.rounds, "rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
