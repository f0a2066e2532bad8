"""Names that obey nobody's terminal, table or page, and temporary files that nobody guesses or plants."""

import csv
import errno
import io
import json
import os
import re
import stat
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from ddiff_jax import atomic, image_files, safe_text
from ddiff_jax.cli.console import Console
from ddiff_jax.files import Caution

pytestmark = pytest.mark.once

NAMES = {
    "escape": "\x1b[2J\x1b[31mred",
    "window title": "\x1b]0;owned\x07",
    "new line": "a\nddiff: error: b",
    "carriage return": "secret\rharmless",
    "backspace": "ab\b\bcd",
    "bell and zero": "a\x07\x00b",
    "one byte escape": "\x9b31m",
    "right to left": "photo\u202egnp.exe",
    "isolate": "\u2066a\u2069",
    "no width": "a\u200bb\u200d\ufeff",
    "line separator": "a\u2028b\u2029c",
    "no text": os.fsdecode(b"caf\xe9\xff.png"),
    "comment": "<!--<script>",
    "end of script": "</script><script>alert(1)</script>",
    "attribute": "x\" onerror='alert(1)",
    "table": "a | b | c",
    "link": "[a](http://b)",
    "code": "`rm -rf`",
    "formula": "=1+cmd|' /C calc'!A0",
    "sum": "+1",
    "difference": "-1+1",
    "at": "@SUM(A1)",
    "tab": "\t=1",
}
HARMLESS = ["photo.png", "Grüße 写真 фото.png", "a b\u3000c", "日本語", "שלום", "x=1+2", "C:\\x", "100%", "e\u0301"]


def is_safe(text):
    return all(c.isprintable() or c == "\u3000" for c in text)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_terminal(capsys, name):
    text = NAMES[name]
    shown = safe_text.printable(text)
    assert is_safe(shown)
    assert shown.encode("utf-8")
    if is_safe(text):
        assert shown == text
    console = Console(quiet=False)
    for say in (console.say, console.fail, lambda t: console.note(t, t), lambda t: console.note(t, Caution(t))):
        say(text)
        lines = capsys.readouterr().err.split("\n")
        assert all(map(is_safe, lines))
    console.fail(text)
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("text", HARMLESS)
def test_names_of_all_languages_stay_as_they_are(text):
    assert safe_text.printable(text) == text
    assert safe_text.csv_cell(text) == text


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_the_command_line_are_one_harmless_line(ddiff, name):
    text = NAMES[name].replace("\0", "").replace("/", "")
    code, out, err = ddiff("convert", f"{text}.pt", "--output=out")
    assert code == 2
    assert out == ""
    assert err.startswith("ddiff: error:")
    assert len(err.splitlines()) == 1
    assert is_safe(err.rstrip("\n"))


@pytest.mark.parametrize("name", NAMES)
def test_names_in_tables_and_pages(name):
    text = NAMES[name]
    stream = io.StringIO()
    csv.writer(stream).writerow([safe_text.csv_cell(text), safe_text.csv_cell(-1.5), safe_text.csv_cell(None)])
    cell, number, nothing = next(csv.reader(io.StringIO(stream.getvalue())))
    assert not re.match(r"[=+\-@\t\r\n]", cell)
    assert is_safe(cell)
    assert (number, nothing) == ("-1.5", "")
    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, attrs))

        def handle_comment(self, data):
            found.append(("comment", data))

        def handle_data(self, data):
            found.append(data)

    Parser().feed(f'<p title="{safe_text.html_text(text)}">{safe_text.html_text(text)}</p>')
    shown = safe_text.printable(text)
    assert found == [("p", [("title", shown)]), shown]
    script = safe_text.script_json({text: [text]})
    assert not re.search("[<>&]", script)
    assert script.isascii()
    assert json.loads(script) == {text: [text]}
    cell = safe_text.markdown_text(text)
    assert is_safe(cell)
    assert not re.search(r"(?<!\\)[<>|`\[\]]", cell)


# Files in the making


def test_the_file_is_new_and_its_name_unpredictable(tmp_path):
    names = set()
    for _ in range(20):
        with atomic.replacing(tmp_path / "x") as file:
            (name,) = [entry.name for entry in tmp_path.iterdir() if entry.name != "x"]
            assert atomic.OURS.fullmatch(name)
            names.add(name)
            file.write(b"whole")
    assert len(names) == 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", ["link", "broken link", "file", "pipe", "folder"])
def test_nothing_planted_is_written_to(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(atomic, "temporary_name", lambda: ".known.tmp")
    target, planted = tmp_path / "target", tmp_path / ".known.tmp"
    if kind != "broken link":
        target.write_bytes(b"precious")
    {
        "link": lambda: planted.symlink_to(target),
        "broken link": lambda: planted.symlink_to(target),
        "file": lambda: planted.write_bytes(b"precious"),
        "pipe": lambda: os.mkfifo(planted),
        "folder": planted.mkdir,
    }[kind]()
    with pytest.raises(OSError) as error:
        image_files.write_text(tmp_path / "x.json", "new")
    assert error.value.errno == errno.EEXIST
    assert target.exists() == (kind != "broken link")
    assert kind == "broken link" or target.read_bytes() == b"precious"
    assert planted.is_symlink() or planted.exists()


@pytest.mark.parametrize("write", [image_files.write_text, image_files.write_array, image_files.write_png])
def test_a_link_in_the_place_of_a_result_is_replaced(tmp_path, write):
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "x").symlink_to(tmp_path / "target")
    write(tmp_path / "x", "new" if write is image_files.write_text else np.zeros((2, 2, 3), np.float32))
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert not (tmp_path / "x").is_symlink()


