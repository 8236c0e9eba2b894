"""Running checkpoints and variants: quantized linears, loading, and the check that quantization is in
force.
"""

from core.runtime.check import Enforcement, enforcement
from core.runtime.device import pick_device, pick_dtype
from core.runtime.loading import load_model

__all__ = ["Enforcement", "enforcement", "load_model", "pick_device", "pick_dtype"]
