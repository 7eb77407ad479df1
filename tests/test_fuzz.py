"""What reads other people's files takes them, or says one sentence; benchmarks/fuzz.py tries more of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from fuzzing import NAMES, Target, targets
from hypothesis import HealthCheck, given, settings

EXAMPLES = 12


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Target]:
    return targets(tmp_path_factory.mktemp("fuzz"))


def test_there_is_a_name_for_each(prepared: Mapping[str, Target]) -> None:
    assert tuple(prepared) == NAMES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_one_sentence_or_none(name: str, prepared: Mapping[str, Target]) -> None:
    target = prepared[name]
    assert not target.refuses(target.good)

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.inputs)
    def take(value: Any) -> None:
        target.refuses(value)

    take()
    assert not target.refuses(target.good)
