# The node `ecs-node` of an ECS cluster, attested: the TPM proves the code of the host, and nothing about its tasks.
{ lib, ... }:
{
  imports = [
    ../modules/mixins/ecs-agent
    ../modules/profiles/attested.nix
  ];

  vmsnix.image.description = "ECS container instance for bridge and host networks: a host attested by a TPM, not its tasks";

  # A part of the image, and so of what is measured. Set your cluster's name here. With null, user data contains the
  # line ECS_CLUSTER=NAME, and the principal that starts an instance chooses the cluster whose tasks it runs.
  vmsnix.ecs.cluster = lib.mkDefault "ecs-node-attested";
}
