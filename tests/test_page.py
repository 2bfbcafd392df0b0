"""The pages in a real browser: type a wish, press, hear and see what was made; nothing is asked of the internet."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.components.clips import write_clip

ROOT = Path(__file__).parents[1]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytest.importorskip("gradio")
pytest.importorskip("espeakng_loader")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("page")


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OSTINATO_CACHE": str(folder / "cache"),
    }


def train(folder: Path, *arguments: str) -> None:
    command = ("accelerate", "launch", "--cpu", str(ROOT / "train.py"), *arguments)
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def visit(workplace):
    """Serve a run's page and open it; gives the page, and the addresses that it asked for elsewhere."""
    servers = []

    def open_page(exp_dir: str, browser):
        command = (sys.executable, str(ROOT / "inference.py"), f"exp_dir={exp_dir}", "ui=true")
        server = subprocess.Popen(command, cwd=workplace, env=environment(workplace), text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        servers.append(server)
        said = []
        for line in server.stdout:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError("".join(said))
        page, elsewhere = browser.new_page(), []
        page.on(
            "request", lambda r: None if r.url.startswith((found[0], "data:", "blob:")) else elsewhere.append(r.url)
        )
        page.goto(found[0], wait_until="load")
        return page, elsewhere

    yield open_page
    for server in servers:
        server.terminate()
        server.wait(30)


@pytest.fixture
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_a_wish_becomes_a_sound_and_a_picture(workplace, visit, browser):
    train(workplace, "experiment=audio_generation/debug", "exp_dir=makes")
    page, elsewhere = visit("makes", browser)
    page.fill("#wish textarea", "say one like anna")
    page.click("#make")
    page.wait_for_selector("#spectrogram img", timeout=120_000)
    assert "0.80 s of sound" in page.inner_text("#told")
    address = page.evaluate("document.querySelector('#sound audio')?.src || document.querySelector('#sound a')?.href")
    sound = page.request.get(address)
    assert sound.ok
    assert sound.body()[:4] == b"RIFF"
    page.fill("#wish textarea", " ")
    page.click("#make")
    page.wait_for_selector("text=there is nothing to wish for", timeout=60_000)
    assert elsewhere == []


def test_a_recording_is_listened_to(workplace, visit, browser):
    train(workplace, "experiment=tagging/debug", "exp_dir=hears")
    write_clip(workplace / "clip.wav", 0.5, 16_000, seed=0)
    page, elsewhere = visit("hears", browser)
    page.click("#listen")
    page.wait_for_selector("text=there is no recording yet", timeout=60_000)
    page.set_input_files("#recording input[type=file]", str(workplace / "clip.wav"))
    page.wait_for_selector("#recording audio, #recording .waveform-container, #recording a[download]", timeout=60_000)
    page.click("#listen")
    page.wait_for_function(
        "/zero|one|two|three/.test(document.querySelector('#heard-word').innerText)", timeout=120_000
    )
    assert elsewhere == []


def test_a_recording_is_written_down(workplace, visit, browser):
    train(workplace, "experiment=asr/debug", "exp_dir=writes")
    write_clip(workplace / "said.wav", 1.0, 8_000, seed=0)
    page, elsewhere = visit("writes", browser)
    page.set_input_files("#recording input[type=file]", str(workplace / "said.wav"))
    page.wait_for_selector("#recording audio, #recording .waveform-container, #recording a[download]", timeout=60_000)
    with page.expect_response(lambda r: "/queue/data" in r.url or "/listen" in r.url, timeout=120_000):
        page.click("#listen")
    page.wait_for_selector("#words table", timeout=60_000)
    page.wait_for_function("!document.querySelector('#listen').disabled", timeout=60_000)
    assert page.locator("text=Error").count() == 0
    assert elsewhere == []
