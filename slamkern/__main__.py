"""``python -m slamkern``, which is also how ``accelerate launch -m slamkern`` and ``torchrun -m slamkern`` start it."""

import sys

from slamkern.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
