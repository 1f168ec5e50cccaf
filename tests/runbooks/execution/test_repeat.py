"""Running again with the parameters of a past run; changed parameters are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.errors import ParameterError
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.execution.execute import same_parameters

if TYPE_CHECKING:
    from tests.runbooks.shelf import Shelf
    from vmsnix_ops.runbooks.catalog import Runbook

NOW = """\
from typing import Literal
name: str = "world"  # whom to greet
count: int = 1  # how often
via: Literal["import", "direct"] = "import"  # which way
regions: list[str] = []  # where
"""
RECORDED: dict[str, object] = {"name": "Ada", "count": 3, "via": "direct", "regions": ["eu-west-1"]}


@pytest.fixture
def runbook(shelf: Shelf) -> Runbook:
    shelf.put("10-try-this.ipynb", parameters=NOW)
    return catalog.find("try-this", shelf.folder)


def test_a_repeated_run_has_all_recorded_parameters(runbook: Runbook) -> None:
    assert same_parameters(runbook, RECORDED, {}) == RECORDED


def test_single_parameters_can_be_replaced(runbook: Runbook) -> None:
    assert same_parameters(runbook, RECORDED, {"count": "5"}) == {**RECORDED, "count": 5}


@pytest.mark.parametrize(
    ("recorded", "named"),
    [
        ({**RECORDED, "prefix": "x"}, r"Removed since then: prefix\..*Run it as a new run"),
        (
            {key: RECORDED[key] for key in ("name", "via", "regions")},
            r"Added since then: count\..*Add these",
        ),
        ({**RECORDED, "count": "3"}, r"now: count\."),
        ({**RECORDED, "count": True, "regions": "eu-west-1"}, r"now: count, regions\."),
        ({**RECORDED, "via": "carrier pigeon"}, r"now: via\."),
        ({**RECORDED, "name": "[secret removed: AWS access key]"}, r"now: name\."),
        (
            {"old": 1, "via": "x"},
            r"Removed since then: old; added since then: name, count, regions; .*now: via\.",
        ),
    ],
)
def test_the_error_names_the_parameters_that_have_changed(
    runbook: Runbook, recorded: dict[str, object], named: str
) -> None:
    with pytest.raises(ParameterError, match=named):
        same_parameters(runbook, recorded, {})


def test_new_and_changed_parameters_can_be_given(runbook: Runbook) -> None:
    recorded = {"name": "Ada", "via": "pigeon", "regions": []}
    found = same_parameters(runbook, recorded, {"via": "import", "count": 2})
    assert found == {"name": "Ada", "via": "import", "regions": [], "count": 2}
