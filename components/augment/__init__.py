"""Augmentations of waveforms (in the dataset), of features (on the device) and of batches."""

from components.augment.compose import Compose, FeatureCompose, OneOf
from components.augment.filter_augment import FilterAugment
from components.augment.from_audiomentations import Audiomentations
from components.augment.mixup import CollateThen, Mixup
from components.augment.recordings import AddNoiseFromFiles, Reverb
from components.augment.spec_augment import SpecAugment
from components.augment.waveform import AddNoise, RandomCrop, RandomGain, RandomSpeed, SpeedPerturb, TimeShift

__all__ = [
    "AddNoise",
    "AddNoiseFromFiles",
    "Audiomentations",
    "CollateThen",
    "Compose",
    "FeatureCompose",
    "FilterAugment",
    "Mixup",
    "OneOf",
    "RandomCrop",
    "RandomGain",
    "RandomSpeed",
    "Reverb",
    "SpecAugment",
    "SpeedPerturb",
    "TimeShift",
]
