"""Downloads, from a server on this machine that breaks off and starts over as real ones do."""

import hashlib
import http.server
import tarfile
import threading
import zipfile
from contextlib import contextmanager

import pytest

from components.data.recipes import download
from components.data.recipes.download import RemoteFile, download_archive, download_archives, fetch_file, unpack
from utils.errors import UserError

CONTENT = bytes(range(256)) * 2_000


@contextmanager
def serve(content, break_after=None, ranges=True):
    """`content` under any name; the first `len(break_after)` answers end early, after so many bytes."""
    asked, breaks = [], list(break_after or [])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Range"))
            start = int(asked[-1][6:-1]) if asked[-1] and ranges else 0
            if self.path.startswith("/missing"):
                self.send_error(404)
                return
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + breaks.pop(0)] if breaks else content[start:])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_download_that_breaks_off_goes_on_from_there(tmp_path):
    md5 = hashlib.md5(CONTENT).hexdigest()
    with serve(CONTENT, break_after=[1_000, 2_000]) as (url, asked):
        path = fetch_file(RemoteFile(f"{url}/a.bin?download=1", md5), tmp_path)
        assert path == tmp_path / "a.bin"
        assert path.read_bytes() == CONTENT
        assert asked == [None, "bytes=1000-", "bytes=3000-"]
        fetch_file(RemoteFile(f"{url}/a.bin"), tmp_path)
        assert len(asked) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_the_next_call_goes_on_too(tmp_path):
    (tmp_path / ".a.bin.partial").write_bytes(CONTENT[:5_000])
    with serve(CONTENT) as (url, asked):
        assert fetch_file(RemoteFile(f"{url}/a.bin"), tmp_path).read_bytes() == CONTENT
    assert asked == ["bytes=5000-"]


def test_what_was_whole_already_is_only_renamed(tmp_path):
    (tmp_path / ".a.bin.partial").write_bytes(CONTENT)
    with serve(CONTENT) as (url, _):
        assert fetch_file(RemoteFile(f"{url}/a.bin"), tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(tmp_path):
    with serve(CONTENT, break_after=[1_000], ranges=False) as (url, asked):
        assert fetch_file(RemoteFile(f"{url}/a.bin"), tmp_path).read_bytes() == CONTENT
    assert len(asked) == 2


def test_another_checksum_is_refused_and_nothing_kept(tmp_path):
    with serve(CONTENT) as (url, _), pytest.raises(UserError, match=r"a.bin arrived damaged \(MD5 .*run again"):
        fetch_file(RemoteFile(f"{url}/a.bin", "0" * 32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_url_that_is_gone_names_the_remedy(tmp_path):
    with serve(CONTENT) as (url, asked):
        with pytest.raises(UserError, match=r"cannot download .*404.*give data_root=DIR"):
            download_archive(f"{url}/missing.zip", tmp_path, "corpus")
        assert len(asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_several_archives_become_one_folder_once(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        file.writestr("audio/a.txt", "sound")
    with serve((tmp_path / "c.zip").read_bytes()) as (url, asked):
        files = [RemoteFile(f"{url}/{name}") for name in ("one.zip", "table.csv")]
        folder = download_archives(files, tmp_path / "downloads", "corpus")
        assert download_archives(files, tmp_path / "downloads", "corpus") == folder
        assert len(asked) == 2
    assert (folder / "audio" / "a.txt").read_text() == "sound"
    assert (folder / "table.csv").is_file()
    assert [entry.name for entry in (tmp_path / "downloads").iterdir()] == ["corpus"]


def test_a_folder_that_holds_one_folder_is_stepped_into(tmp_path):
    (tmp_path / "ESC-50-33c8").mkdir()
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "ESC-50-33c8", "ESC-50-33c8")
    with serve((tmp_path / "c.tar.gz").read_bytes()) as (url, _):
        assert download_archive(f"{url}/c.tar.gz", tmp_path, "esc50") == tmp_path / "esc50" / "ESC-50-33c8"


@pytest.mark.parametrize("has_filters", [True, False])
def test_a_tar_writes_nothing_outside_of_its_folder(tmp_path, monkeypatch, has_filters):
    """With the filters of tarfile, and without them as on Python 3.11.2."""
    if not has_filters:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    elif not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python has no filters")
    (tmp_path / "clip.wav").write_text("sound")
    for name, arcname in (("good.tar", "corpus/clip.wav"), ("bad.tar", "../../clip.wav")):
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.add(tmp_path / "clip.wav", arcname)
    (tmp_path / "deep" / "in").mkdir(parents=True)
    unpack(tmp_path / "good.tar", tmp_path / "deep" / "in")
    assert (tmp_path / "deep/in/corpus/clip.wav").read_text() == "sound"
    (tmp_path / "clip.wav").unlink()
    with pytest.raises(UserError, match=r"bad.tar arrived damaged"):
        unpack(tmp_path / "bad.tar", tmp_path / "deep" / "in")
    assert not (tmp_path / "clip.wav").exists()


@pytest.mark.parametrize("name", ["c.tar.gz", "c.zip"])
def test_a_damaged_archive_is_removed_so_that_it_comes_again(tmp_path, name):
    with serve(b"half") as (url, asked):
        for _ in range(2):
            with pytest.raises(UserError, match=rf"{name} arrived damaged"):
                download_archive(f"{url}/{name}", tmp_path, "corpus")
        assert asked == [None, None]


def test_an_archive_that_needs_7_zip_says_so(tmp_path, monkeypatch):
    for name in ("a.7z", "b.zip", "b.z01"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    for name in ("a.7z", "b.zip"):
        with pytest.raises(UserError, match="unpacked by 7-Zip, which is not installed"):
            unpack(tmp_path / name, tmp_path / "out")
    unpack(tmp_path / "b.z01", tmp_path / "out")  # belongs to its .zip
    assert not (tmp_path / "out").exists()


def test_7_zip_is_called_where_it_is_there(tmp_path, monkeypatch):
    program = tmp_path / "7z"
    program.write_text('#!/bin/sh\n[ "$1" = x ] || exit 2\ncp "$4" "${3#-o}/unpacked"\n')
    program.chmod(0o755)
    (tmp_path / "a.7z").write_bytes(b"packed")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(download.shutil, "which", lambda name: str(program) if name == "7z" else None)
    unpack(tmp_path / "a.7z", tmp_path / "out")
    assert (tmp_path / "out" / "unpacked").read_bytes() == b"packed"
    program.write_text("#!/bin/sh\necho 'ERROR: Data Error' >&2\nexit 2\n")
    with pytest.raises(UserError, match=r"7-Zip cannot unpack .*a.7z: ERROR: Data Error"):
        unpack(tmp_path / "a.7z", tmp_path / "out")
