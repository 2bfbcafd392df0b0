"""Predictions of a trained model, without a Trainer around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from tqdm import tqdm

from trainer.data import plan_loader

Records = list[dict[str, Any]]


def predict_with(
    model: nn.Module, predictor: Callable[[nn.Module, Any], Records], loader: Any, device: str
) -> tuple[Records, Records]:
    """The predictor's records of every batch in the loader's order, and `{"id", "source", "reason", "detail"}` of what
    could not be used."""
    model.to(device).eval()
    records: Records = []
    bad: Records = list(getattr(loader.dataset, "bad_samples", ()))
    with torch.inference_mode():
        for loaded in tqdm(plan_loader(loader, seed=0, skip_bad=True), disable=None, leave=False):
            bad += loaded.bad
            if not loaded.is_substitute:
                records += predictor(model, send_to_device(loaded.batch, device))
    return records, bad
