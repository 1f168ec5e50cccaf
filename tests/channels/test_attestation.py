"""The KMS key policy of attested AMIs: from the bytes of their snapshots, and only for what was accepted."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from tests.boot.attested_image import SALT, make_disk, write_output
from tests.publish.proving import BLOCK, Account, identity
from vmsnix_ops import errors, prove, publish
from vmsnix_ops.aws import drift as fields
from vmsnix_ops.boot import measurements
from vmsnix_ops.channels import attestation, verify
from vmsnix_ops.cli.policies import attestation_policy
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.records.recorded_amis import expected_amis
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.sandbox import Sandbox, sandbox
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

REGION, BUCKET = "us-east-1", "vmsnix-images"
KEY4, KEY12 = "kms:RecipientAttestation:NitroTPMPCR4", "kms:RecipientAttestation:NitroTPMPCR12"
DISKS = {
    "first": {},
    "second": {"kernel": b"another kernel"},
    "interactive": {"words": "vmsnix.interactive=1"},
    "host": {"words": "vmsnix.attests=host"},
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, str]]]:
    """ID and predicted PCR 4 of published AMIs by name; PCR 4 of the last one, a sample, is empty."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("attested")
    with sandbox(speed=2000) as aws, patch.context() as environment:
        for name, value in aws.environment.items():
            environment.setenv(name, value)
        environment.setenv("AWS_REGION", REGION)
        environment.setenv("VMSNIX_STATE", str(folder / "state"))
        environment.chdir(folder)
        aws.prepare(bucket=BUCKET, region=REGION)
        found: dict[str, tuple[str, str]] = {}
        outputs = {
            name: write_output(folder / name, make_disk(**disk), attested={}) for name, disk in DISKS.items()
        }  # type: ignore[arg-type]
        outputs["sample"] = make_sample_image(folder / "sample", size=8 * 2**20, data_bytes=2**20)
        for name, output in outputs.items():
            plan = publish.plan(image=str(output), region=REGION, bucket=BUCKET, progress=silent())
            made = plan.apply()
            found[name] = made.ami_id, made.measurements.pcr4_sha384 if made.measurements else ""
        SERVED.append(aws)
        yield found
        SERVED.clear()


SERVED: list[Sandbox] = []


def values(policy: attestation.AttestationPolicy) -> list[dict[str, Any]]:
    return [one["Condition"]["StringEqualsIgnoreCase"] for one in policy.statements()]


def test_the_policy_has_pcr_4_and_12_of_exactly_these_amis(published: dict[str, tuple[str, str]]) -> None:
    (first, pcr4), (second, other) = published["first"], published["second"]
    with open_image("first/attested.img") as disk:
        predicted = measurements.measure(disk)
    assert predicted is not None
    assert pcr4 == predicted.pcr4_sha384
    assert values(attestation.read(amis=[first])) == [{KEY4: [pcr4], KEY12: "0" * 96}]
    both = attestation.read(amis=[first, second], principal="arn:aws:iam::123456789012:role/node")
    assert values(both) == [{KEY4: sorted([pcr4, other]), KEY12: "0" * 96}]
    (statement,) = both.statements()
    assert statement["Principal"] == {"AWS": "arn:aws:iam::123456789012:role/node"}
    assert any("PCR 7" in note for note in both.notes())


def test_a_second_word_is_needed(published: dict[str, tuple[str, str]]) -> None:
    ami, pcr4 = published["interactive"]
    with pytest.raises(errors.ParameterError, match="--accept-interactive"):
        attestation.read(amis=[ami], accept_host_only=True)
    policy = attestation.read(amis=[ami], accept_interactive=True)
    assert values(policy) == [{KEY4: [pcr4], KEY12: "0" * 96}]
    assert f"{ami} is interactive" in policy.notes()[-1]
    ami, pcr4 = published["host"]
    with pytest.raises(errors.ParameterError, match=r"attests the host, not its tasks.*--accept-host-only"):
        attestation.read(amis=[ami], accept_interactive=True)
    policy = attestation.read(amis=[ami], accept_host_only=True)
    assert values(policy) == [{KEY4: [pcr4], KEY12: "0" * 96}]
    assert "attests the host, not its tasks" in policy.notes()[-2]
    assert "does not fix its cluster" in policy.notes()[-1]


