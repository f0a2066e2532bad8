"""Many solvers on many cells, one after the other: every finding is one file, so that what was stopped goes on."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddiff_jax._solve import Progress
from ddiff_jax._version import __version__
from ddiff_jax.calibration import metrics
from ddiff_jax.calibration.cell import CELLS, Cell
from ddiff_jax.calibration.findings import Findings
from ddiff_jax.calibration.run import Draws, Exact, calibrate, draw
from ddiff_jax.config import build_solver, change, solver_parameters
from ddiff_jax.names import UnknownName, check_name, nearest
from ddiff_jax.noise import root_key
from ddiff_jax.own_code import imported, is_path
from ddiff_jax.restoration.records import Records, fingerprint, finite
from ddiff_jax.solvers import SOLVERS, Solver, aim_of

EXACT = "exact"
# Hyper-parameters for these cells, where the solver's own defaults do not serve or take more than a hundred evaluations
# of the network.
SETTINGS: dict[str, dict[str, Any]] = {
    "ddiff": {"num_steps": 100},
    # As near to samples of the posterior as it comes with few steps: the likelihood's own width, the variance of these
    # images, and steps of the dynamics that are stable for a sigma_y of 0.05.
    "daps": {
        **{"lr": 2e-3, "lr_min_ratio": 0.1, "tau": None, "var": 0.25, "variant": "published"},
        **{"num_steps": 50, "ode_steps": 1, "langevin_steps": 20},
    },
    "dps": {"zeta": 0.3, "num_steps": 100},
    "mmps": {"iterations": 10},  # the default of 3 leaves more of the linear systems than these cells forgive
    "flower": {"var": 0.25},
    "tds": {"num_steps": 50, "clip": False},  # images here have no range
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A solver that is calibrated.

    Args:
        name: by which it is called.
        solver: with its hyper-parameters.
        sha256: hash of its source, for one of somebody's own.
    """

    name: str
    solver: Solver | Exact
    sha256: str = ""


def default_solvers() -> tuple[str, ...]:
    """Name the solvers that are calibrated unless told otherwise: the exact one, those after the posterior, DDiff."""
    return (EXACT, "ddiff", *(name for name, solver in SOLVERS.items() if aim_of(solver) == "posterior"))


def find_solver(name: str, changes: Mapping[str, Any] | None = None) -> Entry:
    """Find a solver by its name.

    Args:
        name: "exact", a name in `SOLVERS`, or MODULE:NAME, an object, or a function or class that makes one without
            arguments.
        changes: hyper-parameters that replace those of `SETTINGS` and the solver's own defaults.

    Raises:
        UnknownName: there is no such solver; the nearest is in the message.
        ValueError: MODULE:NAME is no solver, or cannot be changed; or a hyper-parameter is out of range.
    """
    if name == EXACT or is_path(name):
        if changes:
            raise ValueError(f"only solvers of the package can be changed by name, {name} cannot; change the object")
        return Entry(EXACT, Exact()) if name == EXACT else _own_solver(name)
    if name not in SOLVERS:
        raise UnknownName(f"unknown solver {name!r}; {nearest(name, (EXACT, *SOLVERS))}; your own is named MODULE:NAME")
    values = change(SETTINGS.get(name, {}), changes or {})
    missing = [k for k, (_, value) in solver_parameters(SOLVERS[name]).items() if value is dataclasses.MISSING]
    unsaid = [k for k in missing if k not in values and "step_length" not in values]
    if unsaid:
        raise ValueError(
            f"solver {name} has no default for {', '.join(unsaid)}; give it by --set {name}:{unsaid[0]}=..."
        )
    return Entry(name, build_solver(name, values))


def _own_solver(name: str) -> Entry:
    name, found, sha256 = imported(name, "a solver", "mine:solver for solver in mine.py")
    solver = found() if inspect.isclass(found) or inspect.isroutine(found) else found
    if not isinstance(solver, Solver):
        raise ValueError(
            f"{name} must be a solver, or make one without arguments: an object with needs, cost, grid, init, step and "
            f"estimate (see ddiff_jax.extend); it is a {type(solver).__name__}"
        )
    return Entry(name, solver, sha256)


