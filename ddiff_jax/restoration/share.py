"""Which images are whose where several processes work: every one takes a share, and nobody tells anybody anything."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# What a cluster says of itself is recognised by JAX; elsewhere these say it.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# It runs in a process of its own: whoever stays in a cluster of JAX processes ends with them.
PROGRAM = """
import json, os, sys, jax
address, count, index = (os.environ.get(name) for name in sys.argv[1:])
given = {} if address is None or count is None or index is None else {
    "coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
jax.distributed.initialize(**given)
devices = jax.config.read("jax_cuda_visible_devices")
print(json.dumps([jax.process_index(), jax.process_count(), devices]))
jax.distributed.shutdown()
"""


@dataclasses.dataclass(frozen=True)
class Share:
    """One of several equal shares of the images.

    Args:
        index: which, from 1.
        count: how many there are.

    Raises:
        ValueError: there is no such share.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self):
        if not 1 <= self.index <= self.count:
            raise ValueError(f"a share is one of several, from 1/N to N/N; got {self}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, images: Sequence[T]) -> list[T]:
        """Take the share: every count-th image, so that all shares are alike."""
        return list(images[self.index - 1 :: self.count])


def parse(text: str) -> Share:
    """Read "2/4".

    Raises:
        ValueError: it is no share.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None:
        raise ValueError(f"--shard takes I/N, such as 2/4 for the second of four; got {text!r}")
    return Share(int(found[1]), int(found[2]))


def of_cluster(timeout: float = 600.0) -> Share:
    """Find out by `jax.distributed` which process of how many this one is; waits until all have come.

    Slurm, Open MPI, TPU pods and Kubernetes are recognised; elsewhere JAX_COORDINATOR_ADDRESS (HOST:PORT of the first
    process), JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0) say it.

    Args:
        timeout: seconds to wait.

    Raises:
        ValueError: no cluster is recognised, or the others do not come.
    """
    command = [sys.executable, "-c", PROGRAM, *VARIABLES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"--distributed: the other processes did not come within {timeout:g} s") from None
    try:
        index, count, devices = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(
            f"--distributed: JAX recognises no cluster here ({said}); set {', '.join(VARIABLES)}, or give every "
            "process its --shard I/N"
        ) from None
    if devices not in (None, "", "all"):
        os.environ["JAX_CUDA_VISIBLE_DEVICES"] = str(devices)  # before this process looks for its own
    return Share(index + 1, count)


def join_cluster() -> None:
    """Make this process one of a cluster that computes together; those of `of_cluster` are recognised.

    Raises:
        ValueError: no cluster is recognised, or the others do not come.
    """
    import jax

    address, count, index = (os.environ.get(name) for name in VARIABLES)
    given = {}
    if address is not None and count is not None and index is not None:
        given = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    try:
        jax.distributed.initialize(**given)
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"--distributed: JAX recognises no cluster here ({said}); set {', '.join(VARIABLES)}"
        ) from error


def share_of(shard: str | None, distributed: bool) -> Share:
    """Read the share off the flags that every command with many images has.

    Raises:
        ValueError: both are given, or either says nothing.
    """
    if shard is not None and distributed:
        raise ValueError("--shard says which share is ours, and so does --distributed; give one of the two")
    return of_cluster() if distributed else Share() if shard is None else parse(shard)
