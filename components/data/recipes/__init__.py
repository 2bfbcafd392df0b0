"""One module per corpus, with a `prepare_<corpus>` that leaves manifests behind and does nothing where they are."""

from components.data.recipes.environmental_sounds import prepare_environmental_sounds
from components.data.recipes.spoken_digits import prepare_spoken_digits
from components.data.recipes.spoken_words import prepare_spoken_words

__all__ = ["prepare_environmental_sounds", "prepare_spoken_digits", "prepare_spoken_words"]
