"""What snapshots cost."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from vmsnix_ops.audit.inventory import DEFAULT, OBJECT_USD, monthly_usd, total_usd
from vmsnix_ops.disk.image import GIB
from vmsnix_ops.errors import SettingsError
from vmsnix_ops.settings import load


def frame(*rows: tuple[str, str, int | None, int | None, str | None]) -> pd.DataFrame:
    columns = ["kind", "region", "stored_bytes", "size_gib", "tier"]
    made = pd.DataFrame(rows, columns=columns).astype({"stored_bytes": "Int64", "size_gib": "Int64"})
    return made.assign(state="completed")


def test_a_failed_snapshot_costs_nothing_and_a_pending_one_its_volume() -> None:
    rows = frame(*[("snapshot", "us-east-1", None, 100, "standard")] * 2).assign(state=["error", "pending"])
    assert list(monthly_usd(rows, {})) == pytest.approx([0, 100 * DEFAULT[0]])


def test_cost_follows_stored_bytes_instead_of_volume_size() -> None:
    rows = frame(("snapshot", "us-east-1", 2 * GIB, 100, "standard"))
    assert monthly_usd(rows, {})[0] == pytest.approx(2 * DEFAULT[0])


def test_cost_follows_volume_size_if_stored_bytes_are_unknown() -> None:
    rows = frame(("snapshot", "us-east-1", None, 100, "standard"))
    assert monthly_usd(rows, {})[0] == pytest.approx(100 * DEFAULT[0])


def test_prices_differ_by_tier_and_region() -> None:
    prices = {"eu-central-1": (0.054, 0.0135), "default": (0.06, 0.02)}
    rows = frame(
        ("snapshot", "eu-central-1", GIB, 1, "archive"),
        ("snapshot", "eu-central-1", GIB, 1, "standard"),
        ("snapshot", "sa-east-1", GIB, 1, "standard"),
        ("object", "eu-central-1", GIB, None, None),
        ("import-task", "eu-central-1", None, None, None),
    )
    assert list(monthly_usd(rows, prices)) == pytest.approx([0.0135, 0.054, 0.06, OBJECT_USD, 0])


def test_total_cost_counts_snapshots_and_not_amis() -> None:
    rows = frame(("ami", "us-east-1", GIB, 1, None), ("snapshot", "us-east-1", GIB, 1, "standard"))
    priced = rows.assign(monthly_usd=monthly_usd(rows, {}))
    assert list(priced["monthly_usd"]) == [DEFAULT[0], DEFAULT[0]]
    assert total_usd(priced) == pytest.approx(DEFAULT[0])


def test_prices_are_a_setting(tmp_path: Path) -> None:
    (tmp_path / "vmsnix.toml").write_text(
        "[snapshot_prices]\ndefault = [0.05, 0.0125]\neu-central-1 = [0.054, 0.0135]\n"
    )
    expected = {"default": (0.05, 0.0125), "eu-central-1": (0.054, 0.0135)}
    assert load(tmp_path, {}).snapshot_prices == expected
    variable = {"VMSNIX_SNAPSHOT_PRICES": "default=0.05/0.0125, eu-central-1=0.054/0.0135"}
    assert load(Path("/"), variable).snapshot_prices == expected


@pytest.mark.parametrize("text", ["[0.05]", '"cheap"', "[0.05, -1]", "[1, 2, 3]", '["a", "b"]', "[nan, 1]"])
def test_invalid_prices_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "vmsnix.toml").write_text(f"[snapshot_prices]\ndefault = {text}\n")
    with pytest.raises(SettingsError, match="standard and archive"):
        load(tmp_path, {})
