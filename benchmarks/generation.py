"""Audio generation: a training step, sampling, and memory. `python -m benchmarks.generation [train sampling memory]`.

train     the model of `experiment=audio_generation/spoken_voices` through our Trainer with callbacks, against a loop
          written by hand over the same modules; both must end with the same weights
sampling  `AudioGenerator.generate` against diffusers' `StableAudioPipeline`, with equally large networks, the same
          guidance, one codec and as many calls of the network
memory    the process at 100 and at 1000 updates of such a training

One process, one thread, contestants interleaved round by round in changing order; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.contestants import Clock
from components.data import PadCollate
from components.generative import FactoredGuidance, FlowMatching
from components.models.audio_generator.autoencoders import OobleckAutoencoder
from components.models.audio_generator.backbones import Dit
from components.models.audio_generator.conditions import ConditionFuser, Conditions
from components.models.audio_generator.content_encoders import FrameEncoder
from components.models.audio_generator.generator import AudioGenerator
from tasks.audio_generation import AudioGenerationTrainer
from trainer import Callback
from trainer.callbacks import ExponentialMovingAverage, LearningRateMonitor, Throughput
from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers

EXPERIMENT = "audio_generation/spoken_voices"
CLIP, DECAY, LOG_EVERY = 1.0, 0.995, 50
Run = Callable[[], tuple[float, float]]  # wall and CPU seconds of a unit of work


# ------------------------------------------------------------------------------------------------------------ training


class Wishes(Dataset):
    """Noise of the experiment's canvas, and its words: nothing is read, so that the step alone is measured."""

    deterministic = True

    def __init__(self, num_items: int, config: Any) -> None:
        self.num_items, self.length = num_items, round(config.canvas_seconds * config.sample_rate)
        self.words, self.voices = list(config.labels.word), list(config.labels.speaker)
        self.waveforms = 0.1 * torch.randn(64, 1, self.length, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, i: int) -> dict[str, Any]:
        told = f"say the word {self.words[i % len(self.words)]} in the voice of {self.voices[i % len(self.voices)]}"
        return {"id": str(i), "task": "text_to_speech", "instruction": told, "waveform": self.waveforms[i % 64]}


class Training:
    """The experiment's model, freshly made with its latents standardised, and a loader."""

    def __init__(self, batch_size: int) -> None:
        register_omegaconf_resolvers()
        self.config = compose_task(Request(CONFIGS, "default", (f"experiment={EXPERIMENT}",)))
        self.batch_size = batch_size

    def model(self) -> AudioGenerator:
        torch.manual_seed(0)
        model = instantiate(self.config.model, _convert_="all")
        batch = PadCollate()([Wishes(64, self.config)[i] for i in range(64)])
        model.autoencoder.fit_statistics([model.autoencoder.raw_latents(batch["waveform"], batch["audio_lens"])])
        return model

    def loader(self, steps: int) -> DataLoader:
        return DataLoader(Wishes(steps * self.batch_size, self.config), self.batch_size, collate_fn=PadCollate())

    def by_hand(self, model: AudioGenerator, steps: int, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer, writer = adamw(parameters), SummaryWriter(str(folder))
        schedule, average = decay(optimizer), [p.detach().clone() for p in parameters]
        loss_sum: Any = 0.0
        model.train()
        for step, batch in enumerate(tqdm(self.loader(steps), total=steps, file=io.StringIO()), start=1):
            loss = model(batch).per_item.mean()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            weight = 1 - min(DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], weight)
            loss_sum = loss_sum + loss.detach()
            if step % LOG_EVERY == 0:
                writer.add_scalar("train/loss", float(loss_sum) / LOG_EVERY, step)
                loss_sum = 0.0
        writer.close()

    def by_trainer(self, model: AudioGenerator, steps: int, folder: Path, *callbacks: Callback) -> None:
        from trainer.callbacks import ProgressBar
        from trainer.trackers import TensorBoardTracker

        usual = [
            LearningRateMonitor(),
            Throughput("audio_lens", "audio_seconds", 8000.0),
            ExponentialMovingAverage(DECAY),
        ]
        AudioGenerationTrainer(
            model, self.loader(steps), adamw, decay, callbacks=[*usual, ProgressBar(), *callbacks],
            trackers=[TensorBoardTracker], exp_dir=folder, max_steps=steps, max_grad_norm=CLIP,
            log_every_n_steps=LOG_EVERY,
        ).fit()  # fmt: skip

    def timed(self, way: str, steps: int, warmup: int) -> tuple[float, float, float]:
        """Wall and CPU seconds of a step, and the sum of the final weights."""
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        model, clock = self.model(), Clock(warmup)

        def on_forward(*_: Any) -> None:
            if clock.calls == 0:  # loaders draw a number each, and not the same many
                torch.manual_seed(1)
            clock.tick()

        model.register_forward_pre_hook(on_forward)
        with tempfile.TemporaryDirectory() as folder, silence():
            getattr(self, way)(model, steps, Path(folder))
        return *clock.per_step(), sum(p.double().sum().item() for p in model.parameters())


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)


