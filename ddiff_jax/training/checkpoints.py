"""States of a run on disk: written while it goes on, whole or absent, the last few kept."""

import contextlib
import math
import shutil
from pathlib import Path
from typing import Any

import jax

from ddiff_jax.checkpoint import orbax
from ddiff_jax.files import Notes, quote
from ddiff_jax.restoration.records import Records
from ddiff_jax.restoration.snapshots import enumerate_leaves

KEPT = 3
MARK = "checkpoints"  # the record of what counts


class Checkpoints:
    """The states of one run.

    A state counts from when its record is written, after every byte of it: who is killed in between goes on from the
    one before. Disks that are full cost the state that did not fit, and nothing that was saved.

    Args:
        folder: of the run; the states lie in a folder of their own inside.
    """

    def __init__(self, folder: Path):
        self._folder = folder.absolute() / "checkpoints"
        self._records = Records(folder.absolute())
        self._running: tuple[int, bool, Any] | None = None
        self.notes: Notes = []

    def steps(self) -> dict[int, bool]:
        """List the states that count: step to whether it is kept for good, in order."""
        found = (self._records.load(MARK) or {}).get("steps")
        found = found if isinstance(found, dict) else {}
        known = {int(step): bool(kept) for step, kept in found.items() if str(step).isdigit()}
        return {step: known[step] for step in sorted(known) if self._path(step).is_dir()}

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:08d}"

    def save(self, step: int, state: Any, *, keep: bool = False) -> None:
        """Begin to write a state, after the one before is written; returns when its arrays may change again.

        Args:
            step: updates done.
            state: a pytree of arrays.
            keep: for good, not only as one of the last few.
        """
        self.wait()
        path = self._path(step)
        try:
            if _leads():
                shutil.rmtree(path, ignore_errors=True)  # one that does not count, or the same state
                self._folder.mkdir(parents=True, exist_ok=True)
            self._running = (step, keep, orbax().save_async(path, dict(enumerate_leaves(state))))
        except Exception as error:
            self._lost(step, error)

    def wait(self) -> None:
        """Wait until what is being written counts, and remove what no longer does."""
        if self._running is None:
            return
        (step, keep, response), self._running = self._running, None
        try:
            response.result()
            if not _leads():
                return
            known = {**self.steps(), step: keep or self.steps().get(step, False)}
            passing = [s for s in sorted(known) if not known[s]]
            dropped = passing[:-KEPT]
            self._records.save(MARK, {"steps": {str(s): known[s] for s in sorted(known) if s not in dropped}})
            for old in dropped:
                shutil.rmtree(self._path(old), ignore_errors=True)
        except Exception as error:  # whatever Orbax makes of a full disk
            self._lost(step, error)

    def _lost(self, step: int, error: Exception) -> None:
        self.notes.append(
            f"the state after step {step} could not be saved ({type(error).__name__}: {quote(error)}); "
            "earlier ones are kept"
        )
        with contextlib.suppress(OSError):
            shutil.rmtree(self._path(step), ignore_errors=True)

    def load(self, like: Any, sharding: jax.sharding.Sharding, most: float = math.inf) -> Any | None:
        """Read the last state that is whole.

        Args:
            like: a state of the same structure, or the shapes and types of one.
            sharding: the devices where all of it is wanted.
            most: leave out states after this step.

        Returns:
            The state; None if there is none.
        """
        leaves, structure = jax.tree.flatten(like)
        names = [name for name, _ in enumerate_leaves(like)]
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for name, leaf in zip(names, leaves, strict=True)
        }
        for step in sorted((s for s in self.steps() if s <= most), reverse=True):
            try:
                found: Any = orbax().load(self._path(step), wanted)
                return jax.tree.unflatten(structure, [found[name] for name in names])
            except Exception as error:  # damaged: the one before serves
                self.notes.append(
                    f"the state after step {step} cannot be read ({type(error).__name__}: {quote(error)})"
                )
        return None

    def forget_after(self, step: int) -> None:
        """Forget later states, when a run goes on from an earlier one."""
        self.wait()
        known = self.steps()
        later = [s for s in known if s > step]
        if later and _leads():
            self._records.save(MARK, {"steps": {str(s): kept for s, kept in known.items() if s <= step}})
            for old in later:
                shutil.rmtree(self._path(old), ignore_errors=True)

    def clean(self) -> None:
        """Remove what earlier runs left half written."""
        if _leads() and self._folder.is_dir():
            counted = {self._path(step) for step in self.steps()}
            for path in self._folder.iterdir():
                if path not in counted:
                    shutil.rmtree(path, ignore_errors=True)


def _leads() -> bool:
    """Tell whether this process writes what all share."""
    return jax.process_index() == 0
