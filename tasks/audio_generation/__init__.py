"""Audio generation with instructions."""

from tasks.audio_generation.demonstration import Demonstration
from tasks.audio_generation.inference import AudioGenerationPredictor
from tasks.audio_generation.judges import Judge, prepare_judge
from tasks.audio_generation.trainer import AudioGenerationTrainer

__all__ = ["AudioGenerationPredictor", "AudioGenerationTrainer", "Demonstration", "Judge", "prepare_judge"]
