"""``python -m vmsnix_ops`` is ``vmsnix``."""

from __future__ import annotations

import sys

from vmsnix_ops.cli import main

sys.exit(main())
