"""Pictures of predictions and of layers, as figures that TensorBoard and reports share.

`overlays` chooses the slices that are worth looking at and colours them, `figures` draws predictions, `heat_maps` what
happens to layers.
"""

from monai_fp4.visualize.figures import (
    overlay_figure,
    pr_curve_figure,
    probabilities_figure,
    save_figure,
    to_array,
)
from monai_fp4.visualize.heat_maps import heat_map_figure
from monai_fp4.visualize.overlays import Overlay, Reason, SliceGallery, grey_slice
from monai_fp4.visualize.preview import fitted, mask_thumbnail, prediction_preview

__all__ = [
    "Overlay", "Reason", "SliceGallery", "fitted", "grey_slice", "heat_map_figure", "mask_thumbnail",
    "overlay_figure", "pr_curve_figure", "prediction_preview", "probabilities_figure", "save_figure", "to_array",
]  # fmt: skip
