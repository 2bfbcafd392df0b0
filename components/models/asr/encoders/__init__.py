"""Features, or waveforms, to what a recogniser's heads read."""

from components.models.asr.encoders.base import SpeechEncoder, record_attention
from components.models.asr.encoders.conformer import ConformerEncoder
from components.models.asr.encoders.pretrained import PretrainedSpeechEncoder
from components.models.asr.encoders.recurrent import RecurrentEncoder
from components.models.asr.encoders.sanm import SanmEncoder
from components.models.asr.encoders.streaming import EncoderStream
from components.models.asr.encoders.transformer import TransformerEncoder
from components.models.asr.subsampling import Conv2dSubsampling, NoSubsampling, StackSubsampling, Subsampling

__all__ = [
    "ConformerEncoder",
    "Conv2dSubsampling",
    "EncoderStream",
    "NoSubsampling",
    "PretrainedSpeechEncoder",
    "RecurrentEncoder",
    "SanmEncoder",
    "SpeechEncoder",
    "StackSubsampling",
    "Subsampling",
    "TransformerEncoder",
    "record_attention",
]
