"""Samplers, guidance and wordings on a trained generator. `python -m benchmarks.generation_samplers EXP_DIR`.

For every wish of the run's test set a sound is made with the item's own seed, so from the same noise in every row, and
judges hear it. Printed are Markdown tables, with `--out` JSON is written too: the share of wishes that all judges
recognise, target by target, with its 95 % interval; the Frechet distance to the real clips of the set in the first
judge's embedding; network evaluations (of both parts of a guided prediction at once); seconds of one thread for the
whole set; and the error, the distance of an item's latents from a converged solution (32 midpoint steps) relative to
that, the median over a batch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from components.generative import FactoredGuidance, named_sampler
from components.metrics.distances import frechet_distance
from components.metrics.intervals import wilson_interval
from components.models.audio_generator.generator import AudioGenerator
from tasks.audio_generation.inference import item_seed
from tasks.audio_generation.judges import Judge
from trainer.checkpoint import find
from trainer.loading import load_trained
from utils.stored_run import StoredRun, load_run

Batch = dict[str, Any]

SAMPLERS = (
    ("euler", 4), ("euler", 8), ("euler", 16), ("euler", 32), ("midpoint", 4), ("midpoint", 8),
    ("unipc", 8), ("unipc", 10), ("dpmsolver++", 8), ("dpmsolver++", 10),
)  # fmt: skip
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
CONVERGED = ("midpoint", 32)


@dataclass
class Row:
    """One line of a table; `recognised` is target -> (right, asked)."""

    name: str
    recognised: dict[str, tuple[int, int]]
    frechet: float
    calls: int = 0
    seconds: float = 0.0
    error: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


class Watched:
    """A sampler whose calls of the network are counted, and whose latents are kept."""

    def __init__(self, sampler: Any) -> None:
        self._sampler, self.prediction = sampler, sampler.prediction
        self.calls: list[int] = []
        self.latents: list[Tensor] = []

    def sample(self, predict: Any, x_0: Tensor, num_steps: int) -> Tensor:
        count = 0

        def counted(*arguments: Any) -> Tensor:
            nonlocal count
            count += 1
            return predict(*arguments)

        latents = self._sampler.sample(counted, x_0, num_steps)
        self.calls.append(count)
        self.latents.append(latents)
        return latents


class Listeners:
    """Judges, asked about sounds that were made for the wishes of batches."""

    def __init__(self, folders: Sequence[str], labels: Mapping[str, Sequence[str]], rate: int) -> None:
        self._judges, self._labels, self._rate = [Judge(folder) for folder in folders], labels, rate

    def hear(self, sounds: Sequence[tuple[Tensor, Tensor]], batches: Sequence[Batch]) -> tuple[dict, np.ndarray]:
        """Target -> (right, asked), and the embeddings `[N, D]`."""
        right: dict[str, list[bool]] = {}
        embeddings = []
        for (made, lens), batch in zip(sounds, batches):
            told: dict[str, list[bool]] = {}
            for number, judge in enumerate(self._judges):
                verdict = judge.hear(made, lens, self._rate)
                for target, heard in verdict.classes.items():
                    if target not in self._labels or target not in batch["targets"]:
                        continue
                    asked = [self._labels[target][k] for k in batch["targets"][target].tolist()]
                    said = [a == b for a, b in zip(heard, asked)]
                    told[target] = [a and b for a, b in zip(told.get(target, said), said)]
                if number == 0:
                    embeddings.append(verdict.embedding.numpy())
            for target, said in told.items():
                right.setdefault(target, []).extend(said)
        return {t: (sum(said), len(said)) for t, said in right.items()}, np.concatenate(embeddings)


class Bench:
    """A trained run, its wishes, and those who listen."""

    def __init__(self, run: StoredRun, judges: Sequence[str], max_batches: int | None, seed: int) -> None:
        self.run, self.seed, self.max_batches = run, seed, max_batches
        self.model: AudioGenerator = run.build("model")
        checkpoint = find(run.default_checkpoint(), run.checkpoint_dir)
        load_trained(self.model, checkpoint, run.config.get("pretrained"))
        self.model.eval()
        labels = OmegaConf.to_container(run.config.labels, resolve=True)
        self.listeners = Listeners(judges, labels, self.model.autoencoder.sample_rate)
        self.batches = self.wishes()
        self.real = self.listeners.hear(self._own_sounds(self.batches), self.batches)
        self.converged: Tensor | None = None

    def wishes(self, templates: Any = None, wording: int | None = None) -> list[Batch]:
        """The batches of the test set, with other wordings where some are given."""
        config = deepcopy(self.run.config)
        if templates is not None:
            config.test_dataloader.dataset.templates = templates
        if wording is not None:
            config.test_dataloader.dataset.wording = wording
        loader = StoredRun(self.run.exp_dir, config).build("test_dataloader")
        return [batch for _, batch in zip(range(self.max_batches or len(loader)), loader)]

    def made(
        self, name: str, sampler: str, num_steps: int, scale: float, batches: Sequence[Batch] | None = None
    ) -> Row:
        """Sounds for all wishes, heard."""
        batches = batches or self.batches
        watched = Watched(named_sampler(sampler, self.model.objective))
        begin, sounds = time.process_time(), [self._make(batch, watched, num_steps, scale) for batch in batches]
        seconds = time.process_time() - begin
        expected = named_sampler(sampler, self.model.objective).num_calls(num_steps)
        assert set(watched.calls) == {expected}, f"{name}: {watched.calls} calls for {expected}"
        recognised, embeddings = self.listeners.hear(sounds, batches)
        row = Row(name, recognised, frechet_distance(embeddings, self.real[1]), expected, seconds)
        if self.converged is not None:
            distances = (watched.latents[0] - self.converged).norm(dim=(1, 2)) / self.converged.norm(dim=(1, 2))
            row.error = float(distances.median())
        print(line(row), flush=True)
        return row

    def converge(self, scale: float) -> None:
        """Solve the first batch so finely that the rest is rounding, more or less."""
        watched = Watched(named_sampler(CONVERGED[0], self.model.objective))
        self._make(self.batches[0], watched, CONVERGED[1], scale)
        self.converged = watched.latents[0]

    def ceilings(self) -> list[Row]:
        """Real clips, as they are and through the autoencoder; the distance of so many training clips to them."""
        codec, rows = self.model.autoencoder, []
        with torch.no_grad():
            copies = [codec.decode(*codec.encode(w, lens)) for w, lens in self._own_sounds(self.batches)]
        recognised, embeddings = self.listeners.hear(copies, self.batches)
        rows.append(Row("real clips through the autoencoder", recognised, frechet_distance(embeddings, self.real[1])))
        dataset = self.run.build("train_dataloader").dataset
        count = sum(len(batch["id"]) for batch in self.batches)
        picked = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
        collate = self.run.build("test_dataloader").collate_fn
        torch.manual_seed(0)
        batches = [collate([dataset[int(i)] for i in part]) for part in np.array_split(picked, max(1, count // 50))]
        _, others = self.listeners.hear(self._own_sounds(batches), batches)
        rows.append(
            Row(
                f"real clips ({count} of training for the distance)",
                self.real[0],
                frechet_distance(others, self.real[1]),
            )
        )
        return rows

    def _make(self, batch: Batch, sampler: Watched, num_steps: int, scale: float) -> tuple[Tensor, Tensor]:
        seeds = torch.tensor([item_seed(self.seed, name, 0) for name in batch["id"]])
        guidance = FactoredGuidance({"all": list(self.model.fuser.slots)}, scale)
        return self.model.generate(batch, seeds, num_steps, sampler, guidance)

    @staticmethod
    def _own_sounds(batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        return [(batch["waveform"], batch["audio_lens"]) for batch in batches]


def share(right: int, asked: int) -> str:
    interval = wilson_interval(right, asked)
    return f"{100 * right / asked:.1f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})" if interval else "-"


def line(row: Row) -> str:
    shares = " | ".join(share(*row.recognised[target]) for target in sorted(row.recognised, reverse=True))
    error = "-" if row.error is None else f"{row.error:.3f}"
    seconds = f"{row.seconds:.1f}" if row.calls else "-"
    return f"| {row.name} | {shares} | {row.frechet:.2f} | {row.calls or '-'} | {seconds} | {error} |"


def table(title: str, rows: Sequence[Row]) -> str:
    targets = sorted(rows[0].recognised, reverse=True)
    head = f"| {title} | {' | '.join(f'{target}, %' for target in targets)} | Frechet | calls | CPU s | error |"
    return "\n".join([head, "|---" * (len(targets) + 5) + "|", *map(line, rows)])


def measure(bench: Bench, scale: float, num_steps: int) -> dict[str, list[Row]]:
    """The tables by title; a row that two of them have is measured once."""
    bench.converge(scale)
    samplers = [bench.made(f"{name} {steps}", name, steps, scale) for name, steps in SAMPLERS]
    bench.converged = None
    tables = {f"sampler and steps (scale {scale:g})": [*samplers, *bench.ceilings()]}
    tables[f"guidance scale (euler {num_steps})"] = [bench.made(f"{s:g}", "euler", num_steps, s) for s in SCALES]
    task = str(bench.batches[0]["task"][0])
    wordings = OmegaConf.select(bench.run.config, f"instructions.{task}")
    if wordings is not None:
        rows = []
        for kind in ("train", "held_out"):
            templates = list(wordings[kind])
            for number, template in enumerate(templates):
                wishes = bench.wishes(templates, number)
                rows.append(bench.made(f"{kind}: {template}", "euler", num_steps, scale, wishes))
        tables[f"wording (euler {num_steps}, scale {scale:g})"] = rows
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("exp_dir", metavar="EXP_DIR")
    parser.add_argument("--judges", nargs="+", metavar="DIR", help="tagging runs; those of the run's demonstration")
    parser.add_argument("--scale", type=float, default=2.0, help="of guidance")
    parser.add_argument("--steps", type=int, default=16, help="of Euler, for guidance and wordings")
    parser.add_argument("--batches", type=int, help="only so many of the test set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = load_run(options.exp_dir)
    judges = options.judges or list((OmegaConf.select(run.config, "callbacks.demonstration.judges") or {}).values())
    tables = measure(Bench(run, judges, options.batches, options.seed), options.scale, options.steps)
    print("\n" + "\n\n".join(table(title, rows) for title, rows in tables.items()))
    if options.out is not None:
        options.out.write_text(json.dumps({t: [asdict(row) for row in rows] for t, rows in tables.items()}, indent=1))


if __name__ == "__main__":
    main()
