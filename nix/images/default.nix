# The images of this flake, by name. To add an image, create a file here and add a line below;
# `nix build ./nix#<name>` then builds it.
{
  actions-runner = ./actions-runner.nix;
  ecs-node = ./ecs-node.nix;
  ecs-node-attested = ./ecs-node-attested.nix;
  gc-fwd = ./gc-fwd.nix;
  gc-fwd-attested = ./gc-fwd-attested.nix;
}
