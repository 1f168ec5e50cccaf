# A self-hosted GitHub Actions runner for the whole organisation, with Docker and Nix. User data writes its
# registration token or access token to /run/keys/github-runner at launch.
{
  imports = [ ../modules/mixins/github-actions ];

  vmsnix.image.description = "Self-hosted GitHub Actions runner with Docker and Nix";

  # 4 GiB are too small for the runner's tools and its work.
  vmsnix.image.diskSize = 6 * 1024;
}
