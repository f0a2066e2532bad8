"""Time the commands that a newcomer runs first: installation, import, help, and the demonstration, cold and warm.

    python benchmarks/startup.py                  # with the ddiff_jax that this Python has
    python benchmarks/startup.py --install        # from an empty virtual environment, as README's first command

"Cold" starts with an empty compilation cache, "warm" with the one that the run before left.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
IMPORTS = """
import time
begin = time.perf_counter(); import jax; jax_seconds = time.perf_counter() - begin
begin = time.perf_counter(); import ddiff_jax; print(jax_seconds, time.perf_counter() - begin)
"""


def timed(command: list[str], **options) -> tuple[float, str]:
    """Run a command; return its seconds and what it said."""
    begin = time.perf_counter()
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    return time.perf_counter() - begin, done.stdout


def restore(python: str, folder: Path, name: str, environment: dict[str, str], flags: list[str]) -> dict[str, float]:
    """Run the demonstration once and read off what it says of itself."""
    command = [python, "-m", "ddiff_jax", "restore", *flags, "--output", str(folder / name)]
    seconds, said = timed(command, cwd=folder, env=environment)
    compiled = re.search(r"compiled in ([\d.]+) s", said)
    restored = re.search(r"restored 1 in ([\d.]+) s: PSNR ([\d.]+)", said)
    assert compiled and restored, said
    run = float(restored[1])
    return {
        "total": seconds,
        "compile": float(compiled[1]),
        "steps": run,
        "before_first_step": seconds - run,
        "psnr": float(restored[2]),
    }


def main() -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install into an empty virtual environment first")
    parser.add_argument("--values", choices=("default", "published"), default="default")
    parser.add_argument("--repeats", type=int, default=3, help="of the short measurements and of the warm run")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, python = Path(temporary), sys.executable
        if arguments.install:
            begin = time.perf_counter()
            timed([sys.executable, "-m", "venv", str(folder / "venv")])
            python = str(folder / "venv" / "bin" / "python")
            timed([python, "-m", "pip", "install", "--quiet", str(CHECKOUT)])
            found["install"] = time.perf_counter() - begin
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        environment["XDG_CACHE_HOME"] = str(folder / "cache")
        flags = ["--values", arguments.values]
        found["cold"] = restore(python, folder, "cold", environment, flags)
        repeats = range(arguments.repeats)
        found["warm"] = [restore(python, folder, f"warm{i}", environment, flags) for i in repeats]
        imports = [timed([python, "-c", IMPORTS], cwd=folder)[1].split() for _ in repeats]
        found["import_beyond_jax"] = [float(own) for _, own in imports]
        found["help"] = [timed([python, "-m", "ddiff_jax", "--help"], cwd=folder)[0] for _ in repeats]
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
