"""metrics.json: all records of a folder as one document, a row per image and an entry per run that rows point to."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddiff_jax import image_files
from ddiff_jax.files import read_text
from ddiff_jax.restoration.batches import GAPS
from ddiff_jax.restoration.store import Record, Store
from ddiff_jax.statistics import interval

MOST = 2**30  # bytes; a million rows
AVERAGED = ("psnr", "ssim", "misfit")


def path_of(folder: Path) -> Path:
    """Name the document of a folder."""
    return folder / "metrics.json"


def check(folder: Path) -> None:
    """Refuse a folder whose metrics.json is not ours, before anything is computed.

    Where there are records, it is: it is made from them, and damaged it is made again.

    Raises:
        ValueError: it is not.
    """
    path = path_of(folder)
    if path.exists() and not (folder / "records").is_dir():
        try:
            json.loads(read_text(path, MOST))["images"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}); move it away or choose another --output") from error


def row(record: Record) -> dict[str, Any]:
    """Write a record as a row."""
    return {
        "name": record.name,
        "input": record.input,
        "input_sha256": record.input_sha256,
        "sigma_y": record.sigma_y,
        **record.metrics,
        "files": dict(sorted(record.files.items())),
        "notes": record.notes,
    }


def merge(store: Store) -> dict[str, Any]:
    """Write metrics.json from all records, whoever made them, and return what it holds."""
    path = path_of(store.folder)
    while True:
        before = store.images.state()
        document = _document(store)
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        if not _holds(path, text):
            image_files.write_text(path, text)
        # Who recorded an image meanwhile may have written the file before us. If not, it writes after us.
        if store.images.state() == before:
            return document


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode("utf-8")
    except OSError:
        return False


def _document(store: Store) -> dict[str, Any]:
    store.look_again()
    records = [record for name in store.images.names() if (record := store.load(name)) is not None]
    named = sorted({record.made for record in records} | {store.run})
    runs = {name: run for name in named if (run := store.made_by(name)) is not None}
    order = list(runs)
    images = [{**row(record), "run": order.index(record.made)} for record in records]
    alike = all(run["settings"] == runs[order[0]]["settings"] for run in runs.values())
    gaps = _gaps(images) if alike else {}
    return {
        # Only what was restored with the same settings is averaged.
        "mean": {name: _mean(image.get(name) for image in images) for name in AVERAGED} if alike else None,
        **({"oracle_gaps": gaps} if gaps else {}),
        "images": sorted(images, key=lambda image: image["name"]),
        "runs": list(runs.values()),
    }


def _gaps(images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up what picking among restarts by the truth would have added, where it is known."""
    known = {name: [image[name] for image in images if image.get(name) is not None] for name in GAPS}
    return {name: interval(values).as_dict() for name, values in known.items() if values}


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [v for v in values if v is not None]
    return sum(numbers) / len(numbers) if numbers else None
