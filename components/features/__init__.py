"""From waveforms to features, on the device and inside the model."""

from components.features.log_mel import LogMel

__all__ = ["LogMel"]
