"""The examples of CONTRIBUTING.md work."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs import manifest
from tests.aws.account import make_ami
from vmsnix_ops.audit import findings, inventory, rules
from vmsnix_ops.aws import session
from vmsnix_ops.cli import main
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.sandbox import core, sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def recipe(name: str, **known: Any) -> Callable[..., Any]:
    """Run the code block that defines this function, and return the function."""
    (block,) = [
        block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if f"def {name}(" in block
    ]
    names = dict(known)
    exec(f"from __future__ import annotations\n{block}", names)
    made: Callable[..., Any] = names[name]
    return made


def test_a_copied_notebook_is_a_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    (block,) = re.findall(r"```sh\n(cp .*?)```", PAGE, re.DOTALL)
    copy, write, command = block.strip().splitlines()
    assert write == f"python -m {manifest.__name__}"
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    subprocess.run(copy.split(), cwd=tmp_path, check=True, timeout=60)
    monkeypatch.setattr(catalog, "default_folder", lambda: tmp_path / "notebooks")
    monkeypatch.setattr(catalog, "MANIFEST", tmp_path / "manifest.json")
    monkeypatch.setattr(manifest, "FOLDER", tmp_path / "notebooks")
    assert manifest.main() == 0
    request.addfinalizer(catalog.load_manifest.cache_clear)
    catalog.load_manifest.cache_clear()
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    assert main(command.split()[1:]) == 0
    assert "--fail-on-drift" in capsys.readouterr().out


def test_a_decorated_function_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "RULES", dict(findings.RULES))
    monkeypatch.setattr(rules, "RULES", findings.RULES)
    recipe("short_name", **vars(rules))
    with sandbox(speed=1000) as aws:
        ami = make_ami(aws, version="1", Name="abc")
        make_ami(aws, version="2")
        found = inventory.scan(regions=["us-east-1"], session=aws.session("us-east-1"))
    (row,) = rules.evaluate(found, rules=["short-name"]).to_dict("records")
    assert (row["resource_id"], row["reason"]) == (ami, "Its name is abc.")
    assert str(row["remediation"]).endswith(f"--resources {ami} --tags Key=Name,Value=<NAME>")
    rule = findings.RULES["short-name"]
    assert (rule.severities, rule.description) == (("low",), "Find AMIs with a very short name.")


def test_an_operation_and_a_function_that_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmsnix_ops.aws.iam.permissions import needs, needs_of

    monkeypatch.setattr(core, "OPERATIONS", core.OPERATIONS)
    monkeypatch.setitem(core.OPERATIONS, ("ec2", "DescribePlacementGroups"), None)  # deleted after the test
    recipe("describe_placement_groups", **vars(core))
    groups = recipe("placement_groups", needs=needs, **vars(session))
    assert needs_of(groups) == ("ec2:DescribeRegions",)
    with sandbox(speed=1000) as aws:
        assert groups(aws.client("ec2", "us-east-1")) == ["builders"]
