"""The loop of a training: goes on from where it was, saves, reports, judges, and leaves a prior that can be used."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddiff_jax.checkpoint import CARD
from ddiff_jax.files import Caution, Notes, Unusable
from ddiff_jax.priors import LinearDenoiser
from ddiff_jax.restoration.machine import out_of_memory, versions
from ddiff_jax.restoration.records import Records, fingerprint
from ddiff_jax.training.averages import coefficients
from ddiff_jax.training.checkpoints import Checkpoints
from ddiff_jax.training.judgement import Judge, Judgement
from ddiff_jax.training.log import FILE, Log, read_log
from ddiff_jax.training.page import write_page
from ddiff_jax.training.recipe import Recipe
from ddiff_jax.training.result import forget_averages, keep_averages, kept_averages, write_prior
from ddiff_jax.training.state import BOUNDS, TrainState, as_prior, learning_rate, make_update, new_state
from ddiff_jax.types import Params

RUN = "run"  # the record of what a folder's run is
LATER = {"linear_rank": 0}  # what recipes did not have at first
LENGTH = ("steps", "warmup_steps", "decay_steps", "average")  # what may change when a run goes on


# Makes this process's images of update number n, n + 1, ..., without an end.
Batches = Callable[[int], Iterator[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Rhythm:
    """How often a run does what is not training.

    Args:
        log: updates between two lines of the log.
        judge: updates between two judgements.
        save_seconds: seconds between two saved states; one more is saved at every judgement.
    """

    log: int
    judge: int
    save_seconds: float = 300.0

    def __post_init__(self):
        if self.log < 1 or self.judge < 1 or not self.save_seconds >= 0:
            raise ValueError(f"a run needs positive numbers of updates between lines and judgements; got {self}")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        step: updates done.
        finished: whether these are all.
        judgement: the last one; None in processes that only help, and before the first.
        lost: what could not be saved.
    """

    step: int
    finished: bool
    judgement: Judgement | None
    lost: Notes


