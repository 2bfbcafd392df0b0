"""Files and archives from the net: whole or not there, gone on with where they broke off, checked."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from components.data.recipes.common import require_folder
from utils.errors import UserError

_TIMEOUT_SECONDS = 30
_MAX_ATTEMPTS = 5
_BLOCK = 1 << 20
_SEVEN_ZIP = ("7z", "7zz", "7za")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch: its `url`, and the `md5` that its publisher gives, where there is one."""

    url: str
    md5: str | None = None

    @property
    def name(self) -> str:
        """The file's name: the last part of the URL without its query."""
        return self.url.partition("?")[0].rpartition("/")[2]


def fetch_file(file: RemoteFile, into: Path) -> Path:
    """Download `file` into the folder `into`, unless it is there; return where it lies.

    What broke off lies beside it as `.<name>.partial`, and the next call goes on from there where the server can. Two
    processes that want the same file wait for each other.

    Raises:
        UserError: there is no way to the URL (the remedy: a local copy), or what came has another checksum.
    """
    into.mkdir(parents=True, exist_ok=True)
    path, partial = into / file.name, into / f".{file.name}.partial"
    if path.is_file():
        return path
    with _open_alone(partial) as out:
        if path.is_file():
            partial.unlink(missing_ok=True)
            return path
        try:
            _download(file.url, out)
        finally:
            if out.seek(0, 2) == 0:
                partial.unlink()
        if file.md5 and (found := _md5(partial)) != file.md5:
            partial.unlink()
            raise UserError(f"{file.url} arrived damaged (MD5 {found}, not {file.md5}): run again")
        partial.replace(path)
    return path


@contextmanager
def _open_alone(path: Path) -> Iterator[BinaryIO]:
    """`path` open for appending, locked; where another process took the file away meanwhile, a new one."""
    while True:
        with path.open("ab") as file:
            with suppress(OSError):  # some network file systems know no locks
                fcntl.lockf(file, fcntl.LOCK_EX)
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue
            yield file
            file.flush()
            return


def _download(url: str, out: BinaryIO) -> None:
    """Append what is missing of `url`; a connection that breaks after giving something is taken up again."""
    reason: object = "the connection broke off"
    for _ in range(_MAX_ATTEMPTS):
        before = out.seek(0, 2)
        try:
            if _append(url, out):
                out.flush()
                return
        except urllib.error.HTTPError as error:
            reason = error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
        if out.seek(0, 2) <= before:
            break
    raise UserError(f"cannot download {url} ({reason}): give data_root=DIR, a folder with your own copy")


def _append(url: str, out: BinaryIO) -> bool:
    """One request for the rest of the file; whether it is complete now."""
    start = out.seek(0, 2)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        # 416: nothing is left to send.
        if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{start}"):
            return True
        raise
    with response:
        if start and response.status != 206:
            start = 0
            out.truncate(0)
        length = response.headers.get("Content-Length")
        shutil.copyfileobj(response, out, length=_BLOCK)
    return length is None or out.seek(0, 2) == start + int(length)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def download_archive(url: str, into: Path, name: str, md5: str | None = None) -> Path:
    """Fetch an archive and unpack it once as `into/name`; return the folder it holds.

    Raises:
        UserError: as `fetch_file` and `unpack`.
    """
    return download_archives([RemoteFile(url, md5)], into, name)


def download_archives(files: Sequence[RemoteFile], into: Path, name: str) -> Path:
    """Fetch several files and unpack those that are archives into one folder, `into/name`, once; return it.

    Of an archive in parts (`a.z01`, `a.z02`, `a.zip`) only the `.zip` is opened. A folder that holds nothing but one
    folder is stepped into. The archives are removed when all are unpacked.

    Raises:
        UserError: as `fetch_file` and `unpack`.
    """
    done = into / name
    if not done.is_dir():
        archives = into / f"{name}.archives"
        try:
            fetched = [fetch_file(file, archives) for file in files]
        finally:
            with suppress(OSError):  # where nothing came
                archives.rmdir()
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=into))
        try:
            for path in fetched:
                unpack(path, temporary)
            temporary.chmod(0o755)
            temporary.rename(done)
        except OSError as error:
            if not done.is_dir():
                raise UserError(f"cannot unpack into {done}: {error.strerror}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(archives, ignore_errors=True)
    inside = list(done.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else done


def given_or_downloaded(
    data_root: str | Path | None,
    download_dir: str | Path | None,
    files: Sequence[RemoteFile],
    name: str,
    what_to_give: str,
) -> Path:
    """The folder of a corpus: `data_root`, or else `files` as `download_archives` leaves them in `download_dir`.

    Raises:
        UserError: neither is given (`what_to_give` says what could be); there is no such folder; the download fails.
    """
    if data_root is not None:
        return require_folder(data_root)
    if download_dir is None:
        raise UserError(what_to_give)
    return download_archives(files, Path(download_dir), name)


def unpack(archive: Path, into: Path) -> None:
    """Unpack a tar, zip (also one in parts) or 7z archive; a plain file is copied, a part is left to its `.zip`.

    Raises:
        UserError: it is damaged, or a program that it needs is missing.
    """
    name = archive.name.lower()
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        _unpack_tar(archive, into)
    elif name.endswith(".7z") or (name.endswith(".zip") and archive.with_suffix(".z01").exists()):
        _unpack_with_7z(archive, into)
    elif name.endswith(".zip"):
        _unpack_zip(archive, into)
    elif not _is_part(archive):
        shutil.copyfile(archive, into / archive.name)


def _is_part(path: Path) -> bool:
    return path.suffix[:2].lower() == ".z" and path.suffix[2:].isdigit()


def _unpack_tar(archive: Path, into: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(into, filter="data")
            else:  # Python before 3.11.4
                tar.extractall(into, _members_inside(tar, into))
    except (tarfile.TarError, EOFError) as error:
        archive.unlink()
        raise UserError(f"{archive.name} arrived damaged ({error}): run again") from None


def _members_inside(tar: tarfile.TarFile, into: Path) -> Iterator[tarfile.TarInfo]:
    """Plain files and folders; links and devices are left out. `TarError` where one would lie outside of `into`."""
    root = into.resolve()
    for member in tar:
        if not (root / member.name).resolve().is_relative_to(root):
            raise tarfile.ExtractError(f"{member.name!r} would be outside of the folder")
        if member.isfile() or member.isdir():
            yield member


def _unpack_zip(archive: Path, into: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(into)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise UserError(f"{archive.name} arrived damaged ({error}): run again") from None


def _unpack_with_7z(archive: Path, into: Path) -> None:
    program = next((found for name in _SEVEN_ZIP if (found := shutil.which(name))), None)
    if program is None:
        raise UserError(
            f"{archive} is unpacked by 7-Zip, which is not installed: install it (apt install 7zip), or unpack the "
            "archives yourself and give data_root=DIR"
        )
    done = subprocess.run([program, "x", "-y", f"-o{into}", str(archive)], capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = ((done.stderr or done.stdout).strip() or "no message").splitlines()[-1]
        raise UserError(f"7-Zip cannot unpack {archive}: {last_line}")
