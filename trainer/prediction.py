"""Predictions of a trained model, without a Trainer around it: every item once, on any number of processes.

Items are dealt out in batches of like length, batch `g` to process `g % num_processes`; results are in the order of the
dataset. What can not be used is named and never stops the others.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import send_to_device
from torch import nn
from tqdm import tqdm

from trainer.checkpoint import find, weights_file
from trainer.items import Items
from trainer.loading import load_trained
from trainer.pace import Pace, performance
from utils.errors import BadSample, UserError
from utils.launch import pick_device, process_state
from utils.results import Done, Output, Part, Record, digest, finish, kept_keys, merge, take_up
from utils.trust import instantiate_untrusted

Records = list[Record]


class Predictor(Protocol):
    """From a batch to records that a person can read.

    What it may have besides:
        prepare(model): does what takes time once, and tells what does not fit, before anything is read.
        write_to(output: Path) -> Path: it leaves files of its own beside the records; is told where `output` is, and
            returns where the records are to go.
        problem_of(record) -> str | None: why a record of an earlier run can not be kept: its file is gone.
        phases: seconds of the last call by what they went into, `{"model": 1.2, "decode": 0.1}`.
        evaluate(made: MadeSet, options) -> str: scores that need more than the records, as a table.
        leave(made: MadeSet) -> str | None: writes files of all records, and says where they are.
        page(model, config) -> gradio.Blocks: the run's page in the browser.
    """

    def __call__(self, model: nn.Module, batch: Any) -> Records:
        """As many records for each item, item by item; each has an `id`, and `seconds` where it is of a sound.

        Raises:
            BadSample: an item can not be used; the others of its batch are tried without it.
        """
        ...

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Numbers over all records of a set."""
        ...


@dataclass(frozen=True)
class MadeSet:
    """A set whose predictions are there.

    Attributes:
        records, bad: of the set; and what could not be used, `{"id", "source", "reason", "detail"}`.
        summary: as in the file of that name.
        redone: a sentence about what an earlier run left and was made again; None where there is none.
        dataset: what it was made of.
    """

    name: str
    records: Records
    bad: Records
    output: Output
    summary: dict[str, Any]
    redone: str | None
    dataset: Any
    trained: Trained

    def evaluate(self, options: Mapping[str, Any]) -> str:
        """What the predictor's `evaluate` tells; where it has none, its scores are all there is."""
        if not hasattr(self.trained.predictor, "evaluate"):
            return f"{self.name}: the scores above are all that {type(self.trained.predictor).__name__} knows of"
        return self.trained.predictor.evaluate(self, options)

    def leave(self) -> str | None:
        """Let the predictor write what it has to write of all records; what it says of it."""
        return self.trained.predictor.leave(self) if hasattr(self.trained.predictor, "leave") else None


