"""Integrate-and-fire, forward and backward: ours against public implementations, in one run. One command:

    python -m benchmarks.cif

One thread; the contestants take turns, so that all see the same machine; medians over the rounds, of CPU time on a CPU
and of wall time on a GPU. Peers are measured where they are installed (`pip install --no-deps funasr torch-cif`: of the
former only one file is loaded, which needs nothing more) and named where they are not. A loop over frames, written here
as the method is usually written, is always there. The weights sum to N + 0.3, so that nobody loses a token to rounding;
how many last tokens are lost where they sum to N is counted beside.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from components.models.asr.cif import integrate_and_fire, scale_weights

SIZES = ((16, 250, 256, 60), (16, 500, 256, 120), (16, 1000, 256, 240))  # B, T, D, N
Fire = Callable[[Tensor, Tensor, int], Tensor]


def loop(hidden: Tensor, alphas: Tensor, num_tokens: int) -> Tensor:
    """The method as a sequence of frames: a sum that is put out, and begun anew, where the weights reach one."""
    mass, begun = torch.zeros_like(alphas[:, 0]), torch.zeros_like(hidden[:, 0])
    sums, fires = [], []
    for t in range(hidden.shape[1]):
        frame, alpha = hidden[:, t], alphas[:, t]
        fire = mass + alpha >= 1
        taken = torch.where(fire, 1 - mass, alpha)
        sums.append(begun + taken[:, None] * frame)
        fires.append(fire)
        rest = alpha - taken
        mass = torch.where(fire, rest, mass + alpha)
        begun = torch.where(fire[:, None], rest[:, None] * frame, sums[-1])
    every, fired = torch.stack(sums, 1), torch.stack(fires, 1)
    rows = []
    for of_utterance, where in zip(every, fired):
        kept = of_utterance[where][:num_tokens]
        rows.append(torch.cat([kept, kept.new_zeros(num_tokens - len(kept), kept.shape[1])]))
    return torch.stack(rows)


def ours(hidden: Tensor, alphas: Tensor, num_tokens: int, method: str) -> Tensor:
    counts = torch.full((len(hidden),), num_tokens, device=hidden.device)
    return integrate_and_fire(hidden, alphas, counts, num_tokens, method=method)


def peers() -> tuple[dict[str, Fire], list[str]]:
    """Name -> function of those that are installed; the names of those that are not."""
    found: dict[str, Fire] = {}
    missing = []
    if importlib.util.find_spec("funasr") is None:
        missing.append("FunASR")
    else:
        module = _funasr_predictor()
        found["FunASR loop"] = lambda h, a, n: module.cif(h, a, 1.0)[0]
        found["FunASR cif_v1"] = lambda h, a, n: module.cif_v1(h, a, 1.0)[0]
    if importlib.util.find_spec("torch_cif") is None:
        missing.append("torch-cif")
    else:
        torch_cif = importlib.import_module("torch_cif")
        found["torch-cif"] = lambda h, a, n: torch_cif.cif_function(h, a, unbound_alpha=True)["cif_out"][0][:, :n]
    return found, missing


def _funasr_predictor() -> ModuleType:
    """Its one file: the package, imported as it is, loads every model it has."""
    package = ModuleType("funasr")
    package.__path__ = list(importlib.util.find_spec("funasr").submodule_search_locations)
    sys.modules["funasr"] = package
    return importlib.import_module("funasr.models.paraformer.cif_predictor")


def utterances(batch: int, num_frames: int, dim: int, integral: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch, num_frames, dim, generator=generator)
    alphas = torch.rand(batch, num_frames, generator=generator)
    return hidden, alphas * (integral / alphas.sum(1, keepdim=True))


def milliseconds(fire: Fire, hidden: Tensor, alphas: Tensor, num_tokens: int, above: Tensor) -> float:
    """Of forward and backward."""
    on_gpu = hidden.is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    hidden, alphas = hidden.clone().requires_grad_(), alphas.clone().requires_grad_()
    if on_gpu:
        torch.cuda.synchronize()
    started = clock()
    torch.autograd.backward(fire(hidden, alphas, num_tokens), above)
    if on_gpu:
        torch.cuda.synchronize()
    return 1000 * (clock() - started)


def last_tokens_lost(fire: Fire, exactly_scaled: bool, batch: int = 192) -> float:
    """Share of utterances whose last embedding is zero when the weights are scaled to the number of tokens."""
    hidden, alphas = utterances(batch, 200, 4, 40.0)
    counts = torch.full((batch,), 50)
    if exactly_scaled:
        alphas = scale_weights(alphas, counts, torch.full((batch,), 200))
    else:
        alphas = alphas * (counts / alphas.sum(1))[:, None]
    rows = fire(1 + hidden.abs(), alphas, 50)
    return float((rows[:, -1] == 0).all(1).float().mean())


def measure(rounds: int, device: str) -> dict[str, dict[str, dict[str, float]]]:
    """Size -> contestant -> milliseconds, and how many times as much the peer takes as ours."""
    others, missing = peers()
    for name in missing:
        print(f"{name}: not installed, left out")
    contestants = {"merge": partial(ours, method="merge"), "dense": partial(ours, method="dense"), "loop": loop}
    contestants |= others
    lost = {name: last_tokens_lost(fire, name in ("merge", "dense")) for name, fire in contestants.items()}
    results: dict[str, dict[str, dict[str, float]]] = {"last tokens lost": {"share": lost}}
    for batch, num_frames, dim, num_tokens in SIZES:
        hidden, alphas = (x.to(device) for x in utterances(batch, num_frames, dim, num_tokens + 0.3))
        above = torch.randn(batch, num_tokens, dim, generator=torch.Generator().manual_seed(1)).to(device)
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for round_ in range(rounds + 1):
            for name, fire in contestants.items():
                spent = milliseconds(fire, hidden, alphas, num_tokens, above)
                if round_:  # the first one warms up
                    taken[name].append(spent)
        results[f"[{batch}, {num_frames}, {dim}], N {num_tokens}"] = {
            name: {
                "ms": statistics.median(values),
                "over merge": statistics.median(t / o for t, o in zip(values, taken["merge"])),
                "over dense": statistics.median(t / o for t, o in zip(values, taken["dense"])),
            }
            for name, values in taken.items()
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cif.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(options.rounds, options.device)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1))
    shares = results.pop("last tokens lost")["share"]
    print("| size | contestant | ms | over merge | over dense | last token lost |")
    print("|---|---|---|---|---|---|")
    for size, rows in results.items():
        for name, row in rows.items():
            figures = f"{row['ms']:.1f} | {row['over merge']:.1f} | {row['over dense']:.1f} | {shares[name]:.0%}"
            print(f"| {size} | {name} | {figures} |")


if __name__ == "__main__":
    main()
