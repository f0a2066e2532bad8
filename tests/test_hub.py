"""Priors of the Hugging Face Hub: only what is needed is fetched, and it is converted once."""

import fnmatch
import json
import os
import shutil
import sys
import types
from pathlib import Path

import pytest
from diffusers_folders import SETTINGS, WEIGHTS, write_json, write_parts, write_pipeline, write_weights

import convert_weights
import ddiff_jax as dd
from convert_weights import hub
from ddiff_jax.checkpoint import find_weights, read_card

pytestmark = pytest.mark.once

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(types.ModuleType):
    """Stands for huggingface_hub, with one model in a folder."""

    def __init__(self, folder):
        super().__init__("huggingface_hub")
        self.model, self.cache = folder / "model", folder / "hub" / "snapshots" / COMMIT
        self.asked, self.offline = [], False

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns):
        self.asked.append((repo_id, revision))
        if repo_id != "me/tiny" or revision not in (None, "main", COMMIT) or (self.offline and not self.cache.exists()):
            raise RuntimeError(f"404\n for {repo_id}")
        for path in self.model.rglob("*"):
            name = path.relative_to(self.model).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                # As there: links to what is kept elsewhere.
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                if not (self.cache / name).exists() and not self.offline:
                    os.symlink(path, self.cache / name)
        return str(self.cache)

    @property
    def fetched(self):
        return sorted(p.relative_to(self.cache).as_posix() for p in self.cache.rglob("*") if p.is_file())


@pytest.fixture
def remote(tmp_path, monkeypatch):
    found = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_pipeline(found.model)
    write_json(found.model / "README.md", "---\nlicense: mit\n---\n")
    return found


@pytest.fixture
def unprobed(monkeypatch):
    """Convert without asking how well random weights denoise."""
    convert = convert_weights.convert
    monkeypatch.setattr(convert_weights, "convert", lambda *args, **flags: convert(*args, probe=False, **flags))


def test_a_prior_is_fetched_and_converted_once(remote, unprobed):
    for name in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "movie.mp4"):
        (remote.model / name).write_bytes(b"large")
    prior = dd.load_prior("hf:me/tiny")
    assert prior.image_shape == (8, 8, 3)
    settings = ["README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
    assert remote.fetched == sorted([*settings, f"unet/{WEIGHTS}"])
    card = read_card("hf:me/tiny")
    assert (card.source["repository"], card.source["revision"]) == ("hf:me/tiny", COMMIT)
    assert card.licence == "mit"
    count = len(remote.asked)
    assert {revision for _, revision in remote.asked} == {None, COMMIT}
    folder = find_weights("hf:me/tiny")
    assert folder.parts[-4:] == (str(card.format), "me", "tiny", COMMIT)
    assert folder.is_relative_to(os.environ["XDG_CACHE_HOME"])
    assert find_weights(f"hf:me/tiny@{COMMIT}") == folder and len(remote.asked) == count  # asks nobody
    shutil.rmtree(remote.cache.parent)
    assert find_weights("hf:me/tiny@main") == folder
    remote.offline = True
    hub._converted.cache_clear()
    assert find_weights("hf:me/tiny") == folder


def test_parts_and_averaged_weights(remote, tmp_path):
    inner = remote.model / "unet_ema"
    write_json(inner / "config.json", SETTINGS)
    index = write_parts(inner)
    (inner / "other.safetensors").write_bytes(b"large")
    snapshot = hub.fetch("hf:me/tiny")
    parts = [f"unet_ema/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    fetched = [name for name in remote.fetched if "safetensors" in name]
    assert fetched == sorted([*parts, f"unet_ema/{index.name}"])
    assert snapshot.folder == remote.cache
    card = convert_weights.convert("hf:me/tiny", tmp_path / "out", probe=False, licence="mine")
    assert card.licence == "mine" and card.source["repository"] == "hf:me/tiny"
    shutil.rmtree(remote.cache)
    places = json.loads(index.read_text())["weight_map"]
    write_json(index, {"weight_map": {**places, "conv_in.bias": "*"}})
    hub.fetch("hf:me/tiny")  # takes no name of a file for a pattern
    assert "unet_ema/other.safetensors" not in remote.fetched


def test_the_root_of_a_model(remote):
    shutil.rmtree(remote.model)
    write_json(remote.model / "config.json", SETTINGS)
    write_weights(remote.model / WEIGHTS)
    hub.fetch("hf:me/tiny")
    assert remote.fetched == ["config.json", WEIGHTS]


@pytest.mark.parametrize(
    "name",
    ["hf:", "hf:tiny", "hf:a/b/c", "hf:../x", "hf:me/..", "hf:me/tiny@", "hf:me/tiny@../x", "hf:me/t\n", "hf:@/x"],
)
def test_names_of_another_form_are_refused(remote, name):
    with pytest.raises(ValueError, match="must be hf:OWNER/MODEL") as error:
        dd.load_prior(name)
    assert len(str(error.value).splitlines()) == 1
    assert remote.asked == []


def test_what_cannot_be_fetched_is_one_line(remote, ddiff):
    code, _, said = ddiff("convert", "hf:me/other", "--output", "out")
    assert (
        code == 2 and said.count("\n") == 1 and "hf:me/other cannot be fetched (RuntimeError: 404 for me/other)" in said
    )
    (remote.model / "unet" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"hf:me/tiny has no diffusion_pytorch_model\.\*"):
        hub.fetch("hf:me/tiny")
    (remote.model / "scheduler" / "scheduler_config.json").unlink()
    shutil.rmtree(remote.cache)
    write_weights(remote.model / "unet" / WEIGHTS)
    with pytest.raises(ValueError, match=r"--noise-schedule and --prediction \(what flags can say is said to: ddiff"):
        dd.load_prior("hf:me/tiny")


def test_networks_that_are_no_priors_are_refused_before_their_weights_are_fetched(remote):
    write_json(remote.model / "unet" / "config.json", {**SETTINGS, "_class_name": "UNet2DConditionModel"})
    with pytest.raises(ValueError, match="describes 'UNet2DConditionModel'"):
        hub.fetch("hf:me/tiny")
    assert not any(Path(name).suffix == ".safetensors" for name in remote.fetched)
    shutil.rmtree(remote.cache)
    for path in (remote.model / "unet" / "config.json", remote.model / "model_index.json"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        hub.fetch("hf:me/tiny")


def test_without_the_extra_it_is_named(monkeypatch, ddiff):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'ddiff-jax\[hf\]'"):
        dd.load_prior("hf:me/tiny")
    code, _, said = ddiff("restore", "--prior", "hf:me/tiny")
    assert code == 2 and said.count("\n") == 1 and "ddiff-jax[hf]" in said
