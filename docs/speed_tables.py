"""The tables of measured speed, written from the JSON files that `make bench` leaves in benchmarks/results/.

Every table ends with the machine, the commit and the load average before the first measurement. A load above 1 means
that other processes were at work, and the line says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from result_tables import markdown, measured

ROWS = ("nearest", "2D", "SR", "RHT", "RHT + SR")


def source(content: Mapping[str, Any], name: str) -> str:
    """Where a table comes from."""
    machine, run = content["machine"], content.get("run", {})
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    commit = f", code {machine['commit']}" if machine.get("commit") else ""
    text = f"{machine['name']}{cores}, {machine['threads']} threads used, torch {machine['torch']}{commit}"
    text = text.replace(" 1 threads", " 1 thread")
    load = (run.get("load_average") or {}).get("before")
    if load is None:
        text += "; the load of the machine was not recorded"
    else:
        text += f"; load average before {load:.1f}"
        text += ", so other processes disturbed this run" if load > 1 else ""
    date = f" on {run['date'][:10]}" if "date" in run else ""
    return f"{text}. From `benchmarks/results/{name}.json`, by `make bench`{date}."


def quantize() -> str:
    """Milliseconds of quantize-and-decode, ours and everybody's."""

    def table(content: Mapping[str, Any]) -> str:
        results = content["results"]
        ours = results["ours, rows, nearest"]["ms"]
        rows = []
        for name, entry in results.items():
            if name.startswith("plain torch") and not name.endswith("nearest"):
                continue
            label = f"{name} {entry['version']}" if "version" in entry else name
            if "ms" in entry:
                numbers = [f"{entry['ms']:.1f}", f"{entry['gb_per_s']:.2f}", f"{entry['times_clone']:.1f}"]
                rows.append([label, *numbers, f"{entry['ms'] / ours:.1f}"])
            else:
                rows.append([label, entry["absent"], "", "", ""])
        shape = " x ".join(map(str, content["protocol"]["shape"]))
        header = [f"{shape}, FP32", "ms", "GB/s", "times `x.clone()`", "times ours, rows, nearest"]
        return markdown(header, rows) + "\n\nLeast processor time of the repeats. " + source(content, "quantize")

    return measured("quantize", table)


def training_step() -> str:
    """The time of a training step of every recipe, over that of BF16."""

    def table(content: Mapping[str, Any]) -> str:
        protocol = content["protocol"]
        ratios: dict[str, dict[str, str]] = {}
        for cell in content["cells"]:
            arch = "_".join(cell["bundle"].split("_")[:2])
            ratios.setdefault(cell["recipe"], {})[arch] = f"{cell['ratio']:.2f}"
        columns = list(dict.fromkeys(arch for row in ratios.values() for arch in row))
        rows = []
        for recipe, row in ratios.items():
            name, _, how = recipe.partition(", ")
            label = f"`{name}`" + (f", {how}" if how else "")
            rows.append([label, *(row.get(arch, "") for arch in columns)])
        size = " x ".join(map(str, protocol["image_size"]))
        text = (
            f"Median over {protocol['steps']} rounds of the ratio to BF16 within the round, batch "
            f"{protocol['batch_size']} at {size}, BF16 autocast, on {protocol['device']}. "
        )
        return (
            markdown(["Recipe", *(f"`{arch}`" for arch in columns)], rows)
            + "\n\n"
            + text
            + source(content, "training_step")
        )

    return measured("training_step", table)


def training_step_range() -> str:
    """The quickest and the slowest recipe of the table, in one sentence."""

    def sentence(content: Mapping[str, Any]) -> str:
        ratios = [cell["ratio"] for cell in content["cells"] if cell["recipe"] != "bf16" and "," not in cell["recipe"]]
        return (
            f"On a CPU a training step takes {min(ratios):.2f} to {max(ratios):.2f} times as long as in BF16 "
            "([every recipe](docs/results.md#a-training-step-under-each-recipe)), and several times as long without a "
            "C++ compiler and the AVX512-BF16 instructions."
        )

    return measured("training_step", sentence)


