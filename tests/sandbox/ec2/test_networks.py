"""The default VPC of an account, and the network of instances.

Sources: "Default VPCs", "Default security groups for your VPCs"; the examples of the AWS CLI.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused


def launch(aws: SandboxClients, region: str = "us-east-1", **more: Any) -> dict[str, Any]:
    """Return an instance that runs, as DescribeInstances shows it."""
    ec2 = aws.client("ec2", region)
    params = {"InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1} | more
    if "ImageId" not in params:
        params["ImageId"] = aws.image()
    instance = ec2.run_instances(**params)["Instances"][0]["InstanceId"]
    aws.pass_time(20)
    found: dict[str, Any] = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    return found


def test_a_region_has_a_default_vpc_with_a_subnet_for_each_zone(aws: SandboxClients) -> None:
    (vpc,) = aws.ec2.describe_vpcs()["Vpcs"]
    assert (vpc["IsDefault"], vpc["CidrBlock"], vpc["State"]) == (True, "172.31.0.0/16", "available")
    subnets = aws.ec2.describe_subnets()["Subnets"]
    assert {s["AvailabilityZone"] for s in subnets} == {"us-east-1a", "us-east-1b", "us-east-1c"}
    assert {s["VpcId"] for s in subnets} == {vpc["VpcId"]}
    assert all(s["DefaultForAz"] and s["MapPublicIpOnLaunch"] for s in subnets)
    assert len({s["CidrBlock"] for s in subnets}) == 3
    (group,) = aws.ec2.describe_security_groups()["SecurityGroups"]
    assert (group["GroupName"], group["Description"]) == ("default", "default VPC security group")
    assert group["IpPermissions"][0]["UserIdGroupPairs"][0]["GroupId"] == group["GroupId"]


def test_regions_and_accounts_have_their_own_networks(aws: SandboxClients) -> None:
    other = aws.sandbox.other_account("210987654321").client("ec2", "us-east-1")
    vpcs = [aws.ec2, aws.client("ec2", "eu-west-1"), other]
    assert len({ec2.describe_vpcs()["Vpcs"][0]["VpcId"] for ec2 in vpcs}) == 3


@pytest.mark.parametrize("name", ["is-default", "isDefault"])
def test_the_default_vpc_is_found_by_both_names_of_the_filter(aws: SandboxClients, name: str) -> None:
    """Ansible's amazon.aws sends the second one."""
    assert len(aws.ec2.describe_vpcs(Filters=[{"Name": name, "Values": ["true"]}])["Vpcs"]) == 1
    assert aws.ec2.describe_vpcs(Filters=[{"Name": name, "Values": ["false"]}])["Vpcs"] == []


def test_an_instance_is_in_the_default_subnet_with_an_address(aws: SandboxClients) -> None:
    instance = launch(aws)
    (subnet,) = aws.ec2.describe_subnets(SubnetIds=[instance["SubnetId"]])["Subnets"]
    assert subnet["AvailabilityZone"] == instance["Placement"]["AvailabilityZone"]
    assert ip_address(instance["PrivateIpAddress"]) in ip_network(subnet["CidrBlock"])
    dashed = instance["PrivateIpAddress"].replace(".", "-")
    assert instance["PrivateDnsName"] == f"ip-{dashed}.ec2.internal"
    assert instance["PublicDnsName"].startswith("ec2-")
    assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["default"]
    (interface,) = instance["NetworkInterfaces"]
    assert interface["PrivateIpAddress"] == instance["PrivateIpAddress"]
    assert interface["Association"]["PublicIp"] == instance["PublicIpAddress"]
    assert launch(aws)["PrivateIpAddress"] != instance["PrivateIpAddress"]


@pytest.mark.parametrize("form", ["instance", "interface"])
def test_a_launch_chooses_subnet_and_groups_in_both_forms(aws: SandboxClients, form: str) -> None:
    subnet = aws.ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": ["us-east-1b"]}])[
        "Subnets"
    ][0]["SubnetId"]
    group = aws.ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
    interface = {"DeviceIndex": 0, "SubnetId": subnet, "Groups": [group], "AssociatePublicIpAddress": False}
    params: dict[str, Any] = {"SubnetId": subnet, "SecurityGroupIds": [group]}
    if form == "interface":
        params = {"NetworkInterfaces": [interface]}
    instance = launch(aws, **params)
    assert (instance["SubnetId"], instance["Placement"]["AvailabilityZone"]) == (subnet, "us-east-1b")
    assert instance["SecurityGroups"] == [{"GroupName": "web", "GroupId": group}]
    assert ("PublicIpAddress" in instance) is (form == "instance")
    for name, value in (("subnet-id", subnet), ("instance.group-name", "web"), ("vpc-id", instance["VpcId"])):
        answer = aws.ec2.describe_instances(Filters=[{"Name": name, "Values": [value]}])
        assert answer["Reservations"][0]["Instances"][0]["InstanceId"] == instance["InstanceId"]
    with refused("DependencyViolation"):
        aws.ec2.delete_security_group(GroupId=group)


def test_networks_that_do_not_exist_are_refused(aws: SandboxClients) -> None:
    image = aws.image()
    with refused("InvalidSubnetID.NotFound", "The subnet ID 'subnet-0123456789abcdef0' does not exist"):
        launch(aws, ImageId=image, SubnetId="subnet-0123456789abcdef0")
    with refused("InvalidGroup.NotFound", "The security group 'sg-0123456789abcdef0' does not exist"):
        launch(aws, ImageId=image, SecurityGroupIds=["sg-0123456789abcdef0"])
    with refused("InvalidVpcID.NotFound"):
        aws.ec2.describe_vpcs(VpcIds=["vpc-0123456789abcdef0"])
    with refused("NotImplemented", "NetworkInterfaceId"):
        launch(aws, ImageId=image, NetworkInterfaces=[{"DeviceIndex": 0, "NetworkInterfaceId": "eni-1"}])
    with refused("InvalidParameterCombination", "Network interfaces and an instance-level subnet ID"):
        launch(aws, ImageId=image, SubnetId="subnet-1", NetworkInterfaces=[{"DeviceIndex": 0}])


def test_a_terminated_instance_has_no_network(aws: SandboxClients) -> None:
    instance = launch(aws)["InstanceId"]
    aws.ec2.terminate_instances(InstanceIds=[instance])
    aws.pass_time(60)
    shown = aws.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    assert shown["NetworkInterfaces"] == shown["SecurityGroups"] == []
    assert "SubnetId" not in shown
    assert "PrivateIpAddress" not in shown


def test_security_groups_are_created_changed_and_deleted(aws: SandboxClients) -> None:
    group = aws.ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
    with refused("InvalidGroup.Duplicate"):
        aws.ec2.create_security_group(GroupName="web", Description="d")
    ports = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    rule = ports | {"IpRanges": [{"CidrIp": "192.0.2.0/24"}]}
    answer = aws.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    assert answer["SecurityGroupRules"][0]["CidrIpv4"] == "192.0.2.0/24"
    with refused("InvalidPermission.Duplicate"):
        aws.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    with refused("MissingParameter"):  # not that of the default group
        aws.ec2.authorize_security_group_ingress(IpPermissions=[rule])
    filters = [{"Name": "ip-permission.from-port", "Values": ["22"]}]
    (found,) = aws.ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    assert found["GroupId"] == group
    aws.ec2.delete_security_group(GroupId=group)
    with refused("InvalidGroup.NotFound"):
        aws.ec2.describe_security_groups(GroupIds=[group])
    with refused("CannotDelete"):
        aws.ec2.delete_security_group(GroupName="default")
