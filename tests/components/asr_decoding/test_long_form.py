import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from components.decoding import (
    CtcGreedy,
    CtcPrefixBeam,
    plan_chunks,
    speech_regions,
    transcribe_long,
    transcribe_segments,
)
from components.decoding.long_form import join_hypotheses, overlap_cut
from components.models.asr.types import Encoded, Hypothesis
from utils.errors import UserError

RATE, HOP = 1_000, 20


class Recogniser(nn.Module):
    """An encoder that hears 60 samples around each of its frames of 20, and a CTC head on it."""

    frame_seconds = HOP / RATE

    def __init__(self, padding=20, vocab_size=12):
        super().__init__()
        torch.manual_seed(0)
        self.frontend = SimpleNamespace(sample_rate=RATE)
        self.padding = padding
        self.conv = nn.Conv1d(1, 16, 60, stride=HOP, padding=padding)
        self.output = nn.Linear(16, vocab_size)
        nn.init.normal_(self.output.weight, std=3.0)
        self.heads = {"ctc": self}
        self.heard = []

    def encode(self, batch):
        waveform, lens = batch["waveform"], batch["audio_lens"]
        self.heard += lens.tolist()
        hidden = self.conv(waveform).relu().transpose(1, 2)
        return Encoded(hidden, (lens + 2 * self.padding - 60) // HOP + 1, {3: hidden + 1})

    def log_probs(self, encoded):
        return self.output(encoded.hidden).log_softmax(2)


def whole(model, decoder, waveform):
    with torch.inference_mode():
        encoded = model.encode({"waveform": waveform.view(1, 1, -1), "audio_lens": torch.tensor([len(waveform)])})
        return decoder(model, encoded)[0]


def assert_same(found, expected):
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-3)
    assert found[0].times == expected[0].times


def test_chunks_cover_the_recording_once_and_begin_at_whole_frames():
    for num_samples in (1, 19, 20, 399, 400, 401, 1000):
        chunks = plan_chunks(num_samples, chunk=210, context=45, frame=20)
        assert [chunk.own_begin for chunk in chunks] == list(range(0, num_samples, 200))
        assert chunks[-1].own_end == chunks[-1].end == num_samples
        for chunk, following in itertools.pairwise(chunks):
            assert chunk.own_end == following.own_begin
            assert following.begin == max(following.own_begin - 60, 0)
            assert chunk.end == min(chunk.own_end + 60, num_samples)


