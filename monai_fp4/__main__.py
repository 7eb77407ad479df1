"""``python -m monai_fp4`` is ``monai-fp4``."""

import sys

from monai_fp4.cli import main

sys.exit(main())
