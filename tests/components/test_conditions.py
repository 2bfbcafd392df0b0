import pytest
import torch
from torch.nn.functional import interpolate

from components.generative import FactoredGuidance
from components.layers import length_mask
from components.models.audio_generator import ConditionFuser, Conditions, Dit, Stream, crop_aligned
from components.models.audio_generator.conditions import stretch
from utils.errors import UserError

SLOTS = {"text": ["sequence", "vector"], "speaker": "vector", "prompt": "sequence", "contour": "aligned",
         "phonemes": "aligned"}  # fmt: skip
DIMS = {"text": 6, "speaker": 5, "prompt": 4, "contour": 2, "phonemes": 3}
WIDTHS = {"vector_dim": 7, "sequence_dim": 8, "aligned_dim": 9}
LATENT_LENS = torch.tensor([12, 5, 8, 3])
PRESENT = {  # four tasks: all there is; text alone; a contour and a speaker; nothing at all
    "text": torch.tensor([True, True, False, False]),
    "speaker": torch.tensor([True, False, True, False]),
    "prompt": torch.tensor([True, False, False, False]),
    "contour": torch.tensor([True, False, True, False]),
    "phonemes": torch.tensor([True, False, False, False]),
}
STREAM_LENS = {
    "text": torch.tensor([3, 6, 2, 1]),
    "prompt": torch.tensor([2, 1, 1, 3]),
    "contour": torch.tensor([12, 1, 8, 2]),
    "phonemes": torch.tensor([10, 1, 4, 1]),
}


def make_fuser(**changes):
    torch.manual_seed(0)
    return ConditionFuser(**{"slots": SLOTS, "embed_dims": DIMS, "dropout": 0.0, **WIDTHS, **changes})


def make_streams():
    torch.manual_seed(1)
    streams = {name: Stream(torch.randn(4, lens.max(), DIMS[name]), lens) for name, lens in STREAM_LENS.items()}
    return streams | {"speaker": Stream(torch.randn(4, 5))}


def item(streams, i):
    return {
        name: Stream(values[i : i + 1], None) if lens is None else Stream(values[i : i + 1, : lens[i]], lens[i : i + 1])
        for name, (values, lens) in streams.items()
    }


def assert_same(one, other):
    for part in ("vector", "sequence", "aligned", "sequence_padding_mask"):
        torch.testing.assert_close(getattr(one, part), getattr(other, part), atol=1e-5, rtol=1e-5)


def tokens_of(conditions, i):
    return conditions.sequence[i, ~conditions.sequence_padding_mask[i]]


