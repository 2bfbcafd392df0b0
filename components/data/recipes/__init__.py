"""One module per corpus, with a `prepare_<corpus>` that leaves manifests behind and does nothing where they are."""

from components.data.recipes.audiocaps import prepare_audiocaps
from components.data.recipes.audioset import prepare_audioset
from components.data.recipes.clotho import prepare_clotho
from components.data.recipes.digit_strings import prepare_digit_strings, prepare_spoken_digit_strings
from components.data.recipes.environmental_sounds import prepare_environmental_sounds
from components.data.recipes.folder import prepare_folder
from components.data.recipes.fsd50k import prepare_fsd50k
from components.data.recipes.impulse_responses import prepare_impulse_responses
from components.data.recipes.lhotse_corpora import lhotse_corpora, prepare_lhotse_corpus
from components.data.recipes.spoken_digits import prepare_spoken_digits
from components.data.recipes.spoken_words import prepare_spoken_words
from components.data.recipes.voicebank_demand import prepare_voicebank_demand

__all__ = [
    "lhotse_corpora",
    "prepare_audiocaps",
    "prepare_audioset",
    "prepare_clotho",
    "prepare_digit_strings",
    "prepare_environmental_sounds",
    "prepare_folder",
    "prepare_fsd50k",
    "prepare_impulse_responses",
    "prepare_lhotse_corpus",
    "prepare_spoken_digit_strings",
    "prepare_spoken_digits",
    "prepare_spoken_words",
    "prepare_voicebank_demand",
]
