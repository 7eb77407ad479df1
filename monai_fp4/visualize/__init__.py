"""Pictures of predictions: curves and overlays, as figures that TensorBoard and reports share.

`overlays` chooses the slices that are worth looking at and colours them; `figures` draws everything.
"""
