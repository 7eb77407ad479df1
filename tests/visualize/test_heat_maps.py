"""Heat maps of layers by epoch."""

from __future__ import annotations

import numpy as np

from monai_fp4.visualize import heat_map_figure, to_array


def test_colours_are_the_numbers_and_the_title_names_the_lowest() -> None:
    tables = {"input": np.array([[20.0, 19.0], [18.0, np.nan]]), "weight": np.array([[21.0, 12.0], [22.0, 30.0]])}
    figure = heat_map_figure(tables, rows=["a", "b"], epochs=[1, 4], label="dB", limits=(10, 22))
    drawn = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes if axes.images}
    for name, table in tables.items():
        assert np.array_equal(np.ma.filled(drawn[name], np.nan), table, equal_nan=True)
    assert figure.get_suptitle() == "lowest at epoch 4: a, weight, 12"
    assert {axes.images[0].get_clim() for axes in figure.axes if axes.images} == {(10, 22)}, "one scale for all"
    assert to_array(figure).shape[2] == 3


def test_one_value_and_none_in_the_last_epoch_are_drawn() -> None:
    figure = heat_map_figure({"x": np.array([[3.0, np.nan]])}, rows=["a"], epochs=[1, 2], label="dB", limits=(0, 1))
    assert figure.get_suptitle() == "" and to_array(figure).size
