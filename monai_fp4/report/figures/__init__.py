"""The figures of a report. `style` holds colours, markers, order and captions, `picture` their files."""

from monai_fp4.report.figures.picture import Picture, save_picture
from monai_fp4.report.figures.style import GROUP, describe_cells, look, not_drawn

__all__ = ["GROUP", "Picture", "describe_cells", "look", "not_drawn", "save_picture"]
