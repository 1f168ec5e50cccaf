"""What the runner keeps secrets out with: `vmsnix_ops.redaction`, which tables, results and tags use, too."""

from __future__ import annotations

from vmsnix_ops.redaction import LineRedactor, Redactor, find_secret, secret_values

__all__ = ["LineRedactor", "Redactor", "find_secret", "secret_values"]