class Training:
    """One run, in one folder.

    Args:
        recipe: how to train.
        folder: for the prior; the run's own files lie in `training` inside.
        batches: the images.
        images: what they are: name, count and fingerprint, for the record and the card.
        judge: judges the averaged weights, in the first process; None in the others.
        rhythm: how often.
        start: weights to begin with; None draws them.
        linear: denoiser that the network's output is added to, of the recipe's `linear_rank`. A run that goes on keeps
            the one that it had.
        mesh: devices that share a batch; None is one device.
        block: as `make_update` takes it.
        licence: of the prior.
        stored: type of the prior's numbers on disk, "float32" or "int16".
        tensorboard: write TensorBoard's files as well.
        say: told what happens, one line at a time.

    Raises:
        ValueError: the recipe does not fit the images, or the folder holds the run of another recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        batches: Batches,
        images: Mapping[str, Any],
        judge: Judge | None,
        rhythm: Rhythm,
        *,
        start: Params | None = None,
        linear: LinearDenoiser | None = None,
        mesh: jax.sharding.Mesh | None = None,
        block: int | None = None,
        licence: str = "",
        stored: str = "float32",
        tensorboard: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.recipe, self.folder, self.batches, self.judge = recipe, folder, batches, judge
        self.images, self.rhythm, self.licence, self.stored = dict(images), rhythm, licence, stored
        self.say, self._mesh, self._tensorboard = say, mesh, tensorboard
        self.inside = folder / "training"
        self.inside.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.inside) if jax.process_index() == 0 else None
        try:
            self._take_up(start, linear, mesh, block)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others train in the folder; `run` does so at its end."""
        if self._lock is not None:
            self._lock.close()

    def _take_up(
        self,
        start: Params | None,
        linear: LinearDenoiser | None,
        mesh: jax.sharding.Mesh | None,
        block: int | None,
    ) -> None:
        """Find where the folder's run stands, or begin one."""
        recipe, self._told = self.recipe, 0
        self._checkpoints, self._records = Checkpoints(self.inside), Records(self.inside)
        self._leads = jax.process_index() == 0
        self._update = make_update(recipe, mesh, block)
        earlier = self._records.load(RUN)
        most = np.inf if earlier is None else self._continued(earlier)
        # Nothing is the same any more where another average is wanted of the same updates.
        self._same_average = earlier is None or earlier["recipe"]["average"] == recipe.average
        self._checkpoints.clean()
        linear = self._agreed(linear)
        found = self._checkpoints.load(jax.eval_shape(lambda: new_state(recipe, None, linear)), self._sharding(), most)
        self.state: TrainState = self._placed(new_state(recipe, start, linear)) if found is None else found
        self.first = self._step = int(self.state.step)
        """Updates done before."""
        self._tell_notes()
        self._checkpoints.forget_after(self._step)
        if self._leads:
            forget_averages(self.inside, self._step)
        self._judgement: Judgement | None = None
        if self._leads:
            told = {"recipe": recipe.as_dict(), "images": self.images, "versions": versions()}
            told["num_parameters"] = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
            self._records.save(RUN, told)
        if self._step:
            self.say(f"going on after step {self._step} of {recipe.steps}")

    def _continued(self, earlier: Mapping[str, Any]) -> float:
        """Find up to which step an earlier run in this folder is one of this recipe."""
        asked = self._identity(self.recipe.as_dict(), self.images)
        had = self._identity(earlier["recipe"], earlier["images"])
        different = [name for name in asked if fingerprint(asked[name]) != fingerprint(had.get(name))]
        if different:
            name = different[0]
            raise ValueError(
                f"{self.folder} holds a run with another {name} ({had.get(name)}; asked for: {asked[name]}); give what "
                "it had, or choose another --output"
            )
        old = earlier["recipe"]
        if all(old[name] == getattr(self.recipe, name) for name in ("steps", "decay_steps")):
            return np.inf
        # Updates with a falling rate belong to the old length.
        return float(min(old["steps"] - old["decay_steps"], self.recipe.decay_start))

    @staticmethod
    def _identity(recipe: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, Any]:
        values = {**LATER, **recipe}
        return {**{k: v for k, v in values.items() if k not in LENGTH}, "images": images["fingerprint"]}

    @staticmethod
    def _agreed(linear: LinearDenoiser | None) -> LinearDenoiser | None:
        """Let all processes take what the first one found: decompositions differ between machines."""
        if linear is None or jax.process_count() == 1:
            return linear
        from jax.experimental import multihost_utils

        return multihost_utils.broadcast_one_to_all(linear)

    def _sharding(self) -> jax.sharding.Sharding:
        """Say where the update wants the state: whole on every device."""
        if self._mesh is None:
            return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec())

    def _placed(self, state: TrainState) -> TrainState:
        """Put a state that every process has made for itself where the update wants it."""
        if self._mesh is None:
            return jax.device_put(state, self._sharding())

        def place(leaf: Any) -> jax.Array:
            values = np.asarray(leaf)
            return jax.make_array_from_callback(values.shape, self._sharding(), lambda index: values[index])

        return jax.tree.map(place, state)

    def _on_devices(self, batch: np.ndarray) -> Any:
        if self._mesh is None:
            return jnp.asarray(batch)
        shared = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec(self._mesh.axis_names[0]))
        return jax.make_array_from_process_local_data(shared, batch)

    def run(
        self,
        should_stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
    ) -> Outcome:
        """Train until all updates are done, or until told to stop; then save.

        Args:
            should_stop: asked after every update.
            on_step: told after every update the number done and the last reported loss.

        Raises:
            ValueError: the loss is not finite any more.
        """
        recipe, loss, saved = self.recipe, np.nan, time.monotonic()
        with ExitStack() as stack:
            stack.callback(self.close)
            log = None
            if self._leads:
                log = stack.enter_context(
                    closing(Log(self.inside, keep_until=self._step, tensorboard=self._tensorboard))
                )
            source = stack.enter_context(closing(_Source(self.batches, self._step)))
            stack.callback(self._checkpoints.wait)
            clock = _Clock(self._seconds())
            stopped = False
            if self._step and (self._step % self.rhythm.judge == 0 or self._step == recipe.steps):
                self._judge_again(log)
            while self._step < recipe.steps and not stopped:
                with out_of_memory(recipe.batch_size):
                    rate = learning_rate(recipe, self._step)
                    self.state = self._update(self.state, self._on_devices(source.next()), rate)
                self._step += 1
                if self._step % self.rhythm.log == 0 or self._step == recipe.steps:
                    loss = self._report(log, clock)
                on_step(self._step, loss)
                stopped = self._agree(should_stop())
                judged = self._step % self.rhythm.judge == 0 or self._step == recipe.steps
                at_decay = self._step == recipe.decay_start
                if judged or at_decay or stopped or self._agree(time.monotonic() - saved > self.rhythm.save_seconds):
                    self._checkpoints.save(self._step, self.state, keep=at_decay)
                    saved = time.monotonic()
                if judged:
                    with clock.paused():
                        self._judge(log)
            self._checkpoints.wait()
            self._tell_notes()
            lost = [*self._checkpoints.notes, *([log.note] if log is not None and log.note else [])]
        return Outcome(self._step, self._step == recipe.steps, self._judgement, lost)

    def _agree(self, mine: bool) -> bool:
        """Let all processes do the same, if one wants to: saving is done together."""
        if jax.process_count() == 1:
            return mine
        from jax.experimental import multihost_utils

        jax.block_until_ready(self.state)  # what processes exchange comes in the same order in all of them
        return bool(np.any(multihost_utils.process_allgather(np.asarray(mine))))

    def _report(self, log: Log | None, clock: "_Clock") -> float:
        """Write a line of the log, and begin new sums."""
        sums = jax.device_get(self.state.sums)
        self.state = dataclasses.replace(self.state, sums=jax.tree.map(jnp.zeros_like, self.state.sums))
        count, updates = float(sums["count"].sum()), float(sums["updates"])
        if not updates:
            raise ValueError(
                f"the gradient was not finite in all of the last {int(sums['skipped'])} updates before step "
                f"{self._step}; begin again with a lower --learning-rate, or --dtype float32"
            )
        loss = float(sums["loss"].sum()) / count
        if log is not None:
            edges = ["0", *(f"{bound:g}" for bound in BOUNDS), "most"]
            groups = {
                f"loss_at_{low}_to_{high}": float(total / number)
                for low, high, total, number in zip(edges, edges[1:], sums["loss"], sums["count"], strict=False)
                if number
            }
            log.write(
                self._step,
                {
                    "images_seen": self._step * self.recipe.batch_size,
                    "loss": loss,
                    **groups,
                    **({"variance_loss": float(sums["variance"]) / updates} if sums["variance"] else {}),
                    "gradient_norm": float(sums["norm"]) / updates,
                    "learning_rate": float(learning_rate(self.recipe, self._step - 1)),
                    "left_out": float(sums["skipped"]),
                    "seconds": clock.seconds,
                },
            )
        return loss

    def _seconds(self) -> float:
        """Find how long the run has trained until now, by its log."""
        lines = read_log(self.inside / FILE)[0] if (self.inside / FILE).exists() else []
        return max((float(line.get("seconds", 0)) for line in lines if line["step"] <= self._step), default=0.0)

    def _tell_notes(self) -> None:
        for note in self._checkpoints.notes[self._told :]:
            self.say(Caution(note))
        self._told = len(self._checkpoints.notes)

    def averaged(self) -> Params:
        """Make the weights of the prior: the recipe's average over the updates done."""
        mine = [jax.device_get(average) for average in self.state.averages]
        if self.recipe.average in self.recipe.averages:
            return mine[self.recipe.averages.index(self.recipe.average)]
        kept = {step: load for step, load in kept_averages(self.inside, mine).items() if step < self._step}
        known = [(step, width) for step in (*kept, self._step) for width in self.recipe.averages]
        shares = iter(coefficients(known, (self._step, self.recipe.average)))
        total: Any = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), mine[0])
        for averages in (*(load() for load in kept.values()), mine):
            for average in averages:
                share = next(shares)
                total = jax.tree.map(lambda a, b, share=share: a + share * b, total, average)
        return jax.tree.map(lambda leaf: leaf.astype(np.float32), total)

    def _place(self) -> Path:
        return self.inside / "judgements" / f"{self._step:08d}"

    def _judge_again(self, log: Log | None) -> None:
        """Judge where a run goes on, unless whoever was there before came to the end of it."""
        if self._same_average and (self.folder / CARD).exists():
            with contextlib.suppress(Unusable):
                self._judgement = Judgement.load(self._place())
                return
        self._judge(log)

    def _judge(self, log: Log | None) -> None:
        """Judge the averaged weights, and leave them as the prior of the folder; the other processes wait."""
        if log is None or self.judge is None:
            return
        params = self.averaged()
        linear = jax.device_get(self.state.linear)
        prior = as_prior(self.recipe, *jax.tree.map(jnp.asarray, (params, linear)))
        judgement = self.judge(prior, step=self._step, images_seen=self._step * self.recipe.batch_size)
        self._judgement = judgement
        try:
            keep_averages(self.inside, self._step, [jax.device_get(a) for a in self.state.averages])
            log.judged(self._step, judgement)
            write_prior(
                *(self.folder, self.recipe, params, judgement, self.images),
                linear=linear,
                licence=self.licence,
                stored=self.stored,
            )
            judgement.save(self._place())  # from here on it counts
            write_page(self.inside, f"Training of {self.folder.name}")
        except OSError as error:
            self.say(Caution(f"what was found after step {self._step} could not be written: {error}"))
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in judgement.numbers().items())
        self.say(f"step {self._step}: {numbers}")
        if (warning := judgement.warning()) is not None:
            self.say(Caution(warning))


def _lock(folder: Path) -> Any:
    """Hold a folder for this process, as long as it lives or until what is returned is closed.

    Raises:
        ValueError: another process holds it.
    """
    file = (folder / "lock").open("a")
    try:
        import fcntl
    except ImportError:  # on Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"another process trains in {folder.parent}; wait until it ends, or choose another --output"
        ) from None
    return file


class _Clock:
    """Seconds of training, over all parts of a run."""

    def __init__(self, before: float):
        self._before, self._started = before, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def paused(self) -> Any:
        stack, since = ExitStack(), time.monotonic()
        stack.callback(lambda: setattr(self, "_before", self._before - (time.monotonic() - since)))
        return stack


class _Source:
    """The batches, with an end."""

    def __init__(self, batches: Batches, start: int):
        self._iterator = batches(start)

    def next(self) -> np.ndarray:
        return next(self._iterator)

    def close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
