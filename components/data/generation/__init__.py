"""What generation is trained on: clips with an instruction, and the conditions that are made of them."""

from components.data.generation.canvas import FixedCanvas, NoiseFloor, NormalizeLevel
from components.data.generation.clip import Clip, ConditionMaker
from components.data.generation.contours import Contour, EnergyCurve, PitchCurve
from components.data.generation.from_record import Phonemes, RecordText, Score, StoredFeatures
from components.data.generation.instructed import InstructedDataset, MultitaskDataset
from components.data.generation.instructions import Instructions
from components.data.generation.sources import Degraded, InPainting, SuperResolution
from components.data.generation.tilt import SpectralTilt
from components.data.generation.wishes import Wishes

__all__ = [
    "Clip",
    "ConditionMaker",
    "Contour",
    "Degraded",
    "EnergyCurve",
    "FixedCanvas",
    "InPainting",
    "InstructedDataset",
    "Instructions",
    "MultitaskDataset",
    "NoiseFloor",
    "NormalizeLevel",
    "Phonemes",
    "PitchCurve",
    "RecordText",
    "Score",
    "SpectralTilt",
    "StoredFeatures",
    "SuperResolution",
    "Wishes",
]
