"""The JSON schemas in docs/reference are up to date, valid, and agree with the code."""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING

import pytest
from jsonschema import Draft202012Validator

from docs.schemas import REFERENCE, plan_schema, result_schema, schemas, settings_schema
from vmsnix_ops.errors import SettingsError
from vmsnix_ops.records.result import KEYS, write_result
from vmsnix_ops.records.run_context import RunContext
from vmsnix_ops.settings import FIELDS, load

if TYPE_CHECKING:
    from pathlib import Path

GUIDE = (REFERENCE.parent / "how-to/fleet.md").read_text(encoding="utf-8")
ENTRY = '[[entry]]\nrunbook = "greet"\n'


@pytest.mark.parametrize("name", schemas())
def test_a_published_schema_is_valid_and_up_to_date(name: str) -> None:
    text = (REFERENCE / name).read_text(encoding="utf-8")
    assert text == schemas()[name], "run just schemas"
    Draft202012Validator.check_schema(json.loads(text))


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (re.findall(r"```toml\n(name = .*?)```", GUIDE, re.DOTALL)[0], True),
        (ENTRY + 'images = "one"\n[nix]\nmax-jobs = 0', True),
        ('[[entry]]\nname = "x"', False),
        (ENTRY + "retires = 1", False),
        (ENTRY + "retries = 101", False),
        (ENTRY + "resources = { kvm = 0 }", False),
        ('[accounts.p]\nid = "12"\n' + ENTRY, False),
        ("", False),
    ],
)
def test_the_schema_of_plans_finds_wrong_keys_and_values(text: str, valid: bool) -> None:
    assert Draft202012Validator(plan_schema()).is_valid(tomllib.loads(text)) == valid


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('region = "eu-west-1"\nallowed_accounts = ["012345678901"]\nshared = true', True),
        ("[snapshot_prices]\neu-central-1 = [0.054, 0.0135]", True),
        ('key_prefix = ""', True),
        ("retire_min_age_days = 1.5", True),
        ('regoin = "eu-west-1"', False),
        ("region = 1", False),
        ('bucket = ""', False),
        ('kms_key = ""', False),
        ('key_prefix = "a"', False),
        ('key_prefix = "/a/"', False),
        ('allowed_accounts = ["1234"]', False),
        ("allowed_accounts = [123456789012]", False),
        ("channels = []", False),
        ('channels = ["a", "a"]', False),
        ('channels = ["A"]', False),
        ("put_ceiling = 0", False),
        ("put_ceiling = true", False),
        ("retire_min_age_days = -1", False),
        ("retire_max_count = 1.5", False),
        ("snapshot_prices = { default = [1] }", False),
        ("snapshot_prices = { default = [1, -1] }", False),
    ],
)
def test_the_schema_of_settings_agrees_with_loading_them(tmp_path: Path, text: str, valid: bool) -> None:
    assert Draft202012Validator(settings_schema()).is_valid(tomllib.loads(text)) == valid
    (tmp_path / "vmsnix.toml").write_text(text)
    try:
        load(tmp_path, {})
    except SettingsError:
        assert not valid
    else:
        assert valid


def test_the_schema_of_settings_describes_every_setting() -> None:
    properties = settings_schema()["properties"]
    assert tuple(properties) == FIELDS
    assert all(setting["description"] for setting in properties.values())


def test_a_written_result_fits_its_schema(tmp_path: Path) -> None:
    run = RunContext("r1", "publish-ami", tmp_path, managed=False)
    values = {"status": "done", "seconds": 1.5, "steps": [], "files": {}, "checks": [{"name": "bucket"}]}
    result = json.loads(write_result(run, values).read_text())
    validator = Draft202012Validator(result_schema())
    assert validator.is_valid(result)
    assert not validator.is_valid(result | {"exit_code": "0"})
    assert not validator.is_valid(result | {"status": "fine"})
    assert not validator.is_valid({key: result[key] for key in [*KEYS][1:]})