def compiled_step() -> str:
    """A step through `torch.compile` beside eager mode and BF16."""

    def table(content: Mapping[str, Any]) -> str:
        protocol = content["protocol"]
        keys = ("compiled_over_eager", "eager_over_bf16", "compiled_over_compiled_bf16")
        rows = [
            [f"`{cell['network']}`", f"`{cell['recipe']}`", *(f"{cell[key]:.2f}" for key in keys)]
            for cell in content["cells"]
        ]
        header = ["Network", "Recipe", "compiled / eager", "eager / eager BF16", "compiled / compiled BF16"]
        size = " x ".join(map(str, protocol["image_size"]))
        text = (
            f"One training step, the network as one graph by inductor (`torch.compile`, `fullgraph=True`); medians over"
            f" {protocol['steps']} rounds of the ratio within the round, batch {protocol['batch_size']} at {size}, BF16"
            f" autocast, on {protocol['device']}. "
        )
        return markdown(header, rows) + "\n\n" + text + source(content, "compiled_step")

    return measured("compiled_step", table)


def paper_epoch() -> str:
    """An epoch of the paper's Swin: ours in BF16 beside plain torch, FP4 beside BF16."""

    def table(content: Mapping[str, Any]) -> str:
        rows = []
        for cell in content["cells"]:
            beside = "" if cell["ratio"] is None else f"{cell['ratio']:.2f} of {cell['beside']}"
            rows.append([cell["name"], f"{statistics.median(cell['seconds']):.2f}", beside])
        protocol = content["protocol"]
        text = (
            f"`paper_swin_{protocol['scale']}`, {protocol['batches']} batches of {protocol['batch_size']} at "
            f"{protocol['image_size']} x {protocol['image_size']}; median of {protocol['rounds']} rounds, and of the "
            "ratios within a round. "
        )
        return markdown(["", "Seconds an epoch", "Ratio"], rows) + "\n\n" + text + source(content, "paper_epoch")

    return measured("paper_epoch", table)


def predict() -> str:
    """Seconds a study, ours and MONAI's, and the memory that a large volume takes."""

    def table(content: Mapping[str, Any]) -> str:
        protocol, predicted = content["protocol"], content["predict"]
        ours = predicted["ours"]["seconds"]
        rows = [[name, f"{row['seconds']:.2f}", f"{row['seconds'] / ours:.2f}"] for name, row in predicted.items()]
        study, shown = (" x ".join(map(str, protocol[name])) for name in ("shape", "image_size"))
        text = (
            f"A study of {study}, slice by slice at {shown} by `{protocol['arch']}_{protocol['scale']}`, median of "
            f"{protocol['repeats']} rounds. "
        )
        if peak := content.get("peak"):
            volume = " x ".join(map(str, peak["shape"]))
            text += (
                f"A volume of {volume} takes {peak['bytes_peak'] / 2**30:.1f} GiB at its peak, of which "
                f"{peak['bytes_network'] / 2**30:.1f} GiB are there before it is read. "
            )
        return markdown(["", "Seconds a study", "Times ours"], rows) + "\n\n" + text + source(content, "predict")

    return measured("predict", table)


def networks() -> str:
    """Images a second of our networks in BF16, and of MONAI's."""

    def table(content: Mapping[str, Any]) -> str:
        names = {
            "stock_bf16": "MONAI's code, BF16",
            "stock_fp32": "MONAI's code, FP32",
            "monai_bf16": "MONAI's own network, BF16",
        }
        cells: dict[str, dict[str, Mapping[str, Any]]] = {}
        for cell in content["cells"]:
            cells.setdefault(f"{cell['arch']}_{cell['scale']}", {})[cell["contestant"]] = cell
        rows = []
        for bundle, row in cells.items():
            other = [
                f"{row[key]['images_per_second']:.2f} (x {row[key]['speed_of_ours']:.2f})" if key in row else ""
                for key in names
            ]
            rows.append([f"`{bundle}_bf16`", f"{row['ours']['images_per_second']:.2f}", *other])
        protocol = content["protocol"]
        size = " x ".join(map(str, protocol["image_size"]))
        text = (
            f"Images a second of a training step, batch {protocol['batch_size']} at {size}; in brackets how many times "
            "as fast ours is, the median of the ratios within a round. "
        )
        return markdown(["Network", "Ours", *names.values()], rows) + "\n\n" + text + source(content, "networks")

    return measured("networks", table)