def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1.0 + 1e-3 * step))


def measure_training(rounds: int, steps: int, batch_size: int) -> dict[str, Any]:
    training, ends = Training(batch_size), {}

    def run(way: str) -> tuple[float, float]:
        wall, cpu, ends[way] = training.timed(way, steps, warmup=5)
        return wall, cpu

    found = paired({way: partial(run, way) for way in ("by_hand", "by_trainer")}, rounds)
    found["same_weights"] = abs(ends["by_hand"] - ends["by_trainer"]) < 1e-6
    return found


# ------------------------------------------------------------------------------------------------------------ sampling

NUM_FRAMES, LATENT, WIDTH, PLACES, RATE = 256, 64, 256, 16, 8_000
NETWORK = {"num_attention_heads": 8, "num_key_value_attention_heads": 8, "attention_head_dim": WIDTH // 8}
CODEC = {"strides": (2, 4, 8), "channel_multiples": (1, 1, 1), "decoder_channels": 16}


def stable_audio_network(depth: int) -> nn.Module:
    from diffusers import StableAudioDiTModel

    return StableAudioDiTModel(
        sample_size=NUM_FRAMES, in_channels=LATENT, out_channels=LATENT, num_layers=depth, cross_attention_dim=WIDTH,
        cross_attention_input_dim=WIDTH, global_states_input_dim=2 * WIDTH, **NETWORK,
    )  # fmt: skip


class SameNetwork(nn.Module):
    """diffusers' network of Stable Audio as a backbone of ours."""

    def __init__(self, depth: int, **widths: int) -> None:
        super().__init__()
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        self.network = stable_audio_network(depth)
        half = NETWORK["attention_head_dim"] // 2
        self.rotary = get_1d_rotary_pos_embed(half, NUM_FRAMES + 1, use_real=True, repeat_interleave_real=False)

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions, padding_mask: Tensor | None = None) -> Tensor:
        made = self.network(
            x_t.transpose(1, 2), 1 - t, encoder_hidden_states=conditions.sequence,
            global_hidden_states=conditions.vector.unsqueeze(1), rotary_embedding=self.rotary, return_dict=False,
        )  # fmt: skip
        return -made[0].transpose(1, 2)


def ours(backbone: Callable[..., nn.Module]) -> AudioGenerator:
    torch.manual_seed(0)
    fuser = partial(ConditionFuser, {"text": ["vector", "sequence"]}, vector_dim=2 * WIDTH, sequence_dim=WIDTH)
    codec = OobleckAutoencoder(RATE, hidden_size=2 * LATENT, **CODEC)
    return AudioGenerator(
        codec, {"text": FrameEncoder(WIDTH, WIDTH)}, fuser, backbone, FlowMatching(), is_full=True
    ).eval()


