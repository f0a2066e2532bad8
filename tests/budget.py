"""Measure what reading a file costs: a process forks for every measurement, so that each starts at the same memory.

As a program it answers lines of JSON, [function, path], with lines of JSON, `Cost`.
"""

import dataclasses
import importlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

SECONDS, MEBIBYTES = 2.0, 300  # what any file may take
KILLED_AFTER = 30  # seconds


@dataclasses.dataclass(frozen=True)
class Cost:
    """What reading took: CPU seconds, growth of the resident memory in MiB, and what was raised ("" for nothing)."""

    seconds: float
    mebibytes: float
    raised: str
    message: str


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _measured(function, path):
    module, _, name = function.partition(":")
    read = getattr(importlib.import_module(module), name)
    before, start, raised, message = _resident(), time.process_time(), "", ""
    try:
        read(Path(path))
    except Exception as error:
        raised, message = type(error).__name__, str(error)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Cost(seconds, peak - before, raised, message)


def _serve():
    for name in (
        "ddiff_jax.image_files",
        "ddiff_jax.stencils",
        "ddiff_jax.checkpoint",
        "convert_weights",
        "flax.linen",
    ):
        importlib.import_module(name)
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_CPU, (KILLED_AFTER, KILLED_AFTER))
            try:
                answer = dataclasses.asdict(_measured(*json.loads(line)))
            except BaseException as error:
                answer = {"seconds": 0, "mebibytes": 0, "raised": f"beyond Exception: {error!r}", "message": ""}
            os.write(writing, json.dumps(answer).encode()[:60_000])
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read().decode()
        os.waitpid(child, 0)
        killed = {"seconds": KILLED_AFTER, "mebibytes": 0, "raised": "killed", "message": ""}
        print(answer or json.dumps(killed), flush=True)


def convert(path):
    """Convert a file of weights."""
    import convert_weights

    return convert_weights.convert(path, path.with_name("converted"), probe=False)


class Meter:
    """Asks the process that measures."""

    def __init__(self):
        root = Path(__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()

    def measure(self, function, path):
        """Measure "module:function" on a path."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps([function, str(path)]) + "\n")
            self._process.stdin.flush()
            return Cost(**json.loads(self._process.stdout.readline()))

    def close(self):
        """End the process."""
        self._process.communicate()


if __name__ == "__main__":
    _serve()