def auprc() -> str:
    """Seconds of AUPRC, ours and everybody's."""

    def table(content: Mapping[str, Any]) -> str:
        rows = []
        for name, row in content["comparison"]["peers"].items():
            if "seconds" in row:
                numbers = [f"{row['seconds']:.3f}", f"{row['ratio_to_compute_auprc']:.1f}", f"{row['error']:.0e}"]
                rows.append([name, *numbers])
            else:
                rows.append([name, row["absent"], "", ""])
        text = f"{content['comparison']['pixels']:,} pixels, best of the repeats. "
        if "stream" in content:
            stream = content["stream"]
            text += (
                f"{stream['pixels']:,} pixels streamed in pieces of {stream['piece']:,} took "
                f"{stream['seconds']:.0f} s, and the memory of the process grew by "
                f"{stream['peak_growth_bytes'] / 2**20:.0f} MiB, of which "
                f"{stream['peak_growth_bytes_after_a_tenth'] / 2**20:.0f} MiB in the first tenth. "
            )
        header = ["AUPRC", "Seconds", "Times `compute_auprc`", "Off scikit-learn's by"]
        return markdown(header, rows) + "\n\n" + text + source(content, "auprc")

    return measured("auprc", table)


def input_wait() -> str:
    """The share of an epoch that training waits for its batches."""

    def table(content: Mapping[str, Any]) -> str:
        rates, protocol = content["slices_per_second"], content["protocol"]
        rows = [
            [
                f"`{row['arch']}`",
                *(f"{100 * row[name]['input_wait']:.1f} %" for name in ("BackgroundLoader", "DataLoader")),
            ]
            for row in content["training"]
        ]
        ours, monai = rates["whole batches"], rates["one by one, MONAI's calls"]
        text = (
            f"Share of the last of {protocol['epochs']} epochs, {protocol['scale']}, data `{protocol['manifest']}`. "
            f"Augmentation alone: {ours:.0f} slices a second in whole batches, {monai:.0f} by MONAI's calls for each. "
        )
        header = ["Network", "Ours", "A plain `DataLoader`"]
        return markdown(header, rows) + "\n\n" + text + source(content, "input")

    return measured("input", table)


def reading() -> str:
    """What it costs to read the patients before the first epoch."""

    def table(content: Mapping[str, Any]) -> str:
        names = {"ours": "Ours, hashes checked", "MONAI": "`CacheDataset` of MONAI's transforms"}
        rows = []
        for key, name in names.items():
            row = content["reading"][key]
            figures = [row["seconds_a_patient"], min(row["rounds"]), max(row["rounds"])]
            rows.append([name, *(f"{1000 * figure:.0f}" for figure in figures)])
        protocol = content["protocol"]
        size = " x ".join(map(str, protocol["image_size"]))
        text = (
            f"Milliseconds of processor time a patient, over {protocol['repeats']} rounds in turn: "
            f"{content['patients']} patients of `{protocol['manifest']}`, to {size}. "
        )
        header = ["Reading", "Median", "Least", "Most"]
        return markdown(header, rows) + "\n\n" + text + source(content, "reading")

    return measured("reading", table)


def evaluation() -> str:
    """What a validation of pictures costs."""

    def table(content: Mapping[str, Any]) -> str:
        rows = [[f"`{name}`", *(f"{row[key]:.2f}" for key in columns)] for name, row in content["evaluation"].items()]
        protocol = content["protocol"]
        size, own = (" x ".join(map(str, protocol[name])) for name in ("image_size", "own_size"))
        text = (
            f"Seconds of one core for {protocol['pictures']} pictures of {own}, seen at {size}; medians of "
            f"{protocol['rounds']} rounds in turn. "
        )
        return markdown(["Network", *columns.values()], rows) + "\n\n" + text + source(content, "evaluation")

    columns = {
        "forward_in_training_batches": "Forward pass, training batches",
        "passes_one_at_a_time": "Evaluation's passes, one at a time",
        "passes_together": "The same, together",
        "validation": "With exact AUPRC and threshold",
    }
    return measured("evaluation", table)


