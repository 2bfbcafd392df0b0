"""Audio generation: autoencoder, content encoders, adapters, conditions, backbone."""

from components.models.audio_generator.adapters import (
    AdapterOutput,
    CrossAttentionAdapter,
    NoAdapter,
    PrefixAdapter,
)
from components.models.audio_generator.autoencoders import (
    Autoencoder,
    AutoencoderOutput,
    IdentityAutoencoder,
    MelAutoencoder,
    OobleckAutoencoder,
    PatchAutoencoder,
)
from components.models.audio_generator.backbones import Dit, LongCatBackbone, StableAudio3Backbone
from components.models.audio_generator.conditions import ConditionFuser, Conditions, Stream, crop_aligned
from components.models.audio_generator.content_encoders import (
    CharEncoder,
    ClassEncoder,
    ContentEncoder,
    FrameEncoder,
    LatentEncoder,
    MidiEncoder,
    NumberEncoder,
    PhonemeEncoder,
    TransformersTextEncoder,
    VectorEncoder,
    WordEncoder,
    vocabulary_of,
)
from components.models.audio_generator.durations import (
    DurationLoss,
    DurationLosses,
    expand_by_durations,
    from_log_duration,
    round_durations,
    to_log_duration,
)
from components.models.audio_generator.generator import AudioGenerator, GeneratorOutput

__all__ = [
    "AdapterOutput",
    "AudioGenerator",
    "Autoencoder",
    "AutoencoderOutput",
    "CharEncoder",
    "ClassEncoder",
    "ConditionFuser",
    "Conditions",
    "ContentEncoder",
    "CrossAttentionAdapter",
    "Dit",
    "DurationLoss",
    "DurationLosses",
    "FrameEncoder",
    "GeneratorOutput",
    "IdentityAutoencoder",
    "LatentEncoder",
    "LongCatBackbone",
    "MelAutoencoder",
    "MidiEncoder",
    "NoAdapter",
    "NumberEncoder",
    "OobleckAutoencoder",
    "PatchAutoencoder",
    "PhonemeEncoder",
    "PrefixAdapter",
    "StableAudio3Backbone",
    "Stream",
    "TransformersTextEncoder",
    "VectorEncoder",
    "WordEncoder",
    "crop_aligned",
    "expand_by_durations",
    "from_log_duration",
    "round_durations",
    "to_log_duration",
    "vocabulary_of",
]
