# Mixin `github-actions`: a self-hosted GitHub Actions runner that can use Docker and Nix.
#
# Adds one runner for a repository, an organisation or an enterprise, registered with the machine's name, with
# the tools that workflows expect. It starts when its token file exists.
#
# A job can become root: it may use Docker and is a trusted user of Nix. Register the runner only where everybody
# who can start a workflow may have full control of the machine.
#
# Different from the original images, where those do not work with the current nixpkgs: the group is set together
# with the user, the platform label does not use the removed `pkgs.system`, and the home directory is below /var/lib
# instead of on a RAM disk that the module does not create.
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
      description = "The repository, organisation or enterprise with which the runner registers.";
    };

    tokenFile = mkOption {
      type = types.path;
      default = "/run/keys/github-runner";
      example = "/var/lib/secrets/github-runner";
      description = ''
        File with only a registration token or a personal access token. The runner starts when the file
        exists.
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
