"""Monitor what four bits lose while a network trains: the health of quantized operands, the entropy of attention."""

from monai_fp4.quantization.monitor.entropy import AttentionEntropy, attention_entropy
from monai_fp4.quantization.monitor.health import OperandHealth, quantization_health

__all__ = ["AttentionEntropy", "OperandHealth", "attention_entropy", "quantization_health"]
