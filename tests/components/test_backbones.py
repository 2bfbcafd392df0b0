import copy
from functools import partial

import pytest
import torch
from diffusers import LongCatAudioDiTTransformer, StableAudio3DiTModel
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from components.generative import FlowMatching, OdeSampler
from components.layers import Attention, FeedForward, TimeEmbedding, length_mask, rotary_tables, rotate
from components.models.audio_generator import Conditions, Dit, LongCatBackbone, StableAudio3Backbone
from components.models.audio_generator.backbones.tokens import fold_frames, token_padding, unfold_frames
from utils.compose import CONFIGS
from utils.errors import UserError

DIMS = {"latent_dim": 6, "vector_dim": 10, "sequence_dim": 12, "aligned_dim": 5}
DIT = partial(Dit, dim=16, depth=3, num_heads=2)
STABLE_AUDIO_3 = partial(
    StableAudio3Backbone,
    transformer=partial(StableAudio3DiTModel, embed_dim=16, depth=2, num_heads=2, num_memory_tokens=3, ff_mult=2.0),
    context_len=9,
)
LONGCAT = partial(
    LongCatBackbone,
    transformer=partial(LongCatAudioDiTTransformer, dit_dim=16, dit_depth=2, dit_heads=2, text_conv=False),
)
BACKBONES = {
    "layer": DIT,
    "layer of patches": partial(DIT, patch_size=3, gated_mlp=True),
    "input": partial(DIT, patch_size=2, aligned_fusion="input", long_skips=True),
    "stable_audio_3": partial(STABLE_AUDIO_3, patch_size=2),
    "longcat": LONGCAT,
    "longcat of patches": partial(LONGCAT, patch_size=2),
}
MASKING = [name for name in BACKBONES if name != "stable_audio_3"]
LENS, SEQUENCE_LENS = torch.tensor([14, 1, 7, 10]), torch.tensor([2, 8, 1, 5])