def find_cell(name: str) -> tuple[Cell, str]:
    """Find a cell by its name.

    Args:
        name: in `CELLS`; or MODULE:NAME, a `Cell`, or a function that makes one.

    Returns:
        The cell, and the hash of its source for one of somebody's own.

    Raises:
        UnknownName: there is no such cell; the nearest is in the message.
        ValueError: MODULE:NAME is none.
    """
    if not is_path(name):
        check_name("cell", name, CELLS)
        return CELLS[name](), ""
    name, found, sha256 = imported(name, "a cell", "mine:cell for cell in mine.py")
    cell = found() if inspect.isroutine(found) else found
    if not isinstance(cell, Cell):
        raise ValueError(
            f"{name} must be a ddiff_jax.calibration.Cell, or make one without arguments; it is a {type(cell).__name__}"
        )
    return dataclasses.replace(cell, name=name), sha256


@dataclasses.dataclass(frozen=True)
class Watch:
    """Who is told what happens.

    Args:
        say: receives a line about every cell that is begun.
        found: receives every finding, and whether it was found before.
        under_way: receives the progress of a solver on a cell; None where nobody looks.
    """

    say: Callable[[str], object] = lambda line: None
    found: Callable[[Findings, bool], object] = lambda findings, again: None
    under_way: Callable[[Progress], object] | None = None


def calibrate_all(
    solvers: Sequence[Entry],
    cells: Sequence[str],
    folder: Path | None = None,
    *,
    seed: int = 0,
    num_problems: int | None = None,
    num_samples: int = 19,
    watch: Watch | None = None,
) -> list[Findings]:
    """Calibrate every solver on every cell.

    Args:
        solvers: from `find_solver`, or `Entry(name, solver)`.
        cells: their names, see `find_cell`.
        folder: for one record per solver and cell, of which those that are there already are not made again; None
            keeps nothing.
        seed: root of all random numbers.
        num_problems: of every cell; None is as many as each asks for.
        num_samples: of every problem: 19, 39, 59 and so on.
        watch: who is told.

    Returns:
        All findings, cell by cell.

    Raises:
        ValueError: a name is unknown, two solvers have the same one, or a number is out of range.
    """
    watch = Watch() if watch is None else watch
    metrics.check_num_samples(num_samples)
    names = [entry.name for entry in solvers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"every solver needs a name of its own; there are two called {', '.join(twice)}")
    records, all_findings = None if folder is None else Records(folder), []
    for cell_name in dict.fromkeys(cells):
        cell, cell_hash = find_cell(cell_name)
        drawn: Draws | None = None
        for entry in solvers:
            # What decides the finding. Solvers print all their numbers.
            identity = fingerprint(
                *(__version__, repr(entry.solver), entry.sha256, cell.name, cell_hash),
                *(seed, num_problems or cell.num_problems, num_samples),
            )
            place = f"{_file(cell.name)}/{_file(entry.name)}"
            earlier = None if records is None else _recorded(records, place, identity)
            if earlier is not None:
                all_findings.append(earlier)
                watch.found(earlier, True)
                continue
            if drawn is None:
                watch.say(f"drawing {num_problems or cell.num_problems} problems of {cell.name} ...")
                drawn = draw(cell, root_key(seed), num_problems, num_samples)
            findings = _calibrated(entry, drawn, watch)
            if records is not None and not findings.why:
                records.save(place, {"identity": identity, "findings": findings.as_dict()})
            all_findings.append(findings)
            watch.found(findings, False)
    return all_findings


def _calibrated(entry: Entry, drawn: Draws, watch: Watch) -> Findings:
    """Calibrate, or tell what keeps the solver from being used."""
    try:
        return calibrate(entry.solver, drawn, name=entry.name, on_chunk=watch.under_way)
    except ValueError as error:
        return Findings(
            solver=entry.name,
            cell=drawn.cell.name,
            aim=aim_of(entry.solver),
            num_problems=len(drawn.truths),
            num_samples=drawn.exact.shape[1],
            wrong_modes=drawn.cell.wrong_modes,
            why=str(error),
        )


def _file(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")


def _recorded(records: Records, place: str, identity: str) -> Findings | None:
    record = records.load(place)
    if record is None or record.get("identity") != identity:
        return None
    return Findings.of(record["findings"])


def document(all_findings: Sequence[Findings], words: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Write findings and their labels as JSON can hold them.

    Args:
        all_findings: of every solver and cell.
        words: the label of each by (solver, cell), from `labels`.
    """
    rows = [{**found.as_dict(), "label": words[found.solver, found.cell]} for found in all_findings]
    return finite({"version": __version__, "findings": rows})
