"""Waveforms to latents at unit scale, and back."""

from components.models.audio_generator.autoencoders.base import Autoencoder
from components.models.audio_generator.autoencoders.identity import IdentityAutoencoder
from components.models.audio_generator.autoencoders.mel import MelAutoencoder
from components.models.audio_generator.autoencoders.oobleck import AutoencoderOutput, OobleckAutoencoder
from components.models.audio_generator.autoencoders.patch import PatchAutoencoder

__all__ = [
    "Autoencoder",
    "AutoencoderOutput",
    "IdentityAutoencoder",
    "MelAutoencoder",
    "OobleckAutoencoder",
    "PatchAutoencoder",
]