def shaken(module):
    """With no parameter left at the zeros it starts with."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def make(name, **changes):
    torch.manual_seed(0)
    return BACKBONES[name](**{**DIMS, **changes})


def make_batch(dims=None):
    torch.manual_seed(2)
    dims = {**DIMS, **(dims or {})}
    x_t, t = torch.randn(4, 14, dims["latent_dim"]), torch.rand(4)
    has_sequence = dims["sequence_dim"] > 0
    conditions = Conditions(
        vector=torch.randn(4, dims["vector_dim"]) if dims["vector_dim"] else None,
        sequence=torch.randn(4, 8, dims["sequence_dim"]) if has_sequence else None,
        sequence_padding_mask=~length_mask(SEQUENCE_LENS, 8) if has_sequence else None,
        aligned=torch.randn(4, 14, dims["aligned_dim"]) if dims["aligned_dim"] else None,
    )
    return x_t, t, conditions


def item(conditions, i, num_frames):
    length = SEQUENCE_LENS[i]
    return Conditions(
        conditions.vector[i : i + 1],
        conditions.sequence[i : i + 1, :length],
        None,
        conditions.aligned[i : i + 1, :num_frames],
    )


@pytest.mark.parametrize("name", MASKING)
def test_a_padded_batch_gives_the_same_as_each_item_alone(name):
    backbone, (x_t, t, conditions) = shaken(make(name)).eval(), make_batch()
    together = backbone(x_t, t, conditions, ~length_mask(LENS, 14))
    assert together.shape == x_t.shape
    for i, length in enumerate(LENS.tolist()):
        alone = backbone(x_t[i : i + 1, :length], t[i : i + 1], item(conditions, i, length))
        torch.testing.assert_close(together[i, :length], alone[0], atol=1e-5, rtol=1e-5)
        assert together[i, length:].abs().sum() == 0


def test_stable_audio_3_does_not_see_the_padding_of_the_sequence():
    backbone, (x_t, t, conditions) = shaken(make("stable_audio_3")).eval(), make_batch()
    together = backbone(x_t, t, conditions)
    for i in range(4):
        alone = backbone(x_t[i : i + 1], t[i : i + 1], item(conditions, i, 14))
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MASKING)
def test_gradients_do_not_depend_on_what_lies_in_the_padding(name):
    mask, gradients = ~length_mask(LENS, 14), []
    for padding in (0.0, 5.0):
        backbone, (x_t, t, conditions) = shaken(make(name)), make_batch()
        x_t[mask] = padding
        conditions.aligned[mask] = padding
        conditions.sequence[conditions.sequence_padding_mask] = padding
        backbone(x_t, t, conditions, mask).square().sum().backward()
        gradients.append({key: p.grad for key, p in backbone.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_mask_of_no_padding_is_as_good_as_none(name):
    backbone, (x_t, t, conditions) = shaken(make(name)).eval(), make_batch()
    conditions.sequence_padding_mask = None
    expected = backbone(x_t, t, conditions)
    conditions.sequence_padding_mask = torch.zeros(4, 8, dtype=torch.bool)
    mask = torch.zeros(4, 14, dtype=torch.bool) if name in MASKING else None
    torch.testing.assert_close(backbone(x_t, t, conditions, mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_fresh_backbone_predicts_zero(name):
    x_t, t, conditions = make_batch()
    assert make(name)(x_t, t, conditions).abs().max() == 0


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("without", [(), ("vector_dim",), ("sequence_dim",), ("aligned_dim",),
                                     ("vector_dim", "sequence_dim", "aligned_dim")])  # fmt: skip
def test_every_parameter_gets_a_gradient_whatever_conditions_there_are(name, without):
    dims = dict.fromkeys(without, 0)
    backbone, (x_t, t, conditions) = shaken(make(name, **dims)), make_batch(dims)
    backbone(x_t, t, conditions).square().sum().backward()
    trained = {key: p.grad for key, p in backbone.named_parameters() if p.requires_grad}
    assert [key for key, gradient in trained.items() if gradient is None or gradient.abs().max() == 0] == []


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("part", ["vector", "sequence", "aligned"])
def test_each_condition_and_the_time_matter(name, part):
    backbone, (x_t, t, conditions) = shaken(make(name)).eval(), make_batch()
    before = backbone(x_t, t, conditions)
    setattr(conditions, part, torch.randn_like(getattr(conditions, part)))
    assert (backbone(x_t, t, conditions) - before).abs().max() > 1e-3
    assert (backbone(x_t, 0.5 * t, conditions) - backbone(x_t, t, conditions)).abs().max() > 1e-4


def blocks_of(backbone):
    if isinstance(backbone, StableAudio3Backbone):
        return backbone.transformer.transformer_blocks
    return backbone.blocks if isinstance(backbone, Dit) else backbone.transformer.blocks


def count_calls(block_class, calls, monkeypatch):
    original = block_class.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(block_class, "forward", counted)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradient_checkpointing_changes_no_gradient(name, monkeypatch):
    gradients, calls = [], []
    for checkpointing in (False, True):
        backbone, (x_t, t, conditions) = shaken(make(name)).train(), make_batch()
        if checkpointing:
            backbone.gradient_checkpointing_enable()
            backbone = copy.deepcopy(backbone)  # as averaging of weights does
            count_calls(type(blocks_of(backbone)[0]), calls, monkeypatch)
        mask = ~length_mask(LENS, 14) if name in MASKING else None
        backbone(x_t, t, conditions, mask).square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)
    assert len(calls) == 2 * len(blocks_of(backbone)), "each block runs once forth and once again back"


@pytest.mark.parametrize("name", BACKBONES)
def test_half_precision_stays_near_single(name):
    backbone, (x_t, t, conditions) = shaken(make(name)), make_batch()
    mask = ~length_mask(LENS, 14) if name in MASKING else None
    expected = backbone(x_t, t, conditions, mask)
    with torch.autocast("cpu", torch.bfloat16):
        half = backbone(x_t, t, conditions, mask)
    half.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())
    assert (half - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_in_a_training_step_waits_for_the_device(name):
    """On the meta device there is no value to wait for."""
    with torch.device("meta"):
        backbone, (x_t, t, conditions) = make(name).train(), make_batch()
        mask = torch.zeros(4, 14, dtype=torch.bool) if name in MASKING else None
        conditions.sequence_padding_mask = torch.zeros(4, 8, dtype=torch.bool)
        backbone(x_t, t, conditions, mask).square().sum().backward()


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_are_saved_and_loaded(name):
    x_t, t, conditions = make_batch()
    backbone, other = shaken(make(name)).eval(), make(name).eval()
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other(x_t, t, conditions), backbone(x_t, t, conditions))


def test_conditions_of_another_width_are_told_apart():
    x_t, t, conditions = make_batch()
    with pytest.raises(UserError, match=r"built with aligned_dim=0 and is given conditions.aligned of width 5"):
        make("layer", aligned_dim=0)(x_t, t, conditions)
    conditions.vector = None
    with pytest.raises(UserError, match=r"built with vector_dim=10 and is given conditions.vector of width 0"):
        make("longcat")(x_t, t, conditions)


def test_stable_audio_3_refuses_padding_and_long_sequences():
    backbone, (x_t, t, conditions) = make("stable_audio_3"), make_batch()
    with pytest.raises(UserError, match="has no mask for padding: give it clips of one length"):
        backbone(x_t, t, conditions, ~length_mask(LENS, 14))
    conditions.sequence = torch.randn(4, 10, 12)
    with pytest.raises(UserError, match=r"10 places and the backbone stable_audio_3 9: raise model.backbone"):
        backbone(x_t, t, conditions)


def test_longcat_refuses_convolutions_over_the_text():
    with pytest.raises(UserError, match="text_conv: the convolutions of LongCat over the text see its padding"):
        LongCatBackbone(**DIMS, transformer=partial(LongCatAudioDiTTransformer, dit_dim=16, dit_depth=1, dit_heads=2))


def test_longcat_can_be_trained_after_inference_mode():
    backbone, (x_t, t, conditions) = shaken(make("longcat")), make_batch()
    with torch.inference_mode():
        backbone(x_t, t, conditions)
    backbone(x_t, t, conditions).sum().backward()


def test_the_angles_given_to_longcat_are_its_own():
    theirs = LongCatAudioDiTTransformer(dit_dim=16, dit_depth=1, dit_heads=2, text_conv=False).rotary_embed
    ours = LongCatBackbone(**DIMS, transformer=LONGCAT.keywords["transformer"]).transformer.rotary_embed
    x = torch.randn(1, 33, 16)
    for mine, library in zip(ours(x, 33), theirs(x, 33)):
        torch.testing.assert_close(mine, library)


class Field(nn.Module):
    """Stands in for a library's transformer: the true field of a single datum, by the library's conventions."""

    def __init__(self, x_1, channels_first, **dims):
        super().__init__()
        self.x_1, self.channels_first = x_1, channels_first
        self.config = OmegaConf.create({"text_conv": False})
        self.transformer_blocks = []
        self.transformer_blocks = []
        self.proj_out, self.rotary_embed = nn.Linear(2, 2), OmegaConf.create({"dim": 4})

    def forward(self, x, *, timestep, return_dict, **conditions):
        x = x.transpose(1, 2) if self.channels_first else x
        noise_minus_data = (x - self.x_1) / timestep.view(-1, 1, 1)  # x = (1 - sigma) data + sigma noise
        return (noise_minus_data.transpose(1, 2) if self.channels_first else noise_minus_data,)


@pytest.mark.parametrize(("adapter", "channels_first"), [(StableAudio3Backbone, True), (LongCatBackbone, False)])
def test_the_time_and_the_sign_of_a_library_become_ours(adapter, channels_first):
    torch.manual_seed(0)
    x_1 = torch.randn(2, 6, 3)
    dims = {"latent_dim": 3, "vector_dim": 4, "sequence_dim": 5}
    backbone = adapter(**dims, transformer=partial(Field, x_1, channels_first))
    conditions = Conditions(torch.randn(2, 4), torch.randn(2, 2, 5))

    def velocity(x, t, done=0.0):
        return backbone(x, t.expand(2), conditions)

    assert FlowMatching().loss(velocity, x_1).per_item.max() < 1e-6
    sampled = OdeSampler("euler").sample(velocity, torch.randn(2, 6, 3), 4)
    torch.testing.assert_close(sampled, x_1, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layer of patches", "input", "stable_audio_3", "longcat"])
def test_a_backbone_learns_what_its_conditions_tell(name):
    """Two items, told apart by each kind of condition in turn."""
    torch.manual_seed(0)
    x_1 = torch.randn(2, 1, 6).expand(2, 14, 6)
    for part in ("vector", "sequence", "aligned"):
        backbone = make(name)
        optimizer = torch.optim.AdamW(backbone.parameters(), lr=5e-3)
        _, _, conditions = make_batch()
        conditions = Conditions(*(getattr(conditions, p)[:2].clone() for p in ("vector", "sequence")), None,
                                conditions.aligned[:2].clone())  # fmt: skip
        for other in {"vector", "sequence", "aligned"} - {part}:
            getattr(conditions, other)[:] = 0.5
        losses = []
        for _ in range(100):
            x_t, t = torch.randn(2, 14, 6), torch.full((2,), 0.1)
            loss = (backbone(x_t, t, conditions) - x_1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        blind = (x_1 - x_1.mean(0)).square().mean()  # all that can be had without the condition
        assert sum(losses[-5:]) / 5 < 0.6 * blind, part


def test_frames_become_tokens_and_come_back():
    frames = torch.randn(2, 7, 3)
    mask = ~length_mask(torch.tensor([7, 4]), 7)
    tokens = fold_frames(frames, 3, mask)
    assert tokens.shape == (2, 3, 9)
    assert torch.equal(tokens[0, 1], frames[0, 3:6].flatten())
    assert torch.equal(tokens[1, 1], torch.cat([frames[1, 3], torch.zeros(6)]))
    assert token_padding(mask, 3).tolist() == [[False] * 3, [False, False, True]]
    assert torch.equal(unfold_frames(tokens, 3, 7, mask), frames.masked_fill(mask.unsqueeze(-1), 0))
    assert token_padding(None, 3) is None


def test_attention_is_torch_s_where_queries_and_keys_are_not_normalised():
    torch.manual_seed(0)
    ours = Attention(16, 4, context_dim=12)
    ours.query_norm = ours.key_norm = nn.Identity()
    theirs = nn.MultiheadAttention(16, 4, kdim=12, vdim=12, batch_first=True)
    key, value = ours.key_value.weight.chunk(2)
    theirs.load_state_dict({"q_proj_weight": ours.query.weight, "k_proj_weight": key, "v_proj_weight": value,
                            "in_proj_bias": torch.zeros(48), "out_proj.weight": ours.out.weight,
                            "out_proj.bias": ours.out.bias})  # fmt: skip
    x, context = torch.randn(3, 5, 16), torch.randn(3, 7, 12)
    mask = ~length_mask(torch.tensor([7, 2, 4]), 7)
    expected, _ = theirs(x, context, context, key_padding_mask=mask)
    torch.testing.assert_close(ours(x, context, mask), expected, atol=1e-6, rtol=1e-5)


def test_attention_is_its_formula_with_norms_and_turned_positions():
    torch.manual_seed(0)
    attention = shaken(Attention(8, 2))
    x = torch.randn(1, 5, 8)
    key, value = attention.key_value(x).chunk(2, dim=-1)
    outputs = []
    for head in (slice(0, 4), slice(4, 8)):
        q, k = (y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
                for y, norm in ((attention.query(x)[0, :, head], attention.query_norm),
                                (key[0, :, head], attention.key_norm)))  # fmt: skip
        turns = torch.polar(torch.ones(5, 2), torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.01])))
        q, k = (torch.complex(y[:, :2], y[:, 2:]) * turns for y in (q, k))
        logits = (q @ k.conj().T).real / 2
        outputs.append(logits.softmax(-1) @ value[0, :, head])
    expected = attention.out(torch.cat(outputs, dim=-1))
    torch.testing.assert_close(attention(x, rotary=rotary_tables(5, 4))[0], expected, atol=1e-5, rtol=1e-5)


def test_turned_positions_only_show_their_distance():
    q, k = torch.randn(8), torch.randn(8)
    tables = rotary_tables(20, 8)
    q, k = rotate(q.expand(20, 8), tables), rotate(k.expand(20, 8), tables)
    products = q @ k.T
    torch.testing.assert_close(products[3, 5], products[15, 17], atol=1e-4, rtol=1e-4)
    assert (products[3, 5] - products[3, 6]).abs() > 1e-4


def test_a_query_with_nothing_to_attend_to_gets_zero():
    attention = Attention(8, 2)
    out = attention(torch.randn(2, 3, 8), padding_mask=torch.tensor([[True] * 3, [False] * 3]))
    torch.testing.assert_close(out[0], attention.out.bias.expand(3, 8))


def test_times_get_distinct_embeddings_and_a_gate_half_as_many_parameters_again():
    embedding = TimeEmbedding(16)(torch.tensor([0.0, 0.001, 0.5, 1.0]))
    assert torch.pdist(embedding).min() > 1e-3
    sizes = [sum(p.numel() for p in FeedForward(16, 4, gated).parameters()) for gated in (False, True)]
    assert sizes[1] - sizes[0] == 16 * 64 + 64


# Parameters of the shipped files at the widths their heads speak of.
SIZES = {
    "dit": 1_361_760,
    "layer_fusion_dit_small": 223_798_400,
    "layer_fusion_dit_base": 565_158_016,
    "layer_fusion_dit_large": 999_166_336,
    "input_fusion_dit_small": 212_001_920,
    "input_fusion_dit_base": 541_040_768,
    "input_fusion_dit_large": 963_776_896,
    "stable_audio_3": 1_315_072,
    "longcat": 1_291_840,
}
TINY = {"latent_dim": 48, "vector_dim": 128, "sequence_dim": 128, "aligned_dim": 64}
FULL = {"latent_dim": 128, "vector_dim": 1024, "sequence_dim": 1024, "aligned_dim": 1024}


@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_backbone_has_the_size_that_its_file_says(name):
    path = CONFIGS / "model" / "backbone" / f"{name}.yaml"
    with torch.device("meta"):
        backbone = instantiate(OmegaConf.load(path))(**(FULL if "fusion" in name else TINY))
    size = sum(parameter.numel() for parameter in backbone.parameters())
    assert size == SIZES[name]
    assert f"{size / 1e6:.{1 if size < 1e8 else 0}f} M parameters" in path.read_text()