def pipeline(depth: int) -> Any:
    """diffusers' own, with random weights; its scheduler needs torchsde, without that there is its nearest relative."""
    from diffusers import (
        AutoencoderOobleck,
        CosineDPMSolverMultistepScheduler,
        EDMDPMSolverMultistepScheduler,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    try:
        import torchsde  # noqa: F401 - the scheduler's own need

        scheduler = CosineDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction", sigma_data=1.0)
    except ImportError:
        scheduler = EDMDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction", sigma_data=1.0)
    codec = AutoencoderOobleck(
        encoder_hidden_size=2 * LATENT, downsampling_ratios=list(CODEC["strides"]), sampling_rate=RATE,
        channel_multiples=list(CODEC["channel_multiples"]), decoder_channels=CODEC["decoder_channels"],
        decoder_input_channels=LATENT, audio_channels=1,
    )  # fmt: skip
    text = T5EncoderModel(T5Config(d_model=WIDTH, d_ff=WIDTH, num_layers=1, num_heads=4, vocab_size=32))  # never called
    made = StableAudioPipeline(
        vae=codec.eval(), text_encoder=text, tokenizer=None, transformer=stable_audio_network(depth).eval(),
        projection_model=StableAudioProjectionModel(WIDTH, WIDTH, 0, 512), scheduler=scheduler,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def measure_sampling(rounds: int, num_steps: int, batch_size: int, depth: int) -> dict[str, Any]:
    text = torch.randn(batch_size, PLACES, WIDTH, generator=torch.Generator().manual_seed(0))
    hop = 64
    batch = {
        "text": text, "text_lens": torch.full((batch_size,), PLACES),
        "audio_lens": torch.full((batch_size,), NUM_FRAMES * hop),
    }  # fmt: skip
    guidance, seeds = FactoredGuidance({"all": ["text"]}, 7.0), torch.arange(batch_size)
    theirs = pipeline(depth)
    same, own = ours(partial(SameNetwork, depth)), ours(partial(own_network, depth))
    networks = {"diffusers": theirs.transformer, "ours, same network": same.backbone, "ours, own network": own.backbone}
    ways: dict[str, Callable[[], Tensor]] = {
        "diffusers": lambda: theirs(prompt_embeds=text, num_inference_steps=num_steps, guidance_scale=7.0).audios,
        "ours, same network": lambda: same.generate(batch, seeds, num_steps, guidance=guidance)[0],
        "ours, own network": lambda: own.generate(batch, seeds, num_steps, guidance=guidance)[0],
    }
    calls = dict.fromkeys(ways, 0)

    def count(name: str) -> None:
        calls[name] += 1

    for name, network in networks.items():
        network.register_forward_pre_hook(lambda *_, name=name: count(name))

    def run(name: str) -> tuple[float, float]:
        before = calls[name]
        begin = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            sound = ways[name]()
        wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        assert calls[name] - before == num_steps, f"{name}: {calls[name] - before} calls for {num_steps} steps"
        assert sound.shape == (batch_size, 1, NUM_FRAMES * hop), f"{name}: {tuple(sound.shape)}"
        return wall, cpu

    found = paired({name: partial(run, name) for name in ways}, rounds)
    found["parameters"] = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    found["scheduler"] = type(theirs.scheduler).__name__
    return found


def own_network(depth: int, **widths: int) -> nn.Module:
    return Dit(**widths, dim=WIDTH, depth=depth, num_heads=NETWORK["num_attention_heads"], gated_mlp=True)


# -------------------------------------------------------------------------------------------------------------- memory


class Memory(Callback):
    """MiB that the process holds, every 100 updates."""

    def __init__(self) -> None:
        self.mebibytes: dict[int, float] = {}

    def on_update_end(self, trainer: Any) -> None:
        if trainer.global_step % 100 == 0:
            self.mebibytes[trainer.global_step] = resident()


def resident() -> float:
    """MiB of this process in memory (Linux)."""
    kilobytes = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(kilobytes.split()[1]) / 1024


def measure_memory(batch_size: int) -> dict[str, Any]:
    watch, training = Memory(), Training(batch_size)
    with tempfile.TemporaryDirectory() as folder, silence():
        training.by_trainer(training.model(), 1000, Path(folder), watch)
    return {"mebibytes": watch.mebibytes, "growth": watch.mebibytes[1000] - watch.mebibytes[100]}


# -------------------------------------------------------------------------------------------------------------- common


def paired(ways: dict[str, Run], rounds: int) -> dict[str, Any]:
    """Medians of seconds, and of each round's ratio to the first way; the round before the first warms up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name in ways if round_ % 2 else reversed(ways):
            taken = ways[name]()
            if round_:
                times[name].append(taken)
    base = times[next(iter(ways))]
    rows = {}
    for name, taken in times.items():
        ratios = [[own[k] / other[k] for own, other in zip(taken, base)] for k in (0, 1)]
        rows[name] = {
            "wall_s": statistics.median(wall for wall, _ in taken), "wall_ratio": statistics.median(ratios[0]),
            "cpu_s": statistics.median(cpu for _, cpu in taken), "cpu_ratio": statistics.median(ratios[1]),
            "cpu_ratio_range": [min(ratios[1]), max(ratios[1])],
        }  # fmt: skip
    return {"rows": rows}


def table(title: str, found: dict[str, Any]) -> str:
    lines = [f"| {title} | CPU s | ratio (range) | wall s | ratio |", "|---" * 5 + "|"]
    for name, row in found["rows"].items():
        low, high = row["cpu_ratio_range"]
        lines.append(
            f"| {name} | {row['cpu_s']:.4f} | **{row['cpu_ratio']:.3f}** ({low:.3f}-{high:.3f}) | {row['wall_s']:.4f} "
            f"| {row['wall_ratio']:.3f} |"
        )
    return "\n".join(lines + [f"{key}: {value}" for key, value in found.items() if key != "rows"])


@contextlib.contextmanager
def silence() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ("train", "sampling", "memory")
    parser.add_argument("parts", nargs="*", choices=parts, default=[], metavar="PART")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train-steps", type=int, default=40, help="updates of a contestant in a round")
    parser.add_argument("--train-batch", type=int, default=32)
    parser.add_argument("--memory-batch", type=int, default=8)
    parser.add_argument("--sampler-steps", type=int, default=10)
    parser.add_argument("--sampler-batch", type=int, default=2)
    parser.add_argument("--depth", type=int, default=6, help="blocks of the networks that sample")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/generation.json"))
    options = parser.parse_args()
    options.parts = options.parts or list(parts)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = {"torch": torch.__version__, "rounds": options.rounds}
    if "memory" in options.parts:
        found["memory"] = measure_memory(options.memory_batch)
        print(f"memory: {found['memory']['growth']:+.1f} MiB from update 100 to 1000, of", found["memory"]["mebibytes"])
    if "train" in options.parts:
        found["train"] = measure_training(options.rounds, options.train_steps, options.train_batch)
        print(table("training step", found["train"]))
    if "sampling" in options.parts:
        found["sampling"] = measure_sampling(
            options.rounds, options.sampler_steps, options.sampler_batch, options.depth
        )
        print(table(f"{options.sampler_steps} steps", found["sampling"]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
