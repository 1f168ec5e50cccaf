"""The boot test of a publish: an image that does not boot is not uploaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import require
from vmsnix_ops import boot_image, publish
from vmsnix_ops.disk.sample import MESSAGE
from vmsnix_ops.errors import BootFailedError, ParameterError
from vmsnix_ops.publish.boot_test import CONSOLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.publish.conftest import Left

Plan = publish.PublishPlan


def test_an_image_is_booted_once_before_its_upload(plan: Callable[..., Plan]) -> None:
    require("qemu-system")
    first, again = (plan(boot_test=True, boot_expect=MESSAGE) for _ in range(2))
    assert "boot it in QEMU" in str(first)
    first.apply()
    assert [timing.step for timing in first.journal.timings][:4] == ["build", "digest", "boot", "upload"]
    assert MESSAGE in (first.journal.run.folder / CONSOLE).read_text()
    again.apply()
    assert {timing.step: timing.status for timing in again.journal.timings}["boot"] == "reused"


def test_an_image_that_does_not_boot_is_not_uploaded(
    plan: Callable[..., Plan], left: Callable[[], Left], tmp_path: Path
) -> None:
    require("qemu-system")
    broken = tmp_path / "broken.img"
    broken.write_bytes(bytes(2**20))
    with pytest.raises(BootFailedError, match="cannot boot"):
        plan(image=str(broken), boot_mode="legacy-bios", boot_test=True).apply()
    assert left().nothing


def test_a_dry_run_boots_nothing(plan: Callable[..., Plan]) -> None:
    wanted = plan(boot_test=True, dry_run=True)
    assert wanted.boot(wanted.build()).outcome == "planned"


def test_without_the_parameter_nothing_is_booted(plan: Callable[..., Plan]) -> None:
    wanted = plan()
    assert wanted.boot(wanted.build()).outcome == "skipped"


def test_an_invalid_expression_is_refused_by_the_plan(plan: Callable[..., Plan]) -> None:
    with pytest.raises(ParameterError, match="Invalid regular expression"):
        plan(boot_test=True, boot_expect="(")


def test_boot_image_has_a_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path))
    shown = str(boot_image.plan("result", user_data="x", deadline=7))
    assert "at most 7 s" in shown
    assert "instance ID, user data" in shown
    with pytest.raises(ParameterError, match="No image given"):
        boot_image.plan("")
    with pytest.raises(ParameterError, match="is not between 0 and 604800 seconds"):
        boot_image.plan("result", deadline=-1)
