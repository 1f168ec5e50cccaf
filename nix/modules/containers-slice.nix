# The slice of all containers: they may use the usual pseudo devices and nothing else, also if a task definition lists
# the TPM, and do not reach the instance metadata service in any network. systemd applies the rules to each container
# below the slice, also to one in a slice of its own, which the ECS agent creates.
{
  DevicePolicy = "closed";
  IPAddressDeny = [
    "169.254.169.254/32"
    "fd00:ec2::254/128"
  ];
}
