"""What `peers.py` makes of its numbers: ratios at equal PSNR, tables and a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np

LEVEL = 25.0  # dB, at which seconds are compared
TITLES = {"deepinv": "super-resolution by 4", "diffuse": "70% of the pixels hidden"}


def ratio(peer: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Give the median and the quartiles of the paired ratios."""
    low, middle, high = np.percentile(np.asarray(peer) / np.asarray(ours), [25, 50, 75])
    return {"ratio": float(middle), "ratio_low": float(low), "ratio_high": float(high)}


def seconds_at(rows: list[dict[str, Any]], level: float) -> np.ndarray | None:
    """Find the seconds per image, of every repetition, at which a method's PSNR first reaches a level.

    Between two numbers of steps the logarithm of the seconds is interpolated. None if the level is not reached.
    """
    rows = sorted(rows, key=lambda row: row["evaluations"])
    for i, row in enumerate(rows):
        if row["psnr"] >= level:
            now = np.log(row["seconds"])
            if i == 0:
                return np.exp(now)
            before, last = np.log(rows[i - 1]["seconds"]), rows[i - 1]["psnr"]
            return np.exp(before + (now - before) * (level - last) / (row["psnr"] - last))
    return None


def at_equal_psnr(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the peer's seconds with those of our DDiff and of our DDRM where both have the same PSNR.

    At the fixed level, and for every method of the peer at the best PSNR that it reaches, which it may do alone.
    """
    curves: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["repeated"]:
            curves.setdefault((row["who"], row["method"]), []).append(row)
    found = []
    for (who, method), own in curves.items():
        for level in (LEVEL, max(row["psnr"] for row in own)) if who != "ours" else ():
            for (_, other), others in ((key, curve) for key, curve in curves.items() if key[0] == "ours"):
                peer, mine = seconds_at(own, level), seconds_at(others, level)
                row = {"who": f"{who} {method}", "ours": other, "psnr": level}
                row |= {} if peer is None else {"peer_s": float(np.median(peer))}
                row |= {} if mine is None else {"ours_s": float(np.median(mine))}
                found.append(row | ({} if peer is None or mine is None else ratio(peer, mine)))
    return found


def cell(value: Any) -> str:
    """Write a number, or a dash for one that does not exist."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> list[str]:
    """Write rows as Markdown."""
    head = [f"| {' | '.join(columns.values())} |", "|---" * len(columns) + "|"]
    return head + [f"| {' | '.join(cell(row.get(key)) for key in columns)} |" for row in rows]


def write(found: dict[str, Any], output: Path) -> None:
    """Write the numbers, the tables and the picture."""
    output.mkdir(parents=True, exist_ok=True)
    timing = {"who": "", "batch": "batch", "ms": "ms per image", "low_ms": "25%", "high_ms": "75%"}
    timing |= {"ratio": "ratio", "ratio_low": "25%", "ratio_high": "75%"}
    same = {"who": "", "psnr": "PSNR", "peer_s": "s per image", "ours": "ours", "ours_s": "s per image"}
    same |= {"ratio": "ratio", "ratio_low": "25%", "ratio_high": "75%"}
    lines = []
    for name in (n for n in TITLES if n in found):
        mine = found[name]
        lines += [f"# {name}", "", json.dumps(mine["about"]), ""]
        lines += table(mine["agreement"], {"who": "network", "difference": "largest difference"})
        for section in ("network", "steps"):
            lines += ["", section, "", *table(mine.get(section, []), timing)]
        rows = [dict(row, s=float(np.median(row["seconds"]))) for row in mine.get("quality", [])]
        columns = {"who": "", "method": "method", "evaluations": "steps", "psnr": "PSNR", "half_width": "±"}
        columns |= {m: m for m in ("lpips_alex", "lpips_vgg") if any(m in row for row in rows)}
        lines += ["", TITLES[name], "", *table(rows, {**columns, "s": "s per image", "repeated": "repeated"})]
        if name == "deepinv" and rows:
            mine["equal"] = at_equal_psnr(rows)
            lines += ["", "at equal PSNR", "", *table(mine["equal"], same)]
        lines.append("")
    (output / "peers.md").write_text("\n".join(lines) + "\n")
    (output / "peers.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, output / "peers.png")


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw PSNR against seconds and against evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sections = [name for name in TITLES if found.get(name, {}).get("quality")]
    figure, axes = plt.subplots(max(1, len(sections)), 2, figsize=(11, 4.2 * max(1, len(sections))), squeeze=False)
    for line, section in zip(axes, sections, strict=False):
        rows = found[section]["quality"]
        for who, method in dict.fromkeys((row["who"], row["method"]) for row in rows):
            own = [row for row in rows if (row["who"], row["method"]) == (who, method)]
            y, style = [row["psnr"] for row in own], "o-" if who == "ours" else "s--"
            for axis, x in zip(
                line, ([np.median(r["seconds"]) for r in own], [r["evaluations"] for r in own]), strict=True
            ):
                if "published" in method:
                    axis.axhline(y[0], color="grey", linewidth=1, label=f"{who} {method}, 999 steps")
                else:
                    axis.plot(x, y, style, markersize=4, linewidth=1, label=f"{who} {method}")
        for axis, what in zip(line, ("seconds per image", "network evaluations (steps)"), strict=True):
            axis.set(xscale="log", xlabel=what, ylabel="PSNR (dB)")
            axis.grid(alpha=0.3)
        line[0].set_title(TITLES[section], loc="left")
        line[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
