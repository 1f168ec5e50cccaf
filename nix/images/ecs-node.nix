# A node of an ECS cluster: Docker, the ECS agent, and monitoring of both. At launch, user data writes
# /run/keys/ecs.config with at least the line ECS_CLUSTER=NAME.
{
  imports = [ ../modules/mixins/ecs-agent ];

  vmsnix.image.description = "ECS container instance for bridge and host networks: Docker, the ECS agent, Alloy";
}
