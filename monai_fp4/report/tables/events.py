"""What a run left in TensorBoard and nowhere else: curves, histograms and the health of its quantized layers.

An event file is a row of records: the length as 8 bytes, its checksum as 4, the record, and 4 bytes of checksum.
TensorBoard's own reader computes both checksums in Python, a second for a run with pictures; here the records are cut
out by their lengths, which a study of a thousand runs can afford. A file that was cut off within a record, as a killed
run leaves it, is read up to there.

Tags are those of `monai_fp4.handlers.tensorboard`. A resumed run writes a second file that may repeat steps: the files
are read in the order of their names, which begin with the time, and the last value of a step counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.util import tensor_util

__all__ = ["RunEvents", "read_events"]

_LENGTH, _CHECKSUM = struct.Struct("<Q"), 4
_HEALTH, _ATTENTION, _CURVE, _PROBABILITIES = "quantization/", "attention/", "val/pr_curve", "val/probabilities"


@dataclass
class RunEvents:
    """What was found.

    Attributes:
        curves: epoch -> counts `[tp, fp, tn, fn]` x thresholds, equally spaced over [0, 1].
        probability_sums: epoch -> number of predicted probabilities and their sum.
        health: (step, measure, layer, operand) -> value.
        attention: (epoch, measure, layer) -> value, of networks with attention (tags `attention/<measure>/<layer>`).
        steps_per_epoch: training steps of an epoch, if an epoch was finished.
        problems: a sentence for each file that could not be read to its end.
    """

    curves: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    probability_sums: dict[int, tuple[float, float]] = field(default_factory=dict)
    health: dict[tuple[int, str, str, str], float] = field(default_factory=dict)
    attention: dict[tuple[int, str, str], float] = field(default_factory=dict)
    steps_per_epoch: int | None = None
    problems: list[str] = field(default_factory=list)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, that a training step from 1 lies in; the step itself where epochs are unknown."""
        return (step - 1) // self.steps_per_epoch + 1 if self.steps_per_epoch else step


def read_events(folder: Path) -> RunEvents:
    """Read every event file of a run folder.

    Args:
        folder: of the run; one without event files gives nothing, and no problem.
    """
    found = RunEvents()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        step = 0
        try:
            for record in _records(path, found):
                event = Event.FromString(record)
                for value in event.summary.value:
                    if value.tag == "train/loss":
                        step = event.step
                    elif value.tag == "train/epoch_loss" and event.step:
                        found.steps_per_epoch = max(1, step // event.step)
                    else:
                        _take(found, event.step, value)
        except (OSError, DecodeError, ValueError, TypeError) as error:
            found.problems.append(f"{path.name} was not read to its end ({error}); what came before is used")
    return found


def _records(path: Path, found: RunEvents) -> Iterator[bytes]:
    data = memoryview(path.read_bytes())
    at, header = 0, _LENGTH.size + _CHECKSUM
    while at < len(data):
        length = _LENGTH.unpack_from(data, at)[0] if at + header <= len(data) else len(data)
        end = at + header + length + _CHECKSUM
        if end > len(data):
            found.problems.append(f"{path.name} ends within a record; what came before is used")
            return
        yield bytes(data[at + header : end - _CHECKSUM])
        at = end


def _take(found: RunEvents, step: int, value: Summary.Value) -> None:
    tag = value.tag
    if tag == _CURVE:
        rows: NDArray[Any] = tensor_util.make_ndarray(value.tensor)
        if rows.ndim != 2 or rows.shape[0] < 4:
            raise ValueError(f"{tag} has the shape {rows.shape}")
        found.curves[step] = rows[:4].astype(np.float64)
    elif tag == _PROBABILITIES:
        found.probability_sums[step] = (value.histo.num, value.histo.sum)
    elif tag.startswith(_HEALTH) and tag.count("/") >= 3:
        _, measure, rest = tag.split("/", 2)
        layer, operand = rest.rsplit("/", 1)
        found.health[step, measure, layer, operand] = value.simple_value
    elif tag.startswith(_ATTENTION) and tag.count("/") >= 2:
        _, measure, layer = tag.split("/", 2)
        found.attention[step, measure, layer] = value.simple_value
