"""What recipes share: when to run, folders that are whole or not there, archives from the net."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import soundfile

from components.data.manifest import Record, write_manifest
from utils.errors import UserError

_MARK = "prepared.json"
_DOWNLOAD_TIMEOUT_SECONDS = 30


def is_prepared(output_dir: Path, settings: dict[str, Any]) -> bool:
    """Whether `output_dir` was finished with the same settings."""
    try:
        return json.loads((output_dir / _MARK).read_text(encoding="utf-8")) == _plain(settings)
    except (OSError, json.JSONDecodeError):
        return False


@contextmanager
def whole_folder(output_dir: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder that becomes `output_dir`, replacing an older one, if the block ends well; else nothing."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", dir=output_dir.parent))
    try:
        yield temporary
        (temporary / _MARK).write_text(json.dumps(_plain(settings), indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        if output_dir.exists() and not is_prepared(output_dir, settings):
            shutil.rmtree(output_dir)
        temporary.rename(output_dir)
    except OSError as error:
        # Two runs that began together: the first one's folder is as good.
        if not is_prepared(output_dir, settings):
            raise UserError(f"cannot write {output_dir}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _plain(settings: dict[str, Any]) -> Any:
    return json.loads(json.dumps(settings, sort_keys=True, default=str))


def write_splits(folder: Path, splits: dict[str, list[Record]]) -> None:
    """One manifest per split, `<split>.jsonl`; each must hold a clip."""
    for split, records in splits.items():
        if not records:
            raise UserError(f"the {split} split would be empty: data_root holds none of its clips")
        write_manifest(folder / f"{split}.jsonl", records)


def audio_record(path: Path, identifier: str, **fields: Any) -> Record:
    """A manifest record of a file that stays where it is, by absolute path."""
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise UserError(f"cannot read {path}: {error.error_string}") from None
    audio = {"audio_path": str(path.absolute()), "duration": round(info.duration, 6), "sample_rate": info.samplerate}
    return {"id": identifier, **audio, **fields}


def download_archive(url: str, into: Path, name: str) -> Path:
    """Fetch a .tar.gz and unpack it once as `into/name`; return the folder it holds.

    Raises:
        UserError: there is no way to reach `url` (the remedy: a local copy), or what comes is no archive.
    """
    done = into / name
    if done.is_dir():
        return _only_folder(done)
    into.mkdir(parents=True, exist_ok=True)
    archive = into / f".{done.name}.{os.getpid()}.tar.gz"
    temporary = Path(tempfile.mkdtemp(prefix=f".{done.name}.", dir=into))
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_SECONDS) as response, archive.open("wb") as file:
            shutil.copyfileobj(response, file, length=1 << 20)
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        temporary.rename(done)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot download {url} ({reason}): give data_root=DIR, a folder with your own copy") from None
    except tarfile.TarError as error:
        raise UserError(f"{url} arrived damaged ({error}): run again") from None
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
    return _only_folder(done)


def _only_folder(path: Path) -> Path:
    inside = [entry for entry in path.iterdir() if entry.is_dir()]
    return inside[0] if len(inside) == 1 else path


def require_folder(data_root: str | Path) -> Path:
    """`data_root` as a path.

    Raises:
        UserError: there is no such folder.
    """
    path = Path(data_root).expanduser()
    if not path.is_dir():
        raise UserError(f"data_root={data_root} is not a folder")
    return path
