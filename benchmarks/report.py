"""The results of `peers.py` as a table and as a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

Row = dict[str, Any]

_COUNT = EngFormatter(sep="")  # 500k, 2M

_COLUMNS = (
    "tool",
    "k",
    "tokens",
    "tokens/s",
    "× fastest peer",
    "FVU",
    "FVU at equal seconds (tokens)",
    "L0",
    "dead %",
    "recovery",
    "extra memory MB",
)


def table(facts: dict[str, Any], names: dict[str, str], random: float | None) -> str:
    """Returns the results as Markdown; numbers are medians over rounds.

    Args:
        facts: the JSON that `peers.py` writes.
        names: the names of the tools.
        random: the recovery of a dictionary of random directions.
    """
    rows = facts["rows"]
    budgets = sorted({(row["k"], row["asked_tokens"]) for row in rows if row["equal"] == "tokens"}, reverse=True)
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    for k, tokens in budgets:
        here = [row for row in rows if row["equal"] == "tokens" and (row["k"], row["asked_tokens"]) == (k, tokens)]
        tools = dict.fromkeys(row["tool"] for row in here)
        speeds = {tool: _median(_of(here, tool), "tokens_per_s") for tool in tools}
        fastest = max((speed for tool, speed in speeds.items() if tool != "ours" and speed), default=None)
        largest = tokens == max(other for other_k, other in budgets if other_k == k)
        timed = [row for row in rows if row["equal"] == "seconds" and row["k"] == k] if largest else []
        for tool in tools:
            lines.append(_line(names[tool], _of(here, tool), _of(timed, tool), fastest))
    return "\n".join([*lines, "", *_notes(facts, names, random)]) + "\n"


def draw(rows: Sequence[Row], names: dict[str, str], path: Path) -> None:
    """Draws FVU against seconds and against tokens, a line per tool and a row of panels per k."""
    done = [row for row in rows if "error" not in row]
    ks = sorted({row["k"] for row in done}, reverse=True)
    if not ks:
        return
    size = (11, 3.4 * len(ks))
    figure, axes = plt.subplots(len(ks), 2, figsize=size, sharey="row", squeeze=False, layout="constrained")
    for k, panels in zip(ks, axes, strict=True):
        for axis, quantity in zip(panels, ("seconds", "tokens"), strict=True):
            for number, tool in enumerate(names):
                points = _points([row for row in _of(done, tool) if row["k"] == k], quantity)
                if points:
                    axis.plot(*zip(*points, strict=True), "o-", color=f"C{number}", label=names[tool], markersize=4)
            axis.set(xscale="log", yscale="log", xlabel=f"{quantity} of training", title=f"k = {k}")
            axis.xaxis.set(major_locator=_ticks(), major_formatter=_COUNT, minor_formatter=NullFormatter())
            axis.yaxis.set(major_locator=_ticks(), major_formatter="{x:g}", minor_formatter=NullFormatter())
            axis.grid(alpha=0.2)
        panels[0].set_ylabel("FVU, held out")
    handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    figure.legend(handles.values(), handles, loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _ticks() -> LogLocator:
    return LogLocator(subs=(1, 2, 5), numticks=20)


def _points(rows: Sequence[Row], quantity: str) -> list[tuple[float, float]]:
    """Returns (quantity, FVU), medians over the rounds of one budget, in order of the quantity."""
    budgets = {(row["equal"], row["asked_tokens"] if row["equal"] == "tokens" else None) for row in rows}
    points = []
    for equal, tokens in budgets:
        same = [row for row in rows if row["equal"] == equal and tokens in (None, row["asked_tokens"])]
        points.append((median(row[quantity] for row in same), median(row["fvu"] for row in same)))
    return sorted(points)


def _of(rows: Sequence[Row], tool: str) -> list[Row]:
    return [row for row in rows if row["tool"] == tool]


def _median(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return median(values) if values else None


def _line(name: str, rows: Sequence[Row], timed: Sequence[Row], fastest: float | None) -> str:
    def cell(key: str, show: Callable[[float], str]) -> str:
        value = _median(rows, key)
        return "–" if value is None else show(value)

    if all("error" in row for row in rows):
        head = [name, str(rows[0]["k"]), f"{rows[0]['asked_tokens']:,}", rows[0]["error"].replace("|", "/")]
        return "| " + " | ".join(head + ["–"] * (len(_COLUMNS) - len(head))) + " |"
    good = next(row for row in rows if "error" not in row)
    equal = _median(timed, "fvu")
    cells = [
        f"{name} {good['version']}",
        str(good["k"]),
        f"{good['tokens']:,}",
        cell("tokens_per_s", lambda value: f"{value:,.0f}"),
        cell("tokens_per_s", lambda value: f"{value / fastest:.2f}" if fastest else "–"),
        cell("fvu", lambda value: f"{value:.4f}"),
        "–" if equal is None else f"{equal:.4f} ({_median(timed, 'tokens'):,.0f})",
        cell("l0", lambda value: f"{value:.1f}"),
        cell("dead", lambda value: f"{100 * value:.1f}"),
        cell("recovery", lambda value: f"{value:.3f}"),
        cell("memory_mb", lambda value: f"{value:,.0f}"),
    ]
    return "| " + " | ".join(cells) + " |"


def _notes(facts: dict[str, Any], names: dict[str, str], random: float | None) -> list[str]:
    """Returns what a reader needs to judge the table."""
    machine, data, asked = facts["machine"], facts["data"], facts["settings"]
    bf16 = "" if machine["bf16_in_hardware"] else " without bfloat16 in hardware"
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    notes = [
        f"{facts['date'][:10]}, {machine['cpu']}{bf16}, {machine['cores']} cores, {machine['ram_gb']} GB{gpu}, "
        f"{asked['threads']} thread(s); {asked['latents']} latents, width {data['width']}, batch {asked['batch']}, "
        f"torch {facts['versions']['torch']}; medians of {asked['rounds']} interleaved round(s). "
        f"`{facts['command']}`",
        "",
        f"- Data: {_describe(data)}; FVU, L0 and dead latents on {data['held_out']:,} held-out tokens.",
        "- Equal seconds: each peer's FVU after as many seconds as this project took for the largest budget.",
        "- Extra memory: the peak during training less what imports and data took before.",
    ]
    if random is not None:
        notes.append(
            "- Recovery: mean over planted features of the best |cos| with a decoder row; "
            f"random directions reach {random:.3f}."
        )
    if not asked["as_shipped"]:
        notes.append("- Peers' warm-ups and dead windows of fixed length are cut to 5 % of the run where longer.")
    for tool in names:
        done = [row for row in _of(facts["rows"], tool) if "error" not in row]
        longest = max((row["asked_tokens"] for row in done), default=None)
        recipes = {row["recipe"] for row in done if row["asked_tokens"] == longest}
        failed = {
            f"{variant} does not work here: {why}" for row in done for variant, why in row["failed_variants"].items()
        }
        notes += [f"- {names[tool]}: {text}." for text in sorted(recipes) + sorted(failed)]
    return notes


def _describe(data: dict[str, Any]) -> str:
    if data["kind"] == "stored":
        return f"{data['rows']:,} patch tokens of {len(data['shards'])} shard(s) of stored activations"
    return (
        f"{data['rows']:,} synthetic tokens, {data['features']} planted directions, about {data['active']} of them "
        f"in a token, γ = ‖mean‖/‖std‖ = {data['offset']:g}"
    )
