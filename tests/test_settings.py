"""Settings from ``vmsnix.toml`` and ``VMSNIX_*`` variables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnix_ops.errors import SettingsError
from vmsnix_ops.settings import FIELDS, NOT_SETTINGS, VARIABLES, RetirementPolicy, load


def write(folder: Path, text: str) -> Path:
    path = folder / "vmsnix.toml"
    path.write_text(text)
    return path


def test_everything_has_a_default(tmp_path: Path) -> None:
    settings = load(tmp_path, {})
    assert (settings.region, settings.bucket) == (None, None)
    assert (settings.role_name, settings.prefix, settings.key_prefix) == ("vmimport", "altf4llc", "vmsnix/")
    assert settings.allowed_accounts == ()
    assert settings.flake == "./nix"
    assert settings.state.name == "vmsnix_ops"
    assert settings.history == str(settings.state / "history")
    assert settings.archive == str(settings.state / "archive")
    assert settings.put_ceiling == 1000
    assert settings.retirement == RetirementPolicy(3, 30, 30, 14, 7, 25)


def test_the_nearest_file_in_the_folder_and_its_parents_is_read(tmp_path: Path) -> None:
    write(tmp_path, 'region = "far"\n')
    near = tmp_path / "near"
    deep = near / "below"
    deep.mkdir(parents=True)
    write(near, 'region = "eu-west-1"\n')
    assert load(deep, {}).region == "eu-west-1"
    assert load(tmp_path, {}).region == "far"


def test_a_variable_overrides_the_file(tmp_path: Path) -> None:
    write(tmp_path, 'region = "eu-west-1"\nbucket = "of-the-file"\n')
    settings = load(tmp_path, {"VMSNIX_REGION": "eu-north-1"})
    assert (settings.region, settings.bucket) == ("eu-north-1", "of-the-file")


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    write(tmp_path, 'region = "eu-west-1"\n')
    assert load(tmp_path, {"VMSNIX_REGION": "", "VMSNIX_CONFIG": ""}).region == "eu-west-1"


def test_vmsnix_config_is_the_path_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, 'region = "eu-west-1"\n')
    (tmp_path / "other.toml").write_text('region = "sa-east-1"\n')
    assert load(tmp_path, {"VMSNIX_CONFIG": "other.toml"}).region == "sa-east-1"


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"No settings file .*gone\.toml.*VMSNIX_CONFIG"):
        load(tmp_path, {"VMSNIX_CONFIG": "gone.toml"})


def test_the_state_folder_is_the_parent_of_history_and_archive(tmp_path: Path) -> None:
    settings = load(tmp_path, {"VMSNIX_STATE": str(tmp_path / "state")})
    assert settings.history == str(tmp_path / "state" / "history")
    assert settings.archive == str(tmp_path / "state" / "archive")


def test_paths_in_the_file_are_relative_to_its_folder(tmp_path: Path) -> None:
    write(tmp_path, 'history = "records"\narchive = "runs"\nflake = "../images"\n')
    below = tmp_path / "below"
    below.mkdir()
    settings = load(below, {})
    assert settings.history == str(tmp_path / "records")
    assert settings.archive == str(tmp_path / "runs")
    assert settings.flake == str(tmp_path.parent / "images")


def test_a_remote_flake_and_a_history_on_s3_are_unchanged(tmp_path: Path) -> None:
    write(tmp_path, 'flake = "github:acme/images"\nhistory = "s3://acme-records/history/"\n')
    settings = load(tmp_path, {})
    assert settings.flake == "github:acme/images"
    assert settings.history == "s3://acme-records/history"


def test_an_unknown_key_is_refused_with_file_line_and_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path, '# ours\nbucket = "b-1"\nregoin = "eu-west-1"\n')
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, {})
    assert str(path) in caught.value.what
    assert "line 3" in caught.value.what
    assert caught.value.why == "Did you mean 'region'?"


def test_an_unknown_variable_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"VMSNIX_REGOIN.*Did you mean 'VMSNIX_REGION'"):
        load(tmp_path, {"VMSNIX_REGOIN": "eu-west-1"})


def test_variables_that_are_not_settings_are_accepted(tmp_path: Path) -> None:
    environment = dict.fromkeys(NOT_SETTINGS, "anything") | {"VMSNIX_CONFIG": "", "PATH": "/bin"}
    assert load(tmp_path, environment) == load(tmp_path, {})


def test_an_unquoted_account_id_is_refused_with_the_fix(tmp_path: Path) -> None:
    write(tmp_path, "allowed_accounts = [12345678901]\n")
    with pytest.raises(SettingsError, match=r'leading zeros.*"012345678901"'):
        load(tmp_path, {})


def test_account_ids_are_text(tmp_path: Path) -> None:
    write(tmp_path, 'allowed_accounts = ["012345678901"]\n')
    assert load(tmp_path, {}).allowed_accounts == ("012345678901",)
    given_two = {"VMSNIX_ALLOWED_ACCOUNTS": "012345678901, 123456789012"}
    assert load(tmp_path, given_two).allowed_accounts == ("012345678901", "123456789012")


def test_channels_are_words_and_their_parameters_have_a_prefix(tmp_path: Path) -> None:
    assert (load(tmp_path, {}).channels, load(tmp_path, {}).channel_prefix) == (
        ("candidate", "stable"),
        "/vmsnix",
    )
    given = {"VMSNIX_CHANNELS": "edge, stable", "VMSNIX_CHANNEL_PREFIX": "/acme/images/"}
    settings = load(tmp_path, given)
    assert (settings.channels, settings.channel_prefix) == (("edge", "stable"), "/acme/images")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("region = 5", r"line 1: region = 5\. .*a whole number, but text"),
        ("bucket = true", r"true or false, but text"),
        ('prefix = ""', r"It is empty"),
        ('channels = "stable"', r"but a list is expected"),
        ('channels = ["Stable"]', r"'Stable' is not a valid channel name"),
        ("channels = []", r"missing or listed twice"),
        ('channels = ["stable", "stable"]', r"missing or listed twice"),
        ('channel_prefix = "vmsnix"', r"not a valid parameter prefix"),
        ('channel_prefix = "/aws/images"', r"not a valid parameter prefix"),
        ('allowed_accounts = "012345678901"', r"but a list is expected"),
        ('allowed_accounts = ["1234"]', r"'1234' is not an account ID"),
        ('allowed_accounts = ["\uff11\uff12\uff13456789012"]', r"is not an account ID"),
        ('key_prefix = "images"', r"Write images/\."),
        ('key_prefix = "/images/"', r"Write images/\."),
        ('archive = "s3://"', r"s3://bucket/prefix"),
        ('state = "s3://bucket/state"', r"local folder"),
        ('history = "s3://"', r"s3://bucket/prefix"),
        ('[region]\nname = "x"', r"line 1: region = .*a table, but text"),
        ('region = "a"\nregion = "b"\n', r"not valid TOML.*line 2"),
        ("region = eu-west-1", r"not valid TOML.*line 1"),
        (f"region = {'[' * 5000}{']' * 5000}", r"not valid TOML.*nested too deeply"),
    ],
)
def test_an_invalid_value_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError, match=message) as caught:
        load(tmp_path, {})
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "vmsnix.toml").write_bytes(b"\xef\xbb\xbfregion = 'eu-west-3'\n")
    assert load(tmp_path, {}).region == "eu-west-3"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vmsnix.toml").write_bytes(b'region = "\xff"')
    with pytest.raises(SettingsError, match=r"not UTF-8.*Byte 10"):
        load(tmp_path, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "").chmod(0)
    with pytest.raises(SettingsError, match="Permission denied"):
        load(tmp_path, {})


def test_every_field_has_its_variable() -> None:
    assert list(VARIABLES) == [f"VMSNIX_{name.upper()}" for name in FIELDS]
    assert not set(VARIABLES) & set(NOT_SETTINGS)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(value=WORDS.filter(lambda word: word.strip()))
def test_any_text_passes_the_environment_unchanged(value: str) -> None:
    settings = load(Path("/"), {"VMSNIX_PREFIX": value, "VMSNIX_STATE": "/nowhere"})
    assert settings.prefix == value


@given(name=st.text(st.sampled_from("ABCDEGINORT_"), min_size=1))
def test_unknown_variables_are_always_refused(name: str) -> None:
    variable = f"VMSNIX_{name}"
    if variable in VARIABLES or variable in NOT_SETTINGS:
        return
    with pytest.raises(SettingsError, match=variable):
        load(Path("/"), {variable: "x"})


def test_the_ceiling_of_puts_is_a_number_in_the_file_and_in_a_variable(tmp_path: Path) -> None:
    write(tmp_path, "put_ceiling = 250\n")
    assert load(tmp_path, {}).put_ceiling == 250
    assert load(tmp_path, {"VMSNIX_PUT_CEILING": "4000"}).put_ceiling == 4000


@pytest.mark.parametrize(
    "pair",
    ["[inf, 0.01]", "[0.05, inf]", "[nan, 0.01]", "[-0.05, 0.01]", "[0.05]", "[0.05, 0.01, 0.2]", "0.05"],
)
def test_an_invalid_price_is_refused(tmp_path: Path, pair: str) -> None:
    write(tmp_path, f"[snapshot_prices]\neu-central-1 = {pair}\n")
    with pytest.raises(SettingsError, match="prices of eu-central-1"):
        load(tmp_path, {})


@pytest.mark.parametrize("account", ["0123456789012", "01234567890", "012345678901\\n", "\u0660" * 12, ""])
@pytest.mark.parametrize("name", ["allowed_accounts", "audit_accounts"])
def test_an_account_id_has_exactly_12_digits(tmp_path: Path, name: str, account: str) -> None:
    write(tmp_path, f'{name} = ["012345678901", "{account}"]\n')
    with pytest.raises(SettingsError, match="not an account ID"):
        load(tmp_path, {})


@pytest.mark.parametrize("value", ["0", "-1", "true", "2.5", '"many"', "1000000"])
def test_an_invalid_ceiling_is_refused(tmp_path: Path, value: str) -> None:
    write(tmp_path, f"put_ceiling = {value}\n")
    with pytest.raises(SettingsError, match="put_ceiling"):
        load(tmp_path, {})


def test_the_retirement_policy_is_in_the_file_and_in_variables(tmp_path: Path) -> None:
    write(tmp_path, "retire_keep_last = 5\nretire_retention_days = 7.5\n")
    assert load(tmp_path, {}).retirement == RetirementPolicy(keep_last=5, retention_days=7.5)
    given = {"VMSNIX_RETIRE_KEEP_LAST": "0", "VMSNIX_RETIRE_ORPHAN_DAYS": "1.5"}
    wanted = RetirementPolicy(keep_last=0, retention_days=7.5, orphan_days=1.5)
    assert load(tmp_path, given).retirement == wanted


@pytest.mark.parametrize("value", ["-1", "true", '"many"', "nan", "inf", "36501"])
@pytest.mark.parametrize("name", [name for name in FIELDS if name.startswith("retire_")])
def test_an_invalid_number_of_the_policy_is_refused(tmp_path: Path, name: str, value: str) -> None:
    write(tmp_path, f"{name} = {value}\n")
    with pytest.raises(SettingsError, match=name):
        load(tmp_path, {})
