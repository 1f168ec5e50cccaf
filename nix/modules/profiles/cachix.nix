# Profile `cachix`: the Cachix Deploy agent, which deploys a new system to a running machine without a new image.
#
# Adds `services.cachix-agent` with a name that is never empty, started when its token file has content. nixpkgs alone
# names the agent after `networking.hostName`, which is empty on EC2, and starts it without a token, so that it
# would be restarted every five seconds forever.
#
# The token file contains CACHIX_AGENT_TOKEN=TOKEN. It may also contain CACHIX_AGENT_NAME=NAME, to give each machine
# of an image its own name.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.vmsnix.cachix;
in
{
  imports = [
    ./image.nix
  ];

  options.vmsnix.cachix = {
    agentName = mkOption {
      type = types.strMatching "[A-Za-z0-9][A-Za-z0-9._-]*";
      default = config.vmsnix.image.name;
      defaultText = lib.literalExpression "config.vmsnix.image.name";
      example = "ecs-node-blue";
      description = ''
        Name of the machine in Cachix Deploy, unless the token file sets CACHIX_AGENT_NAME.
      '';
    };

    tokenFile = mkOption {
      type = types.path;
      default = "/run/keys/cachix-agent";
      example = "/var/lib/secrets/cachix-agent";
      description = "Environment file with CACHIX_AGENT_TOKEN. The agent starts when the file has content.";
    };
  };

  config = lib.mkMerge [
    {
      services.cachix-agent = {
        enable = true;
        # systemd replaces the variable. It reads the token file after the default below, so the file can
        # override the default.
        name = "\${CACHIX_AGENT_NAME}";
        credentialsFile = toString cfg.tokenFile;
      };

      systemd.services.cachix-agent.environment.CACHIX_AGENT_NAME = cfg.agentName;
    }
    (import ../start-when-present.nix "cachix-agent" (toString cfg.tokenFile))
  ];
}
