# Facts that must be true for an image. `facts machine` is a list of { fact, isTrue }, computed from the
# evaluated configuration; nothing is built.
{ lib }:
machine:
let
  inherit (machine) config;
  inherit (config.vmsnix.image) format;
  size = config.vmsnix.image.diskSize;
  attested = format == "attested";
  image = config.system.build.images.${format};
  # The configuration inside the image.
  variant = image.passthru.config;
  admin = config.users.users.${config.vmsnix.admin.name};
  services = config.systemd.services;
  register = config.vmsnix.image.registerImage;
  etcMount = lib.findFirst (
    mount: mount.where == "/sysroot/etc"
  ) null config.boot.initrd.systemd.mounts;
  # Text without context, so that a fact builds nothing.
  text = builtins.unsafeDiscardStringContext;
  has = part: whole: lib.hasInfix (text part) (text whole);
  runner = config.services.github-runners.runner or null;
  blocksMetadata = services ? block-instance-metadata && !(config.vmsnix.docker.instanceMetadata or true);
  blocker = services.block-instance-metadata;
  failed = lib.filter (assertion: !assertion.assertion);

  every = {
    # Assertions and warnings of the machine and of its image.
    "no assertion fails" = failed config.assertions == [ ];
    "no assertion of the image fails" = failed variant.assertions == [ ];
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
    "SSH host keys are state below /var/lib" =
      config.services.openssh.hostKeys != [ ]
      && lib.all (key: lib.hasPrefix "/var/lib/" key.path) config.services.openssh.hostKeys;
    "name servers are written outside /etc" = config.services.resolved.enable;

    # Agents.
    "a service starts when its secret has content, and can be stopped" =
      lib.all (unit: !(unit.pathConfig ? PathExists)) (lib.attrValues config.systemd.paths)
      && lib.all (
        unit:
        services.${unit}.unitConfig.ConditionFileNotEmpty or [ ] == [ config.systemd.paths.${unit}.pathConfig.PathChanged ]
        && lib.elem "multi-user.target" config.systemd.paths.${unit}.wantedBy
      ) (lib.filter (unit: config.systemd.paths.${unit}.pathConfig ? PathChanged) (lib.attrNames config.systemd.paths));
    "there is a program that writes secrets in one step" = lib.any (
      package: (package.name or "") == "vmsnix-secret"
    ) config.environment.systemPackages;
    # The start on EC2.
    "a machine is online when one interface is" =
      config.systemd.network.wait-online.enable && config.systemd.network.wait-online.anyInterface;
    "instance metadata is requested for five minutes" =
      has "VMSNIX_METADATA_SECONDS:-300" services.fetch-ec2-metadata.script
      && !lib.any (limit: services.fetch-ec2-metadata.serviceConfig ? ${limit}) [ "TimeoutSec" "TimeoutStartSec" "RuntimeMaxSec" ];
    "the last line of the metadata fetch is on the console" =
      services.fetch-ec2-metadata.serviceConfig.StandardOutput or "" == "journal+console"
      && services.fetch-ec2-metadata.serviceConfig.StandardError or "" == "journal";
    "a small machine has compressed swap" =
      config.zramSwap.enable && config.services.zram-generator.settings.zram0.host-memory-limit or 0 == 4096;

    # Containers and jobs.
    "containers cannot reach the instance metadata service" =
      config.virtualisation.docker.enable
      -> blocksMetadata
      && lib.hasSuffix "-block-metadata start" blocker.serviceConfig.ExecStart or ""
      && lib.hasSuffix "-block-metadata stop" blocker.serviceConfig.ExecStop or ""
      && lib.elem "docker.service" blocker.before
      && lib.elem "docker.service" blocker.requiredBy;
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
        && services.github-runner-runner.environment.HOME or "" == runner.workDir
        && lib.elem (lib.removePrefix "/var/lib/" (toString runner.workDir)) (
          lib.toList services.github-runner-runner.serviceConfig.StateDirectory or [ ]
        );
    "jobs of the runner cannot reach the instance metadata service" =
      runner != null
      ->
        blocksMetadata
        && blocker.environment.VMSNIX_OWNERS or "" == "--uid-owner ${runner.user};--gid-owner nixbld";

    # Access.
    "the keys of the administrator are in image-info.json" =
      config.vmsnix.image.info.admin.keys or [ ] == admin.openssh.authorizedKeys.keys;
    "SSH accepts only keys" =
      config.services.openssh.enable
      && config.services.openssh.settings.PasswordAuthentication == false
      && config.services.openssh.settings.KbdInteractiveAuthentication == false;
    "the administrator's keys come only from the image" =
      lib.elem "/etc/ssh/authorized_keys.d/%u" config.services.openssh.authorizedKeysFiles
      && !lib.any (lib.hasInfix "%h") config.services.openssh.authorizedKeysFiles;
    "executed programs are audited, and the log is limited" =
      config.security.auditd.enable
      && lib.any (lib.hasInfix "execve") config.security.audit.rules
      && config.security.auditd.settings.max_log_file_action == "rotate";

    # The disk and the registration.
    "the disk has the configured size" =
      (if attested then variant.image.repart.imageSize == "${toString size}M" else variant.virtualisation.diskSize == size);
    "the console is the serial port" =
      lib.last (lib.filter (lib.hasPrefix "console=") config.boot.kernelParams)
      == "console=ttyS0,115200n8";
    "instance metadata is not written to /etc" =
      config.environment.etc."ec2-metadata".mode or "" == "direct-symlink"
      && config.environment.etc."ec2-metadata".source or "" == "/run/ec2-metadata";
    "the registration matches the image" =
      register.BootMode == (if config.ec2.efi then "uefi" else "legacy-bios")
      && register.Architecture
        == (if machine.pkgs.stdenv.hostPlatform.isAarch64 then "arm64" else "x86_64")
      && register.RootDeviceName == config.vmsnix.image.rootDevice
      && register.EnaSupport
      && register.ImdsSupport == "v2.0"
      && ((register ? TpmSupport) -> register.BootMode == "uefi");
  };

  # The images that Cachix deploys to, and that run user data.
  seed = {
    "passwd and shadow are written outside /etc" =
      config.services.userborn.enable && config.services.userborn.passwordFilesLocation != "/etc";
    "EC2's services use the directory of the SSH host keys" = lib.all (
      directives: lib.elem "${config.vmsnix.immutable.sshHostKeyDirectory}:/etc/ssh" directives
    ) [
      (services.apply-ec2-data.serviceConfig.BindPaths or [ ])
      (services.print-host-key.serviceConfig.BindReadOnlyPaths or [ ])
    ];
    "the Cachix agent is enabled and has a name" =
      config.services.cachix-agent.enable
      && config.services.cachix-agent.name != ""
      && services.cachix-agent.environment.CACHIX_AGENT_NAME or "" == config.vmsnix.cachix.agentName;
    "the Cachix agent waits for its token" =
      services.cachix-agent.unitConfig.ConditionFileNotEmpty or [ ] == [ config.vmsnix.cachix.tokenFile ];
    "old deployments are deleted" = config.nix.gc.automatic && has "--delete-older-than" config.nix.gc.options;
    "the SSM agent is enabled" = config.services.amazon-ssm-agent.enable;
    "amazon-init is enabled" = config.virtualisation.amazon-init.enable && services ? amazon-init;

    "GRUB is installed to the disk of the root file system" =
      if config.ec2.efi then
        config.boot.loader.grub.devices == [ "nodev" ]
      else
        config.boot.loader.grub.devices == [ "/dev/vmsnix-root-disk" ]
        && has "-root-disk %k\", SYMLINK+=\"vmsnix-root-disk\"" config.services.udev.extraRules
        && has "-root-disk) && " config.boot.loader.grub.extraPrepareConfig
        && has "-sfn \"/dev/$disk\" /dev/vmsnix-root-disk" config.boot.loader.grub.extraPrepareConfig;
    "only root can read the EFI system partition" =
      config.ec2.efi
      -> config.fileSystems."/boot".fsType == "vfat" && lib.elem "umask=0077" config.fileSystems."/boot".options;
    "the administrator has keys and sudo" =
      admin.openssh.authorizedKeys.keys != [ ]
      && admin.openssh.authorizedKeys.keys == config.vmsnix.admin.keys
      && lib.elem "wheel" admin.extraGroups;
    "the EC2 key pair can log in as root" =
      lib.elem "/root/.ssh/authorized_keys" config.services.openssh.authorizedKeysFiles
      && config.services.openssh.settings.PermitRootLogin == "prohibit-password";
    "the root partition grows" = config.boot.growPartition && config.fileSystems."/".autoResize;
    "image-info.json contains the registration" =
      has "registerImage" image.postVM;
    "the image is nixpkgs' Amazon image, and not an attested one" =
      format == "amazon" && !(config.vmsnix ? attested) && config.nix.enable && config.system.switch.enable;
    "UUIDs, hash seeds and dates of the disk are fixed" =
      image.SOURCE_DATE_EPOCH or "" == "315532800"
      && has "-E hash_seed=" image.preVM
      && has "tune2fs -T now -U " image.buildCommand
      && has "--disk-guid=" image.preVM
      && (config.ec2.efi -> has "mkfs.vfat -i " image.buildCommand);
  };

  cmdline = " ${toString variant.boot.kernelParams} ";
  mount = path: variant.fileSystems.${path};
  notExecutable = options: lib.all (flag: lib.elem flag options) [ "noexec" "nosuid" "nodev" ];
  # Mounts of a disk, without the verified store.
  data = lib.filterAttrs (path: _: path != "/" && path != "/nix/store") variant.fileSystems;
  partitions = variant.image.repart.partitions;
  inherit (variant.image.repart.verityStore) partitionIds;
  files = variant.environment.etc;
  docker = config.virtualisation.docker.enable;
  containers = config.systemd.slices.ecstasks.sliceConfig;
  daemon = config.virtualisation.docker.daemon.settings;
  agent = services.ecs-agent;
  emptied = services.empty-state;
  cluster = config.vmsnix.ecs.cluster or null;

  attestedFacts = {
    # The disk.
    "the store is a read-only erofs partition with dm-verity" =
      variant.image.repart.verityStore.enable
      && partitions.${partitionIds.store}.repartConfig.Format == "erofs"
      && partitions.${partitionIds.store}.repartConfig.Verity == "data"
      && partitions.${partitionIds.store-verity}.repartConfig.Verity == "hash"
      && lib.elem variant.system.build.toplevel partitions.${partitionIds.store}.storePaths
      && variant.boot.initrd.systemd.dmVerity.enable
      && (mount "/nix/store").device == "/usr/nix/store";
    "the root hash is in the command line of the UKI, which the firmware starts" =
      has "usrhash=$usrhash" variant.system.build.uki.buildCommand
      && has "init=${variant.system.build.toplevel}/init" variant.system.build.uki.buildCommand
      && lib.hasPrefix "/EFI/BOOT/BOOT" variant.image.repart.verityStore.ukiPath
      && !variant.boot.loader.grub.enable
      && !variant.boot.loader.systemd-boot.enable;
    "the image boots by UEFI and needs a TPM 2.0" =
      register.BootMode == "uefi" && register.TpmSupport or "" == "v2.0" && config.boot.initrd.systemd.tpm2.enable;
    "the root file system is a tmpfs" = (mount "/").fsType == "tmpfs" && notExecutable (mount "/").options;
    "/var and /home are on a partition that the first boot makes" =
      variant.boot.initrd.systemd.repart.enable
      && variant.systemd.repart.partitions."50-data".Label == "vmsnix-data"
      && (mount "/var").device == "/dev/disk/by-partlabel/vmsnix-data"
      && (mount "/home").device == "/var/home"
      && !lib.any (partition: (partition.repartConfig.Label or "") == "vmsnix-data") (lib.attrValues partitions)
      # The free space of the image is kept for it.
      && partitions.${partitionIds.store}.repartConfig.PaddingWeight or 0 == 1
      && lib.all (id: partitions.${id}.repartConfig.Weight or 1 == 0) [ partitionIds.store partitionIds.store-verity ];
    "nothing on the data partition can be executed, except the state of containers" =
      lib.attrNames (lib.filterAttrs (_: each: !notExecutable each.options) data)
      == lib.optional docker "/var/lib/docker"
      && lib.attrNames data
      == [ "/home" "/var" ] ++ lib.optional docker "/var/lib/docker"
      && lib.all (each: lib.elem "nodev" each.options) (lib.attrValues data);
    "the data partition has no system extensions, and no home directory except the administrator's" =
      !lib.any (name: has "sysext" name || has "confext" name) (
        lib.attrNames config.systemd.units ++ lib.attrNames variant.boot.initrd.systemd.units
      )
      && lib.attrNames (
        lib.filterAttrs (
          _: user: user.home != "/var/empty" && lib.any (path: lib.hasPrefix path user.home) [ "/home" "/var/" ]
        ) config.users.users
      ) == [ config.vmsnix.admin.name ];
    "Docker and the ECS agent start only with empty state after a boot" =
      docker
      ->
        emptied.unitConfig.RequiresMountsFor or [ ] == [ "/var/lib/docker" "/var/lib/ecs" ]
        && lib.hasPrefix "/var/lib/ecs/" agent.environment.ECS_DATADIR or ""
        && emptied.scriptArgs == "/var/lib/docker /var/lib/ecs"
        && has "-mindepth 1 -delete" emptied.script
        # The script fails if one of the directories does not exist. systemd makes the one that it mounts.
        && emptied.serviceConfig.StateDirectory or [ ] == [ "ecs" ]
        && emptied.before == [ "docker.service" "ecs-agent.service" ]
        && emptied.requiredBy == emptied.before;
    "users and their passwords are part of the verified store" =
      config.services.userborn.static
      && lib.all (file: lib.hasPrefix "/nix/store/" (toString files.${file}.source)) [ "group" "passwd" "shadow" ];
    "no deployment changes the system" =
      !config.nix.enable && !config.system.switch.enable && !config.services.cachix-agent.enable && !(services ? cachix-agent);
    "no other code is started: no kexec, no hibernation, no partition by its type, no emergency shell" =
      has " nohibernate " cmdline
      && has " systemd.gpt_auto=0 " cmdline
      && config.boot.kernel.sysctl."kernel.kexec_load_disabled" or false == true
      && config.boot.initrd.systemd.emergencyAccess == false
      && !config.systemd.enableEmergencyMode;

    # What runs as root.
    "user data is not run, and contains no credentials for systemd" =
      !config.virtualisation.amazon-init.enable && !(services ? amazon-init) && has " systemd.imds=no " cmdline;
    "there is no SSM agent" = !config.services.amazon-ssm-agent.enable && !(services ? amazon-ssm-agent);
    "user data sets no SSH keys" = !services.apply-ec2-data.enable;
    "root cannot log in" =
      config.services.openssh.settings.PermitRootLogin == "no"
      && config.services.openssh.authorizedKeysFiles == [ "/etc/ssh/authorized_keys.d/%u" ]
      && config.users.users.root.openssh.authorizedKeys.keys == [ ]
      && lib.all (kind: lib.elem config.users.users.root.${kind} [ null "!" ]) [
        "hashedPassword"
        "hashedPasswordFile"
        "initialHashedPassword"
        "initialPassword"
        "password"
      ];
    "the administrator has keys, and sudo only in an interactive image" =
      let
        sudo = lib.elem "wheel" admin.extraGroups || lib.elem "docker" admin.extraGroups || config.security.sudo.enable;
      in
      admin.openssh.authorizedKeys.keys == config.vmsnix.admin.keys
      && sudo == config.vmsnix.attested.interactive
      && !config.security.polkit.enable;
    "an interactive image has a word in its command line" =
      has " vmsnix.interactive=1 " cmdline == config.vmsnix.attested.interactive;
    "an image with containers, and its cluster, have words in its command line" =
      has " vmsnix.attests=host " cmdline == docker
      && (cluster != null -> has " vmsnix.cluster=${cluster} " cmdline);
    "user data is read only as data, for the names that the image accepts" =
      services ? user-data == (config.vmsnix.attested.userData != { })
      && (
        services ? user-data
        ->
          has "vmsnix-secret \"$file\"" services.user-data.script
          && !has "eval" services.user-data.script
          && services.user-data.environment.VMSNIX_ACCEPTED != ""
      );
    "the image contains nitro-tpm-attest" = lib.elem machine.pkgs.nitrotpm-tools config.environment.systemPackages;

    # Containers.
    "there are no privileged containers" =
      docker
      -> agent.environment.ECS_DISABLE_PRIVILEGED or "" == "true"
      && daemon.default-runtime or "" == "unprivileged"
      && lib.hasSuffix "-unprivileged-runtime" daemon.runtimes.unprivileged.path or "";
    "containers reach neither the TPM and other devices nor the instance metadata service, in any network" =
      docker
      -> daemon.cgroup-parent or "" == "ecstasks.slice"
      && daemon.exec-opts or [ ] == [ "native.cgroupdriver=systemd" ]
      && lib.elem "docker.service" config.systemd.slices.ecstasks.requiredBy
      && containers.DevicePolicy or "" == "closed"
      && !(containers ? DeviceAllow)
      && containers.IPAddressDeny or [ ] == [ "169.254.169.254/32" "fd00:ec2::254/128" ];
    "the name of the cluster is part of the image, or the only variable that user data sets" =
      services ? ecs-agent
      -> (
        if cluster != null then
          agent.environment.ECS_CLUSTER or "" == cluster
          && !(agent.serviceConfig ? EnvironmentFile)
          && !(config.systemd.paths ? ecs-agent)
          && config.vmsnix.attested.userData == { }
        else
          config.vmsnix.attested.userData == { "ecs.config" = [ "ECS_CLUSTER" ]; }
      );

    # The output.
    "image-info.json has the registration, the measurements, the cluster, and whether the image is interactive" =
      lib.all (part: has part image.postInstall) [
        (builtins.toJSON { inherit (config.vmsnix.attested) interactive; inherit cluster; })
        "\"registerImage\":${builtins.toJSON register}"
        "\"tpm\":\"v2.0\""
        "--arg root_hash "
        "python3 \"$measure\" \"$uki\""
        "({$root_hash} + $measured)"
      ];
    "UUIDs of the disk are fixed" =
      variant.image.repart.seed != null && variant.image.repart.seed != "random";
  };
in
lib.mapAttrsToList (fact: isTrue: { inherit fact isTrue; }) (every // (if attested then attestedFacts else seed))
