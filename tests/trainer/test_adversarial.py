"""Several named optimizers, taking turns."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from tests.trainer.tiny_gan import gan
from utils.errors import UserError


def test_a_tiny_gan_learns_where_the_data_lies():
    model, trainer = gan(epochs=150, log_every_n_steps=100)
    trainer.fit()
    with torch.no_grad():
        fakes = model.generator(torch.randn(1000, 1, dtype=torch.float64))
    assert fakes.mean().item() == pytest.approx(3.0, abs=0.4)
    assert {"train/discriminator_loss", "train/generator_loss"} <= set(trainer.metrics)


def test_one_round_of_both_is_one_global_step_and_each_gradient_stays_its_own():
    model, trainer = gan(epochs=1)
    seen = []

    def remember(optimizer):
        others = model.generator if optimizer is trainer.units["discriminator"].optimizer else model.discriminator
        seen.append(all(p.grad is None or not p.grad.any() for p in others.parameters()))

    trainer._hooks["on_before_optimizer_step"] = (remember,)
    trainer.fit()
    assert trainer.global_step == 4
    assert seen == [True] * 8


def test_the_first_update_equals_one_by_hand():
    model, trainer = gan(epochs=1, max_steps=1, batch_size=64)
    twin, _ = gan()
    trainer.fit()
    adam = partial(torch.optim.Adam, lr=0.02, betas=(0.5, 0.9))
    data = trainer.train_dataloader.dataset
    latent = torch.stack([data[i]["latent"] for i in range(64)])
    real = torch.stack([data[i]["real"] for i in range(64)])
    for_d, for_g = adam(twin.discriminator.parameters()), adam(twin.generator.parameters())
    fake = twin.generator(latent)
    ((twin.discriminator(real) - 1).square() + twin.discriminator(fake.detach()).square()).mean().backward()
    for_d.step()
    (twin.discriminator(fake) - 1).square().mean().backward()
    for_g.step()
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_accumulation_gives_the_same_weights():
    weights = []
    for accumulation in (1, 2, 4):
        model, trainer = gan(batch_size=16 // accumulation, gradient_accumulation_steps=accumulation)
        # Within a window the discriminator's update comes before its last generator loss only, so compare it alone.
        trainer.max_steps = 1
        trainer.fit()
        weights.append(torch.cat([p.detach().flatten() for p in model.discriminator.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(weights[0], weights[2], rtol=0, atol=1e-12)


def test_a_schedule_by_name():
    _, trainer = gan(epochs=1)
    trainer.lr_scheduler = {"generator": partial(StepLR, step_size=1, gamma=0.5)}
    trainer.fit()
    assert trainer.units["generator"].learning_rates == [0.02 * 0.5**4]
    assert trainer.units["discriminator"].learning_rates == [0.02]


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ("optimizer", "optimizer.decoder: the model has no submodule 'decoder', only generator, discriminator"),
        ("lr_scheduler", "lr_scheduler.decoder: there is no optimizer of that name, only discriminator, generator"),
    ],
)
def test_a_name_that_fits_nothing_is_refused(field, sentence):
    _, trainer = gan()
    setattr(trainer, field, {"decoder": partial(StepLR, step_size=1)})
    with pytest.raises(UserError, match=sentence):
        trainer.fit()
