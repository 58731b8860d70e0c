"""README's figures and support matrix, and all tables of RESULTS.md, made from `results/*.json`.

`python -m benchmarks.readme` fills both between their markers; `--check` only compares, for CI.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .harness import SCHEMA

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {
    ROOT / "README.md": ("headlines", "support"),
    ROOT / "benchmarks" / "RESULTS.md": ("speed", "accuracy", "solver"),
}
"""Which page has which tables."""
EVERY = tuple(name for names in PAGES.values() for name in names)
UNVERIFIED = {
    "reference": "tested in CI",
    "cpu": "tested in CI",
    "triton": "interpreter only; not yet run on a GPU",
    "cuda": "compiled only; not yet run on a GPU",
}
Entry = dict[str, Any]


def full_runs(folder: Path) -> list[tuple[Entry, str]]:
    """Every full result and its file's name, oldest first.

    Raises
    ------
    ValueError
        For a file of another schema, by its name.
    """
    runs = []
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text())
        if run.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema is {run.get('schema')!r}; must be {SCHEMA}")
        if not run["meta"]["quick"]:
            runs.append((run, path.name))
    return sorted(runs, key=lambda item: str(item[0]["meta"]["date"]))


def load(folder: Path) -> list[Entry]:
    """Rows of every full result, each with its run's `meta`; of equal ones the newest."""
    newest: dict[tuple[Any, ...], Entry] = {}
    for run, name in full_runs(folder):
        meta = {**run["meta"], "file": name}
        # A run replaces all that an older one of the same device said of its cases, failures too.
        said = {(row["stage"], row["case"], row["floor"]) for row in run["rows"]}
        newest = {
            key: row
            for key, row in newest.items()
            if (row["stage"], row["case"], row["floor"]) not in said
            or row["meta"]["device"] != meta["device"]
        }
        for row in run["rows"]:
            key = (meta["device"], row["stage"], row["case"], row["floor"], row["peer"])
            newest[key] = {**row, "meta": meta}
    return list(newest.values())


def number(value: float) -> str:
    """Three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if value < 1 else 1 if value >= 10 else 2}f}"


def spread(value: Entry | None) -> str:
    """Median and quartiles."""
    if value is None:
        return "–"
    return f"{number(value['median'])} [{number(value['low'])}–{number(value['high'])}]"


def asked(row: Entry) -> str:
    """What the project promises of this row."""
    if row["required_extra_ms"] is not None:
        return f"+{row['required_extra_ms'] / 1e3:g} s"
    return "" if row["required"] is None else f"{row['required']:g}x"


def cells(row: Entry) -> list[str]:
    """case, floor, peer, ours, peer's, ratio, asked, distance from the floor."""
    head = [row["case"], row["floor"], row["peer"] or "–"]
    if not row["passed"]:
        return [*head, f"FAILED: {row['error']}", "", "", asked(row), ""]
    if row["extra_ms"] is not None:
        extra = row["extra_ms"]
        ratio = (
            f"{extra['median'] / 1e3:+.2f} s [{extra['low'] / 1e3:+.2f}–{extra['high'] / 1e3:+.2f}]"
        )
    elif row["ratio"] is not None:
        ratio = f"{number(row['ratio']['median'])}x"
        ratio += f" [{number(row['ratio']['low'])}–{number(row['ratio']['high'])}]"
    else:
        ratio = "–"
    if row["met"] is False:
        ratio += " (short)"
    distance = ""
    if row["distance"] is not None:
        distance = f"{number(row['distance'])} ({row['limited_by']})"
    return [*head, spread(row["ours_ms"]), spread(row["peer_ms"]), ratio, asked(row), distance]


def notes(rows: Iterable[Entry]) -> list[str]:
    """What holds each case back, said once."""
    said: dict[tuple[str, str], str] = {}
    for row in rows:
        if row["passed"] and row["note"]:
            away = f", {number(row['distance'])} times its limit" if row["distance"] else ""
            line = f"{row['case']} ({row['floor']}{away}): {row['note']}."
            said.setdefault((row["case"], row["floor"]), line)
    return list(said.values())