@pytest.mark.parametrize("resample", ["none", "nearest", "linear"])
@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_a_padded_batch_gives_the_same_as_each_item_alone(resample, fusion):
    fuser, streams = make_fuser(resample=resample, aligned_fusion=fusion), make_streams()
    together = fuser(streams, PRESENT, LATENT_LENS, 12)
    assert together.vector.shape == (4, 7)
    assert together.aligned.shape == (4, 12, fuser.aligned_dim)
    for i, length in enumerate(LATENT_LENS.tolist()):
        present = {name: has[i : i + 1] for name, has in PRESENT.items()}
        alone = fuser(item(streams, i), present, LATENT_LENS[i : i + 1], length)
        torch.testing.assert_close(together.vector[i], alone.vector[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.aligned[i, :length], alone.aligned[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tokens_of(together, i), tokens_of(alone, 0), atol=1e-5, rtol=1e-5)
        assert together.aligned[i, length:].abs().sum() == 0
        assert together.sequence[i, together.sequence_padding_mask[i]].abs().sum() == 0


def test_one_batch_mixes_tasks_and_absent_streams_are_their_nulls():
    fuser, streams = make_fuser(), make_streams()
    conditions = fuser(streams, PRESENT, LATENT_LENS, 12)
    inputs = fuser.inputs
    # Item 1 has text alone.
    text = streams["text"].values[1]
    expected = inputs["text"]["vector"].projection(text.mean(0)) + inputs["speaker"]["vector"].null
    torch.testing.assert_close(conditions.vector[1], expected)
    tokens = [inputs["text"]["sequence"].projection(text) + fuser.types["text"],
              (inputs["prompt"]["sequence"].null + fuser.types["prompt"]).unsqueeze(0)]  # fmt: skip
    torch.testing.assert_close(tokens_of(conditions, 1), torch.cat(tokens))
    nulls = inputs["contour"]["aligned"].null + inputs["phonemes"]["aligned"].null
    torch.testing.assert_close(conditions.aligned[1, :5], nulls.expand(5, -1))
    # Item 2 has a contour at the latent rate, and a speaker.
    contour = inputs["contour"]["aligned"].projection(streams["contour"].values[2, :8])
    torch.testing.assert_close(conditions.aligned[2, :8], contour + inputs["phonemes"]["aligned"].null)
    assert len(tokens_of(conditions, 2)) == 2, "a null each of text and prompt"
    # Item 0 has everything.
    assert len(tokens_of(conditions, 0)) == 3 + 2


def test_what_lies_in_padding_and_in_absent_streams_is_never_seen():
    fuser, streams = make_fuser(), make_streams()
    expected = fuser(streams, PRESENT, LATENT_LENS, 12)
    for name, (values, lens) in streams.items():
        kept = PRESENT[name].view(-1, 1, 1)
        if lens is None:
            values[~PRESENT[name]] = torch.nan
        else:
            values.masked_fill_(~(length_mask(lens, values.shape[1]).unsqueeze(-1) & kept), torch.nan)
    conditions = fuser(streams, PRESENT, LATENT_LENS, 12)
    assert_same(conditions, expected)
    sum(getattr(conditions, part).square().sum() for part in ("vector", "sequence", "aligned")).backward()
    assert all(p.grad.isfinite().all() for p in fuser.parameters())


def test_to_drop_all_is_to_have_nothing_whatever_the_reason():
    fuser, streams = make_fuser(), make_streams()
    dropped = fuser(streams, PRESENT, LATENT_LENS, 12, drop=set(SLOTS))
    absent = fuser(streams, {name: torch.zeros(4, dtype=torch.bool) for name in SLOTS}, LATENT_LENS, 12)
    assert_same(dropped, absent)
    unheard_of = fuser({}, {}, LATENT_LENS, 12)
    for i in range(4):
        torch.testing.assert_close(tokens_of(dropped, i), tokens_of(unheard_of, i))
    torch.testing.assert_close(dropped.vector, unheard_of.vector)
    torch.testing.assert_close(dropped.aligned, unheard_of.aligned)
    fuser = make_fuser(joint_dropout=1.0).train()
    assert_same(dropped, fuser(streams, PRESENT, LATENT_LENS, 12))
    assert_same(fuser(streams, PRESENT, LATENT_LENS, 12), make_fuser(dropout=1.0)(streams, PRESENT, LATENT_LENS, 12))


def test_dropping_one_stream_changes_no_other_and_no_shape():
    fuser, streams = make_fuser(), make_streams()
    full, without = fuser(streams, PRESENT, LATENT_LENS, 12), fuser(streams, PRESENT, LATENT_LENS, 12, ["contour"])
    assert torch.equal(full.vector, without.vector)
    assert torch.equal(full.sequence, without.sequence)
    assert not torch.equal(full.aligned[0], without.aligned[0])
    assert torch.equal(full.aligned[1], without.aligned[1]), "which had none"
    without = fuser(streams, PRESENT, LATENT_LENS, 12, SLOTS)
    assert without.sequence.shape == full.sequence.shape


def test_streams_are_dropped_as_often_as_said_and_apart():
    rates = {"text": 0.1, "speaker": 0.5, "contour": 0.25}
    slots = dict.fromkeys(rates, "vector")
    fuser = make_fuser(slots=slots, dropout=rates, joint_dropout=0.2, vector_dim=1)
    with torch.no_grad():
        for power, name in enumerate(rates):
            fuser.inputs[name]["vector"].null.fill_(10.0**power)
            fuser.inputs[name]["vector"].projection.weight.zero_()
            fuser.inputs[name]["vector"].projection.bias.zero_()
    lens = torch.ones(20_000, dtype=torch.long)
    streams = {name: Stream(torch.zeros(20_000, DIMS[name])) for name in rates}
    digits = fuser(streams, {}, lens, 1).vector.squeeze(1).round().long()
    lost = {name: digits // 10**power % 10 == 1 for power, name in enumerate(rates)}
    for name, p in rates.items():
        assert abs(lost[name].float().mean().item() - (1 - 0.8 * (1 - p))) < 0.015
    both = (lost["text"] & lost["speaker"]).float().mean().item()
    assert abs(both - (0.2 + 0.8 * 0.1 * 0.5)) < 0.015
    assert (fuser.eval()(streams, {}, lens, 1).vector == 0).all(), "nothing is dropped outside of training"


def test_dropout_is_drawn_from_torch_s_generator():
    fuser, streams = make_fuser(dropout=0.5), make_streams()
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(fuser(streams, PRESENT, LATENT_LENS, 12))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0].vector, results[2].vector)


def test_every_parameter_gets_a_gradient_even_where_a_batch_lacks_a_stream():
    fuser, streams = make_fuser(), make_streams()
    conditions = fuser(streams, PRESENT, LATENT_LENS, 12)
    sum(getattr(conditions, part).square().sum() for part in ("vector", "sequence", "aligned")).backward()
    assert all(p.grad.abs().max() > 0 for p in fuser.parameters())
    fuser.zero_grad()
    conditions = fuser({"text": streams["text"]}, {}, LATENT_LENS, 12)
    sum(getattr(conditions, part).square().sum() for part in ("vector", "sequence", "aligned")).backward()
    assert all(p.grad is not None for p in fuser.parameters()), "as distributed training demands"


def test_widths_are_those_of_the_slots_in_use():
    fuser = make_fuser(slots={"contour": "aligned", "phonemes": "aligned"}, aligned_fusion="concat")
    assert (fuser.vector_dim, fuser.sequence_dim, fuser.aligned_dim) == (0, 0, 18)
    conditions = fuser({}, {}, LATENT_LENS, 12)
    assert conditions.vector is None
    assert conditions.sequence is None
    assert conditions.aligned.shape == (4, 12, 18)


def test_a_single_vector_goes_into_any_slot():
    fuser = make_fuser(slots={"speaker": ["vector", "sequence", "aligned"]})
    speaker = torch.randn(4, 5)
    conditions = fuser({"speaker": Stream(speaker)}, {}, LATENT_LENS, 12)
    inputs = fuser.inputs["speaker"]
    torch.testing.assert_close(conditions.sequence, inputs["sequence"].projection(speaker).unsqueeze(1))
    torch.testing.assert_close(conditions.aligned[1, :5], inputs["aligned"].projection(speaker)[1].expand(5, -1))


def test_an_empty_stream_is_an_absent_one():
    fuser = make_fuser(slots={"text": ["sequence", "vector"], "contour": "aligned"})
    empty = {"text": Stream(torch.zeros(4, 0, 6), torch.zeros(4, dtype=torch.long))}
    assert_same(fuser(empty, {}, LATENT_LENS, 12), fuser({}, {}, LATENT_LENS, 12))


def test_whole_numbers_are_taken_as_numbers():
    fuser = make_fuser(slots={"contour": "aligned"})
    mask = torch.ones(4, 12, 2, dtype=torch.long)
    as_float = fuser({"contour": Stream(mask.float(), LATENT_LENS)}, {}, LATENT_LENS, 12)
    assert torch.equal(fuser({"contour": Stream(mask, LATENT_LENS)}, {}, LATENT_LENS, 12).aligned, as_float.aligned)


@pytest.mark.parametrize(("mode", "linear"), [("nearest-exact", False), ("linear", True)])
def test_stretching_is_torch_s_interpolation_of_each_item(mode, linear):
    torch.manual_seed(0)
    lens, stream_lens = torch.tensor([12, 5, 7, 1]), torch.tensor([4, 9, 7, 3])
    values = torch.randn(4, 9, 3)
    stretched = stretch(Stream(values, stream_lens), lens, 12, linear)
    for i, (n, m) in enumerate(zip(lens.tolist(), stream_lens.tolist())):
        expected = interpolate(values[i : i + 1, :m].transpose(1, 2), size=n, mode=mode).transpose(1, 2)
        torch.testing.assert_close(stretched[i, :n], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stretched[2, :7], values[2, :7])


def test_without_resampling_frames_stay_where_they_are_and_the_null_follows():
    fuser = make_fuser(slots={"contour": "aligned"}, resample={"contour": "none"})
    contour = torch.randn(2, 6, 2)
    aligned = fuser({"contour": Stream(contour, torch.tensor([6, 2]))}, {}, torch.tensor([4, 5]), 5).aligned
    inputs = fuser.inputs["contour"]["aligned"]
    torch.testing.assert_close(aligned[0, :4], inputs.projection(contour[0, :4]))
    torch.testing.assert_close(aligned[1, :2], inputs.projection(contour[1, :2]))
    torch.testing.assert_close(aligned[1, 2:], inputs.null.expand(3, -1))


def test_a_crop_of_the_target_crops_what_is_aligned_with_it():
    time = torch.arange(20.0).view(1, 20, 1).expand(3, 20, 1)
    fine = torch.arange(60.0).view(1, 60, 1).expand(3, 60, 1) / 3
    lens = torch.tensor([20, 12, 9])
    streams = {"latents": Stream(time, lens), "contour": Stream(time, lens), "video": Stream(fine, 3 * lens)}
    start = torch.tensor([3, 7, 0])
    cropped = crop_aligned(streams, start, 6, rates={"video": 3.0})
    assert cropped["latents"].lens.tolist() == cropped["contour"].lens.tolist() == [6, 5, 6]
    assert cropped["video"].lens.tolist() == [18, 15, 18]
    for i in range(3):
        n = cropped["latents"].lens[i]
        expected = torch.arange(6.0)[:n] + start[i]
        assert torch.equal(cropped["latents"].values[i, :n, 0], expected)
        assert torch.equal(cropped["contour"].values[i, :n, 0], expected)
        torch.testing.assert_close(cropped["video"].values[i, : 3 * n : 3, 0], expected)
    assert cropped["latents"].values[1, 5:].abs().sum() == 0


def test_mistakes_are_told():
    wrong = [
        ({"slots": {"text": "sequins"}}, "there is no slot 'sequins', only vector, sequence, aligned"),
        ({"slots": {"voice": "vector"}}, "stream 'voice' has a slot but no encoder"),
        ({"dropout": {"txet": 0.1}}, "dropout: there is no stream 'txet'"),
        ({"dropout": {"text": 1.5}}, r"dropout of 'text' must lie in \[0, 1\], got 1.5"),
        ({"resample": "cubic"}, "resample is 'cubic', not none, nearest, linear"),
        ({"aligned_fusion": "product"}, "aligned_fusion must be 'sum' or 'concat'"),
    ]
    for changes, message in wrong:
        with pytest.raises(UserError, match=message):
            make_fuser(**changes)
    with pytest.raises(UserError, match="condition stream 'pitch' has no slot; there are text, speaker"):
        make_fuser()({"pitch": Stream(torch.zeros(4, 2))}, {}, LATENT_LENS, 12)
    with pytest.raises(UserError, match="condition stream 'pitch' has no slot"):
        make_fuser()({}, {}, LATENT_LENS, 12, drop=["pitch"])


@pytest.mark.parametrize("resample", ["none", "linear"])
def test_nothing_waits_for_the_device(resample):
    """On the meta device there is no value to wait for."""
    with torch.device("meta"):
        fuser = make_fuser(dropout=0.3, joint_dropout=0.1, resample=resample)
    streams = {
        name: Stream(v.to("meta"), None if n is None else n.to("meta")) for name, (v, n) in make_streams().items()
    }
    present = {name: has.to("meta") for name, has in PRESENT.items()}
    fuser(streams, present, LATENT_LENS.to("meta"), 12).aligned.sum().backward()


def test_half_precision_goes_through():
    fuser, streams = make_fuser(dropout=0.3), make_streams()
    with torch.autocast("cpu", torch.bfloat16):
        conditions = fuser(streams, PRESENT, LATENT_LENS, 12)
    sum(getattr(conditions, part).float().sum() for part in ("vector", "sequence", "aligned")).backward()
    assert all(p.grad.isfinite().all() for p in fuser.parameters())


@pytest.mark.slow
def test_two_kinds_of_condition_are_learnt_with_their_nulls_and_guided_apart():
    """A word tells the level, a contour the course; without one of them there is the mean over what it might say."""
    torch.manual_seed(0)
    fuser = ConditionFuser({"word": "vector", "contour": "aligned"}, {"word": 2, "contour": 1}, 16, 16, 16,
                           dropout=0.2, joint_dropout=0.1, resample="none")  # fmt: skip
    backbone = Dit(1, fuser.vector_dim, fuser.sequence_dim, fuser.aligned_dim, dim=16, depth=1, num_heads=2)
    optimizer = torch.optim.AdamW([*fuser.parameters(), *backbone.parameters()], lr=5e-3)
    lens, x_t, t = torch.full((64,), 8), torch.ones(64, 8, 1), torch.zeros(64)

    def draw():
        word, contour = torch.randint(0, 2, (64,)), torch.randn(64, 8, 1)
        return {"word": Stream(torch.eye(2)[word]), "contour": Stream(contour)}, (4.0 * word - 2).view(-1, 1, 1)

    for _ in range(250):
        streams, level = draw()
        predicted = backbone(x_t, t, fuser(streams, {}, lens, 8))
        (predicted - level - streams["contour"].values).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    fuser.eval()
    streams, level = draw()
    contour = streams["contour"].values

    def guess(*drop):
        with torch.no_grad():
            return backbone(x_t, t, fuser(streams, {}, lens, 8, drop))

    truths = {(): level + contour, ("contour",): level, ("word",): contour, ("word", "contour"): 0}
    for drop, truth in truths.items():
        assert (guess(*drop) - truth).abs().mean() < 0.35, drop
    guidance = FactoredGuidance({"aligned": ["contour"], "word": ["word"]}, {"aligned": 1.0, "word": 2.0})
    guided = guidance(lambda drops: [guess(*drop) for drop in drops], 0.0)
    assert (guided - (2 * level + contour)).abs().mean() < 0.7, "twice the word, once the contour"


def test_conditions_are_seen_by_what_looks_for_tensors():
    conditions = Conditions(vector=torch.zeros(2, 3))
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(conditions) if leaf is not None]
    assert len(leaves) == 1
