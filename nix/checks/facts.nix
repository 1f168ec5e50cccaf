# Facts that must be true for every image. `facts machine` is a list of { fact, isTrue }, computed from the
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
  has = lib.hasInfix;
  runner = config.services.github-runners.runner or null;
  blocksMetadata = services ? block-instance-metadata && !(config.vmsnix.docker.instanceMetadata or true);
  failed = lib.filter (assertion: !assertion.assertion);
in
lib.mapAttrsToList (fact: isTrue: { inherit fact isTrue; }) {
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
  "the Cachix agent waits for its token" =
    services.cachix-agent.unitConfig.ConditionFileNotEmpty or [ ] == [ config.vmsnix.cachix.tokenFile ];
  "a service starts when its secret has content, and can be stopped" =
    lib.all (unit: !(unit.pathConfig ? PathExists)) (lib.attrValues config.systemd.paths)
    && lib.all (
      unit: services.${unit}.unitConfig.ConditionFileNotEmpty or [ ] == [ config.systemd.paths.${unit}.pathConfig.PathChanged ]
    ) (lib.filter (unit: config.systemd.paths.${unit}.pathConfig ? PathChanged) (lib.attrNames config.systemd.paths));
  "there is a program that writes secrets in one step" = lib.any (
    package: (package.name or "") == "vmsnix-secret"
  ) config.environment.systemPackages;
  "the SSM agent is enabled" = config.services.amazon-ssm-agent.enable;
  "amazon-init is enabled" = config.virtualisation.amazon-init.enable && services ? amazon-init;

  # The start on EC2.
  "a machine is online when one interface is" =
    config.systemd.network.wait-online.enable && config.systemd.network.wait-online.anyInterface;
  "instance metadata is requested for five minutes" =
    has "VMSNIX_METADATA_SECONDS:-300" services.fetch-ec2-metadata.script;
  "the last line of the metadata fetch is on the console" =
    services.fetch-ec2-metadata.serviceConfig.StandardOutput == "journal+console"
    && services.fetch-ec2-metadata.serviceConfig.StandardError or "" == "journal";
  "GRUB is installed to the disk of the root file system" =
    if config.ec2.efi then
      config.boot.loader.grub.devices == [ "nodev" ]
    else
      config.boot.loader.grub.devices == [ "/dev/vmsnix-root-disk" ]
      && has "-root-disk %k\", SYMLINK+=\"vmsnix-root-disk\"" config.services.udev.extraRules
      && has "/dev/vmsnix-root-disk" config.boot.loader.grub.extraPrepareConfig;
  "only root can read the EFI system partition" =
    config.ec2.efi
    -> config.fileSystems."/boot".fsType == "vfat" && lib.elem "umask=0077" config.fileSystems."/boot".options;
  "a small machine has compressed swap" =
    config.zramSwap.enable && config.services.zram-generator.settings.zram0.host-memory-limit or 0 == 4096;

  # Containers and jobs.
  "containers cannot reach the instance metadata service" =
    config.virtualisation.docker.enable
    -> blocksMetadata
    && lib.elem "docker.service" services.block-instance-metadata.before
    && lib.elem "docker.service" services.block-instance-metadata.requiredBy;
  "ECS tasks have no awsvpc network, and no instance metadata in it" =
    config.services.ecs-agent.enable
    ->
      config.services.ecs-agent.extra-environment.ECS_ENABLE_TASK_ENI or "" == "false"
      && config.services.ecs-agent.extra-environment.ECS_AWSVPC_BLOCK_IMDS or "" == "true"
      && has "bridge and host" config.vmsnix.image.description;
  "jobs of the runner and their HOME are on the disk" =
    runner != null
    ->
      lib.hasPrefix "/var/lib/" (toString runner.workDir)
      && services.github-runner-runner.environment.HOME == runner.workDir
      && lib.elem (lib.removePrefix "/var/lib/" runner.workDir) services.github-runner-runner.serviceConfig.StateDirectory;
  "jobs of the runner cannot reach the instance metadata service" =
    runner != null
    ->
      blocksMetadata
      && has "--uid-owner ${runner.user}" services.block-instance-metadata.environment.VMSNIX_OWNERS;

  # Access.
  "the administrator has keys and sudo" =
    admin.openssh.authorizedKeys.keys != [ ]
    && admin.openssh.authorizedKeys.keys == config.vmsnix.admin.keys
    && lib.elem "wheel" admin.extraGroups;
  "the keys of the administrator are in image-info.json" =
    config.vmsnix.image.info.admin.keys or [ ] == admin.openssh.authorizedKeys.keys;
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
