"""``python -m vmsnix_ops.sandbox``: serve in the foreground, without the rest of the package."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vmsnix_ops.sandbox.serve import serve


def main() -> int:
    """Serve until a signal, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vmsnix_ops.sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 chooses a free one")
    parser.add_argument("--speed", type=float, default=1.0, help="sandbox seconds per real second")
    parser.add_argument(
        "--state", type=Path, default=None, help="folder that keeps the state across restarts"
    )
    parser.add_argument("--limits", choices=["aws"], default=None, help="limit requests as AWS does")
    parser.add_argument(
        "--prepare", metavar="BUCKET", default=None, help="create this bucket and the vmimport role"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of export lines")
    options = parser.parse_args()
    try:
        serve(
            options.port,
            options.speed,
            options.state,
            as_json=options.json,
            prepare=options.prepare,
            limits=options.limits,
        )
    except OSError as error:
        if options.json:
            sys.stdout.write(json.dumps({"error": error.strerror or str(error)}) + "\n")
        sys.stderr.write(f"{error.strerror or error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
