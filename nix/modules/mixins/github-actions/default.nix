# Mixin `github-actions`: a self-hosted GitHub Actions runner that can use Docker and Nix.
#
# Gives one runner for a repository, an organisation or an enterprise, registered under the machine's name,
# with the tools that workflows expect. It starts when its token is there. Trust: a job may use Docker and is
# a trusted user of Nix, either of which is as good as root. Only register it where everybody who can start a
# workflow may have the machine.
#
# Differs from the seed where that breaks on today's nixpkgs: the group is named together with the user, the
# platform label does not use the removed `pkgs.system`, and the home directory is state below /var/lib and no
# longer on a RAM disk that the module does not create.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.vmsnix.githubActions;
  user = "github-runner";
in
{
  imports = [
    ../alloy
    ../docker
  ];

  options.vmsnix.githubActions = {
    url = mkOption {
      type = types.strMatching "https://.+";
      default = "https://github.com/ALT-F4-LLC";
      example = "https://github.com/example/repository";
      description = "The repository, organisation or enterprise that the runner is registered with.";
    };

    tokenFile = mkOption {
      type = types.path;
      default = "/run/keys/github-runner";
      example = "/var/lib/secrets/github-runner";
      description = ''
        File with a registration token or a personal access token and nothing else. The runner starts when it
        is there.
      '';
    };

    labels = mkOption {
      type = types.listOf (types.strMatching "[A-Za-z0-9._-]+");
      default = [
        "nixos"
        "nix"
        pkgs.stdenv.hostPlatform.system
      ];
      defaultText = lib.literalExpression ''[ "nixos" "nix" pkgs.stdenv.hostPlatform.system ]'';
      example = [
        "nixos"
        "gpu"
      ];
      description = "Labels by which a workflow's `runs-on` finds the runner, besides GitHub's own.";
    };

    ephemeral = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Take one job, then register anew with a clean state. Needs a personal access token, because a
        registration token expires.
      '';
    };

    packages = mkOption {
      type = types.listOf types.package;
      default = [ ];
      example = lib.literalExpression "[ pkgs.nodejs ]";
      description = "Further programs on the path of every job.";
    };
  };

  config = lib.mkMerge [
    {
      services.github-runners.runner = {
        enable = true;
        # The name that the machine has when it registers.
        name = null;
        inherit (cfg) url ephemeral;
        inherit user;
        group = user;
        tokenFile = toString cfg.tokenFile;
        replace = true;
        extraLabels = cfg.labels;
        extraPackages =
          (with pkgs; [
            awscli2
            bashInteractive
            bzip2
            cachix
            coreutils-full
            cpio
            curl
            diffutils
            docker
            findutils
            gawk
            getconf
            getent
            gnugrep
            gnupatch
            gnused
            gnutar
            gzip
            jq
            just
            less
            mkpasswd
            ncurses
            netcat
            nixos-rebuild
            openssh
            procps
            stdenv.cc.libc
            time
            util-linux
            which
            xz
            zip
            zstd
          ])
          ++ cfg.packages;
        serviceOverrides = {
          # Jobs may install into profiles of their own, and see an empty home besides their work.
          ReadWritePaths = [ "/nix/var/nix/profiles/per-user/" ];
          ProtectHome = "tmpfs";
        }
        // lib.optionalAttrs (!cfg.ephemeral) {
          # A runner that lost the network comes back; nixpkgs restarts ephemeral ones only.
          Restart = lib.mkForce "on-failure";
          RestartSec = 30;
        };
      };

      users.groups.${user} = { };
      users.users.${user} = {
        isSystemUser = true;
        group = user;
        extraGroups = [ "docker" ];
        home = "/var/lib/github-runner";
      };

      nix.settings = {
        trusted-users = [
          "root"
          user
        ];
        # The daemon makes room by itself when less than 1 GiB is free, until 3 GiB are. The seed asked for 5
        # GiB on a disk of 6.
        min-free = 1024 * 1024 * 1024;
        max-free = 3 * 1024 * 1024 * 1024;
      };
    }
    (import ../../start-when-present.nix "github-runner-runner" (toString cfg.tokenFile))
  ];
}