def test_the_last_amis_of_a_channel_are_allowed(published: dict[str, tuple[str, str]]) -> None:
    ssm = SERVED[0].client("ssm", REGION)
    for name in ("interactive", "first", "second", "first"):
        ssm.put_parameter(
            Name="/vmsnix/attested/stable", Value=published[name][0], Type="String", Overwrite=True
        )
    chosen = attestation.read(image="attested", channel="stable", last=2)
    assert [ami.ami_id for ami in chosen.amis] == [published["first"][0], published["second"][0]]
    with pytest.raises(errors.ParameterError, match="interactive image"):
        attestation.read(image="attested", channel="stable", last=3)
    with pytest.raises(errors.ChannelError, match="has no value"):
        attestation.read(image="attested", channel="candidate")


def test_a_changed_tag_or_another_image_is_refused(published: dict[str, tuple[str, str]]) -> None:
    with pytest.raises(errors.ImageFormatError, match=r"is not an attested AMI.*TPM support is none"):
        attestation.read(amis=[published["sample"][0]])
    ami, pcr4 = published["second"]
    ec2 = SERVED[0].client("ec2", REGION)
    ec2.create_tags(Resources=[ami], Tags=[{"Key": "vmsnix:pcr4", "Value": "f" * 96}])
    with pytest.raises(errors.DriftError, match=rf"vmsnix:pcr4.*is f{{96}}, but the bytes .* have {pcr4}"):
        attestation.read(amis=[ami])
    ec2.create_tags(Resources=[ami], Tags=[{"Key": "vmsnix:pcr4", "Value": pcr4}])
    for bad in ({}, {"amis": [ami], "channel": "stable"}, {"channel": "stable"}):
        with pytest.raises(errors.ParameterError, match="either AMIs, or an image and a channel"):
            attestation.read(**bad)
    with pytest.raises(errors.ParameterError, match="Invalid last 0"):
        attestation.read(image="attested", channel="stable", last=0)


def test_the_command_prints_the_policy_and_its_limits(published: dict[str, tuple[str, str]]) -> None:
    ami, pcr4 = published["first"]
    done = CliRunner().invoke(attestation_policy, [ami])
    assert done.exit_code == 0, done.output
    (statement,) = json.loads(done.stdout)["Statement"]
    assert statement["Condition"]["StringEqualsIgnoreCase"][KEY4] == [pcr4]
    assert "kms:Decrypt" in statement["Action"]
    assert "note: PCR 7 is not in the policy" in done.stderr


def test_a_proof_measures_the_snapshot_again(published: dict[str, tuple[str, str]]) -> None:
    ami, pcr4 = published["first"]
    result = prove.plan(amis=[ami], progress=silent()).apply()
    assert result.verdict == "proven"
    (row,) = result.frame().to_dict("records")
    with open_image("first/attested.img") as disk:
        predicted = measurements.measure(disk)
    assert predicted is not None
    assert row["root_hash"] == predicted.root_hash
    assert (row["uki_sha384"], row["pcr4_sha384"]) == (predicted.uki_sha384, pcr4)
    assert result.plan.gets == 2 * row["blocks"]
    ec2 = SERVED[0].client("ec2", REGION)
    ec2.create_tags(Resources=[ami], Tags=[{"Key": "vmsnix:root-hash", "Value": "f" * 64}])
    changed = prove.plan(amis=[ami], extent="sample", progress=silent()).apply()
    assert isinstance(changed.error, errors.PartialError)
    assert changed.proofs[0].notes == (
        f"Its tag vmsnix:root-hash is {'f' * 64}, but its bytes have {predicted.root_hash}.",
    )
    ec2.create_tags(Resources=[ami], Tags=[{"Key": "vmsnix:root-hash", "Value": predicted.root_hash}])


