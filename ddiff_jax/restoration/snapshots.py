"""Long runs: the state of the running batch on disk, so that who comes after a crash goes on where it was."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ddiff_jax._solve import Progress, Snapshot
from ddiff_jax.checkpoint import orbax
from ddiff_jax.files import Notes
from ddiff_jax.restoration.records import Records
from ddiff_jax.restoration.store import Store

EVERY_SECONDS = 300.0  # of computing are lost at most; a batch that takes less is never written


class Snapshots:
    """The snapshots of one batch, of which the last is kept.

    Args:
        folder: for all batches of a folder of results.
        name: of the batch; it stands for everything that decides its results.
        wanted: names of the batch's images to the fingerprints that their records will have.
        every: seconds between two.
    """

    def __init__(self, folder: Path, name: str, wanted: Mapping[str, str], every: float = EVERY_SECONDS):
        self._folder, self._wanted, self._every = folder.absolute() / name, dict(wanted), every
        self._last = time.monotonic()
        self._steps = Records(self._folder)
        self.notes: Notes = []

    def save(self, progress: Progress) -> None:
        """Write a snapshot if it is time to; a disk that is full costs the snapshot only."""
        now = time.monotonic()
        if not 0 < progress.step < progress.num_steps or now - self._last < self._every:
            return
        self._last = now
        snapshot = progress.snapshot()
        folder = self._folder / f"step_{snapshot.step}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            self._folder.mkdir(parents=True, exist_ok=True)
            orbax().save(folder, dict(enumerate_leaves(snapshot.carry)))
            self._steps.save("last", {"step": snapshot.step, "wanted": self._wanted})  # from here on it counts
            for earlier in self._folder.glob("step_*"):
                if earlier != folder:
                    shutil.rmtree(earlier, ignore_errors=True)
        except Exception as error:  # whatever Orbax makes of a full disk
            self.notes.append(f"the running batch could not be saved: {type(error).__name__}: {error}")

    def load(self, first: Snapshot) -> Snapshot | None:
        """Read the last snapshot, if there is one that is whole and of such a run; for `solve`'s `resume`."""
        step = (self._steps.load("last") or {}).get("step")
        if not isinstance(step, int):
            return None
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        leaves, structure = jax.tree.flatten(first.carry)
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for name, leaf in enumerate_leaves(first.carry)
        }
        try:
            found: Any = orbax().load(self._folder / f"step_{step}", wanted)
            arrays = [jax.device_get(found[name]) for name in wanted]
        except Exception as error:  # damaged: the batch begins anew
            self.notes.append(f"the saved state of the running batch cannot be read ({type(error).__name__})")
            return None
        if [a.shape for a in arrays] != [leaf.shape for leaf in leaves]:
            return None
        return Snapshot(step, jax.tree.unflatten(structure, arrays))

    def drop(self) -> None:
        """Remove what is no longer needed."""
        shutil.rmtree(self._folder, ignore_errors=True)


def drop_orphans(store: Store, folder: Path) -> None:
    """Remove the snapshots of batches that will not run again, because one of their images is done.

    Whoever was killed while the results of a batch were written leaves one behind.
    """
    for path in folder.glob("*"):
        wanted = (Records(path).load("last") or {}).get("wanted")
        if isinstance(wanted, dict) and any(
            record.fingerprint == fingerprint
            for name, fingerprint in wanted.items()
            if (record := store.load(name)) is not None
        ):
            shutil.rmtree(path, ignore_errors=True)


def enumerate_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Name the leaves of a tree by their number."""
    return [(f"{i:03}", leaf) for i, leaf in enumerate(jax.tree.leaves(tree))]