@dataclass(frozen=True)
class Trained:
    """A run's model with its weights, ready to predict.

    Attributes:
        run: a `utils.stored_run.StoredRun`.
        checkpoint: its folder.
        state: of accelerate, the processes.
    """

    run: Any
    model: nn.Module
    predictor: Any
    checkpoint: Path
    device: str
    state: Any

    @classmethod
    def of(cls, run: Any, checkpoint: str | None = None, device: str = "auto") -> Trained:
        """Load a stored run's model.

        Raises:
            UserError: it has no such checkpoint, its weights do not fit, or there is no such device.
        """
        folder = find(checkpoint or run.default_checkpoint(), run.checkpoint_dir)
        model, predictor = run.build("model"), run.build("predictor")
        load_trained(model, folder, run.config.get("pretrained"))
        state = process_state()
        own = str(state.device) if state.num_processes > 1 and state.device.type == "cuda" else pick_device(device)
        return cls(run, model, predictor, folder, own, state)

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that speaks."""
        return self.state.is_main_process

    def page(self) -> Any:
        """The predictor's page.

        Raises:
            UserError: it has none.
        """
        if not hasattr(self.predictor, "page"):
            raise UserError(f"ui: {type(self.predictor).__name__} has no page")
        if hasattr(self.predictor, "prepare"):
            self.predictor.prepare(self.model)
        return self.predictor.page(self.model.to(self.device).eval(), self.run.config)

    def about(self) -> dict[str, str]:
        """Which weights and config these are."""
        manifest = json.loads((self.checkpoint / "manifest.json").read_text())
        weights = manifest["files"][weights_file(self.checkpoint).name]["sha256"]
        config = hashlib.sha256((self.run.exp_dir / "config.yaml").read_bytes()).hexdigest()
        return {"exp_dir": str(self.run.exp_dir), "checkpoint": self.checkpoint.name, "weights_sha256": weights,
                "config_sha256": config}  # fmt: skip

    def predict(self, evaluation: Any, output: Path, overwrite: bool = False) -> MadeSet | None:
        """Predict a set of `utils.stored_run.evaluations`, or continue where that was broken off.

        Returns:
            on the main process what is there now.
        """
        if evaluation.recipe is not None:
            with self.state.local_main_process_first():
                instantiate_untrusted(evaluation.recipe)
        if hasattr(self.predictor, "write_to"):
            output = self.predictor.write_to(output)
        loader = instantiate_untrusted(evaluation.loader)
        about = self.about()
        settings = {"weights_sha256": about["weights_sha256"], "model": digest(self.run.plain("model")),
                    "predictor": self.run.plain("predictor"), "data": evaluation.data()}  # fmt: skip
        made = predict_set(self, loader, Output(output), settings, overwrite)
        if made is None:
            return None
        records, bad, summary, redone = made
        summary = {"name": evaluation.name, **about, **summary}
        finish(Output(output), bad, summary)
        return MadeSet(evaluation.name, records, bad, Output(output), summary, redone, loader.dataset, self)


def show_page(run: Any, request: Any) -> None:
    """Serve a stored run's page until interrupted."""
    from utils.page import serve

    serve(Trained.of(run, request.checkpoint, request.device).page(), request.ui_host, request.ui_port)


def predict_with(model: nn.Module, predictor: Any, loader: Any, device: str) -> tuple[Records, Records]:
    """The predictor's records of every item in the dataset's order, and `{"id", "source", "reason", "detail"}` of what
    could not be used; in memory, on this process alone."""
    items = Items(loader)
    model.to(device).eval()
    done = {key: made for batch in _made(model, predictor, items, items.batches(set()), device, Pace())
            for key, made in batch.items()}  # fmt: skip
    ordered = [done[key] for key in items.ordered(done)]
    bad = [told for made in ordered for told in made.bad]
    return [record for made in ordered for record in made.records], [*items.bad_samples, *bad]


def predict_set(
    trained: Trained, loader: Any, output: Output, settings: Mapping[str, Any], overwrite: bool = False
) -> tuple[Records, Records, dict[str, Any], str | None] | None:
    """Predict a set on all processes; the parts are merged, and left for `utils.results.finish`.

    Args:
        settings: what the records depend on, beside the data's own fingerprint.
        overwrite: make all again.

    Returns:
        on the main process records, what could not be used, the summary, and a sentence about what was made again.
    """
    state, predictor, device = trained.state, trained.predictor, trained.device
    items, redone = Items(loader), None
    settings = {**settings, "data_sha256": items.fingerprint()}
    before = output.last_summary()
    if state.is_main_process:
        try:
            output.records.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output: cannot write {output.records}: {error.strerror or error}") from None
        redone = take_up(output, settings, getattr(predictor, "problem_of", lambda record: None), overwrite)
    _meet(state)
    kept, pace = kept_keys(output), Pace()
    batches = items.batches(kept, state.process_index, state.num_processes)
    part = Part(output, state.process_index)
    trained.model.to(device).eval()
    if hasattr(predictor, "prepare"):
        predictor.prepare(trained.model)
    begin = time.perf_counter()
    for done in _made(trained.model, predictor, items, batches, device, pace, show=state.is_main_process):
        part.write(list(done.values()))
    part.close()
    pace.wall = time.perf_counter() - begin
    pace.leave(output.parts, state.process_index, device)
    _meet(state)
    if not state.is_main_process:
        return None
    keys = items.keys
    records, bad = merge(output, keys)
    bad = [*items.bad_samples, *bad]
    speed = performance(output.parts, device, state.num_processes, getattr(loader, "batch_size", None))
    summary = {
        "num_items": len(keys),
        "num_records": len(records),
        "num_bad": len(bad),
        "num_kept": len(kept.intersection(keys)),
        "scores": predictor.score(records),
        "performance": speed or before.get("performance", {}),
        "settings": settings,
        "settings_sha256": digest(settings),
    }
    return records, bad, summary, redone