PARTS = {
    "kernel": b"a kernel",
    "initrd": b"an initrd",
    "command line": b"console=ttyS0",
    "store": b"a store",
    "hashes": hashlib.sha256(SALT + b"a store".ljust(4096, b".")).digest(),
}
"""A text in each part of the disk. The last bit of its first byte will be changed."""


def blocks_of(disk: bytes) -> dict[int, bytes]:
    found = {at // BLOCK: disk[at : at + BLOCK].ljust(BLOCK, b"\0") for at in range(0, len(disk), BLOCK)}
    return {at: block for at, block in found.items() if block.strip(b"\0")}


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_bit_of_a_snapshot_is_found(
    published: dict[str, tuple[str, str]], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    disk = bytearray(make_disk())
    disk[disk.index(PARTS[part])] ^= 1
    blocks = blocks_of(bytes(disk))
    snapshot = Account(SERVED[0]).snapshot(blocks)
    ec2, first = SERVED[0].client("ec2", REGION), published["first"][0]
    (original,) = ec2.describe_images(ImageIds=[first])["Images"]
    ami = ec2.register_image(
        Name=f"changed {part}", Architecture="x86_64", RootDeviceName="/dev/sda1", VirtualizationType="hvm",
        BootMode="uefi", TpmSupport="v2.0",
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot}}],
        TagSpecifications=[{"ResourceType": "image", "Tags": original["Tags"]}],
    )["ImageId"]  # fmt: skip
    measured = "vmsnix:uki", "vmsnix:pcr4"

    in_uki = part not in ("store", "hashes")
    result = prove.plan(amis=[ami], identity=identity(blocks_of(make_disk())), progress=silent()).apply()
    assert result.verdict == "differs"
    # The identity of the changed bytes, which a forger of the record could give, does not hide the change.
    result = prove.plan(amis=[ami], identity=identity(blocks), progress=silent()).apply()
    if in_uki:
        noted = [note for note in result.proofs[0].notes if "its bytes have" in note]
        assert [note.split()[2] for note in noted] == list(measured)
        assert isinstance(result.error, errors.PartialError)
        with pytest.raises(errors.DriftError, match=r"The tag vmsnix:(uki|pcr4) of .* is not that of its"):
            attestation.read(amis=[ami])
    else:
        assert result.verdict == "differs"
        assert "does not match its root hash" in result.proofs[0].why
    record = next(row for row in expected_amis(open_tables(load())) if row["ami_id"] == first)
    changed = {**record, "ami_id": ami, "snapshot_id": snapshot}
    monkeypatch.setattr(verify, "expected_amis", lambda *_tables, **_filters: [changed])
    drift = set(verify.check(measure=True).drift["field"]) & set(fields.MEASURED)
    assert drift == ({"uki_sha384", "pcr4_sha384"} if in_uki else {"root_hash"})


def test_a_verification_measures_the_snapshots_again(
    published: dict[str, tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verify.check(measure=True).drift.empty
    record = next(row for row in expected_amis(open_tables(load())) if row["ami_id"] == published["first"][0])
    changed = {**record, "pcr4_sha384": "f" * 96, "root_hash": "e" * 64}
    monkeypatch.setattr(verify, "expected_amis", lambda *_tables, **_filters: [changed])
    assert verify.check().drift.empty
    drift = verify.check(measure=True).drift.to_dict("records")
    found = {row["field"]: (row["recorded"], row["found"]) for row in drift}
    assert found == {
        "root_hash": ("e" * 64, record["root_hash"]),
        "pcr4_sha384": ("f" * 96, published["first"][1]),
    }
