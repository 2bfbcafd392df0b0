"""Speech recognition against public implementations, in one run. `python -m benchmarks.asr [cif decoding training]`.

cif       integrate-and-fire, forward and backward: ours, FunASR's loop and `cif_v1`, torch-cif (`benchmarks.cif`)
decoding  CTC beam search and alignment: ours, flashlight-text, pyctcdecode, torchaudio (`benchmarks.ctc_decoding`)
training  an update of a Conformer with CTC: `torchaudio.models.Conformer` in a loop written by hand, against our model
          in our Trainer; the same features, subsampling, loss, AdamW, clipping, dropout and padding

"ours, same network" is the peer's network in our modules: before anything is timed it is given the peer's weights, and
must find the same loss and gradients. "ours" is the default encoder, whose attention knows how far apart two frames
are, and drops none of its weights. One process, one thread, contestants interleaved round by round in changing order;
ratios are medians over rounds. Peers that are not installed are left out by name; to have them for one run:

    pip install --target PEERS --no-deps funasr torch-cif flashlight-text pyctcdecode pygtrie kenlm
    PYTHONPATH=PEERS python -m benchmarks.asr
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchaudio.models import Conformer

from benchmarks import cif, ctc_decoding
from benchmarks.contestants import LOG_EVERY, Clock, adamw, decay
from benchmarks.generation import paired, silence, table
from components.data import PadCollate
from components.decoding import CtcGreedy
from components.features import KaldiFbank
from components.models.asr import AsrModel
from components.models.asr.encoders import ConformerEncoder, Conv2dSubsampling
from components.models.asr.heads import CtcHead
from components.text import CharTokenizer
from tasks.asr import AsrTrainer

RATE, MELS, SYMBOLS, CLIP, DROPOUT = 16_000, 80, 60, 5.0, 0.1
# dim, layers, heads, hidden width of the feed-forward networks, kernel, channels of the subsampling
SIZES = {"small": (96, 4, 4, 256, 15, 32), "medium": (256, 4, 4, 1024, 31, 64)}
BY_HAND, SAME, OURS = "torchaudio, by hand", "ours, same network", "ours"


# ------------------------------------------------------------------------------------------------------------ training


class Clips(Dataset):
    """Features of `shortest` to `longest` frames, and one token for each 15 of them: the step alone is measured."""

    deterministic = True

    def __init__(self, num_clips: int, longest: int, shortest: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randint, generator=generator)
        lens = draw(longest // 2 if shortest is None else shortest, longest + 1, (num_clips,)).tolist()
        self.features = [torch.randn(length, MELS, generator=generator) for length in lens]
        self.tokens = [draw(4, 4 + SYMBOLS, (length // 15,)) for length in lens]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"id": str(i), "features": self.features[i], "tokens": self.tokens[i]}


class Peer(nn.Module):
    """What somebody with torchaudio writes: two convolutions in front of its Conformer, a linear map behind it."""

    def __init__(self, size: str, vocab_size: int) -> None:
        super().__init__()
        dim, num_layers, num_heads, hidden, kernel, channels = SIZES[size]
        self.first, self.second = nn.Conv2d(1, channels, 3, 2, 1), nn.Conv2d(channels, channels, 3, 2, 1)
        self.project = nn.Linear(channels * MELS // 4, dim)
        self.dropout = nn.Dropout(DROPOUT)
        self.conformer = Conformer(dim, num_heads, hidden, num_layers, kernel, DROPOUT)
        self.output = nn.Linear(dim, vocab_size)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        x = self.second(self.first(batch["features"].unsqueeze(1)).relu()).relu()
        x = self.dropout(self.project(x.transpose(1, 2).flatten(2)))
        x, lens = self.conformer(x, (batch["feature_lens"] + 3) // 4)
        log_probs = self.output(x).log_softmax(-1).transpose(0, 1)
        tokens, token_lens = batch["tokens"], batch["token_lens"]
        return functional.ctc_loss(log_probs, tokens, lens, token_lens, reduction="sum") / token_lens.sum()


def our_model(size: str, tokenizer: CharTokenizer, **settings: Any) -> AsrModel:
    dim, num_layers, num_heads, hidden, kernel, channels = SIZES[size]
    encoder = partial(
        ConformerEncoder, dim=dim, num_layers=num_layers, num_heads=num_heads, feed_forward_dim=hidden,
        kernel_size=kernel, dropout=DROPOUT, subsampling=partial(Conv2dSubsampling, channels=channels), **settings,
    )  # fmt: skip
    return AsrModel(KaldiFbank(RATE, MELS), encoder, {"ctc": CtcHead}, tokenizer)


class Training:
    """Contestants of one size, and what they learn from."""

    def __init__(self, size: str, batch_size: int, steps: int, num_frames: int) -> None:
        self.tokenizer = CharTokenizer([chr(0x4E00 + index) for index in range(SYMBOLS)])
        self.collate = PadCollate(pad_values={"tokens": -100})
        self.batch_size, self.steps, self.num_frames = batch_size, steps, num_frames
        self.clips = Clips(steps * batch_size, num_frames)
        self.makes = {
            BY_HAND: partial(Peer, size, self.tokenizer.vocab_size),
            SAME: partial(our_model, size, self.tokenizer, positions="none", attention_dropout=DROPOUT),
            OURS: partial(our_model, size, self.tokenizer),
        }

    def model(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        return self.makes[name]()

    def padding(self) -> float:
        """Share of the frames that is padding."""
        lens = torch.tensor([len(features) for features in self.clips.features]).view(-1, self.batch_size)
        return 1 - float(lens.sum() / (lens.amax(1) * self.batch_size).sum())

    def difference(self) -> float:
        """Between the losses of the two same networks with the same weights, and between their gradients; without
        padding, which the peer's convolutions and normalisation see and ours do not, and without dropout."""
        theirs, ours = self.model(BY_HAND), self.model(SAME)
        with torch.no_grad():
            for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                own.copy_(other.view_as(own))
        clips = Clips(2, self.num_frames, self.num_frames)
        batch = self.collate([clips[0], clips[1]])
        for module in [*theirs.modules(), *ours.modules()]:
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        losses = theirs(batch), ours(batch).per_item.sum() / batch["token_lens"].sum()
        torch.stack(losses).sum().backward()
        gradients = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (theirs, ours)]
        return float((gradients[0] - gradients[1]).norm() / gradients[0].norm() + (losses[0] - losses[1]).abs())

    def loader(self) -> DataLoader:
        return DataLoader(self.clips, self.batch_size, collate_fn=self.collate)

    def by_hand(self, model: nn.Module, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        optimizer, writer, loss_sum = adamw(model.parameters()), SummaryWriter(str(folder)), torch.zeros(())
        schedule = decay(optimizer)
        model.train()
        for step, batch in enumerate(tqdm(self.loader(), total=self.steps, file=io.StringIO()), start=1):
            loss = model(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            loss_sum = loss_sum + loss.detach()
            if step % LOG_EVERY == 0:
                writer.add_scalar("train/loss", float(loss_sum) / LOG_EVERY, step)
                loss_sum = torch.zeros(())
        writer.close()

    def by_trainer(self, model: nn.Module, folder: Path) -> None:
        from trainer.callbacks import LearningRateMonitor, ProgressBar
        from trainer.trackers import TensorBoardTracker

        AsrTrainer(
            model, self.loader(), adamw, decay, callbacks=[LearningRateMonitor(), ProgressBar()],
            trackers=[TensorBoardTracker], exp_dir=folder, max_steps=self.steps, max_grad_norm=CLIP,
            log_every_n_steps=LOG_EVERY, decoder=CtcGreedy(), tokenizer=self.tokenizer,
        ).fit()  # fmt: skip

    def timed(self, name: str) -> tuple[float, float]:
        """Wall and CPU seconds of an update."""
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        model, clock = self.model(name), Clock(warmup=2)
        model.register_forward_pre_hook(lambda *_: clock.tick())
        with tempfile.TemporaryDirectory() as folder, silence():
            (self.by_hand if name == BY_HAND else self.by_trainer)(model, Path(folder))
        return clock.per_step()


def measure_training(size: str, options: argparse.Namespace) -> dict[str, Any]:
    training = Training(size, options.batch, options.steps, options.frames)
    difference = training.difference()
    assert difference < 1e-3, f"these are not the same network: {difference:.1e} apart"
    found = paired({name: partial(training.timed, name) for name in training.makes}, options.rounds)
    found["parameters"] = {name: sum(p.numel() for p in training.model(name).parameters()) for name in training.makes}
    return found | {"padding": round(training.padding(), 3), "apart": difference}


# ------------------------------------------------------------------------------------------------ what others measure


def cif_table(found: dict[str, Any]) -> str:
    """Times ours of each contestant, by size."""
    shares = found["last tokens lost"]["share"]
    sizes = [size for size in found if size != "last tokens lost"]
    ours = {size: found[size]["merge"]["ms"] for size in sizes}
    lines = ["| integrate-and-fire, times ours |" + "".join(f" {size} |" for size in sizes) + " last token lost |"]
    lines.append("|---" * (len(sizes) + 2) + "|")
    for name, share in shares.items():
        cells = "".join(f" {found[size][name]['over merge']:.1f} |" for size in sizes)
        lines.append(f"| {name} |{cells} {share:.0%} |")
    lines.append("merge, ms: " + ", ".join(f"{ms:.1f}" for ms in ours.values()))
    return "\n".join(lines)


def decoding_table(found: dict[str, Any]) -> str:
    """Milliseconds of an utterance, and times ours of the same kind, by batch."""
    rows = found["ms_per_utterance"]
    batches = list(rows["ours"])
    lines = ["| search |" + "".join(f" batch {batch}, ms | times ours |" for batch in batches)]
    lines.append("|---" * (1 + 2 * len(batches)) + "|")
    for name, row in rows.items():
        _, comma, kind = name.partition(",")
        ours = rows[f"ours{comma}{kind}"]
        cells = (f" {row[batch]:.2f} | {row[batch] / ours[batch]:.2f} |" for batch in batches)
        lines.append(f"| {name} |" + "".join(cells))
    return "\n".join(lines + [f"not installed, left out: {line}" for line in found["missing"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ("cif", "decoding", "training")
    parser.add_argument(
        "parts", nargs="*", choices=[*parts, []], default=[], metavar="PART", help="all of them by default"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of the Conformers")
    parser.add_argument("--steps", type=int, default=10, help="updates of a contestant in a round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=800, help="features of the longest clip; the shortest has half")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/asr.json"))
    options = parser.parse_args()
    wanted = options.parts or parts
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = {"torch": torch.__version__, "rounds": options.rounds}
    if "cif" in wanted:
        found["cif"] = cif.measure(options.rounds, "cpu")
        print(cif_table(found["cif"]))
    if "decoding" in wanted:
        settings = argparse.Namespace(frames=300, tokens=100, beam=10, batches=[1, 8, 32], rounds=5, out=options.out)
        found["decoding"] = ctc_decoding.measure(settings)
        print(decoding_table(found["decoding"]))
    for size in options.sizes if "training" in wanted else ():
        found[f"training, {size}"] = measure_training(size, options)
        print(table(f"update, {size}", found[f"training, {size}"]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
