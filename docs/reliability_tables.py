"""The figures of docs/reliability.md, from what benchmarks/soak.py and benchmarks/checkpoint.py measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from result_tables import markdown, measured


def soak() -> str:
    """What happened to runs, and what a process held after its trainings."""

    def table(content: Mapping[str, Any]) -> str:
        protocol, one = content["protocol"], content["one_process"]
        counted = markdown(
            ["In processes of their own", "Times"], ([n, str(v)] for n, v in content["processes"].items())
        )
        states = [one[when] for when in ("after_warm_up", "most", "at_the_end")]
        rows = [
            ["resident memory, MiB", *(f"{state['resident_bytes'] / 2**20:.0f}" for state in states)],
            *([name.replace("_", " "), *(str(s[name]) for s in states)] for name in ("open_files", "threads")),
        ]
        count = one["trainings_and_evaluations"]
        held = markdown(["In one process", "after warm-up", "most", f"after {count} trainings and evaluations"], rows)
        slope = one["bytes_a_training_in_the_second_half"] / 2**10
        trend = f"A line through the memory of the second half of them rises by {slope:.1f} KiB a training."
        machine = content["machine"]
        source = (
            f"`{protocol['bundle']}`, {content['seconds'] / 60:.0f} minutes on {machine['name']}; load average before"
            f" {content['load_average']['before']:.1f}. From `benchmarks/results/soak.json`, by"
            f" `python benchmarks/soak.py --minutes {protocol['minutes']:g}`."
        )
        return "\n\n".join((counted, held, trend, source))

    return measured("soak", table)


def checkpoint_cost() -> str:
    """Time of a step and of a checkpoint, over those of the commit before."""

    def table(content: Mapping[str, Any]) -> str:
        protocol = content["protocol"]
        header = ["Bundle", "", "Milliseconds", f"before ({protocol['before']})", "now", "ratio"]
        rows = []
        for bundle, cells in content["cells"].items():
            for what, cell in cells.items():
                for kind, label in (("processor", "of processor time"), ("clock", "by the clock")):
                    before, now = cell.get("before", {}).get(kind), cell["now"][kind]
                    compared = ("", "") if before is None else (f"{1000 * before:.2f}", f"{now / before:.3f}")
                    numbers = [compared[0], f"{1000 * now:.2f}", compared[1]]
                    rows.append([f"`{bundle}`", what, label, *numbers])
        load = content["run"]["load_average"]["before"]
        size = "x".join(map(str, protocol["image_size"]))
        source = (
            f"Batches of {protocol['batch_size']} at {size}; least of {protocol['rounds']} trainings of"
            f" {protocol['epochs']} epochs each, in turns; load average before {load:.1f}."
        )
        origin = "From `benchmarks/results/checkpoint.json`, by `benchmarks/checkpoint.py`."
        return f"{markdown(header, rows)}\n\n{source} {origin}"

    return measured("checkpoint", table)


def fuzz() -> str:
    """Inputs tried on each reader, and what became of them."""

    def table(content: Mapping[str, Any]) -> str:
        header = ["Read", "inputs", "taken", "refused", "longest, s", "most memory, MiB"]
        rows = [
            [
                name,
                *(str(count) for count in (found["taken"] + found["refused"], found["taken"], found["refused"])),
                f"{found['longest_seconds']:.2f}",
                f"{found['most_memory_mib']:.0f}",
            ]
            for name, found in content["inputs"].items()
        ]
        origin = "From `benchmarks/results/fuzz.json`, by `benchmarks/fuzz.py`; seconds are of processor time."
        return f"{markdown(header, rows)}\n\n{origin}"

    return measured("fuzz", table)


TABLES: dict[str, Callable[[], str]] = {"checkpoint_cost": checkpoint_cost, "fuzz": fuzz, "soak": soak}
