"""The figures of a report. `style` holds colours, markers, order and captions; each other module one kind of figure."""

from monai_fp4.report.figures.style import GROUP, Picture, describe_cells, look, not_drawn, save_picture

__all__ = [
    "GROUP",
    "Picture",
    "describe_cells",
    "look",
    "not_drawn",
    "save_picture",
]
