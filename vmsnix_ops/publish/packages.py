"""What is inside a published image, for questions such as "which AMIs hold openssl older than 3.0.15"."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops.errors import NixError, ToolMissingError
from vmsnix_ops.nix.closure import closure

if TYPE_CHECKING:
    from vmsnix_ops.progress import Step
    from vmsnix_ops.publish.values import Built
    from vmsnix_ops.records.run_tables import RunTables


def record(tables: RunTables, built: Built, *, run_id: str, step: Step) -> int:
    """Write the packages of an image into the table ``packages``, and return how many.

    Safe to run twice: the packages of a digest are written once. A file that Nix did not build here has
    none to tell, and an image whose contents Nix cannot list is published all the same: the step says why.
    """
    if not built.derivation:
        return 0
    if len(tables.read_or_empty("packages", columns=["name"], where=[("digest", "==", built.digest)])):
        return 0
    try:
        inside = closure(built.store_path or str(built.path))
    except (NixError, ToolMissingError) as error:
        step.message(f"its packages are not recorded: {error.what} {error.why}")
        return 0
    facts = {
        "digest": built.digest,
        "image": built.name,
        "image_version": built.version or None,
        "system": built.system,
        "run_id": run_id,
        "recorded_at": datetime.now(UTC),
    }
    tables.append("packages", inside.assign(**facts), once=f"{built.digest}/packages")
    return len(inside)
