"""What a sound is to be like, encoded: each field of a batch to a stream."""

from components.models.audio_generator.content_encoders.base import ContentEncoder, mean_pool
from components.models.audio_generator.content_encoders.frames import FrameEncoder, LatentEncoder
from components.models.audio_generator.content_encoders.symbols import MidiEncoder, PhonemeEncoder
from components.models.audio_generator.content_encoders.text import CharEncoder, WordEncoder
from components.models.audio_generator.content_encoders.transformers_text import TransformersTextEncoder
from components.models.audio_generator.content_encoders.vectors import ClassEncoder, NumberEncoder, VectorEncoder
from components.models.audio_generator.content_encoders.vocabulary import vocabulary_of

__all__ = [
    "CharEncoder",
    "ClassEncoder",
    "ContentEncoder",
    "FrameEncoder",
    "LatentEncoder",
    "MidiEncoder",
    "NumberEncoder",
    "PhonemeEncoder",
    "TransformersTextEncoder",
    "VectorEncoder",
    "WordEncoder",
    "mean_pool",
    "vocabulary_of",
]
