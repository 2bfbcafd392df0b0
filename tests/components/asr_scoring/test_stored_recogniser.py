"""A recogniser's run as what writes down what is said in generated clips."""

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file

from components.metrics import StoredRecogniser
from utils.errors import UserError
from utils.trust import instantiate_untrusted

TOKENIZER = {"_target_": "components.text.WordTokenizer", "symbols": ["one", "two", "three"]}
MODEL = {
    "_target_": "components.models.asr.AsrModel",
    "frontend": {
        "_target_": "components.features.LogMel",
        "sample_rate": 8000,
        "n_fft": 256,
        "hop_length": 80,
        "n_mels": 20,
    },
    "encoder": {"_target_": "components.models.asr.encoders.RecurrentEncoder", "_partial_": True, "dim": 16},
    "heads": {"ctc": {"_target_": "components.models.asr.heads.CtcHead", "_partial_": True}},
    "tokenizer": TOKENIZER,
}
PREDICTOR = {
    "_target_": "tasks.asr.AsrPredictor",
    "decoder": {"_target_": "components.decoding.CtcGreedy"},
    "tokenizer": TOKENIZER,
}


@pytest.fixture
def run(tmp_path):
    """As training leaves it; its weights are drawn so that it hears something."""
    torch.manual_seed(0)
    model = instantiate_untrusted(OmegaConf.create(MODEL))
    model.heads["ctc"].output.weight.data.mul_(20)
    step = tmp_path / "checkpoints" / "step_00000003"
    step.mkdir(parents=True)
    save_file(model.state_dict(), step / "model.safetensors")
    (tmp_path / "checkpoints" / "last").symlink_to(step.name)
    config = {"sample_rate": 8000, "tokenizer": TOKENIZER, "model": MODEL, "predictor": PREDICTOR}
    (tmp_path / "config.yaml").write_text(yaml.dump(config, Dumper=Plain))
    return tmp_path, model.eval()


class Plain(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


def test_it_hears_what_its_run_would(run):
    folder, model = run
    waveform = torch.randn(3, 1, 8000)
    lens = torch.tensor([8000, 5000, 0])
    texts = StoredRecogniser(str(folder), batch_size=1).transcribe(waveform, lens, 8000)
    predictor = instantiate_untrusted(OmegaConf.create(PREDICTOR))
    with torch.inference_mode():
        alone = predictor(model, {"id": ["a"], "waveform": waveform[:1], "audio_lens": lens[:1]})[0]["hypothesis"]
    assert texts[0] == alone
    assert set(alone.split()) <= {"one", "two", "three", "\ufffd"}
    assert alone
    assert texts[2] == ""
    assert texts == StoredRecogniser(str(folder)).transcribe(waveform, lens, 8000)


def test_another_rate_is_resampled(run):
    folder, _ = run
    waveform = torch.randn(1, 1, 8000)
    slow = torch.nn.functional.interpolate(waveform, scale_factor=2, mode="linear")
    (text,) = StoredRecogniser(str(folder)).transcribe(slow, torch.tensor([16_000]), 16_000)
    assert isinstance(text, str)
    assert len(text.split()) > 0


def test_a_run_of_another_task_is_one_sentence(tmp_path):
    (tmp_path / "config.yaml").write_text("sample_rate: 8000\n")
    with pytest.raises(UserError, match="is no run of a recogniser, its config has no tokenizer"):
        StoredRecogniser(str(tmp_path)).transcribe(torch.zeros(1, 1, 800), torch.tensor([800]), 8000)
