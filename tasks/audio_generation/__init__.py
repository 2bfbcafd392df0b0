"""Audio generation with instructions."""

from tasks.audio_generation.demonstration import Demonstration
from tasks.audio_generation.inference import AudioGenerationPredictor
from tasks.audio_generation.judges import Judge, prepare_judge
from tasks.audio_generation.reconstruction import ReconstructionDemo
from tasks.audio_generation.task_scores import GapMetric, TaskScores
from tasks.audio_generation.trainer import AudioGenerationTrainer

__all__ = [
    "AudioGenerationPredictor",
    "AudioGenerationTrainer",
    "Demonstration",
    "GapMetric",
    "Judge",
    "ReconstructionDemo",
    "TaskScores",
    "prepare_judge",
]