def _made(
    model: nn.Module, predictor: Any, items: Items, batches: Any, device: str, pace: Pace, show: bool = True
) -> Iterator[dict[str, Done]]:
    """What was made of the items of each batch, by their keys."""
    total = len(batches) if isinstance(batches, list) else None
    walk = tqdm(items.read(batches), disable=None if show else True, leave=False, total=total)
    with torch.inference_mode():
        for indices, batch, bad in walk:
            done = {items.key(index): Done(items.key(index), [], told) for index, told in bad.items()}
            if batch is not None:
                started = time.perf_counter()
                made = _predicted(model, predictor, items, indices, batch, device)
                records = [record for own in made.values() for record in own.records]
                pace.add(time.perf_counter() - started, records, items.seconds_of(indices), _phases(predictor))
                done |= made
            pace.num_items += len(done)
            yield done


def _predicted(
    model: nn.Module, predictor: Any, items: Items, indices: Sequence[int], batch: Any, device: str
) -> dict[str, Done]:
    """What is too much, or no use, is halved until it is alone."""
    try:
        records = predictor(model, send_to_device(batch, device))
    except (BadSample, torch.OutOfMemoryError) as error:
        problem = error
    else:
        return _by_item(items, indices, records)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(indices) == 1:
        key = items.key(indices[0])
        return {key: Done(key, [], [_told(problem, batch)])}
    found: dict[str, Done] = {}
    for half in (indices[: len(indices) // 2], indices[len(indices) // 2 :]):
        for again, part, _ in items.read([list(half)]):
            found |= _predicted(model, predictor, items, again, part, device)
    return found


def _by_item(items: Items, indices: Sequence[int], records: Records) -> dict[str, Done]:
    num_each, rest = divmod(len(records), len(indices))
    if rest:
        raise ValueError(f"a predictor made {len(records)} records of {len(indices)} items: not as many of each")
    found = {}
    for place, index in enumerate(indices):
        key, own = items.key(index), records[place * num_each : (place + 1) * num_each]
        found[key] = Done(key, [one if one["id"] == key else one | {"item": key} for one in own], [])
    return found


def _told(error: BadSample | torch.OutOfMemoryError, batch: Any) -> Record:
    identifier = batch["id"][0] if isinstance(batch, Mapping) and "id" in batch else None
    if isinstance(error, BadSample):
        return {"id": error.sample_id or identifier, "source": error.source, "reason": error.reason,
                "detail": str(error)}  # fmt: skip
    detail = f"{identifier} alone needs more memory than there is"
    return {"id": identifier, "source": None, "reason": "out of memory", "detail": detail}


def _phases(predictor: Any) -> Mapping[str, float]:
    return getattr(predictor, "phases", {})


def _meet(state: Any) -> None:
    """Wait for all processes, for days if need be: what is dealt out may take one longer than another."""
    if state.num_processes > 1:
        torch.distributed.barrier(_patient_group())


@lru_cache(maxsize=1)
def _patient_group() -> Any:
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=30))
