# Mixin `github-actions`: a self-hosted GitHub Actions runner that can use Docker and Nix.
#
# Adds one runner for a repository, an organisation or an enterprise, registered with the machine's name, with
# the tools that workflows expect. It starts when its token file has content.
#
# A job can become root: it may use Docker and is a trusted user of Nix. Register the runner only where everybody
# who can start a workflow may have full control of the machine.
#
# Two parts of the original images do not work with the current nixpkgs. So here the group is set together with the
# user, and the platform label does not use the removed `pkgs.system`. Jobs and their HOME are on the disk
# below /var/lib; nixpkgs puts both into /run, which is memory.
#
# Jobs and the builds that they start with Nix cannot reach the instance metadata service, unless
# `vmsnix.docker.instanceMetadata` is on. A job that becomes root can remove that rule: give the instance a role that
# every job may use.
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
  directory = "github-runner/work"; # below /var/lib
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
      description = "The repository, organisation or enterprise with which the runner registers.";
    };

    tokenFile = mkOption {
      type = types.path;
      default = "/run/keys/github-runner";
      example = "/var/lib/secrets/github-runner";
      description = ''
        File with only a registration token or a personal access token. The runner starts when the file
        has content.
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
      description = "Labels for a workflow's `runs-on`, in addition to GitHub's own.";
    };

    ephemeral = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Run one job, then register again with a clean state. Needs a personal access token, because a
        registration token expires.
      '';
    };

    packages = mkOption {
      type = types.listOf types.package;
      default = [ ];
      example = lib.literalExpression "[ pkgs.nodejs ]";
      description = "More programs in the PATH of every job.";
    };
  };

  config = lib.mkMerge [
    {
      services.github-runners.runner = {
        enable = true;
        # null: the name that the machine has when it registers.
        name = null;
        inherit (cfg) url ephemeral;
        inherit user;
        group = user;
        tokenFile = toString cfg.tokenFile;
        replace = true;
        workDir = "/var/lib/${directory}";
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
          # systemd creates it for the runner's user. The module empties it before every start.
          StateDirectory = [ directory ];
          # Jobs may install into their own profiles. They get an empty home directory, apart from their work.
          ReadWritePaths = [ "/nix/var/nix/profiles/per-user/" ];
          ProtectHome = "tmpfs";
        }
        // lib.optionalAttrs (!cfg.ephemeral) {
          # Restart a runner that lost the network; nixpkgs restarts only ephemeral ones.
          Restart = lib.mkForce "on-failure";
          RestartSec = 30;
        };
      };

      # nixbld: builders of Nix, whose fixed-output derivations have network access.
      systemd.services.block-instance-metadata.environment =
        lib.mkIf (!config.vmsnix.docker.instanceMetadata)
          { VMSNIX_OWNERS = "--uid-owner ${user};--gid-owner nixbld"; };

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
        # If less than 1 GiB is free, the daemon deletes store paths until 3 GiB are free. The original images
        # required 5 GiB free on a disk of 6.
        min-free = 1024 * 1024 * 1024;
        max-free = 3 * 1024 * 1024 * 1024;
      };
    }
    (import ../../start-when-present.nix "github-runner-runner" (toString cfg.tokenFile))
  ];
}
