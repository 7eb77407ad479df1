"""Ignite handlers that stand beside MONAI's own in a bundle's `handlers` list."""

from monai_fp4.handlers.auprc import AUPRC
from monai_fp4.handlers.input_wait import InputWait
from monai_fp4.handlers.progress import Progress
from monai_fp4.handlers.tensorboard import TensorBoard, TensorBoardValidation

__all__ = ["AUPRC", "InputWait", "Progress", "TensorBoard", "TensorBoardValidation"]
