"""The figures of a report. `style` holds colours, markers, order and captions; each other module one kind of figure."""

from monai_fp4.report.figures.style import Picture, describe_cells

__all__ = [
    "Picture",
    "describe_cells",
]
