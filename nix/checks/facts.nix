# Facts that must be true for every image. `facts machine` is a list of { fact, holds }, computed from the
# evaluated configuration; nothing is built.
{ lib }:
machine:
let
  inherit (machine) config;
  amazon = config.system.build.images.amazon.passthru.config;
  admin = config.users.users.${config.vmsnix.admin.name};
  services = config.systemd.services;
  register = config.vmsnix.image.registerImage;
  etcMount = lib.findFirst (
    mount: mount.where == "/sysroot/etc"
  ) null config.boot.initrd.systemd.mounts;
  failed = lib.filter (assertion: !assertion.assertion);
in
lib.mapAttrsToList (fact: holds: { inherit fact holds; }) {
  # Assertions and warnings of the machine and of its image.
  "no assertion fails" = failed config.assertions == [ ];
  "no assertion of the Amazon variant fails" = failed amazon.assertions == [ ];
  "there are no warnings" = config.warnings == [ ];

  # Immutable main disk, writable state.
  "the store is mounted read-only" = lib.elem "ro" config.boot.nixStoreMountOpts;
  "/etc is an overlay without a writable layer" =
    config.system.etc.overlay.enable
    && !config.system.etc.overlay.mutable
    && etcMount.type == "overlay"
    && lib.elem "ro" (lib.splitString "," etcMount.options)
    && !lib.hasInfix "upperdir" etcMount.options;
  "only declared users exist" = !config.users.mutableUsers;
  "passwd and shadow are written outside /etc" =
    config.services.userborn.enable && config.services.userborn.passwordFilesLocation != "/etc";
  "SSH host keys are state below /var/lib" =
    config.services.openssh.hostKeys != [ ]
    && lib.all (key: lib.hasPrefix "/var/lib/" key.path) config.services.openssh.hostKeys;
  "instance metadata is not written to /etc" =
    config.environment.etc."ec2-metadata".mode == "direct-symlink"
    && config.environment.etc."ec2-metadata".source == "/run/ec2-metadata";
  "EC2's services use the directory of the SSH host keys" = lib.all (
    directives: lib.elem "${config.vmsnix.immutable.sshHostKeyDirectory}:/etc/ssh" directives
  ) [
    services.apply-ec2-data.serviceConfig.BindPaths
    services.print-host-key.serviceConfig.BindReadOnlyPaths
  ];
  "name servers are written outside /etc" = config.services.resolved.enable;

  # Agents.
  "the Cachix agent is enabled and has a name" =
    config.services.cachix-agent.enable
    && config.services.cachix-agent.name != ""
    && services.cachix-agent.environment.CACHIX_AGENT_NAME == config.vmsnix.cachix.agentName;
  "the Cachix agent waits for its token" = services.cachix-agent.unitConfig ? ConditionPathExists;
  "the SSM agent is enabled" = config.services.amazon-ssm-agent.enable;
  "amazon-init is enabled" = config.virtualisation.amazon-init.enable && services ? amazon-init;

  # Access.
  "the administrator has keys and sudo" =
    admin.openssh.authorizedKeys.keys != [ ]
    && admin.openssh.authorizedKeys.keys == config.vmsnix.admin.keys
    && lib.elem "wheel" admin.extraGroups;
  "SSH accepts only keys" =
    config.services.openssh.enable
    && config.services.openssh.settings.PasswordAuthentication == false
    && config.services.openssh.settings.KbdInteractiveAuthentication == false;
  "the EC2 key pair can log in as root" =
    lib.elem "/root/.ssh/authorized_keys" config.services.openssh.authorizedKeysFiles
    && config.services.openssh.settings.PermitRootLogin == "prohibit-password";
  "the administrator's keys come only from the image" =
    lib.elem "/etc/ssh/authorized_keys.d/%u" config.services.openssh.authorizedKeysFiles
    && !lib.any (lib.hasInfix "%h") config.services.openssh.authorizedKeysFiles;
  "executed programs are audited, and the log is limited" =
    config.security.auditd.enable
    && lib.any (lib.hasInfix "execve") config.security.audit.rules
    && config.security.auditd.settings.max_log_file_action == "rotate";

  # The disk and the registration.
  "the disk has the configured size" =
    amazon.virtualisation.diskSize == config.vmsnix.image.diskSize;
  "the root partition grows" = config.boot.growPartition && config.fileSystems."/".autoResize;
  "the console is the serial port" =
    lib.last (lib.filter (lib.hasPrefix "console=") config.boot.kernelParams)
    == "console=ttyS0,115200n8";
  "the registration matches the image" =
    register.BootMode == (if config.ec2.efi then "uefi" else "legacy-bios")
    && register.Architecture
      == (if machine.pkgs.stdenv.hostPlatform.isAarch64 then "arm64" else "x86_64")
    && register.RootDeviceName == config.vmsnix.image.rootDevice
    && register.EnaSupport
    && register.ImdsSupport == "v2.0"
    && ((register ? TpmSupport) -> register.BootMode == "uefi");
  "image-info.json contains the registration" =
    lib.hasInfix "registerImage" config.system.build.images.amazon.postVM;
}
