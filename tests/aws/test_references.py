"""References to AMIs from all sources, and hints at other users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.sandbox.ec2.conftest import aws, still_sandbox
from vmsnix_ops.aws import paging
from vmsnix_ops.aws.images import find_amis
from vmsnix_ops.aws.references import (
    Link,
    Reference,
    RegionClients,
    ResourceVersion,
    add_last_launches,
    is_used,
    merge_references,
    read_references,
    references_from_json,
    references_to_json,
    search_references,
)

if TYPE_CHECKING:
    import pytest

    from tests.sandbox.clients import SandboxClients
    from vmsnix_ops.aws.references import References

__all__ = ["aws", "still_sandbox"]
REGION, FRIEND = "us-east-1", "210987654321"


def read(aws: SandboxClients, *images: str) -> References:
    """Return the references to all AMIs, as an audit reads them, and those to some AMIs one by one."""
    clients = RegionClients.of(aws.sandbox.session(), REGION)
    found = read_references(clients)
    if not images:
        return found
    amis = find_amis(clients.ec2, images).values()
    found = merge_references(found, search_references(clients, images))
    return add_last_launches(found, {ami.ami_id: ami.launched_at for ami in amis if ami.launched_at})


def use(found: References, ami_id: str) -> bool | None:
    return is_used(found.of(ami_id), complete=not found.unread)


def kinds(found: References, ami_id: str) -> list[tuple[str, str]]:
    return [(one.kind, one.id) for one in found.of(ami_id)]


def template(aws: SandboxClients, name: str, *images: str) -> str:
    """Create a launch template with a version for each image; the first is the default."""
    data = [{"ImageId": image, "InstanceType": "t3.micro"} for image in images]
    made = aws.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data[0])
    template_id: str = made["LaunchTemplate"]["LaunchTemplateId"]
    for version in data[1:]:
        aws.ec2.create_launch_template_version(LaunchTemplateId=template_id, LaunchTemplateData=version)
    return template_id


def test_a_new_ami_has_no_references(aws: SandboxClients) -> None:
    image = aws.image()
    found = read(aws, image)
    assert (found.of(image), use(found, image), not found.unread) == ((), False, True)


def test_an_instance_references_its_ami_until_it_is_terminated(aws: SandboxClients) -> None:
    image = aws.image()
    run = aws.ec2.run_instances(ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance = run["Instances"][0]["InstanceId"]
    found = read(aws)
    assert (kinds(found, image), use(found, image)) == ([("instance", instance)], True)
    aws.ec2.terminate_instances(InstanceIds=[instance])
    aws.pass_time(60)
    assert read(aws, image).names(image) == ()


def test_all_versions_of_launch_templates_are_references(aws: SandboxClients) -> None:
    first, second, third, fourth = (aws.image() for _ in range(4))
    nodes = template(aws, "nodes", first, second, third, fourth, second)
    plain = template(aws, "plain", third)
    found = read(aws)
    assert found.of(first) == (
        Reference("launch-template", nodes, (ResourceVersion(1, default=True),), name="nodes"),
    )
    assert str(found.of(second)[0]) == f"launch-template {nodes} (nodes, versions 2, 5 (latest))"
    assert set(kinds(found, third)) == {("launch-template", nodes), ("launch-template", plain)}
    assert use(found, fourth) is True
    assert found.of(second)[0].versions == (ResourceVersion(2), ResourceVersion(5, latest=True))
    assert (found.of(second)[0].launches, found.of(fourth)[0].launches) == (True, False)


def test_a_reference_to_a_deleted_parameter_is_kept(aws: SandboxClients) -> None:
    image = aws.image()
    put = {"Name": "/p/x", "Type": "String", "DataType": "aws:ec2:image", "Value": image}
    aws.sandbox.client("ssm", REGION).put_parameter(**put)
    aws.pass_time(300)
    nodes = template(aws, "nodes", "resolve:ssm:/p/x")
    assert ("launch-template", nodes) in kinds(read(aws), image)
    aws.sandbox.client("ssm", REGION).delete_parameter(Name="/p/x")
    found = read(aws)
    (lost,) = found.of("resolve:ssm:/p/x")
    assert (found.of(image), lost.id, lost.versions) == (
        (),
        nodes,
        (ResourceVersion(1, default=True, latest=True),),
    )
    assert lost.through == (Link("parameter", "/p/x"),)


def test_a_name_with_version_words_is_not_parsed() -> None:
    tricky = Reference(
        "launch-template", "lt-1", (ResourceVersion(3),), name="x (default), version 12 (latest)"
    )
    assert not tricky.launches
    assert str(tricky) == "launch-template lt-1 (x (default), version 12 (latest), version 3)"


EACH = (
    Reference("instance", "i-1", type="running"),
    Reference(
        "launch-template", "lt-1", (ResourceVersion(1), ResourceVersion(2, default=True)), name="nodes"
    ),
    Reference(
        "auto-scaling-group", "g", through=(Link("launch-template", "n", "$Latest", True),), capacity=0
    ),
    Reference("parameter", "/p/x", (ResourceVersion(3),), type="aws:ec2:image", account="012345678901"),
    Reference("launched", "2026-11-01T00:00:00Z"),
)


def test_references_survive_json() -> None:
    assert references_from_json(references_to_json(EACH)) == EACH
    assert (references_to_json([]), references_from_json("[]")) == ("[]", ())


def test_a_reference_as_text() -> None:
    assert [str(one) for one in EACH] == [
        "instance i-1 (running)",
        "launch-template lt-1 (nodes, versions 1, 2 (default))",
        "auto-scaling-group g (mixed instances, launch template n, version $Latest, 0 wanted)",
        "parameter /p/x (aws:ec2:image, version 3, account 012345678901)",
        "launched 2026-11-01T00:00:00Z (last launch)",
    ]


def test_templates_without_old_versions_need_two_calls(aws: SandboxClients) -> None:
    image = aws.image()
    for number in range(12):
        template(aws, f"template-{number}", image)
    aws.sandbox.calls.clear()
    assert len(read(aws).of(image)) == 12
    assert aws.sandbox.calls.count("ec2:DescribeLaunchTemplate*") == 2


def test_all_pages_are_read(aws: SandboxClients, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [aws.image() for _ in range(7)]
    for number, image in enumerate(images):
        template(aws, f"template-{number}", image)
        aws.client("ssm").put_parameter(Name=f"/app/{number:02}", Type="String", Value=image)
    real = paging.call_with_retries

    def small(operation: Any, **request: Any) -> Any:
        sizes = {"MaxResults": 2} if "MaxResults" in request else {}
        return real(operation, **(request | sizes))

    monkeypatch.setattr(paging, "call_with_retries", small)
    found = read(aws)
    assert {len(found.of(image)) for image in images} == {2}


def test_a_template_that_resolves_a_parameter_references_its_ami(aws: SandboxClients) -> None:
    old, new = aws.image(), aws.image()
    ssm = aws.client("ssm")
    for image in (old, new):
        ssm.put_parameter(
            Name="/golden/ami", Type="String", Value=image, DataType="aws:ec2:image", Overwrite=True
        )
    aws.sandbox.clock.advance(1)  # AWS checks the values a moment later
    pinned = template(aws, "pinned", "resolve:ssm:/golden/ami:1")
    template(aws, "moving", "resolve:ssm:/golden/ami")
    found = read(aws)
    assert kinds(found, old) == [("launch-template", pinned)]
    assert found.of(old)[0].through == (Link("parameter", "/golden/ami:1"),)
    assert [one.kind for one in found.of(new)] == ["launch-template", "parameter"]


def test_a_parameter_that_may_not_be_read_does_not_hide_other_references(aws: SandboxClients) -> None:
    shown, hidden, public = aws.image(), "resolve:ssm:/secret/ami", "resolve:ssm:/aws/service/some/image"
    ssm = aws.client("ssm")
    for name in ("/golden/ami", "/secret/ami"):
        ssm.put_parameter(Name=name, Type="String", Value=shown)
    direct, alias = template(aws, "direct", shown), template(aws, "alias", "resolve:ssm:/golden/ami")
    for name, image in (("hidden", hidden), ("public", public)):
        template(aws, name, image)
    denied = {"op": "ssm:GetParameters", "do": "error", "code": "AccessDeniedException", "http": 400}
    for place in range(3):
        for refused in ("/secret/ami", "/aws/service/some/image"):
            aws.sandbox.faults.add({**denied, "where": {f"Names.{place}": refused}})
    found = read(aws)
    named = set(kinds(found, shown))
    assert named == {("launch-template", direct), ("launch-template", alias), ("parameter", "/golden/ami")}
    assert set(found.unread) == {
        "parameters",
        "parameters of launch templates",
        "public parameters of launch templates",
    }
    assert not {hidden, public} & set(found.by_ami)  # unknown, not missing


def test_parameters_with_an_ami_in_their_value_are_references(aws: SandboxClients) -> None:
    typed, plain, listed = (aws.image() for _ in range(3))
    ssm = aws.client("ssm")
    ssm.put_parameter(Name="/vmsnix/a/stable", Type="String", Value=typed, DataType="aws:ec2:image")
    aws.sandbox.clock.advance(1)  # AWS checks the value a moment later
    ssm.put_parameter(Name="fleet", Type="String", Value=f'{{"ami": "{plain}"}}')
    ssm.put_parameter(Name="/list", Type="StringList", Value=f"x,{listed}")
    found = read(aws)
    assert found.of(typed) == (
        Reference("parameter", "/vmsnix/a/stable", (ResourceVersion(1),), type="aws:ec2:image"),
    )
    assert kinds(found, plain) == [("parameter", "fleet")]
    assert kinds(found, listed) == [("parameter", "/list")]


def test_groups_and_launch_configurations_are_references(aws: SandboxClients) -> None:
    old, new, mixed = aws.image(), aws.image(), aws.image()
    scaling, place = aws.client("autoscaling"), {"AvailabilityZones": [f"{REGION}a"]}
    empty = {"MinSize": 0, "MaxSize": 2, **place}
    scaling.create_launch_configuration(
        LaunchConfigurationName="legacy", ImageId=old, InstanceType="t3.micro"
    )
    scaling.create_auto_scaling_group(AutoScalingGroupName="old", LaunchConfigurationName="legacy", **empty)
    nodes = template(aws, "nodes", mixed, new)
    latest = {"LaunchTemplateName": "nodes", "Version": "$Latest"}
    scaling.create_auto_scaling_group(AutoScalingGroupName="new", LaunchTemplate=latest, **empty)
    policy = {
        "LaunchTemplate": {
            "LaunchTemplateSpecification": {"LaunchTemplateId": nodes},
            "Overrides": [{"InstanceType": "t3.small", "ImageId": old}],
        }
    }
    scaling.create_auto_scaling_group(AutoScalingGroupName="mixed", MixedInstancesPolicy=policy, **empty)
    found = read(aws)
    groups = [one.id for one in found.of(old) if one.kind == "auto-scaling-group"]
    assert groups == ["mixed", "old"]
    assert ("launch-configuration", "legacy") in kinds(found, old)
    assert ("auto-scaling-group", "new") in kinds(found, new)
    assert ("auto-scaling-group", "mixed") in kinds(found, mixed)
    (group,) = [one for one in found.of(new) if one.kind == "auto-scaling-group"]
    assert group.through[0].version == "$Latest"


def test_block_devices_of_launches_reference_their_snapshots(aws: SandboxClients) -> None:
    image, data, old = aws.image(), aws.snapshot(), aws.snapshot()
    disk = [{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": data}}]
    made = aws.ec2.create_launch_template(
        LaunchTemplateName="database", LaunchTemplateData={"ImageId": image, "BlockDeviceMappings": disk}
    )
    aws.client("autoscaling").create_launch_configuration(
        LaunchConfigurationName="legacy",
        ImageId=image,
        InstanceType="t3.micro",
        BlockDeviceMappings=[{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": old}}],
    )
    found = read(aws)
    assert kinds(found, data) == [("launch-template", made["LaunchTemplate"]["LaunchTemplateId"])]
    assert kinds(found, old) == [("launch-configuration", "legacy")]


def test_a_launch_permission_is_a_hint_and_makes_the_use_unknown(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": FRIEND}]})
    found = read(aws, image)
    assert found.of(image) == (Reference("shared-with", FRIEND, type="account"),)
    assert (found.names(image), use(found, image)) == ((), None)
    assert read(aws).of(image) == ()


def test_the_last_launch_is_a_hint(aws: SandboxClients) -> None:
    image = aws.image()
    run = aws.ec2.run_instances(ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    aws.ec2.terminate_instances(InstanceIds=[run["Instances"][0]["InstanceId"]])
    aws.pass_time(2 * 24 * 3600)
    found = read(aws, image)
    assert [one.kind for one in found.of(image)] == ["launched"]
    assert use(found, image) is None


def test_ec2_s_own_search_finds_what_another_source_could_not_read(aws: SandboxClients) -> None:
    image = aws.image()
    nodes = template(aws, "nodes", image)
    aws.sandbox.faults.add(
        {"op": "ec2:DescribeLaunchTemplates", "do": "error", "code": "UnauthorizedOperation", "http": 403}
    )
    found = read(aws, image)
    assert kinds(found, image) == [("launch-template", nodes)]
    assert list(found.unread) == ["launch templates"]


def test_the_use_is_unknown_if_a_source_cannot_be_read(aws: SandboxClients) -> None:
    image = aws.image()
    aws.sandbox.faults.add(
        {"op": "ssm:DescribeParameters", "do": "error", "code": "AccessDeniedException", "http": 400}
    )
    found = read(aws, image)
    assert (use(found, image), not found.unread) == (None, False)
    assert "AccessDeniedException" in str(found.unread["parameters"])


def test_an_ami_that_was_deregistered_in_the_meantime_is_skipped(aws: SandboxClients) -> None:
    kept, deregistered = aws.image(), aws.image()
    template(aws, "nodes", kept)
    aws.ec2.deregister_image(ImageId=deregistered)
    found = read(aws, kept, deregistered)
    assert (not found.unread, use(found, kept), found.of(deregistered)) == (True, True, ())


def test_throttled_reads_are_retried(aws: SandboxClients, monkeypatch: pytest.MonkeyPatch) -> None:
    image = aws.image()
    template(aws, "nodes", image)
    aws.sandbox.calls.clear()
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)
    for operation in ("ec2:DescribeLaunchTemplates", "ssm:DescribeParameters", "ec2:DescribeInstances"):
        rule = {"op": operation, "nth": list(range(1, 8)), "do": "error", "http": 503}
        aws.sandbox.faults.add(rule | {"code": "RequestLimitExceeded"})
    found = read(aws)
    assert (use(found, image), not found.unread) == (True, True)
    assert aws.sandbox.calls.count("ec2:DescribeLaunchTemplates", ran=False) == 7
