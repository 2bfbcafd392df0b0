"""Training objectives that return a sum and a count, or a loss per clip."""

from components.losses.adversarial import AdversarialLoss, HingeLoss, Judgement, LeastSquaresLoss, feature_matching
from components.losses.autoencoder import AutoencoderLoss
from components.losses.cross_entropy import MultiTargetCrossEntropy, MultiTargetLoss
from components.losses.kl import gaussian_kl
from components.losses.minimum_risk import ParallelMinimumRisk, edit_distance, expected_risk
from components.losses.multi_scale_stft import MultiResolutionStftLoss, SpectralLoss, waveform_distance

__all__ = [
    "AdversarialLoss",
    "AutoencoderLoss",
    "HingeLoss",
    "Judgement",
    "LeastSquaresLoss",
    "MultiResolutionStftLoss",
    "MultiTargetCrossEntropy",
    "MultiTargetLoss",
    "ParallelMinimumRisk",
    "SpectralLoss",
    "edit_distance",
    "expected_risk",
    "feature_matching",
    "gaussian_kl",
    "waveform_distance",
]
