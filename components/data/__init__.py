"""From manifests to padded batches."""

from components.data.cache import ArrayCache
from components.data.collate import PadCollate
from components.data.concat import ConcatDataset
from components.data.dataset import AudioDataset, AudioFiles
from components.data.keyed_cuts import KeyedCuts
from components.data.loader import make_dataloader
from components.data.manifest import read_manifest, write_manifest
from components.data.precomputed import PrecomputedDataset
from components.data.rates import check_sample_rate
from components.data.readers import iterate_records, read_records
from components.data.records import Records
from components.data.samplers import Budget, ClassBalancedBatchSampler, DynamicBatchSampler, MixtureBatchSampler
from components.data.transcribed import TranscribedDataset

__all__ = [
    "ArrayCache",
    "AudioDataset",
    "AudioFiles",
    "Budget",
    "ClassBalancedBatchSampler",
    "ConcatDataset",
    "DynamicBatchSampler",
    "KeyedCuts",
    "MixtureBatchSampler",
    "PadCollate",
    "PrecomputedDataset",
    "Records",
    "TranscribedDataset",
    "check_sample_rate",
    "iterate_records",
    "make_dataloader",
    "read_manifest",
    "read_records",
    "write_manifest",
]
