from __future__ import annotations

import io
import re

from monai_fp4.study.layout import Cell
from monai_fp4.study.progress import SHOWN, State, SweepProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


CELLS = [Cell("unet", "500k", "sr", 0, seed) for seed in range(SHOWN + 3)]


def test_without_a_terminal_a_line_is_written_when_something_ends_or_time_has_passed() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = SweepProgress(stream, every=60.0, clock=lambda: now[0])
    state = State(4, 1, 0, {CELLS[0]: 0.5}, 90.0)
    progress.show(state)
    assert stream.getvalue() == ""
    now[0] = 61.0
    progress.show(state)
    assert stream.getvalue() == "1 of 4 cells done, 1 running, 1 min 30 s left\n"
    progress.show(state)
    assert stream.getvalue().count("\n") == 1
    for now[0] in range(70, 4000, 5):
        progress.show(state)
    assert stream.getvalue().count("\n") == 1 + 3 + 5  # after 3, 7 and 15 minutes, and then every ten
    progress.ended(CELLS[0], {"status": "done", "error": "", "seconds": 75.0}, 0.81234, State(4, 2, 0, {}, 5.0))
    progress.ended(CELLS[1], {"status": "failed", "error": "no [luck]"}, None, State(4, 2, 1, {}, None))
    progress.close()
    assert stream.getvalue().splitlines()[9:] == [
        "done unet_500k/sr/fold0_seed0 AUPRC 0.8123 in 1 min 15 s; 2 of 4 cells done, 0 running, 5 s left",
        "failed unet_500k/sr/fold0_seed1 (no [luck]); 2 of 4 cells done, 0 running, 1 failed, time left not known yet",
    ]
    assert "\r" not in stream.getvalue()


def test_no_second_is_left_only_where_nothing_runs() -> None:
    assert State(18, 17, 0, {CELLS[0]: 1.0}, 0.0).words() == "17 of 18 cells done, 1 running, the last steps are left"
    assert State(18, 18, 0, {}, 0.0).words() == "18 of 18 cells done, 0 running, 0 s left"


def test_in_a_terminal_every_running_cell_has_a_bar() -> None:
    stream = Terminal()
    progress = SweepProgress(stream)
    try:
        progress.show(State(20, 3, 1, dict.fromkeys(CELLS, 0.25), 90.0))
        assert progress._bars is not None
        shown = {task.description: task.percentage for task in progress._bars.tasks}
        assert len(shown) == 1 + SHOWN and shown[CELLS[0].id] == 25.0
        assert shown["cells"] == 100 * (3 + 1 + 0.25 * len(CELLS)) / 20
        progress.show(State(20, 4, 1, {CELLS[1]: 0.5}, None))
        assert [task.description for task in progress._bars.tasks] == ["cells", CELLS[1].id]
        progress.ended(CELLS[0], {"status": "failed", "error": "no [luck]"}, None, State(20, 4, 2, {}, None))
    finally:
        progress.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "failed unet_500k/sr/fold0_seed0 (no [luck])" in plain.replace("\n", " ")
