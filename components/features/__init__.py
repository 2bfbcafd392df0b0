"""From waveforms to features, on the device and inside the model."""

from components.features.frontend import FeatureTransform, Frontend
from components.features.kaldi import KaldiFbank, Mfcc
from components.features.log_mel import LogMel
from components.features.mel_spectrogram import MelSpectrogram
from components.features.pipeline import FeaturePipeline
from components.features.samples import Samples
from components.features.transforms import GlobalCmvn, StackFrames, UtteranceCmvn
from components.features.waveform import NormalizeWaveform
from components.features.whisper import WhisperLogMel

__all__ = [
    "FeaturePipeline",
    "FeatureTransform",
    "Frontend",
    "GlobalCmvn",
    "KaldiFbank",
    "LogMel",
    "MelSpectrogram",
    "Mfcc",
    "NormalizeWaveform",
    "Samples",
    "StackFrames",
    "UtteranceCmvn",
    "WhisperLogMel",
]
