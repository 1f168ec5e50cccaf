# Profile `base`: what every machine has, wherever it runs.
#
# Gives an administrator with baked-in keys, key-only SSH, sudo, an audit trail of executed programs, and logs
# that cannot fill the disk. Why: an image must be reachable by its owners before anything else about it
# works, and must say afterwards who did what on it.
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

  # The comment of a public key: who it belongs to.
  ownerOf = key: lib.concatStringsSep " " (lib.drop 2 (lib.splitString " " key));
in
{
  imports = [ ./image.nix ];

  options.vmsnix.admin = {
    name = mkOption {
      type = types.strMatching "[a-z_][a-z0-9_-]{0,31}";
      default = "altf4";
      example = "ops";
      description = ''
        The administrator's user name. The EC2 key pair of an instance is given to `root` and never touches
        this user's keys.
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
        OpenSSH public keys that may log in as the administrator: type, key, and as the comment whose it is.
        They are part of the image; changing them means a new image or a deployment. There is no default on
        purpose: a module must not bring its authors' keys.
      '';
    };

    passwordlessSudo = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = ''
        Whether the administrator becomes root without a password. The user has none (SSH takes keys only), so
        that with `false` a password has to be set through `users.users.<name>.hashedPasswordFile`.
      '';
    };
  };

  config = {
    assertions = [
      {
        assertion = cfg.keys != [ ];
        message = ''
          vmsnix.admin.keys is empty, so that nobody could log in as '${cfg.name}'.
          Put your OpenSSH public keys into nix/keys.nix, or set vmsnix.admin.keys in your own flake.
        '';
      }
      {
        assertion = lib.allUnique cfg.keys;
        message = "vmsnix.admin.keys holds the same key twice.";
      }
    ];

    vmsnix.image.info.admin = {
      user = cfg.name;
      keys = map ownerOf cfg.keys;
    };

    users.users.${cfg.name} = {
      isNormalUser = true;
      description = "Administrator";
      # systemd-journal: reading logs is the administrator's everyday work and needs no root.
      extraGroups = [
        "systemd-journal"
        "wheel"
      ];
      openssh.authorizedKeys.keys = cfg.keys;
      # userborn does not manage subordinate ids, and nothing here runs rootless containers.
      autoSubUidGidRange = false;
    };

    security.sudo.wheelNeedsPassword = !cfg.passwordlessSudo;

    services.openssh = {
      enable = true;
      settings = {
        PasswordAuthentication = false;
        KbdInteractiveAuthentication = false;
        PermitRootLogin = mkDefault "prohibit-password";
      };
    };

    # Every program that is executed leaves a line, also those of 32-bit programs, which have system call
    # numbers of their own.
    security.audit = {
      enable = mkDefault true;
      rules = [
        "-a exit,always -F arch=b64 -S execve -S execveat"
      ]
      ++ lib.optional pkgs.stdenv.hostPlatform.isx86_64 "-a exit,always -F arch=b32 -S execve -S execveat";
    };

    # At most 5 files of 16 MiB: without a bound, the audit log of a busy runner fills a 4 GiB disk within
    # days. When space runs out nevertheless, the daemon complains and stops writing; it never halts the
    # machine.
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

    # Old generations go, or deployments fill the disk.
    nix.gc = {
      automatic = mkDefault true;
      dates = mkDefault "weekly";
      options = mkDefault "--delete-older-than 14d";
    };

    # The NixOS release whose conventions for state these machines were first installed with. Raising it is a
    # migration, not an update.
    system.stateVersion = mkDefault "26.05";
  };
}
