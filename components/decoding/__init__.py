"""Searches for the text of an utterance: from a head's scores to hypotheses."""

from components.decoding.alignment import Alignment, align, pad_tokens
from components.decoding.attention import AttentionBeam, AttentionRescoring, JointCtcAttention, rescore
from components.decoding.beam import position_beam, prefix_beam_search
from components.decoding.ctc import CtcGreedy, CtcPrefixBeam, add_times, greedy
from components.decoding.ctc_prefix_score import CtcPrefixScorer
from components.decoding.fusion import (
    PrefixScorer,
    SumOfScorers,
    TokenInsertion,
    TokenLm,
    WordInsertion,
    WordLm,
    score_sequences,
)
from components.decoding.hotwords import HotwordTrie
from components.decoding.kneser_ney import NgramModel, estimate, write_arpa
from components.decoding.label_beam import EndRules, Finished, label_beam
from components.decoding.long_form import (
    Chunk,
    Segment,
    plan_chunks,
    speech_regions,
    transcribe_long,
    transcribe_segments,
)
from components.decoding.ngram import KenLm, NgramLm
from components.decoding.paraformer import ParaformerDecoder, ParaformerSampling
from components.decoding.sampling import AttentionSampling, draw, keep_top_k, keep_top_p
from components.decoding.spelling import Spelling
from components.decoding.transcripts import FORMATS, Transcript, Word, words_of, write_transcripts
from components.decoding.transducer import (
    TransducerBeam,
    TransducerGreedy,
    TransducerStream,
    transducer_beam,
    transducer_greedy,
)

__all__ = [
    "FORMATS",
    "Alignment",
    "AttentionBeam",
    "AttentionRescoring",
    "AttentionSampling",
    "Chunk",
    "CtcGreedy",
    "CtcPrefixBeam",
    "CtcPrefixScorer",
    "EndRules",
    "Finished",
    "HotwordTrie",
    "JointCtcAttention",
    "KenLm",
    "NgramLm",
    "NgramModel",
    "ParaformerDecoder",
    "ParaformerSampling",
    "PrefixScorer",
    "Segment",
    "Spelling",
    "SumOfScorers",
    "TokenInsertion",
    "TokenLm",
    "Transcript",
    "TransducerBeam",
    "TransducerGreedy",
    "TransducerStream",
    "Word",
    "WordInsertion",
    "WordLm",
    "add_times",
    "align",
    "draw",
    "estimate",
    "greedy",
    "keep_top_k",
    "keep_top_p",
    "label_beam",
    "pad_tokens",
    "plan_chunks",
    "position_beam",
    "prefix_beam_search",
    "rescore",
    "score_sequences",
    "speech_regions",
    "transcribe_long",
    "transcribe_segments",
    "transducer_beam",
    "transducer_greedy",
    "words_of",
    "write_arpa",
    "write_transcripts",
]
