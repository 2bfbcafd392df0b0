"""Networks from noisy latents, a time and conditions to a velocity."""

from components.models.audio_generator.backbones.dit import Dit
from components.models.audio_generator.backbones.longcat import LongCatBackbone
from components.models.audio_generator.backbones.stable_audio_3 import StableAudio3Backbone

__all__ = ["Dit", "LongCatBackbone", "StableAudio3Backbone"]
