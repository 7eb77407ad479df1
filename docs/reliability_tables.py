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
        first, last = one["after_warm_up"], one["at_the_end"]
        memory = [f"{state['resident_bytes'] / 2**20:.0f}" for state in (first, last)]
        rows = [
            ["resident memory, MiB", *memory],
            ["open files", str(first["open_files"]), str(last["open_files"])],
            ["threads", str(first["threads"]), str(last["threads"])],
        ]
        count = one["trainings_and_evaluations"]
        after = f"after {count} trainings and evaluations"
        held = markdown(["In one process", "after warm-up", after], rows)
        machine = content["machine"]
        source = (
            f"`{protocol['bundle']}`, {content['seconds'] / 60:.0f} minutes on {machine['name']}; load average before"
            f" {content['load_average']['before']:.1f}. From `benchmarks/results/soak.json`, by"
            f" `python benchmarks/soak.py --minutes {protocol['minutes']:g}`."
        )
        return "\n\n".join((counted, held, source))

    return measured("soak", table)


def checkpoint_cost() -> str:
    """Time of a checkpoint with its checks, over one without."""

    def table(content: Mapping[str, Any]) -> str:
        header = ["Network", "Seconds", "only written", "not lost", "ratio"]
        rows = []
        for network, cell in content["cells"].items():
            for what, label in (("clock", "with the disk"), ("processor", "of processor time")):
                numbers = [cell[name][what] for name in ("only written", "not lost")]
                rows.append([f"`{network}`", label, *(f"{n:.4f}" for n in numbers), f"{numbers[1] / numbers[0]:.3f}"])
        load = content["run"]["load_average"]["before"]
        source = f"Least of {content['protocol']['repeats']} rounds; load average before {load:.1f}."
        origin = "From `benchmarks/results/checkpoint.json`, by `benchmarks/checkpoint.py`."
        return f"{markdown(header, rows)}\n\n{source} {origin}"

    return measured("checkpoint", table)


TABLES: dict[str, Callable[[], str]] = {"checkpoint_cost": checkpoint_cost, "soak": soak}
