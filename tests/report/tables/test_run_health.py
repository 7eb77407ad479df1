"""``health.json`` as rows: what it holds, and what it may hold instead."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from monai_fp4.errors import ConfigError
from monai_fp4.report.tables import read_health

LAYER = {
    "input": {"snr_db": 19.5, "underflow": 0.1, "clipped": 0.0},
    "weight": {"snr_db": None, "underflow": 0, "clipped": 1},
}
SCORES = {"positives": [0, 1], "negatives": [5, 0], "mean_probability": 0.25}
ENTRY: dict[str, Any] = {"epoch": 1, "layers": {"a.b": LAYER}, "attention": {"c": {"entropy_share": 0.5}}}


def write(path: Path, *entries: Any) -> Path:
    (path / "health.json").write_text(json.dumps({"epochs": list(entries)}))
    return path / "health.json"


def test_every_number_is_there(tmp_path: Path) -> None:
    path = write(tmp_path, ENTRY | {"scores": SCORES}, {"epoch": 2, "layers": {}})
    found = read_health(path, 1)
    first, second = found["health"]
    assert first == {"epoch": 1, "layer": "a.b", "operand": "input", "snr_db": 19.5, "underflow": 0.1, "clipped": 0.0}
    assert math.isnan(second["snr_db"]) and second["clipped"] == 1
    assert found["attention"] == [{"epoch": 1, "layer": "c", "measure": "entropy_share", "value": 0.5}]
    assert found["scores"] == [
        {"bin": 0.0, "width": 0.5, "positives": 0.0, "negatives": 5.0},
        {"bin": 0.5, "width": 0.5, "positives": 1.0, "negatives": 0.0},
    ]
    assert found["mean_probability"] == 0.25
    other = read_health(path, 2)
    assert other["scores"] == [] and math.isnan(other["mean_probability"])


@pytest.mark.parametrize(
    "entry",
    [
        {}, 5, None, "x", {"epoch": "one", "layers": {}}, {"epoch": 1}, {"epoch": 1, "layers": []},
        {"epoch": 1, "layers": {"a": {"input": 3}}}, {"epoch": 1, "layers": {"a": {"input": {"snr_db": "high"}}}},
        {"epoch": 1, "layers": {}, "attention": {"a": [1]}}, {"epoch": 1, "layers": {}, "scores": {}},
        {"epoch": 1, "layers": {}, "scores": SCORES | {"negatives": [1]}},
        {"epoch": 1, "layers": {}, "scores": SCORES | {"negatives": ["many", 0]}},
        {"epoch": math.inf, "layers": {}},
    ],
)  # fmt: skip
def test_something_else_is_refused_in_a_sentence(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(ConfigError, match=r"health\.json must hold what a run measured .* remove it$"):
        read_health(write(tmp_path, entry), 1)


def test_an_integer_that_no_float_holds_is_refused_by_its_digits(tmp_path: Path) -> None:
    entry = {"epoch": 1, "layers": {}, "scores": SCORES | {"mean_probability": 10**400}}
    with pytest.raises(ConfigError, match=r"health\.json must hold JSON, .* has 401 digits, .* remove it$"):
        read_health(write(tmp_path, entry), 1)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"epochs": null}'])
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "health.json").write_text(content)
    with pytest.raises(ConfigError, match=r"health\.json must hold"):
        read_health(tmp_path / "health.json", 1)
