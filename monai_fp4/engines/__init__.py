"""What MONAI's SupervisedTrainer and SupervisedEvaluator do in one iteration, for BF16 and FP4.

Both engines are MONAI's own; a bundle gives them the steps of this package as ``iteration_update``. MONAI's step knows
mixed precision on CUDA only, and there with a GradScaler, whose loss scale would shift every gradient before it is
quantized. BF16 has the range of FP32 and needs no scaler.

Where to read on:

* `network`: build, seed and convert, in the order that lets recipes be compared;
* `training` and `evaluation`: the steps;
* `nonfinite`: which layer a NaN came from;
* `memory_format`: channels last, for weights, images and gradients.
"""

from monai_fp4.engines.evaluation import EvaluationStep
from monai_fp4.engines.memory_format import channels_last, lay_out, match_layouts
from monai_fp4.engines.network import (
    autocast,
    bare,
    build_and_seed,
    compute_dtype,
    network_of_run,
    prepare_network,
    seed_everything,
)
from monai_fp4.engines.nonfinite import first_nonfinite_layer
from monai_fp4.engines.training import TrainingStep, fuse_adam

__all__ = [
    "EvaluationStep",
    "TrainingStep",
    "autocast",
    "bare",
    "build_and_seed",
    "channels_last",
    "compute_dtype",
    "first_nonfinite_layer",
    "fuse_adam",
    "lay_out",
    "match_layouts",
    "network_of_run",
    "prepare_network",
    "seed_everything",
]
