"""From a batch to records that a person can read.  Shapes: B batch, K classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Record = dict[str, Any]


def metric_name(target: str, metric: str, main_target: str) -> str:
    """`accuracy` for the main target, `speaker_accuracy` for another."""
    return metric if target == main_target else f"{target}_{metric}"


class TaggingPredictor:
    """Predicts every target of every clip, and scores predictions whose truth is known.

    A record is `{"id", "predictions": {target: {"label", "score", "top": [{"label", "score"}, ...]}}, "targets"?:
    {target: class name}}`; scores are probabilities, `top` is in falling order, `targets` holds what the batch knows.

    Args:
        labels: target -> its class names, in the model's order.
        main_target: the one whose accuracy is called `accuracy`.
        top_k: how many classes to list.
    """

    def __init__(self, labels: Mapping[str, Sequence[str]], main_target: str, top_k: int = 5) -> None:
        self.labels = {target: [str(name) for name in names] for target, names in labels.items()}
        self.main_target, self.top_k = main_target, top_k

    def __call__(self, model: Callable[..., Any], batch: Mapping[str, Any]) -> list[Record]:
        """Records of a batch with `id`, `waveform [B, 1, T]`, `audio_lens [B]`, and `targets` where they are known."""
        logits = model(batch["waveform"], batch["audio_lens"]).logits
        predictions = {target: self._rank(target, values) for target, values in logits.items()}
        targets = {target: ids.tolist() for target, ids in batch.get("targets", {}).items()}
        records = []
        for i, identifier in enumerate(batch["id"]):
            predicted = {name: ranked[i] for name, ranked in predictions.items()}
            known = {name: self.labels[name][ids[i]] for name, ids in targets.items() if ids[i] >= 0}
            records.append({"id": identifier, "predictions": predicted} | ({"targets": known} if known else {}))
        return records

    def page(self, model: Any, config: Any) -> Any:
        """A page on which to let the model listen to recordings; see `tasks.tagging.page`."""
        from tasks.tagging.page import build_page

        return build_page(model, self)

    def _rank(self, target: str, logits: Tensor) -> list[dict[str, Any]]:
        names = self.labels[target]
        probs = torch.softmax(logits.float(), dim=1)
        scores, ids = probs.topk(min(self.top_k, len(names)), dim=1)
        ranked = []
        for clip_scores, clip_ids in zip(scores.tolist(), ids.tolist()):
            top = [{"label": names[k], "score": round(score, 6)} for k, score in zip(clip_ids, clip_scores)]
            ranked.append({**top[0], "top": top})
        return ranked

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Accuracy of every target that is known for some clip, and how many clips the main one was counted over."""
        scores: dict[str, float] = {}
        for target in self.labels:
            known = [record for record in records if target in record.get("targets", {})]
            if not known:
                continue
            correct = sum(record["predictions"][target]["label"] == record["targets"][target] for record in known)
            scores[metric_name(target, "accuracy", self.main_target)] = correct / len(known)
            scores[metric_name(target, "count", self.main_target)] = len(known)
        return scores
