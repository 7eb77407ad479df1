"""Iterations of MONAI's SupervisedTrainer and SupervisedEvaluator, for BF16 and FP4.

Both engines are MONAI's own; a bundle gives them the steps of this package as ``iteration_update``. MONAI's step knows
mixed precision on CUDA only, and there with a GradScaler, whose loss scale would shift every gradient before it is
quantized. BF16 has the range of FP32 and needs no scaler.

Where to read on:

* `network`: build, seed and convert, in the order that lets recipes be compared;
* `warm_start`: begin from weights that there are;
* `training` and `evaluation`: the steps;
* `nonfinite`: which layer a NaN came from;
* `failure`: what is called when an engine fails.
"""

from monai_fp4.engines.evaluation import EvaluationStep, mirrored, segment_pieces
from monai_fp4.engines.failure import on_failure
from monai_fp4.engines.network import (
    autocast,
    autocast_dtype,
    build_and_seed,
    prepare_network,
    seed_everything,
    synchronize_batch_norm,
    unwrap_ddp,
)
from monai_fp4.engines.nonfinite import first_nonfinite_layer, nonfinite_tensors, what_is_kept
from monai_fp4.engines.training import TrainingStep, fuse_adam

__all__ = [
    "EvaluationStep", "TrainingStep", "autocast", "autocast_dtype", "build_and_seed", "first_nonfinite_layer",
    "fuse_adam", "mirrored", "nonfinite_tensors", "on_failure", "prepare_network", "seed_everything",
    "segment_pieces", "synchronize_batch_norm", "unwrap_ddp", "what_is_kept",
]  # fmt: skip