def test_names_as_long_as_they_may_be_are_written(tmp_path):
    name = "x" * 251 + ".png"
    image_files.write_png(tmp_path / name, np.zeros((2, 2, 3), np.float32))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    done, synced, replaced = [], os.fsync, os.replace

    def sync(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        if done[-1] == "file":
            assert os.fstat(descriptor).st_size == 5
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replaced(*names)))
    image_files.write_text(tmp_path / "x", "whole")
    assert done == ["file", "name", "folder"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, fails):
    image_files.write_text(tmp_path / "x", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        image_files.write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_an_error_names_the_file_that_people_know(tmp_path):
    name = "x" * 252 + ".png"  # the temporary name is short enough
    for path in (tmp_path / name, tmp_path / "missing" / "x.png"):
        with pytest.raises(OSError) as error:
            image_files.write_text(path, "new")
        assert str(error.value).endswith(f"{str(path)!r}")
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import runpy, sys
from pathlib import Path
from types import SimpleNamespace
atomic = SimpleNamespace(**runpy.run_path(sys.argv[2]))  # alone, without JAX
with atomic.replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_file_goes_as_soon_as_its_writer_is_killed_and_not_before(tmp_path):
    command = [sys.executable, "-c", HOLDER]
    writers = [
        subprocess.Popen([*command, tmp_path / name, atomic.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in "xy"
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
    atomic.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    writers[0].kill()
    writers[0].communicate()
    atomic.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    writers[1].communicate()
    assert writers[1].returncode == 0
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("y", b"half")]


def test_what_is_swept_before_it_is_locked_is_created_once_more(tmp_path, monkeypatch):
    lock, calls = atomic._lock, []

    def late(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            for entry in tmp_path.iterdir():
                entry.unlink()
        return lock(descriptor) if len(calls) != 2 else False  # the second is just being looked at

    monkeypatch.setattr(atomic, "_lock", late)
    image_files.write_text(tmp_path / "x", "whole")
    assert len(calls) == 3
    assert (tmp_path / "x").read_text() == "whole"


def test_where_nothing_can_be_locked_files_are_written_and_age_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "fcntl", None)
    fresh = tmp_path / f".ddiff-{atomic._machine()}-{'0' * 16}.tmp"
    fresh.write_bytes(b"x")
    image_files.write_text(tmp_path / "x", "whole")
    assert (tmp_path / "x").read_text() == "whole"
    assert fresh.exists()


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    here, token = atomic._machine(), "0123456789abcdef"
    elsewhere = f"{int(here, 16) ^ 1:08x}"
    now = time.time()
    files = {  # name: age, whether it goes
        f".ddiff-{here}-{token}.tmp": (0, True),  # nobody holds it
        f".ddiff-{elsewhere}-{token}.tmp": (700, False),
        f".ddiff-{elsewhere}-{token[::-1]}.tmp": (90_000, True),
        f".ddiff-{here}-{token}.tmp.png": (90_000, False),
        f"ddiff-{here}-{token}.tmp": (90_000, False),
        ".x.png.0123456789abcdef.tmp": (90_000, False),
        "x.png": (90_000, False),
    }
    for name, (age, _) in files.items():
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (now - age, now - age))
    folder = tmp_path / f".ddiff-{elsewhere}-{token[4:]}0000.tmp"
    folder.mkdir()
    os.utime(folder, (now - 90_000, now - 90_000))
    pipe = tmp_path / f".ddiff-{here}-{token[4:]}0000.tmp"
    os.mkfifo(pipe)  # opened, it would wait for a reader
    held = tmp_path / f".ddiff-{here}-{token[::-1]}.tmp"
    with held.open("w") as file:
        assert atomic._lock(file.fileno())
        atomic.sweep(tmp_path)
        assert held.exists()
    pipe.unlink(missing_ok=True)
    held.unlink()
    assert {entry.name for entry in tmp_path.iterdir() if entry != folder} == {
        n for n, (_, goes) in files.items() if not goes
    }
    assert folder.exists()
    atomic.sweep(tmp_path / "missing")


def test_writing_sweeps_a_folder_once(tmp_path):
    stale = tmp_path / f".ddiff-00000000-{'0' * 16}.tmp"
    for expected in (False, True):
        stale.write_bytes(b"x")
        os.utime(stale, (0, 0))
        image_files.write_text(tmp_path / "x", "")
        assert stale.exists() == expected


def test_a_link_that_looks_stale_is_removed_and_not_its_target(tmp_path):
    (tmp_path / "target").write_bytes(b"precious")
    link = tmp_path / f".ddiff-00000000-{'0' * 16}.tmp"
    link.symlink_to(tmp_path / "target")
    os.utime(link, (0, 0), follow_symlinks=False)
    atomic.sweep(tmp_path)
    assert not link.is_symlink()
    assert (tmp_path / "target").read_bytes() == b"precious"
