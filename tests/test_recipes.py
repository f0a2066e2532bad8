"""What docs/how_to/many_machines.md tells people to type: read as the command line reads it, or run."""

import csv
import importlib.util
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from test_readme import ROOT, SAMPLE, blocks, shell_commands

from ddiff_jax import cli, evaluation
from ddiff_jax.cli import restore
from ddiff_jax.restoration import share
from ddiff_jax.restoration.share import Share

pytestmark = pytest.mark.once

PAGE = ROOT / "docs" / "how_to" / "many_machines.md"
SCRIPT = ROOT / "docs" / "examples" / "restore.slurm"
RECIPE = ROOT / "docs" / "examples" / "ray_restore.py"
COMMANDS = list(shell_commands(PAGE))
OURS = [words[words.index("ddiff") :] for words in COMMANDS if "ddiff" in words]
RAY = [words for words in COMMANDS if RECIPE.name in words[1]]

# Write down what they are called with; `sbatch` runs the first and the last task of an array.
STUBS = {
    "ddiff": 'printf "%q " "$@" >> "$CALLS"; echo >> "$CALLS"',
    "sbatch": """
if [[ $1 == --array=1-* ]]; then
    export SLURM_ARRAY_TASK_COUNT=${1#--array=1-}
    for SLURM_ARRAY_TASK_ID in 1 "$SLURM_ARRAY_TASK_COUNT"; do
        export SLURM_ARRAY_TASK_ID
        bash "${@:2}"
    done
else
    bash "$@"
fi""",
}


def calls(command, folder, **variables):
    """Run a shell command with stubs on the path; give the arguments of every call of `ddiff`."""
    for name, text in STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    written = folder / "calls"
    written.write_text("")
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    env |= {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(written), **variables}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in written.read_text().splitlines()]


@pytest.fixture
def understood(monkeypatch, tmp_path):
    """Let the command line read a command, and give what it would have done: its inputs, folder and share."""
    found = []

    class Noted(restore._Command):
        def run(self):
            found.append((list(self.options.inputs), self.options.output, self.share))
            return 0

    class Done(Exception):
        pass

    def noted(plan, output, say, share):
        found.append((list(plan.images), output, share))
        raise Done

    monkeypatch.setattr(restore, "_Command", Noted)
    monkeypatch.setattr(evaluation, "evaluate", noted)
    monkeypatch.setattr(share, "of_cluster", lambda: Share(3, 8))

    def understand(words):
        found.clear()
        try:
            assert cli.main([*words, "--no-cache"]) == 0
        except Done:
            pass
        ((inputs, output, taken),) = found
        return inputs, str(output), taken

    return understand


def test_the_page_tells_of_every_way():
    assert {words[0] for words in OURS} == {"ddiff"} and len(OURS) >= 9
    assert {words[1] for words in OURS} == {"restore", "evaluate"}
    assert {words[0] for words in COMMANDS} == {"ddiff", "sbatch", "srun", "mpirun", "pip", "python"}
    assert any("--distributed" in words for words in OURS)


@pytest.mark.parametrize("words", OURS, ids=shlex.join)
def test_every_command_of_the_page_is_understood(words, understood):
    inputs, output, taken = understood(words[1:])
    assert inputs == ["archive"]
    assert output == words[words.index("--output") + 1]
    if "--shard" in words:
        assert str(taken) == words[words.index("--shard") + 1]
    else:
        assert taken == (Share(3, 8) if "--distributed" in words else Share())


def test_the_commands_by_hand_take_everything_once():
    typed = [words for words in OURS if words[1] == "restore" and "--shard" in words]
    shares = [share.parse(words[-1]) for words in typed]
    assert sorted(image for one in shares for image in one.of(range(10))) == list(range(10))


def test_the_slurm_script_is_called_as_the_page_says_and_calls_what_it_says(tmp_path, understood):
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    lines = [words for words in COMMANDS if words[0] == "sbatch"]
    found = [call for words in lines for call in calls(words, tmp_path)]
    assert [str(understood(call)[2]) for call in found] == ["1/100", "100/100", "1/1"]
    assert [call[:-2] if "--shard" in call else call for call in found] == [found[-1]] * 3
    assert found[-1] == ["restore", *lines[-1][2:]]
    # Its own comments say the same.
    for line in re.findall(r"^#   (sbatch .*)$", SCRIPT.read_text(), re.MULTILINE):
        assert calls(shlex.split(line, comments=True), tmp_path)[0][:4] == ["restore", "archive", "--output", "out"]


def test_the_slurm_script_hands_on_names_as_they_are(tmp_path):
    given = ["my photos/*.png", "--output", "it's out"]
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9"}
    assert calls(["bash", SCRIPT, *given], tmp_path, **array) == [["restore", *given, "--shard", "7/9"]]
    assert calls(["bash", SCRIPT, *given], tmp_path) == [["restore", *given]]


def test_the_job_of_kubernetes_takes_every_share_once(tmp_path, understood):
    (job,) = (yaml.safe_load(block.text) for block in blocks(PAGE) if block.language == "yaml")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    count = job["spec"]["completions"]
    assert job["spec"]["completionMode"] == "Indexed"
    for index in (0, count - 1):
        (call,) = calls(container["command"], tmp_path, JOB_COMPLETION_INDEX=str(index))
        assert understood(call) == (["/data/archive"], "/data/out", Share(index + 1, count))


def test_what_the_page_points_at_exists():
    text = PAGE.read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", text)
    assert {SCRIPT, RECIPE} == {(PAGE.parent / link).resolve() for link in links}
    assert {block.language for block in blocks(PAGE)} == {"bash", "yaml"}, "a block in a language that no test reads"
    for flag in re.findall(r"`(--[\w-]+)", text):
        assert flag.startswith("--array") or flag in ("--seed", "--shard", "--distributed", "--save-every")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install --group recipes")
def test_ray_writes_the_pictures_of_ddiff_restore(tmp_path):
    (tmp_path / "archive").mkdir()
    with Image.open(SAMPLE) as picture:
        for i in range(8):
            picture.rotate(45 * i).save(tmp_path / "archive" / f"{i}.png")
    (tmp_path / "archive" / "=bad.png").write_text("no picture")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    how = ["--steps", "2", "--batch-size", "2"]

    def run(*words):
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)

    (words,) = RAY
    ray = [sys.executable, str(ROOT / words[1]), *words[2:], *how, "--actors", "2", "--gpus", "0"]
    done = run(*ray)
    assert "restored 8 of 9; see out/restored.csv" in done.stdout, done.stdout + done.stderr
    done = run(sys.executable, "-m", "ddiff_jax", "restore", "archive", *how, "--output", "whole", "--no-cache")
    assert done.returncode == 1 and "bad.png" in done.stderr, done.stderr
    pictures = sorted((tmp_path / "whole").glob("*_restored.png"))
    assert len(pictures) == 8
    for path in pictures:
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()

    with open(tmp_path / "out" / "restored.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["stem"] for row in table if row["error"]] == ["'=bad"]
    assert len({row["made_by"] for row in table}) == 2, "one actor did it all"
    assert np.all([0 < float(row["misfit"]) < 0.01 for row in table if not row["error"]])

    # What is missing is made again, and nothing else.
    kept = tmp_path / "out" / pictures[0].name
    stamp = kept.stat().st_mtime_ns
    (tmp_path / "out" / pictures[1].name).unlink()
    done = run(*ray)
    assert "restored 1 of 2" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "out" / pictures[1].name).read_bytes() == pictures[1].read_bytes()
    assert kept.stat().st_mtime_ns == stamp
