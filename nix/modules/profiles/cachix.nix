# Profile `cachix`: the Cachix Deploy agent, by which a running machine gets a new system without a new image.
#
# Gives `services.cachix-agent` with a name that is never empty and a start that waits for its token. Why:
# nixpkgs names the agent after `networking.hostName`, which is empty on EC2, and starts it whether or not
# there is a token, which is a restart every five seconds for ever.
#
# The token file holds CACHIX_AGENT_TOKEN=TOKEN and may hold CACHIX_AGENT_NAME=NAME as well, to give each
# machine of an image its own name.
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
        Name under which the machine shows up in Cachix Deploy, unless the token file says CACHIX_AGENT_NAME.
      '';
    };

    tokenFile = mkOption {
      type = types.path;
      default = "/run/keys/cachix-agent";
      example = "/var/lib/secrets/cachix-agent";
      description = "Environment file with CACHIX_AGENT_TOKEN. The agent starts when it is there.";
    };
  };

  config = lib.mkMerge [
    {
      services.cachix-agent = {
        enable = true;
        # systemd puts the variable in; the token file is read after the default below, and so can override
        # it.
        name = "\${CACHIX_AGENT_NAME}";
        credentialsFile = toString cfg.tokenFile;
      };

      systemd.services.cachix-agent.environment.CACHIX_AGENT_NAME = cfg.agentName;
    }
    (import ../start-when-present.nix "cachix-agent" (toString cfg.tokenFile))
  ];
}
