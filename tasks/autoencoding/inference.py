"""How well sounds come back.  Shapes: B batch, T samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from components.losses import MultiResolutionStftLoss, waveform_distance

Record = dict[str, Any]


class ReconstructionPredictor:
    """Sends clips through an autoencoder and measures what comes back.

    A record is `{"id", "spectral_convergence", "log_magnitude", "waveform"}`: distances, 0 where nothing was lost.

    Args:
        spectral: compares spectrograms; the resolutions by default are those for speech at 16 kHz.
    """

    def __init__(self, spectral: MultiResolutionStftLoss | None = None) -> None:
        self.spectral = spectral or MultiResolutionStftLoss()

    def __call__(self, model: Callable[..., Any], batch: Mapping[str, Any]) -> list[Record]:
        """Records of a batch with `id`, `waveform [B, 1, T]` and `audio_lens [B]`."""
        target, lens = batch["waveform"], batch["audio_lens"]
        estimate = model(target, lens).waveform
        spectral = self.spectral.to(target.device)(estimate, target, lens)
        distances = {
            "spectral_convergence": spectral.spectral_convergence.tolist(),
            "log_magnitude": spectral.log_magnitude.tolist(),
            "waveform": waveform_distance(estimate, target, lens).tolist(),
        }
        return [
            {"id": identifier} | {name: round(values[i], 6) for name, values in distances.items()}
            for i, identifier in enumerate(batch["id"])
        ]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The mean of each distance over clips."""
        names = [name for name in records[0] if name != "id"] if records else []
        return {name: sum(record[name] for record in records) / len(records) for name in names}
