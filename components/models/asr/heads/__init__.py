"""What turns an encoder's frames into text: each has a loss and what its decoders ask for."""

from components.models.asr.heads.attention import AttentionHead, reverse_tokens, smoothed_cross_entropy
from components.models.asr.heads.cif_predictor import Acoustic, CifPredictor, EvenPredictor
from components.models.asr.heads.ctc import CtcHead, ctc_feasible, ctc_loss
from components.models.asr.heads.lattice import transducer_loss
from components.models.asr.heads.paraformer import ParaformerHead, ParallelReading, ParallelTrace
from components.models.asr.heads.paraformer_decoder import ParallelSanmDecoder, ParallelTransformerDecoder
from components.models.asr.heads.predictors import LstmPredictor, StatelessPredictor
from components.models.asr.heads.transducer import TransducerHead

__all__ = [
    "Acoustic",
    "AttentionHead",
    "CifPredictor",
    "CtcHead",
    "EvenPredictor",
    "LstmPredictor",
    "ParaformerHead",
    "ParallelReading",
    "ParallelSanmDecoder",
    "ParallelTrace",
    "ParallelTransformerDecoder",
    "StatelessPredictor",
    "TransducerHead",
    "ctc_feasible",
    "ctc_loss",
    "reverse_tokens",
    "smoothed_cross_entropy",
    "transducer_loss",
]
