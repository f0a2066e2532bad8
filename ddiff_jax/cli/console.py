"""Messages and progress on standard error: a bar in a terminal, a few plain lines elsewhere."""

import contextlib
import sys
import time
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ddiff_jax.cli.complaints import complain, unless_lost
from ddiff_jax.files import Caution, warning
from ddiff_jax.safe_text import one_line, printable

PLAIN_SECONDS = 20.0  # between progress lines outside of a terminal


class _Heedless(RichConsole):
    def on_broken_pipe(self) -> None:
        """Go on when nobody listens any more; Rich would end the process."""
        self.quiet = True


class Console:
    """Says things on standard error, or nothing when quiet. Rich honours NO_COLOR and non-terminals."""

    def __init__(self, *, quiet: bool):
        self.rich = _Heedless(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.animated = self.rich.is_terminal and not quiet
        self.cautioned: list[str] = []  # what warnings were about

    def say(self, text: str, style: str = "") -> None:
        """Print one line; a caution also when quiet."""
        shown = "\n".join(map(printable, text.split("\n")))
        with unless_lost():
            if isinstance(text, Caution) and self.rich.quiet and sys.stderr is not None:
                print(shown, file=sys.stderr)
            self.rich.print(shown, style=style or "bold yellow" * isinstance(text, Caution), markup=False)

    def note(self, about: str, text: str) -> None:
        """Print what was done to an input; a caution as a warning."""
        if not isinstance(text, Caution):
            self.say(f"note: {one_line(about)}: {one_line(text)}")
            return
        self.cautioned += [about] * (about not in self.cautioned)
        self.say(warning(about, text))

    def fail(self, text: str) -> None:
        """Print one error, also when quiet."""
        complain(text)


class Bar:
    """Progress over all steps of all batches; `live` is the context in which the bar is shown.

    Args:
        console: where to.
        num_batches: batches in all.
        num_images: images in all.
        task: what is being done.
        measure: name of the number that tells how far it has come.
    """

    def __init__(
        self, console: Console, num_batches: int, num_images: int, task: str = "restoring", measure: str = "misfit"
    ):
        self._measure = measure
        self._console, self._num_batches, self._num_images = console, num_batches, num_images
        self._started, self._said = time.monotonic(), time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[text]}  ETA"),
            TimeRemainingColumn(compact=True),
        )
        shown = {"console": console.rich, "disable": not console.animated, "transient": True, "expand": True}
        self._progress = Progress(*columns, **shown)
        self._task = self._progress.add_task(task, total=None, text="")
        # Rich before 14.3 ends a disabled bar, too, with a blank line: outside of a terminal it is not even started.
        self.live: contextlib.AbstractContextManager[Any] = (
            self._progress if console.animated else contextlib.nullcontext()
        )

    def start(self) -> None:
        """Start the clock, after compilation."""
        self._started = time.monotonic()
        self._progress.reset(self._task)

    def update(
        self,
        batch: int,
        step: int,
        num_steps: int,
        num_done: int,
        measured: float | None = None,
        *,
        count: int | None = None,
    ) -> None:
        """Show where the run stands: steps of this batch, images done before it, and the current measure if any.

        Where batches differ in size, the images of this one say better than its number how much is done.
        """
        done, total = batch * num_steps + step, self._num_batches * num_steps
        if count is not None:
            done, total = num_done * num_steps + count * step, self._num_images * num_steps
        text = f"step {step}/{num_steps}  " * (num_steps > 1) + f"images {num_done}/{self._num_images}"
        text += "" if measured is None else f"  {self._measure} {measured:.4f}"
        self._progress.update(self._task, completed=done, total=total, text=text)
        now = time.monotonic()
        if not self._console.animated and done and now - self._said > PLAIN_SECONDS:
            self._said = now
            left = (now - self._started) * (total - done) / done
            self._console.say(f"{text}  ETA {left:.0f} s")
