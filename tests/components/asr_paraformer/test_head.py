from functools import partial

import pytest
import torch
from torch.testing import assert_close

from components.losses.minimum_risk import ParallelMinimumRisk
from components.models.asr.heads.cif_predictor import CifPredictor
from components.models.asr.heads.paraformer import ParaformerHead
from components.models.asr.heads.paraformer_decoder import ParallelSanmDecoder, ParallelTransformerDecoder
from components.models.asr.heads.sampler import revealed_places, tell
from components.models.asr.types import Encoded
from utils.errors import UserError

D, V = 16, 11
DECODERS = {
    "transformer": partial(ParallelTransformerDecoder, num_layers=2, num_heads=2, ff_dim=24),
    "sanm": partial(ParallelSanmDecoder, num_layers=2, num_heads=2, ff_dim=24, kernel_size=5),
}
KINDS = {
    "transformer, depthwise": {},
    "sanm, full": {"decoder": DECODERS["sanm"], "predictor": partial(CifPredictor, context="full", num_layers=2)},
    "with an end": {"add_eos": True},
    "narrow": {"decoder": partial(DECODERS["sanm"], dim=8), "predictor": partial(CifPredictor, method="dense")},
    "even": {"use_predictor": False},
}


def make_head(seed=0, **options):
    torch.manual_seed(seed)
    return ParaformerHead(D, V, **{"decoder": DECODERS["transformer"], **options})


def make_batch(seed=0, lens=(17, 9, 12), token_lens=(5, 3, 6)):
    generator = torch.Generator().manual_seed(seed)
    lens, token_lens = torch.tensor(lens), torch.tensor(token_lens)
    hidden = torch.randn(len(lens), int(lens.max()), D, generator=generator)
    hidden *= (torch.arange(hidden.shape[1]) < lens[:, None])[..., None]
    tokens = torch.randint(4, V, (len(lens), int(token_lens.max())), generator=generator)
    tokens = tokens.masked_fill(torch.arange(tokens.shape[1]) >= token_lens[:, None], -100)
    return Encoded(hidden, lens), tokens, token_lens


def with_garbage(encoded, tokens, token_lens, extra=6):
    """The same batch, longer, with noise and wrong ids in the padding."""
    noise = 10 * torch.randn(len(tokens), encoded.hidden.shape[1] + extra, D)
    own = torch.arange(noise.shape[1]) < encoded.lens[:, None]
    noise[:, : encoded.hidden.shape[1]][own[:, : encoded.hidden.shape[1]]] = encoded.hidden[
        own[:, : encoded.hidden.shape[1]]
    ]
    wrong = torch.randint(0, V, (len(tokens), tokens.shape[1] + 2))
    kept = torch.arange(wrong.shape[1]) < token_lens[:, None]
    wrong[kept] = tokens[tokens != -100]
    return Encoded(noise, encoded.lens), wrong, token_lens


