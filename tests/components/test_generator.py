"""The generator as a whole: mixed batches, sounds that belong to their seeds, durations."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from components.generative import FactoredGuidance, FlowMatching, OdeSampler
from components.models.audio_generator.adapters import CrossAttentionAdapter
from components.models.audio_generator.autoencoders import PatchAutoencoder
from components.models.audio_generator.backbones import Dit
from components.models.audio_generator.conditions import ConditionFuser
from components.models.audio_generator.content_encoders import FrameEncoder, WordEncoder
from components.models.audio_generator.generator import AudioGenerator

WORDS = ["say", "seven", "three", "loud", "quiet"]
HOP = 40


def generator(adapter: bool = False, **options) -> AudioGenerator:
    torch.manual_seed(0)
    slots = {"instruction": ["vector", "sequence"], "contour": "aligned"}
    encoders = {"instruction": WordEncoder(WORDS, embed_dim=32), "contour": FrameEncoder(1, embed_dim=16)}
    if adapter:
        encoders["text"] = WordEncoder(WORDS, embed_dim=32)
        slots |= {"text": "sequence", "text_frames": "aligned"}
        options["content_adapter"] = partial(CrossAttentionAdapter, dim=32, dropout=0.0)
    model = AudioGenerator(
        PatchAutoencoder(8_000, HOP), encoders, partial(ConditionFuser, slots, dropout=0.2),
        partial(Dit, dim=64, depth=2), FlowMatching(), **options,
    )  # fmt: skip
    with torch.no_grad():  # an untrained network answers zero to everything
        for parameter in model.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch(lens=(400, 320, 240), **more):
    torch.manual_seed(1)
    num = len(lens)
    waveform = torch.randn(num, 1, max(lens))
    for row, length in zip(waveform, lens):
        row[:, length:] = 0
    frames = torch.tensor(lens) // HOP
    return {
        "id": [str(i) for i in range(num)], "task": ["tts", "energy", "tts"][:num],
        "waveform": waveform, "audio_lens": torch.tensor(lens),
        "instruction": ["say seven loud", "say three", "quiet"][:num],
        "contour": torch.randn(num, int(frames.max()), 1), "contour_lens": frames,
        "has_contour": torch.tensor([False, True, False][:num]),
    } | more  # fmt: skip


def items(whole, rows):
    """Some items of a batch, cut to their own lengths."""
    longest = int(whole["audio_lens"][rows].max())
    frames = longest // HOP
    part = {}
    for name, value in whole.items():
        part[name] = [value[i] for i in rows] if isinstance(value, list) else value[rows]
    part["waveform"], part["contour"] = part["waveform"][..., :longest], part["contour"][:, :frames]
    return part


def test_a_mixed_batch_has_a_loss_per_item_and_every_parameter_learns():
    model = generator().train()
    output = model(batch())
    assert output.per_item.shape == output.t.shape == (3,)
    output.per_item.sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(not p.requires_grad for p in model.autoencoder.parameters())


def test_a_sound_belongs_to_its_seed_and_conditions_alone():
    model = generator().eval()
    whole, seeds = batch(), torch.tensor([11, 12, 13])
    guidance = FactoredGuidance(
        {"aligned": ["contour"], "text": ["instruction"]}, {"aligned": 1.5, "text": 3.0}, rescale=0.3
    )
    together, lens = model.generate(whole, seeds, 4, guidance=guidance)
    assert lens.tolist() == [400, 320, 240]
    for rows in ([1], [2, 0]):
        some, _ = model.generate(items(whole, rows), seeds[rows], 4, guidance=guidance)
        for sound, i in zip(some, rows):
            assert torch.allclose(sound[0, : lens[i]], together[i, 0, : lens[i]], atol=1e-4)
    other, _ = model.generate(whole, seeds + 1, 4, guidance=guidance)
    assert not torch.allclose(other, together)


def test_steps_cost_as_many_calls_and_guidance_goes_in_one_batch():
    model = generator().eval()
    sizes = []
    model.backbone.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    model.generate(batch(), torch.arange(3), 5, OdeSampler("euler"))
    plain, sizes[:] = list(sizes), []
    model.generate(batch(), torch.arange(3), 5, guidance=FactoredGuidance({"all": ["instruction", "contour"]}, 2.0))
    assert (plain, sizes) == ([3] * 5, [6] * 5)


def test_a_condition_that_an_item_lacks_does_not_matter_to_it():
    model = generator().eval()
    whole, seeds = batch(), torch.arange(3)
    changed = whole | {"contour": whole["contour"] + 5.0}
    before, _ = model.generate(whole, seeds, 3)
    after, _ = model.generate(changed, seeds, 3)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(before, after)]
    assert same == [True, False, True]


def with_content(whole):
    durations = torch.tensor([[0.02, 0.03], [0.01, 0.03], [0.0, 0.0]])
    return whole | {
        "text": ["seven", "three", ""], "text_durations": durations, "has_text": torch.tensor([True, True, False])
    }  # fmt: skip


def test_durations_are_learned_and_predict_lengths():
    model = generator(adapter=True).train()
    output = model(with_content(batch()))
    assert output.durations.total.shape == output.durations.token.shape == (3,)
    assert output.durations.token[2] == output.durations.total[2] == 0  # it has no content
    (output.durations.total + output.durations.token).sum().backward()
    assert model.content_adapter.total_duration is not None
    asked = {k: v for k, v in with_content(batch()).items() if k not in ("audio_lens", "text_durations", "waveform")}
    _, lens = model.eval().generate(asked, torch.arange(3), 2)
    assert (lens % HOP == 0).all()
    assert (lens > 0).all()


@pytest.mark.slow
def test_it_learns_what_it_is_told():
    """Two words, two sounds: after a little training, each word makes its own."""
    model = generator().train()
    told, sounds = ["say seven", "say three"], torch.stack([torch.ones(1, 400), -torch.ones(1, 400)])
    data = {"id": ["a", "b"], "instruction": told, "waveform": sounds, "audio_lens": torch.tensor([400, 400])}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(data).per_item.mean().backward()
        optimizer.step()
    made, _ = model.eval().generate(data, torch.tensor([5, 6]), 8)
    assert made[0].mean() > 0.8
    assert made[1].mean() < -0.8
