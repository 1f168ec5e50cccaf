# The images of this flake, by name. Adding one is one file here and one line below; `nix build ./nix#<name>`
# then builds it.
{
  actions-runner = ./actions-runner.nix;
  ecs-node = ./ecs-node.nix;
  gc-fwd = ./gc-fwd.nix;
}
