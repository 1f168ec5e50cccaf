# The slice of all containers. They may use only the usual pseudo devices, also if a task definition lists the TPM. They
# cannot reach the instance metadata service in any network. systemd applies the rules to each container below the
# slice, also to containers in the slices that the ECS agent creates.
{
  DevicePolicy = "closed";
  IPAddressDeny = [
    "169.254.169.254/32"
    "fd00:ec2::254/128"
  ];
}
