"""How good generated audio is, and what recognisers wrote: numbers with intervals, and with what real audio scores.

Every metric takes `Clip`s by `update(generated, reference, training)` and gives a `MetricResult` by `compute()`.
"""

from components.metrics.base import JoiningMetric, Metric, MetricResult, Needs, PairedMetric, Unscorable
from components.metrics.clips import Clip, clips_of_batch, pad_clips
from components.metrics.copies import Diversity, Memorisation
from components.metrics.divergence import KullbackLeibler
from components.metrics.embedders import (
    Embedder,
    LogMelStatsEmbedder,
    MelCanvasEmbedder,
    ModuleEmbedder,
    TorchScriptEmbedder,
    embed_clips,
)
from components.metrics.error_rates import (
    ErrorCounts,
    PairedComparison,
    align,
    collapse_warning,
    compare,
    error_counts,
    rate_interval,
)
from components.metrics.evaluation import Collection, evaluate, paired_references, table
from components.metrics.intervals import Interval, bootstrap, wilson_interval
from components.metrics.judges import Listener, StoredTagger
from components.metrics.pitch import (
    ContourCorrelation,
    F0Correlation,
    F0Rmse,
    PitchTracker,
    VoicingError,
    WorldPitch,
    YinPitch,
)
from components.metrics.pretrained import ClapEmbedder, TransformersClassifier, TransformersEmbedder
from components.metrics.recognisers import StoredRecogniser
from components.metrics.recognition import (
    ClassifierAccuracy,
    EditCounts,
    Transcriber,
    WordErrorRate,
    edit_counts,
    plain_text,
)
from components.metrics.recognition_report import RecognitionReport
from components.metrics.set_metrics import FrechetAudioDistance, InceptionScore, KernelAudioDistance
from components.metrics.signal_metrics import Pesq, SiSdr, Stoi
from components.metrics.similarity import ClapScore, EmbeddingSimilarity, SpeakerSimilarity
from components.metrics.spectra import LogSpectralDistance, MelCepstralDistortion, MultiResolutionStft

__all__ = [
    "ClapEmbedder",
    "ClapScore",
    "ClassifierAccuracy",
    "Clip",
    "Collection",
    "ContourCorrelation",
    "Diversity",
    "EditCounts",
    "Embedder",
    "EmbeddingSimilarity",
    "ErrorCounts",
    "F0Correlation",
    "F0Rmse",
    "FrechetAudioDistance",
    "InceptionScore",
    "Interval",
    "JoiningMetric",
    "KernelAudioDistance",
    "KullbackLeibler",
    "Listener",
    "LogMelStatsEmbedder",
    "LogSpectralDistance",
    "MelCanvasEmbedder",
    "MelCepstralDistortion",
    "Memorisation",
    "Metric",
    "MetricResult",
    "ModuleEmbedder",
    "MultiResolutionStft",
    "Needs",
    "PairedComparison",
    "PairedMetric",
    "Pesq",
    "PitchTracker",
    "RecognitionReport",
    "SiSdr",
    "SpeakerSimilarity",
    "Stoi",
    "StoredRecogniser",
    "StoredTagger",
    "TorchScriptEmbedder",
    "Transcriber",
    "TransformersClassifier",
    "TransformersEmbedder",
    "Unscorable",
    "VoicingError",
    "WordErrorRate",
    "WorldPitch",
    "YinPitch",
    "align",
    "bootstrap",
    "clips_of_batch",
    "collapse_warning",
    "compare",
    "edit_counts",
    "embed_clips",
    "error_counts",
    "evaluate",
    "pad_clips",
    "paired_references",
    "plain_text",
    "rate_interval",
    "table",
    "wilson_interval",
]
