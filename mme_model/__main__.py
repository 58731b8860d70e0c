"""``python -m mme_model``, for `torchrun -m` and `accelerate launch -m`."""

import sys

from .cli import main

sys.exit(main())