def cuda_kernels() -> str:
    """The Triton kernels on a GPU."""

    def table(content: Mapping[str, Any]) -> str:
        rows = [
            [cell["case"], cell["input"], f"{1e6 * cell['seconds']:.0f}", f"{100 * cell['share']:.0f} %"]
            for cell in content["quantizers"]
            if "share" in cell
        ]
        header = ["Quantizer", "Input", "Microseconds", "Of a copy's bandwidth"]
        return (
            markdown(header, rows)
            + "\n\n"
            + source({**content, "machine": {"threads": 1, **content["machine"]}}, "cuda/cuda_kernels")
        )

    return measured("cuda/cuda_kernels", table)


def conversion() -> str:
    """What `convert` does to each network of other packages."""

    def table(content: Mapping[str, Any]) -> str:
        rows = []
        for cell in content["cells"]:
            uses = ", ".join(f"{number} {use}" for use, number in cell["uses"].items())
            trains, traced = ({True: "yes", False: "no"}[cell[key]] for key in ("trains", "traced"))
            said = [trains, cell["compiled"], cell["exported"], traced]
            rows.append(
                [cell["family"], cell["network"], uses, f"{cell['share']:.1%}", *said, f"{cell['snr_db']:.0f} dB"]
            )
        header = ["", "network", "swapped layers", "share", "trains", "compiles", "exports", "traced", "SNR"]
        return markdown(header, rows) + "\n\n" + _converted_from(content)

    return measured("conversion", table)


def conversion_summary() -> str:
    """The same, by family."""

    def table(content: Mapping[str, Any]) -> str:
        families: dict[str, list[Mapping[str, Any]]] = {}
        for cell in content["cells"]:
            families.setdefault(cell["family"], []).append(cell)
        rows = []
        for family, cells in families.items():
            pairs = [(cell["layers"], cell["uses"]["ran in FP4"]) for cell in cells]
            swapped, ran = (sum(counts) for counts in zip(*pairs, strict=True))
            kinds = ("trains", "compiled", "exported", "traced")
            counts = [f"{sum(cell[key] in (True, 'yes') for cell in cells)} of {len(cells)}" for key in kinds]
            shares, snrs = ([cell[key] for cell in cells] for key in ("share", "snr_db"))
            span = f"{min(shares):.1%} to {max(shares):.1%}"
            rows.append([family, f"{ran} of {swapped}", span, *counts, f"{min(snrs):.0f} to {max(snrs):.0f} dB"])
        header = [
            "networks of",
            "swapped layers that ran in FP4",
            "share",
            "train",
            "compile",
            "export",
            "traced",
            "SNR",
        ]
        return markdown(header, rows) + "\n\n" + _converted_from(content)

    return measured("conversion", table)


def _converted_from(content: Mapping[str, Any]) -> str:
    peers = ", ".join(f"{name} {version}" for name, version in content["peers"].items() if version != "not installed")
    absent = f" Not installed: {'; '.join(content['absent'])}." if content["absent"] else ""
    protocol = content["protocol"]
    return (
        f"Recipe `{protocol['recipe']}`, random weights, FP32. Share: of a network's parameters, in layers that ran in"
        f" FP4; trains: gradients are finite and the loss falls in {protocol['steps']} steps; compiles, exports:"
        " `torch.compile(fullgraph=True)`, `torch.export.export(strict=True)` give one graph with the same bits ('nor"
        " before': they do not of the network before it is converted either); traced: by `torch.jit.trace`; SNR: of the"
        f" output against the network in FP32. {peers}.{absent} Code {content['machine']['commit']}. From"
        " `benchmarks/results/conversion.json`, by `benchmarks/conversion.py`."
    )


TABLES: dict[str, Callable[[], str]] = {
    "auprc": auprc,
    "compiled_step": compiled_step,
    "conversion": conversion,
    "conversion_summary": conversion_summary,
    "cuda_kernels": cuda_kernels,
    "input_wait": input_wait,
    "paper_epoch": paper_epoch,
    "predict": predict,
    "quantize": quantize,
    "reading": reading,
    "evaluation": evaluation,
    "speed_of_networks": networks,
    "training_step": training_step,
    "training_step_range": training_step_range,
}
