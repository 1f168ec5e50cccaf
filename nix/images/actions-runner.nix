# A self-hosted GitHub Actions runner for the whole organisation, with Docker and Nix. The registration token
# or access token comes in at launch: user data writes it to /run/keys/github-runner.
{
  imports = [ ../modules/mixins/github-actions ];

  vmsnix.image.description = "Self-hosted GitHub Actions runner with Docker and Nix";

  # The runner's tools do not fit into 4 GiB with room to work.
  vmsnix.image.diskSize = 6 * 1024;
}
