"""A call is checked before a kernel starts: values by their kinds, settings, and what is missing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.errors import ParameterError, PlanError, SettingsError, VmsnixError
from vmsnix_ops.runbooks import catalog, parameters, value_checks
from vmsnix_ops.runbooks.console.forms import Form
from vmsnix_ops.runbooks.declarations import read_parameters
from vmsnix_ops.runbooks.fleet.plan_file import read_plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmsnix_ops.runbooks.catalog import Runbook

HERE = {"AWS_REGION": "eu-west-1"}
ARN = "arn:aws:organizations::012345678901:organization/o-0123456789"


def check(
    book: str | Runbook, given: Mapping[str, object], cwd: Path, **environment: str
) -> dict[str, object]:
    found = catalog.find(book) if isinstance(book, str) else book
    return parameters.check_call(found, given, environment=environment or HERE, cwd=cwd)


def refusal(book: str, given: Mapping[str, object], cwd: Path, **environment: str) -> VmsnixError:
    with pytest.raises((ParameterError, SettingsError)) as refused:
        check(book, given, cwd, **environment)
    assert refused.value.exit_code == 2
    return refused.value


@pytest.mark.parametrize(
    ("book", "name", "value", "words"),
    [
        ("promote", "region", "us-esat-1", "'us-esat-1' is not an AWS region. Did you mean 'us-east-1'?"),
        ("promote", "regions", ["us-east-1", "mars-1"], "regions: 'mars-1' is not an AWS region."),
        ("promote", "best_effort", "eu-wst-1", "Did you mean 'eu-west-1'?"),
        ("promote", "kms_keys", {"eu-wst-2": "alias/a"}, "kms_keys: 'eu-wst-2' is not an AWS region."),
        ("promote", "kms_keys", {"eu-west-2": "my key"}, "kms_keys: 'my key' is not a KMS key"),
        ("promote", "share_with", ["12345678901"], "share_with: '12345678901' is not an account ID"),
        ("promote", "revoke_from", ["o-abc"], "revoke_from: 'o-abc' is not an account ID"),
        ("promote", "topic", "releases", "topic: 'releases' is not an ARN of an SNS topic"),
        ("promote", "ami", "ami-12", "ami: 'ami-12' is not an AMI ID such as"),
        ("promote", "confirm_public", "0123-4567-8901", "confirm_public: '0123-4567-8901' is not an account"),
        ("audit", "accounts", ["me"], "accounts: 'me' is not an account ID"),
        ("audit", "buckets", ["My_Bucket"], "buckets: 'My_Bucket' is not a bucket name, which has 3 to 63"),
        ("preflight", "bucket", "10.0.0.1", "is not a bucket name"),
        ("preflight", "role_name", "arn:aws:iam::012345678901:role/vmimport", "not its ARN"),
        ("smoke-test", "subnet", "subnet-x", "is not a subnet ID such as"),
        ("smoke-test", "pattern", "(", "is not a regular expression."),
        ("prove", "identity", "abc", "64 hexadecimal digits"),
        ("promote", "channel", "stabel", "channel: Unknown channel 'stabel'. Did you mean 'stable'?"),
        ("promote", "deprecate_days", "-1", "deprecate_days: -1 is not between 0 and 36500 days."),
        ("boot-image", "deadline", "604801", "deadline: 604801 is not between 0 and 604800 seconds."),
        ("boot-image", "expect", ".*", "expect: The regular expression '.*' for the console matches an"),
        ("prove", "sample_blocks", "0", "sample_blocks: 0 is not between 1 and 1000000000 blocks."),
        ("audit", "deadline_minutes", "0", "deadline_minutes: 0.0 is not between 0.001 and 10080 minutes."),
        ("audit", "old_days", "99999", "old_days: 99999 is not between 0 and 36500 days."),
        ("audit", "known_accounts", ["arn:aws:iam::012345678901:role/a"], "is not an account ID of 12"),
        ("audit", "packages", ["openssl<"], "packages: "),
        ("retire", "keep_last", "-2", "keep_last: -2 is not between 0 and 36500."),
        ("retire", "min_age_days", "1e9", "min_age_days: 1000000000.0 is not between 0 and 36500 days."),
        ("retire", "confirm", "yes", "confirm: 'yes' is not the fingerprint of a plan, a number of"),
        ("fleet", "workers", "5000", "workers: 5000 is not between 0 and 1000."),
        ("fleet", "scheduler", "10.0.0.1:8786", "scheduler: '10.0.0.1:8786' is not an address such as tls:/"),
        ("rollback", "channel", "Stable", "channel: Unknown channel 'Stable'. Did you mean 'stable'?"),
        ("rollback", "to", "ami-12", "to: 'ami-12' is not an AMI ID such as"),
        ("publish", "root_device", "sda1", "root_device: 'sda1' is not a device name such as /dev/sda1"),
        ("publish", "prefix", "a" * 41, "is not a prefix of up to 40 letters, digits, spaces or"),
        ("publish", "tags", {"aws:a": "b"}, "tags: The tag 'aws:a' is reserved."),
        ("publish", "boot_expect", "(x|)", "boot_expect: The regular expression '(x|)' for the console"),
        ("smoke-test", "instance_type", "small", "instance_type: 'small' is not an instance type such as"),
        ("promote", "expect_plan", "6d2bfb73", "expect_plan: '6d2bfb73' is not the fingerprint of a plan"),
        ("prove", "result", "./result.jsn", "Did you mean 'result.json'?"),
        (
            "publish",
            "image",
            "./imag.vhd",
            "image: './imag.vhd' is not a file or folder. Did you mean 'image.vhd'?",
        ),
        ("publish", "image", "./nixx#ecs-node", "No flake in './nixx'."),
        ("publish", "image", "ecs-node", "No flake in "),
        ("publish", "image", "./nix#0 1", "Invalid image name '0 1'."),
        ("build-image", "flake", "./nixx", "No flake in './nixx'."),
    ],
)
def test_a_value_that_its_kind_does_not_allow_is_refused_with_the_reason(
    tmp_path: Path, book: str, name: str, value: object, words: str
) -> None:
    for file in ("image.vhd", "result.json", "flake/nix/flake.nix"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    given: dict[str, object] = {"ami": "stable", "amis": ["web"], "bucket": "images", "image": "./image.vhd"}
    found = catalog.find(book)
    given = {key: item for key, item in given.items() if any(key == one.name for one in found.parameters)}
    assert words in str(refusal(book, given | {name: value}, tmp_path))


def test_values_of_each_kind_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "image.vhd").touch()
    (tmp_path / "nix").mkdir()
    (tmp_path / "nix" / "flake.nix").touch()
    check("publish", {"image": "./image.vhd", "bucket": "acme-images", "kms_key": "alias/a"}, tmp_path)
    check("publish", {"image": "./nix#ecs-node", "via": "direct"}, tmp_path)
    check("publish", {"image": "ecs-node", "via": "direct"}, tmp_path)  # of the setting flake, ./nix
    check("build-image", {"flake": "github:altf4llc/vmsnix"}, tmp_path)
    check("promote", {"image": "not/a#path", "regions": ["all"], "best_effort": "us-east-1"}, tmp_path)
    check("promote", {"ami": "web-server v2", "share_with": [ARN, "012345678901"]}, tmp_path)
    check("promote", {"ami": "ami-0123456789abcdef0", "revoke_from": "public"}, tmp_path)
    check("audit", {"accounts": ["arn:aws:iam::012345678901:role/a/b"], "known_accounts": [ARN]}, tmp_path)
    check("prove", {"amis": ["ami-01234567"], "result": "s3://bucket/result.json"}, tmp_path)
    check("prove", {"amis": ["ami-01234567"], "result": "20261125T193321433Z-publish-ami-aca377"}, tmp_path)


def test_one_error_lists_all_mistakes(tmp_path: Path) -> None:
    given = {
        "image": "./no",
        "region": "eu-wst-1",
        "bucket": "B",
        "via": "dirct",
        "tagz": "a=b",
        "public": "?",
    }
    error = refusal("publish", given, tmp_path)
    assert error.what == "The call of publish-ami has 6 mistakes; nothing was started."
    listed = [line for line in error.why.splitlines() if line.startswith("- ")]
    assert sorted(re.split(r"[: ]", line)[1] for line in listed) == [
        *("bucket", "image", "public", "publish-ami", "region", "via")
    ]


def test_values_of_the_settings_are_checked_and_named_with_their_origin(tmp_path: Path) -> None:
    (tmp_path / "vmsnix.toml").write_text('region = "eu-wst-1"\nbucket = "My_Bucket"\nkms_key = "a b"\n')
    (tmp_path / "i.vhd").touch()
    text = str(refusal("publish", {"image": "./i.vhd"}, tmp_path))
    assert "region: 'eu-wst-1', from vmsnix.toml, is not an AWS region. Did you mean 'eu-west-1'?" in text
    assert "bucket: 'My_Bucket', from vmsnix.toml, is not a bucket name" in text
    assert "kms_key: 'a b', from vmsnix.toml, is not a KMS key" in text
    given = {"image": "./i.vhd", "region": "eu-west-1", "bucket": "images", "kms_key": "alias/a"}
    assert check("publish", given, tmp_path) == given  # the call replaces these settings
    (tmp_path / "vmsnix.toml").unlink()
    text = str(refusal("publish", {"image": "./i.vhd", "bucket": "images"}, tmp_path, AWS_REGION="mars-1"))
    assert text.startswith("region: 'mars-1', from AWS_REGION, is not an AWS region.")
    (tmp_path / "vmsnix.toml").write_text("regoin = 1\n")
    assert isinstance(refusal("audit", {}, tmp_path), SettingsError)
    assert "unknown setting 'regoin'" in str(refusal("audit", {"regions": "mars"}, tmp_path))


@pytest.mark.parametrize(
    ("book", "given", "words"),
    [
        (
            "publish",
            {"image": "./i.vhd", "region": "eu-west-1"},
            "Add --bucket VALUE or --via direct, or set bucket in",
        ),
        ("publish", {"image": "", "via": "direct", "region": "eu-west-1"}, "No image given."),
        ("publish", {"image": "./i.vhd", "via": "direct"}, "No region given."),
        ("retire", {}, "No region given."),
        ("promote", {"region": "eu-west-1"}, "No ami or image given. Add --ami VALUE or --image VALUE."),
        ("smoke-test", {"region": "eu-west-1"}, "No ami or image given."),
        ("prove", {}, "No amis given."),
    ],
)
def test_a_missing_value_is_named(tmp_path: Path, book: str, given: dict[str, object], words: str) -> None:
    (tmp_path / "i.vhd").touch()
    assert words in str(refusal(book, given, tmp_path, HOME=str(tmp_path)))


def test_an_own_runbook_declares_what_it_requires(tmp_path: Path) -> None:
    declared = read_parameters("name: str = None\nami: str = ''\nimage: str = ''\ntarget_region: str = ''\n")
    book = catalog.Runbook(
        "own", "own", 10, tmp_path, "", "", "read_only", declared, required=("ami or image=web",)
    )
    with pytest.raises(ParameterError, match="No name given") as refused:
        check(book, {}, tmp_path)
    assert "No ami given. Add" not in str(refused.value)
    assert "- No ami given." in str(refused.value)
    assert check(book, {"name": "a", "image": "web"}, tmp_path)
    with pytest.raises(ParameterError, match="target_region: 'mars' is not an AWS region"):
        check(book, {"name": "a", "image": "web", "target_region": "mars"}, tmp_path)


@pytest.mark.parametrize("declaration", ["n: float = 1e999", "n: list[int] = ['x']", "n: int = 'x'"])
def test_a_default_of_an_own_runbook_has_the_declared_type(tmp_path: Path, declaration: str) -> None:
    declared = read_parameters(declaration)
    book = catalog.Runbook("own", "own", 10, tmp_path, "", "", "read_only", declared)
    with pytest.raises(ParameterError, match=r"^n: .* is not "):
        check(book, {}, tmp_path)
    assert check(book, {"n": ["1"] if "list" in declaration else "1"}, tmp_path)


def test_values_of_different_partitions_are_refused(tmp_path: Path) -> None:
    given = {"ami": "web", "region": "eu-west-1", "regions": ["cn-north-1"]}
    text = str(refusal("promote", given, tmp_path))
    assert "region eu-west-1 is in aws; regions cn-north-1 is in aws-cn." in text
    topic = "arn:aws:sns:eu-west-1:012345678901:releases"
    assert "partition" in str(
        refusal("promote", {"ami": "w", "region": "cn-north-1", "topic": topic}, tmp_path)
    )


def test_the_form_of_the_console_makes_the_same_checks() -> None:
    form = Form(catalog.find("promote"), lambda: None)
    assert form.problems == {}
    form.fill({"region": "eu-wst-1", "ami": "ami-12", "share_with": ["1"], "image": "ecs-node"})
    assert form.problems.keys() == {"region", "ami", "share_with"}
    assert "Did you mean 'eu-west-1'?" in form.problems["region"]


def test_the_first_call_of_a_notebook_makes_the_same_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    book = catalog.find("promote")
    variables = {one.name: one.default for one in book.parameters} | {"region": "eu-wst-1", "ami": "ami-12"}
    with pytest.raises(ParameterError, match="has 2 mistakes"):
        parameters.validate("promote", variables)


def test_a_fleet_names_the_targets_of_each_mistake(tmp_path: Path) -> None:
    plan = tmp_path / "fleet.toml"
    plan.write_text(
        """
        [[entry]]
        name = "release"
        runbook = "promote"
        images = ["web"]
        regions = ["eu-west-1", "us-esat-1"]
        parameters = { topic = "releases", ami = "ami-{region}" }
        [[entry]]
        name = "publish"
        runbook = "publish"
        images = ["./web.vhd"]
        regions = ["eu-west-1", "us-east-1"]
        """
    )
    with pytest.raises(PlanError) as refused:
        read_plan(plan)
    lines = [line.removeprefix("- ") for line in refused.value.why.splitlines() if line.startswith("- ")]
    both = "release/web/eu-west-1, release/web/us-esat-1"
    assert f"{both}: topic: 'releases' is not an ARN" in "\n".join(lines)
    assert "release/web/us-esat-1: region: 'us-esat-1' is not an AWS region. Did you mean" in "\n".join(lines)
    assert any(
        line.startswith("release/web/eu-west-1: ami: 'ami-eu-west-1' is not an AMI ID") for line in lines
    )
    assert any(
        line.startswith("publish/web.vhd/eu-west-1, publish/web.vhd/us-east-1: image: ") for line in lines
    )
    assert "No bucket given." in str(refused.value)
    with pytest.raises(PlanError) as refused:  # as for a fleet on a sandbox, whose variables have a bucket
        read_plan(plan, environment={"VMSNIX_BUCKET": "images"})
    assert "No bucket given." not in str(refused.value)
    plan.write_text(plan.read_text() + '\n[dask]\nscheduler = "tls://10.0.0.1:8786"\n')
    with pytest.raises(PlanError) as refused:
        read_plan(plan)
    assert "topic" in str(refused.value)
    assert "web.vhd' is not a file" not in str(refused.value)  # it is on the machines of the workers


@pytest.mark.parametrize(
    ("declaration", "kind"),
    [
        ("region: str = ''", "region"),
        ("source_regions: list[str] = []", "region"),
        ("account: int = 0", ""),
        ("region: Literal['a'] = 'a'", ""),
        ("image: str = ''  # short name", ""),
        ("image: str = ''  # flake attribute or file", "image"),
        ("note: str = ''", ""),
    ],
)
def test_the_kind_of_a_parameter_follows_from_its_name(declaration: str, kind: str) -> None:
    assert value_checks.kind_of(read_parameters(declaration)[0]) == kind
