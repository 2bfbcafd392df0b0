"""Augmentations of waveforms (in the dataset) and of features (on the device)."""

from components.augment.spec_augment import SpecAugment
from components.augment.waveform import AddNoise, RandomCrop, RandomGain, RandomSpeed, TimeShift

__all__ = ["AddNoise", "RandomCrop", "RandomGain", "RandomSpeed", "SpecAugment", "TimeShift"]
