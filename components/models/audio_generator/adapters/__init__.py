"""Content in the light of an instruction: what it says, and how long it lasts."""

from components.models.audio_generator.adapters.cross_attention import CrossAttentionAdapter
from components.models.audio_generator.adapters.none import NoAdapter
from components.models.audio_generator.adapters.output import AdapterOutput
from components.models.audio_generator.adapters.prefix import PrefixAdapter

__all__ = ["AdapterOutput", "CrossAttentionAdapter", "NoAdapter", "PrefixAdapter"]
