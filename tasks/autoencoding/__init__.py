"""Waveform autoencoders: sounds to latents and back."""

from tasks.autoencoding.inference import ReconstructionPredictor
from tasks.autoencoding.reconstruction_logger import ReconstructionLogger
from tasks.autoencoding.trainer import AutoencoderTrainer

__all__ = ["AutoencoderTrainer", "ReconstructionLogger", "ReconstructionPredictor"]