@pytest.mark.parametrize("num_samples", [6_000, 5_999, 5_381, 4_801, 4_820, 4_799, 700, 61])
@pytest.mark.parametrize("padding", [0, 20])
def test_chunks_give_what_the_whole_recording_gives(num_samples, padding):
    model, waveform = Recogniser(padding).eval(), torch.randn(num_samples)
    for decoder in (CtcGreedy(), CtcPrefixBeam(beam_size=4)):
        expected = whole(model, decoder, waveform)
        model.heard.clear()
        found = transcribe_long(model, decoder, waveform, 1.2, 0.08, batch_size=2)
        assert_same(found, expected)
        assert max(model.heard) <= 1_200 + 160
    assert len(model.heard) == -(-num_samples // 1_200)


def test_no_context_is_not_enough_for_an_encoder_that_hears_around_a_frame():
    model, waveform = Recogniser().eval(), torch.randn(6_000)
    found = transcribe_long(model, CtcGreedy(), waveform, 1.2, 0.0)
    assert found[0].score != pytest.approx(whole(model, CtcGreedy(), waveform)[0].score, abs=1e-3)
    with pytest.raises(UserError, match="make context_seconds longer"):
        transcribe_long(Recogniser(0).eval(), CtcGreedy(), waveform, 1.2, 0.02)


def test_texts_of_chunks_are_joined_by_their_times():
    model, waveform = Recogniser().eval(), torch.randn(6_000)
    expected = whole(model, CtcGreedy(), waveform)[0]
    found = transcribe_long(model, CtcGreedy(), waveform, 1.2, 0.2, join="tokens", batch_size=3)[0]
    assert found.tokens == expected.tokens
    assert [edge for span in found.times for edge in span] == pytest.approx(
        [edge for span in expected.times for edge in span]
    )
    assert found.confidences == pytest.approx(expected.confidences, abs=1e-4)


def test_texts_without_times_are_joined_where_they_agree():
    model, waveform = Recogniser().eval(), torch.randn(6_000)

    def untimed(model, encoded):
        return [[Hypothesis(one[0].tokens, one[0].score)] for one in CtcGreedy()(model, encoded)]

    found = transcribe_long(model, untimed, waveform, 1.2, 0.4, join="tokens")[0]
    assert found.tokens == whole(model, CtcGreedy(), waveform)[0].tokens
    assert found.times is None


def test_an_unknown_way_to_join_is_told_and_nothing_is_heard_in_nothing():
    with pytest.raises(UserError, match="join is 'words'"):
        transcribe_long(Recogniser(), CtcGreedy(), torch.randn(100), join="words")
    assert transcribe_long(Recogniser(), CtcGreedy(), torch.zeros(0))[0].tokens == []


@pytest.mark.parametrize(
    ("left", "right", "shared", "joined"),
    [
        ("the cat sat on", "t sat on the mat", 8, "the cat sat on the mat"),
        ("the cat sat om", "r sat on the mat", 8, "the cat sat on the mat"),
        ("abcdef", "ghij", 2, "abcdehij"),  # nothing in common: half of what is shared from either side
        ("", "abc", 2, "bc"),
        ("abc", "", 0, "abc"),
        ("xabcabc", "abcy", 3, "xabcabcy"),  # the same run twice: that in reach of the overlap
    ],
)
def test_overlapping_texts_are_cut_in_what_both_have(left, right, shared, joined):
    keep, skip = overlap_cut(left, right, shared)
    assert left[:keep] + right[skip:] == joined


def test_joined_hypotheses_keep_times_and_confidences_of_both():
    left = Hypothesis([4, 5, 6], -1.0, [(0.0, 0.4), (0.5, 0.9), (1.1, 1.4)], [0.9, 0.8, 0.1], {"ctc": -1.0})
    right = Hypothesis([7, 8], -2.0, [(0.6, 0.8), (1.0, 1.3)], [0.2, 0.7], {"ctc": -2.0})
    joined = join_hypotheses(left, right, border=1.0, overlap=0.5)
    assert joined == Hypothesis([4, 5, 8], -3.0, [(0.0, 0.4), (0.5, 0.9), (1.0, 1.3)], [0.9, 0.8, 0.7], {"ctc": -3.0})


def tone(*spans, seconds, rate=8_000):
    """Loud in the spans, softly noisy elsewhere."""
    waveform = 0.001 * torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(0))
    for begin, end in spans:
        count = round((end - begin) * rate)
        waveform[round(begin * rate) :][:count] += 0.3 * torch.sin(torch.arange(count) * 0.3)
    return waveform


def test_speech_is_found_between_pauses():
    waveform = tone((1.0, 2.0), (2.2, 3.0), (4.0, 5.5), (7.0, 7.03), seconds=8.0)
    found = [edge for region in speech_regions(waveform, 8_000) for edge in region]
    assert found == pytest.approx([0.9, 3.1, 3.9, 5.6], abs=0.03)  # a click is no speech


def test_long_speech_is_cut_where_it_is_softest():
    waveform = tone((0.5, 9.5), seconds=10.0)
    waveform[6 * 8_000 : 6 * 8_000 + 800] *= 0.2
    regions = speech_regions(waveform, 8_000, max_seconds=7.0)
    assert [edge for region in regions for edge in region] == pytest.approx([0.4, 6.05, 6.05, 9.6], abs=0.06)
    assert all(end - begin <= 7.0 for begin, end in regions)


def test_silence_and_next_to_nothing_have_no_speech():
    assert speech_regions(torch.zeros(8_000), 8_000) == []
    assert speech_regions(torch.zeros(3), 8_000) == []


def test_regions_are_decoded_as_utterances_with_times_in_the_recording():
    model, waveform = Recogniser().eval(), torch.randn(6_000)
    regions = [(0.5, 1.5), (2.0, 5.0), (5.1, 6.0)]
    segments = transcribe_segments(model, CtcGreedy(), waveform, regions, batch_size=2)
    for (begin, end), segment in zip(regions, segments, strict=True):
        alone = whole(model, CtcGreedy(), waveform[round(begin * RATE) : round(end * RATE)])[0]
        assert (segment.begin, segment.end) == (begin, end)
        assert segment.hypotheses[0].tokens == alone.tokens
        assert segment.hypotheses[0].times[0][0] == pytest.approx(alone.times[0][0] + begin)
