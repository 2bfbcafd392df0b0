"""What tells real sounds from generated ones."""

from components.models.discriminators.multi_scale_stft import MultiScaleStftDiscriminator, StftDiscriminator
from components.models.discriminators.pair import AdversarialPair

__all__ = ["AdversarialPair", "MultiScaleStftDiscriminator", "StftDiscriminator"]
