"""From manifests to padded batches."""

from components.data.collate import PadCollate
from components.data.concat import ConcatDataset
from components.data.dataset import AudioDataset, AudioFiles
from components.data.manifest import read_manifest, scan_audio, write_manifest

__all__ = [
    "AudioDataset",
    "AudioFiles",
    "ConcatDataset",
    "PadCollate",
    "read_manifest",
    "scan_audio",
    "write_manifest",
]
