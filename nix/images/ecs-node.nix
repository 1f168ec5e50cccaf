# A node of an ECS cluster: Docker, the ECS agent, and monitoring of both. The cluster's name comes in at
# launch: user data writes /run/keys/ecs.config with at least a line ECS_CLUSTER=NAME.
{
  imports = [ ../modules/mixins/ecs-agent ];

  vmsnix.image.description = "ECS container instance: Docker, the ECS agent, Alloy";
}
