from .errors import ConfigError as ConfigError
from .errors import DataError as DataError
from .errors import MonaiFP4Error as MonaiFP4Error
from .errors import NumericsError as NumericsError
from .networks import build_network as build_network
from .quantization import RECIPES as RECIPES
from .quantization import ConversionReport as ConversionReport
from .quantization import NVFP4Tensor as NVFP4Tensor
from .quantization import Recipe as Recipe
from .quantization import convert as convert
from .quantization import fake_quantize as fake_quantize
from .quantization import quantize as quantize

__version__: str
