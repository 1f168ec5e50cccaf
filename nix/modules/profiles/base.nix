# Profile `base`: settings for every machine, on EC2 or elsewhere.
#
# Adds an administrator with SSH keys in the image, SSH with keys only, sudo, an audit log of executed programs,
# and logs that cannot fill the disk. The owners of a machine must always be able to log in, and must be able to
# find out who did what on it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkOption types;
  cfg = config.vmsnix.admin;

  keyTypes = lib.concatStringsSep "|" [
    "ssh-ed25519"
    "ssh-rsa"
    "ecdsa-sha2-nistp(256|384|521)"
    "sk-ssh-ed25519@openssh\\.com"
    "sk-ecdsa-sha2-nistp256@openssh\\.com"
  ];
in
{
  imports = [ ./image.nix ];

  options.vmsnix.admin = {
    name = mkOption {
      type = types.strMatching "[a-z_][a-z0-9_-]{0,31}";
      default = "altf4";
      example = "ops";
      description = ''
        The administrator's user name. The EC2 key pair of an instance is for `root` and never changes this
        user's keys.
      '';
    };

    keys = mkOption {
      type = types.listOf (
        types.addCheck types.singleLineStr (
          key: builtins.match "(${keyTypes}) [A-Za-z0-9+/]+=*( [^\n]*)?" key != null
        )
        // {
          description = "OpenSSH public key";
        }
      );
      default = [ ];
      example = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx alice" ];
      description = ''
        OpenSSH public keys that may log in as the administrator: type, key, and the owner as the comment.
        They are part of the image; to change them, build a new image or deploy. There is no default on
        purpose: a module must not contain its authors' keys.
      '';
    };

    sudo = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = "Let the administrator become root with sudo. With `false`, the machine has no sudo.";
    };

    passwordlessSudo = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = ''
        Let the administrator become root without a password. The user has no password (SSH accepts only
        keys): with `false`, set one with `users.users.<name>.hashedPasswordFile`.
      '';
    };
  };

  config = {
    assertions = [
      {
        assertion = cfg.keys != [ ];
        message = ''
          vmsnix.admin.keys is empty, so no login as '${cfg.name}' would be possible.
          Put your OpenSSH public keys into nix/keys.nix, or set vmsnix.admin.keys in your own flake.
        '';
      }
      {
        assertion = lib.allUnique cfg.keys;
        message = "vmsnix.admin.keys contains the same key twice.";
      }
    ];

    # The whole public keys, so that vmsnix can show their fingerprints before an AMI is made.
    vmsnix.image.info.admin = {
      user = cfg.name;
      inherit (cfg) keys;
    };

    users.users.${cfg.name} = {
      isNormalUser = true;
      description = "Administrator";
      # systemd-journal lets the administrator read logs without root.
      extraGroups = [ "systemd-journal" ] ++ lib.optional cfg.sudo "wheel";
      openssh.authorizedKeys.keys = cfg.keys;
      # userborn does not manage subordinate ids. They are not needed: there are no rootless containers.
      autoSubUidGidRange = false;
    };

    security.sudo.enable = cfg.sudo;
    security.sudo.wheelNeedsPassword = !cfg.passwordlessSudo;

    services.openssh = {
      enable = true;
      settings = {
        PasswordAuthentication = false;
        KbdInteractiveAuthentication = false;
        PermitRootLogin = mkDefault "prohibit-password";
      };
    };

    # Log a line for every executed program. 32-bit programs need a rule of their own, because their system call
    # numbers are different.
    security.audit = {
      enable = mkDefault true;
      rules = [
        "-a exit,always -F arch=b64 -S execve -S execveat"
      ]
      ++ lib.optional pkgs.stdenv.hostPlatform.isx86_64 "-a exit,always -F arch=b32 -S execve -S execveat";
    };

    # At most 5 files of 16 MiB: without a limit, the audit log of a busy runner fills a 4 GiB disk within days.
    # If the disk is full all the same, the daemon logs that and stops writing; it never halts the machine.
    security.auditd = {
      enable = mkDefault true;
      settings = {
        max_log_file = mkDefault 16;
        num_logs = mkDefault 5;
        max_log_file_action = mkDefault "rotate";
        space_left_action = mkDefault "syslog";
        admin_space_left_action = mkDefault "suspend";
        disk_full_action = mkDefault "suspend";
        disk_error_action = mkDefault "syslog";
      };
    };

    services.journald.extraConfig = ''
      SystemMaxUse=256M
      MaxRetentionSec=1month
    '';

    nix.settings.experimental-features = [
      "nix-command"
      "flakes"
    ];

    # Delete old generations, otherwise deployments fill the disk. A machine without Nix has no generations.
    nix.gc = {
      automatic = mkDefault config.nix.enable;
      dates = mkDefault "weekly";
      options = mkDefault "--delete-older-than 14d";
    };
    # srvos turns this on for every machine.
    nix.optimise.automatic = lib.mkIf (!config.nix.enable) (lib.mkForce false);

    # The NixOS release whose conventions for state these machines use. To raise it, migrate the state; it is not
    # an ordinary update.
    system.stateVersion = mkDefault "26.05";
  };
}
