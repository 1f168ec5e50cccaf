"""Names, parsing and registration of AMIs, and their tags."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnix_ops import errors
from vmsnix_ops.aws import images, tags


@given(st.text(min_size=3, max_size=128))
def test_a_cleaned_name_is_accepted_by_aws(name):
    assert re.fullmatch(r"[A-Za-z0-9()\[\] ./'@_-]{3,128}", images.clean_name(name))


@pytest.mark.parametrize("name", ["ab", "x" * 129])
def test_a_name_of_the_wrong_length_is_refused(name):
    with pytest.raises(errors.ParameterError, match="3 to 128"):
        images.clean_name(name)


def test_an_image_without_tags_or_devices_is_parsed():
    ami = images.parse_ami({"ImageId": "ami-1", "CreationDate": "2026-11-22T10:00:00.000Z"}, "eu-west-1")
    assert (ami.snapshot_ids, ami.size_gib, ami.digest, ami.created_at.year) == ((), 0, "", 2026)


def test_amis_of_the_same_second_are_sorted_by_name():
    second = "2026-11-22T10:00:00.000Z"
    found = [
        images.parse_ami({"ImageId": image_id, "Name": name, "CreationDate": second}, "eu-west-1")
        for image_id, name in (("ami-1", "web-26.12"), ("ami-2", "web-26.11"), ("ami-3", "web-26.11"))
    ]
    assert [ami.ami_id for ami in sorted(found, key=images.age_key)] == ["ami-2", "ami-3", "ami-1"]


def test_the_root_device_comes_first():
    ami = images.parse_ami(
        {
            "ImageId": "ami-1",
            "CreationDate": "2026-11-22T10:00:00.000Z",
            "RootDeviceName": "/dev/sda1",
            "BlockDeviceMappings": [
                {"DeviceName": "/dev/sdb", "Ebs": {"SnapshotId": "snap-data", "VolumeSize": 8}},
                {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": "snap-root", "VolumeSize": 4}},
                {"DeviceName": "/dev/sdc", "VirtualName": "ephemeral0"},
            ],
        },
        "eu-west-1",
    )
    assert ami.snapshot_ids == ("snap-root", "snap-data")
    assert ami.size_gib == 12


def test_a_registration_omits_empty_parameters():
    bare = images.Registration("web", "x86_64", "", "/dev/sda1", "snap-1", imds_support="", sriov_support="")
    optional = {"BootMode", "ImdsSupport", "SriovNetSupport", "TpmSupport", "UefiData"}
    assert optional.isdisjoint(bare.request())


def test_a_registration_sends_parameters_with_a_value():
    whole = images.Registration(
        "web", "x86_64", "uefi", "/dev/sda1", "snap-1", tpm_support="v2.0", uefi_data="AAAA"
    )
    wanted = {
        "BootMode": "uefi",
        "ImdsSupport": "v2.0",
        "SriovNetSupport": "simple",
        "TpmSupport": "v2.0",
        "UefiData": "AAAA",
    }
    assert wanted.items() <= whole.request().items()


def test_only_the_operator_s_empty_tags_are_sent():
    sent = tags.to_list({"a": "1", "b": "", "vmsnix:flake": ""})
    assert sent == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k" * 128: "v"}, "AWS allows 127 in a key"),
        ({"k": "v" * 256}, "255 in a value"),
        ({"": "v"}, "no key"),
        ({" ": "v"}, "no key"),
        ({"aws:mine": "v"}, "reserved"),
        ({"AWS:mine": "v"}, "reserved"),
        ({"vmsnix:mine": "v"}, "reserved"),
        ({"Vmsnix:digest": "v"}, "reserved"),
        ({"Name": "v"}, "reserved"),
        ({"k": 5}, "not text"),
        ({f"k{number}": "v" for number in range(50)}, "50 tags are too many"),
    ],
)
def test_invalid_tags_are_refused(given, message):
    with pytest.raises(errors.ParameterError, match=message):
        tags.check_tags(given)


def test_the_longest_tags_are_accepted():
    longest = {"k" * 127: "v" * 255, "empty": ""}
    assert tags.check_tags(longest) == longest