def won(row: Entry) -> bool:
    """Whether ours was right and the faster."""
    return bool(row["passed"]) and (row["ratio"] is None or row["ratio"]["median"] >= 1)


def table(rows: Sequence[Entry]) -> list[str]:
    """A table in Markdown; the limit is what memory or arithmetic allow (benchmarks/README.md)."""
    lines = ["| | runs on | beside | ours, ms | theirs, ms | faster | asked | × its limit |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    lines += ["| " + " | ".join(c.replace("|", "/") for c in cells(row)) + " |" for row in rows]
    return lines


def speed(rows: Sequence[Entry]) -> str:
    """One table for each device, CPUs first."""
    if not rows:
        return "No results yet: `python -m benchmarks --out benchmarks/results` makes them.\n"
    parts = []
    by_device: dict[tuple[str, str], list[Entry]] = {}
    for row in rows:
        by_device.setdefault((row["meta"]["kind"], row["meta"]["device"]), []).append(row)
    for (kind, device), group in sorted(by_device.items()):
        newest = max((row["meta"] for row in group), key=lambda meta: meta["date"])
        counts = sorted({row["meta"]["threads"] for row in group})
        threads = f", {' or '.join(map(str, counts))} threads, {newest['isa']}"
        threads = threads if kind == "cpu" else ""
        parts.append(f"**{device}**{threads}; {origin(group)}.\n")
        first: dict[tuple[str, str], Entry] = {}
        for row in group:
            first.setdefault((row["case"], row["floor"]), row)
        shown = [row for row in group if row in first.values() or asked(row) or not won(row)]
        parts += table(shown)
        others = [row for row in group if row not in shown]
        parts.append("\n<details><summary>Other peers, and what holds each case back</summary>\n")
        parts += [*(table(others) if others else ()), ""]
        parts += [*(f"- {note}" for note in notes(group)), "\n</details>\n"]
    return "\n".join(parts)


def headlines(rows: Sequence[Entry]) -> str:
    """What was asked of this project's speed, and what was measured: a line a case and device."""
    lines = ["| | beside | faster | asked | on |", "| --- | --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: str(row["meta"]["kind"])):
        if row["required"] is not None or row["required_extra_ms"] is not None:
            case, floor, peer, *_, ratio, wanted, _ = cells(row)
            where = row["meta"]["device"] + ("" if floor in ("cpu", "-") else f", {floor}")
            lines.append(f"| {case} | {peer} | {ratio} | {wanted} | {where} |")
    return "\n".join(lines) + "\n"


def origin(rows: Iterable[Entry]) -> str:
    """Files and commits that rows come from."""
    runs = {
        row["meta"]["file"]: (row["meta"]["commit"] or "unknown")[:9]
        + (" with changes" if row["meta"]["dirty"] else "")
        for row in rows
    }
    listed = [f"[{name}](results/{name}), commit {at}" for name, at in sorted(runs.items())]
    return "; ".join(listed)


BATCHED = "its torch operations tested in CI on a CPU; not yet run on a GPU"
"""What camera motion is on both floors of a GPU."""


def support(rows: Sequence[Entry]) -> str:
    """Operation by floor: where it is tested, and on which GPU it has run and passed."""
    from mme_targets.backends import FLOORS, OPERATIONS

    lines = ["| operation | " + " | ".join(FLOORS) + " |", "| --- |" + " --- |" * len(FLOORS)]
    for operation, offered in OPERATIONS.items():
        states = [state(operation, floor, rows) if floor in offered else "–" for floor in FLOORS]
        lines.append(f"| `{operation}` | " + " | ".join(states) + " |")
    return "\n".join(lines) + "\n"


def state(operation: str, floor: str, rows: Sequence[Entry]) -> str:
    """One cell: a GPU verifies an operation only if every row of it there passed."""
    if floor in ("reference", "cpu"):
        return UNVERIFIED[floor]
    runs: dict[str, list[Entry]] = {}
    for row in rows:
        if (row["operation"], row["floor"], row["meta"]["kind"]) == (operation, floor, "cuda"):
            runs.setdefault(row["meta"]["device"], []).append(row)
    verified = [
        f"verified on {device} ({(group[0]['meta']['commit'] or 'unknown')[:9]})"
        for device, group in sorted(runs.items())
        if all(row["passed"] for row in group)
    ]
    unverified = BATCHED if operation == "camera_motion" else UNVERIFIED[floor]
    return "; ".join(verified) or unverified


def fill(text: str, name: str, content: str) -> str:
    """`text` with what stands between <!-- name:begin --> and <!-- name:end --> replaced.

    Raises
    ------
    ValueError
        Unless both markers are there, once each.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page needs {begin} and {end}, once each")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has {end} before {begin}")
    return pattern.sub(lambda _: f"{begin}\n{content.rstrip()}\n{end}", text)


def accuracy(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines: mean end-point error on each pair, px."""
    scenes = list(entries[0]["error_px"])
    floors = {entry["floor"] for entry in entries} - {"–"}
    lines = []
    for entry in entries:
        where = f" ({entry['floor']})" if len(floors) > 1 and entry["floor"] != "–" else ""
        errors = [f"{entry['error_px'][scene]:.3f}".lstrip("0") for scene in scenes]
        lines.append([entry["of"] + where, *errors])
    return ["end-point error, px", *scenes], lines


def solver(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines: time per pixel-iteration of the whole solve, and the phases' shares."""
    shares = ("iterations", "warps", "medians")
    headings = ["one thread", "preset", "instructions", "ns per pixel-iteration", *shares]
    lines = [
        [e["of"], e["preset"], e["isa"], f"{e['ns']:.2f}", *(f"{100 * e[s]:.0f} %" for s in shares)]
        for e in entries
    ]
    return headings, lines


FACTS = {"accuracy": accuracy, "solver": solver}


def newest_facts(folder: Path, name: str) -> tuple[list[Entry], Entry] | None:
    """The rows of the newest full run that has any of this name, and that run's meta."""
    for run, file in reversed(full_runs(folder)):
        entries = run.get("facts", {}).get(name)
        if entries:
            return entries, {**run["meta"], "file": file}
    return None


def fact_table(folder: Path, name: str) -> str | None:
    """A table in Markdown with its origin; None where no run has it."""
    found = newest_facts(folder, name)
    if found is None:
        return None
    headings, lines = FACTS[name](found[0])
    table = [headings, ["---"] * len(headings), *lines]
    origin_line = f"{found[1]['device']}; {origin([{'meta': found[1]}])}."
    return "\n".join("| " + " | ".join(line) + " |" for line in table) + f"\n\n{origin_line}"


def render(text: str, folder: Path = RESULTS, sections: Sequence[str] = EVERY) -> str:
    """A page as it must be for the results in `folder`; facts that no run has stay as they are."""
    rows = load(folder)
    makers = {"headlines": headlines, "speed": speed, "support": support}
    for name in sections:
        made = makers[name](rows) if name in makers else fact_table(folder, name)
        if made is not None:
            text = fill(text, name, made)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the pages, or with --check say whether they are as they must be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    parser.add_argument("--readme", type=Path, help="one page with all tables, in place of both")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    stale = 0
    for page, sections in ({given.readme: EVERY} if given.readme else PAGES).items():
        before = page.read_text()
        after = render(before, given.results, sections)
        if before == after:
            continue
        stale = 1
        if given.check:
            print(f"{page} is out of date: run python -m benchmarks.readme", file=sys.stderr)
        else:
            page.write_text(after)
    return stale if given.check else 0


if __name__ == "__main__":
    sys.exit(main())