def alone(batch, b):
    encoded, tokens, token_lens = batch
    hidden = encoded.hidden[b : b + 1, : encoded.lens[b]]
    return Encoded(hidden, encoded.lens[b : b + 1]), tokens[b : b + 1, : token_lens[b]], token_lens[b : b + 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_is_each_utterance_alone(kind):
    head = make_head(**KINDS[kind]).eval()
    batch = make_batch()
    losses = head(*with_garbage(*batch)).per_item
    lengths = None if head.use_predictor else torch.tensor([4, 2, 5])
    said = head.decode(with_garbage(*batch)[0], lengths)
    for b in range(3):
        encoded, *rest = alone(batch, b)
        assert_close(losses[b], head(encoded, *rest).per_item[0], rtol=1e-5, atol=1e-5)
        one = head.decode(encoded, None if lengths is None else lengths[b : b + 1])
        count = int(one.lens)
        assert count == said.lens[b] > 0
        assert_close(said.log_probs[b, :count], one.log_probs[0], rtol=0, atol=1e-5)
        assert_close(said.alphas[b, : encoded.lens], one.alphas[0], rtol=0, atol=1e-5)
        assert_close(said.begins[b, :count], one.begins[0], rtol=0, atol=1e-4)
        assert_close(said.ends[b, :count], one.ends[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first_decoder_weight", [0.0, 0.5])
def test_every_parameter_learns(kind, first_decoder_weight):
    head = make_head(**KINDS[kind], first_decoder_weight=first_decoder_weight, risk=ParallelMinimumRisk()).train()
    output = head(*make_batch())
    output.per_item.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert output.usable.all()
    assert output.metrics["told"][1] == 14 + 3 * head.add_eos


def test_without_told_places_there_is_no_embedding_to_learn():
    head = make_head(sampling_ratio=0).train()
    output = head(*make_batch())
    output.per_item.sum().backward()
    assert all(p.grad is not None for p in head.parameters())
    assert head.embedding is None
    assert "told" not in output.metrics


def test_the_loss_is_the_words_and_the_quantity_before_scaling():
    batch = make_batch()
    heads = {weight: make_head(predictor_weight=weight, label_smoothing=0.0).eval() for weight in (0.0, 2.0)}
    words, both = (head(*batch) for head in heads.values())
    head = heads[0.0]
    heard = head.predictor(batch[0].hidden, batch[0].lens, batch[2]).total
    error = (heard - batch[2]).abs()
    assert (error > 0.1).all()
    assert_close(both.per_item - words.per_item, 2 * error)
    assert_close(both.metrics["quantity_error"][0], error.sum())
    log_probs = head.decode(batch[0], batch[2]).log_probs
    known = batch[1] != -100
    of_words = log_probs.gather(2, batch[1].clamp(min=4)[..., None])[..., 0] * known
    assert_close(words.per_item, -of_words.sum(1))
    hits = (log_probs.argmax(-1) == batch[1]) & known
    assert [int(x) for x in words.metrics["token_accuracy"]] == [int(hits.sum()), 14]


def test_the_end_is_one_more_token_to_hear_and_to_say():
    encoded, tokens, token_lens = make_batch()
    plain, ended = make_head().eval(), make_head(add_eos=True).eval()
    with_end = torch.cat([tokens, torch.full((3, 1), -100)], 1).scatter(1, token_lens[:, None], 3)
    assert_close(ended(encoded, tokens, token_lens).per_item, plain(encoded, with_end, token_lens + 1).per_item)


def test_hidden_positions_alone_may_have_the_loss():
    encoded, tokens, token_lens = make_batch()
    every, hidden = (make_head(loss_positions=p, sampling_ratio=1.0).train() for p in ("all", "hidden"))
    for head in (every, hidden):
        for module in head.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    torch.manual_seed(1)
    of_all = every(encoded, tokens, token_lens)
    torch.manual_seed(1)
    of_hidden = hidden(encoded, tokens, token_lens)
    assert 0 < of_all.metrics["told"][0] < 14
    assert (of_hidden.per_item < of_all.per_item).any()
    assert (of_hidden.per_item <= of_all.per_item).all()


def test_places_are_told_as_many_as_the_share_of_wrong_ones_and_never_in_the_padding():
    generator = torch.Generator().manual_seed(0)
    lens = torch.randint(1, 12, (400,), generator=generator)
    own = torch.arange(12) < lens[:, None]
    wrong = (torch.rand(400, 12, generator=generator) < 0.6) & own
    told = revealed_places(wrong, lens, 0.75)
    assert torch.equal(told.sum(1), (wrong.sum(1) * 0.75).long())
    assert not (told & ~own).any()
    shares = (told & own).sum(0) / own.sum(0)
    assert (shares[:5] - shares[:5].mean()).abs().max() < 0.08  # no place is favoured
    keys = torch.rand(400, 12, generator=generator)
    for b in range(50):
        lowest = keys[b, : lens[b]].argsort()[: int(wrong[b].sum() * 0.75)]
        assert sorted(told_by(keys, wrong, lens)[b]) == sorted(lowest.tolist())


def told_by(keys, wrong, lens):
    return [row.nonzero()[:, 0].tolist() for row in revealed_places(wrong, lens, 0.75, keys)]


def test_told_places_hold_words():
    acoustic, words = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    mixed = tell(acoustic, words, torch.tensor([[True, False, True]]))
    assert mixed[0, :, 0].tolist() == [1, 0, 1]


def test_more_tokens_than_frames_and_none_at_all():
    encoded, tokens, token_lens = make_batch(lens=(3, 4, 2), token_lens=(9, 0, 5))
    head = make_head().train()
    output = head(encoded, tokens, token_lens)
    assert output.usable.all()
    assert output.per_item.isfinite().all()
    output.per_item.sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_an_utterance_without_frames_is_not_usable_and_hurts_nobody():
    encoded, tokens, token_lens = make_batch()
    encoded = Encoded(encoded.hidden, torch.tensor([17, 0, 12]))
    head = make_head().eval()
    output = head(encoded, tokens, token_lens)
    assert output.usable.tolist() == [True, False, True]
    assert output.per_item[1] == 0
    output.per_item.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize(("total", "count"), [(3.54, 3), (3.56, 4), (0.2, 0)])
def test_the_number_of_tokens_is_rounded_up_from_the_tail_on(total, count):
    predictor = CifPredictor(D).eval()
    predictor.weights = lambda hidden, lens: torch.full((1, 10), total / 10)
    heard = predictor(torch.ones(1, 10, D), torch.tensor([10]))
    assert heard.lens.tolist() == [count]
    assert heard.embeddings.shape == (1, count, D)
    if count == 4:  # what the tail adds is silent
        assert_close(heard.embeddings[0, :, 0], torch.tensor([1, 1, 1, 0.56]))


def test_weights_are_squeezed_and_padding_has_none():
    torch.manual_seed(0)
    batch = make_batch()
    plain, squeezed = (CifPredictor(D, smooth_factor=s, noise_threshold=n).eval() for s, n in ((1.0, 0.0), (0.8, 0.3)))
    squeezed.load_state_dict(plain.state_dict())
    hidden, lens = batch[0].hidden, batch[0].lens
    weights = plain.weights(hidden, lens)
    assert_close(squeezed.weights(hidden, lens), (0.8 * weights - 0.3).clamp(min=0) * (weights > 0))
    assert not weights[torch.arange(17) >= lens[:, None]].any()


def test_weights_are_float32_under_autocast():
    head = make_head(risk=ParallelMinimumRisk()).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = head(*make_batch())
        head.eval()
        reading = head.decode(make_batch()[0])
    assert reading.alphas.dtype == reading.log_probs.dtype == output.per_item.dtype == torch.float32
    assert_close(reading.alphas, head.decode(make_batch()[0]).alphas)


def test_lossy_integration_is_there_to_compare_with():
    batch = make_batch()
    exact = make_head().eval()
    lossy = make_head(predictor=partial(CifPredictor, exact=False)).eval()
    for seed in range(20):
        batch = make_batch(seed)
        ours, theirs = (h.predictor(batch[0].hidden, batch[0].lens, batch[2], 6).embeddings for h in (exact, lossy))
        lost = (theirs == 0).all(-1) & (ours != 0).any(-1)
        if lost.any():
            break
    assert torch.equal(lost.sum(1), lost.gather(1, batch[2][:, None] - 1)[:, 0].long())  # only last ones
    assert_close(theirs[~lost], ours[~lost], rtol=0, atol=1e-4)


def test_without_a_predictor_the_usual_number_of_tokens_is_said():
    head = make_head(use_predictor=False).train()
    head(*make_batch())  # 38 frames, 14 tokens
    assert "quantity_error" not in head(*make_batch()).metrics
    head.eval()
    assert head.decode(make_batch()[0]).lens.tolist() == [6, 3, 4]
    said = head.decode(make_batch()[0], torch.tensor([2, 3, 4]))
    assert_close(said.ends[0, :2], torch.tensor([8.5, 17], dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_trace_tells_where_tokens_are_and_what_they_attend_to():
    head = make_head().eval()
    encoded = make_batch()[0]
    trace = head.trace(encoded)
    assert_close(trace.reading.log_probs, head.decode(encoded).log_probs)
    assert_close(trace.integral[:, -1].float(), trace.reading.alphas.sum(1))
    assert len(trace.attention) == 2
    own = torch.arange(17) < encoded.lens[:, None]
    for weights in trace.attention:
        assert weights.shape == (3, 2, trace.reading.log_probs.shape[1], 17)
        assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
        assert not (weights * ~own[:, None, None]).any()
    layer = head.decoder.layers[0].cross_attention
    x = torch.randn(3, 4, D)
    maps, mask = [], own[:, None, None]
    said = layer(x, encoded.hidden, mask, maps)
    value = layer.key_value(encoded.hidden).chunk(2, -1)[1].unflatten(-1, (2, -1)).transpose(1, 2)
    assert_close(layer.out((maps[0] @ value).transpose(1, 2).flatten(2)), said)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        head = make_head(decoder=partial(DECODERS["sanm"], checkpointing=checkpointing)).train()
        torch.manual_seed(1)
        head(*make_batch()).per_item.sum().backward()
        gradients.append([p.grad for p in head.parameters()])
    assert_close(*gradients)


def test_a_shared_embedding_is_the_output_map():
    head = make_head(share_embedding=True).train()
    head(*make_batch()).per_item.sum().backward()
    assert head.embedding is None
    assert all(p.grad is not None for p in head.parameters())
    with pytest.raises(UserError, match="share_embedding: the decoder has 8 channels, the encoder 16"):
        make_head(share_embedding=True, decoder=partial(DECODERS["sanm"], dim=8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_head(loss_positions="told"), "'told' is none of all, hidden"),
        (lambda: CifPredictor(D, context="v2"), "'v2' is none of depthwise, full"),
        (lambda: CifPredictor(D, num_layers=2), "belong to context=full"),
        (lambda: CifPredictor(D, exact=False, threshold=0.9), "knows only 1"),
        (lambda: ParallelTransformerDecoder(D, num_heads=3), "3 heads do not divide 16 channels"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_it_learns_to_say_what_it_hears(decoder):
    """A token is a few equal frames, the first of them marked; the head alone finds how many there are, and which."""
    torch.manual_seed(0)
    codes = torch.randn(V, D)

    def spoken(seed):
        generator = torch.Generator().manual_seed(seed)
        texts = [
            torch.randint(4, V, (int(n),), generator=generator) for n in torch.randint(2, 6, (16,), generator=generator)
        ]
        repeats = torch.randint(2, 5, (16, 5), generator=generator)
        first = torch.arange(4)[:, None] == 0
        frames = [
            torch.cat([(codes[t] + first * codes[0])[:r] for t, r in zip(text, row)])
            for text, row in zip(texts, repeats.tolist())
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        lens, token_lens = torch.tensor([len(f) for f in frames]), torch.tensor([len(t) for t in texts])
        tokens = pad(texts, batch_first=True, padding_value=-100)
        return Encoded(pad(frames, batch_first=True), lens), tokens, token_lens

    head = make_head(decoder=partial(DECODERS[decoder], dropout=0.0), predictor=partial(CifPredictor, context="full"))
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for seed in range(300):
        output = head(*spoken(seed))
        optimizer.zero_grad()
        output.per_item.mean().backward()
        optimizer.step()
    head.eval()
    encoded, tokens, token_lens = spoken(1000)
    said = head.decode(encoded)
    right = [
        said.log_probs[b, : said.lens[b]].argmax(-1).tolist() == tokens[b, : token_lens[b]].tolist() for b in range(16)
    ]
    assert sum(right) >= 15
