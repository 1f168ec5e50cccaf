# Profile `attested`: a machine whose code cannot be changed on the disk, and whose TPM proves which code runs.
#
# The store is a read-only erofs file system with dm-verity. Its root hash is in the kernel command line of the
# unified kernel image (UKI), which the firmware measures into PCR 4 of the TPM. A changed bit of the store is an
# I/O error; a changed kernel, initial RAM disk or command line is another PCR 4. The root file system is a tmpfs,
# and passwd, shadow and /etc are part of the store. /var and /home are data: the first boot makes their partition,
# and nothing on it can be executed. Threat model: docs/reference/attested-images.md.
#
# Disables everything in the profile `amazon` that runs code that was not measured, or lets it in: amazon-init, the
# SSM agent, the EC2 key pair and the SSH host keys of user data, deployments. The administrator can log in, but has
# no sudo. User data is read as data: lines NAME=VALUE with the names that the image accepts become secret files.
#
# Adds the image format `attested`: a raw disk and image-info.json.
{
  config,
  lib,
  modulesPath,
  pkgs,
  ...
}:
let
  inherit (lib) mkForce mkOption types;
  inherit (pkgs.stdenv.hostPlatform) system;
  cfg = config.vmsnix.attested;
  machine = config.vmsnix.image;
  # With null, user data names the cluster.
  cluster = config.vmsnix.ecs.cluster or null;
  docker = config.virtualisation.docker.enable;
  ecs = config.services.ecs-agent.enable;
  # The agent starts the tasks of its saved state.
  emptied = cfg.executableState ++ lib.optional ecs "/var/lib/ecs";

  notExecutable = [
    "noexec"
    "nosuid"
    "nodev"
  ];
in
{
  imports = [
    ./amazon.nix
    ./base.nix
    ./image.nix
    ./immutable.nix
  ];
  disabledModules = [ ./cachix.nix ];

  options.vmsnix.attested = {
    interactive = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Give the administrator sudo, to find a fault. The kernel command line gets the word
        `vmsnix.interactive=1`, so PCR 4 differs from that of the image without it.
      '';
    };

    userData = mkOption {
      type = types.attrsOf (types.listOf (types.strMatching "[A-Z][A-Z0-9_]*"));
      default = { };
      example = {
        grafana-cloud = [ "GRAFANA_CLOUD_TOKEN" ];
      };
      description = ''
        The names that user data may set, for each secret file. Every other name is refused. The value
        `ssm:NAME` stands for the parameter NAME of SSM Parameter Store.
      '';
    };

    executableState = mkOption {
      type = types.listOf types.path;
      default = if docker then [ "/var/lib/docker" ] else [ ];
      defaultText = lib.literalMD "`/var/lib/docker` on a machine with Docker";
      example = [ "/var/lib/plugins" ];
      description = ''
        Directories below /var with programs that a service must execute. The programs are not measured. The
        service `empty-state` empties each directory at boot, so that a changed disk cannot add a program to it. A
        service that uses another directory than Docker's must require it and start after it.
      '';
    };
  };

  config = lib.mkMerge [
    {
      # Firmware, disk and kernel.
      ec2.efi = true;
      vmsnix.image = {
        format = "attested";
        tpm = true;
      };
      boot.loader.grub.enable = mkForce false;
      boot.growPartition = mkForce false;
      boot.kernelParams = [
        # Mount no partition only because of its type.
        "systemd.gpt_auto=0"
        # On EC2, systemd 261 and newer read credentials from user data, among them root's SSH keys and units.
        "systemd.imds=no"
      ]
      ++ lib.optional cfg.interactive "vmsnix.interactive=1"
      # So PCR 4 says it too: `vmsnix attestation-policy` reads these words.
      ++ lib.optional docker "vmsnix.attests=host"
      ++ lib.optional (cluster != null) "vmsnix.cluster=${toString cluster}";
      # No hibernation and no kexec, which start code that was not measured.
      security.protectKernelImage = true;

      fileSystems = {
        "/" = {
          device = mkForce "none";
          fsType = mkForce "tmpfs";
          autoResize = mkForce false;
          options = [
            "mode=0755"
            "size=25%"
          ]
          ++ notExecutable;
        };
        "/boot".enable = mkForce false;
        "/var" = {
          device = "/dev/disk/by-partlabel/vmsnix-data";
          fsType = "ext4";
          options = notExecutable;
        };
        "/home" = {
          device = "/var/home";
          fsType = "none";
          options = [ "bind" ] ++ notExecutable;
        };
      }
      // lib.genAttrs cfg.executableState (directory: {
        device = directory;
        fsType = "none";
        options = [
          "bind"
          "exec"
          "suid"
          "nodev"
        ];
      });

      # systemd-repart makes the partition in the free space of the disk, and later boots find it.
      boot.initrd.systemd.repart.enable = true;
      systemd.repart.partitions."50-data" = {
        Type = "linux-generic";
        Label = "vmsnix-data";
        Format = "ext4";
        SizeMinBytes = "512M";
      };

      # A changed disk must add neither a program nor a container that Docker or the ECS agent would start. They do not
      # start if a file cannot be deleted.
      systemd.services.empty-state = lib.mkIf (emptied != [ ]) rec {
        description = "Delete the state of the last boot that starts programs";
        requiredBy = lib.optional docker "docker.service" ++ lib.optional ecs "ecs-agent.service";
        before = requiredBy;
        unitConfig.RequiresMountsFor = emptied;
        path = [ pkgs.findutils ];
        script = builtins.readFile ./empty-state.sh;
        scriptArgs = toString emptied;
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          StateDirectory = lib.optional ecs "ecs";
          StandardError = "journal+console";
        };
      };

      # The system is never changed after the build. /usr is the verified partition.
      nix.enable = false;
      system.switch.enable = false;
      services.userborn.static = true;
      system.activationScripts.usrbinenv = mkForce "";

      # Nothing that was not measured runs as root.
      virtualisation.amazon-init.enable = mkForce false;
      services.amazon-ssm-agent.enable = mkForce false;
      systemd.services.apply-ec2-data.enable = false;
      vmsnix.admin.sudo = cfg.interactive;
      # Without sudo, no user can become root, which NixOS refuses by default.
      users.allowNoPasswordLogin = true;
      services.openssh = {
        settings.PermitRootLogin = mkForce "no";
        # Before the profile `amazon`, which adds root's own file.
        authorizedKeysFiles = lib.mkOverride 48 [ "/etc/ssh/authorized_keys.d/%u" ];
      };

      systemd.services.user-data = lib.mkIf (cfg.userData != { }) {
        description = "Write the secrets of user data";
        wantedBy = [ "multi-user.target" ];
        after = [ "fetch-ec2-metadata.service" ];
        path = [
          pkgs.curl
          pkgs.jq
          # vmsnix-secret
          "/run/current-system/sw"
        ];
        environment.VMSNIX_ACCEPTED = toString (
          lib.concatLists (lib.mapAttrsToList (file: map (name: "${file}:${name}")) cfg.userData)
        );
        script = builtins.readFile ./user-data.sh;
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          StandardOutput = "journal+console";
          StandardError = "journal";
        };
      };

      environment.systemPackages = [ pkgs.nitrotpm-tools ];
    }

    # Containers are not measured. They cannot use the TPM and other devices, nor the credentials of the instance's
    # role, in any network. The name of the slice is the ECS agent's, which creates a slice for each task
    # below it.
    (lib.mkIf docker {
      systemd.slices.ecstasks = {
        description = "Containers";
        requiredBy = [ "docker.service" ];
        before = [ "docker.service" ];
        sliceConfig = import ../containers-slice.nix;
      };
      virtualisation.docker.daemon.settings = {
        cgroup-parent = "ecstasks.slice";
        exec-opts = [ "native.cgroupdriver=systemd" ];
        # The ECS agent offers no privileged containers to the cluster, but would start one if a task asked for it.
        default-runtime = "unprivileged";
        runtimes.unprivileged.path = "${pkgs.writeShellScript "unprivileged-runtime" ''
          PATH=${
            lib.makeBinPath [
              pkgs.jq
              pkgs.runc
            ]
          }
          ${builtins.readFile ./unprivileged-runtime.sh}
        ''}";
      };
    })

    (lib.mkIf ecs {
      # The cluster places no privileged containers here.
      services.ecs-agent.extra-environment.ECS_DISABLE_PRIVILEGED = "true";
      vmsnix.attested.userData = lib.mkIf (cluster == null) { "ecs.config" = [ "ECS_CLUSTER" ]; };
    })

    {
      # A deferred module, like the one of the profile `image`.
      image.modules.attested =
        {
          config,
          lib,
          pkgs,
          ...
        }:
        let
          inherit (config.image.repart.verityStore) partitionIds;
          efiArch = lib.toUpper pkgs.stdenv.hostPlatform.efiArch;
          info = {
            label = config.system.nixos.version;
            boot_mode = "uefi";
            tpm = "v2.0";
            inherit system;
            attested = {
              inherit (cfg) interactive;
              inherit cluster;
            };
            inherit (machine) registerImage;
            vmsnix = machine.info;
          };
        in
        {
          imports = [ "${modulesPath}/image/repart.nix" ];

          # nixpkgs' derivation, with image-info.json added to its output.
          options.system.build.image = lib.mkOption {
            type = types.package;
            apply =
              image:
              image.overrideAttrs (previous: {
                nativeBuildInputs = previous.nativeBuildInputs ++ [
                  pkgs.buildPackages.jq
                  pkgs.buildPackages.python3
                ];
                postInstall = (previous.postInstall or "") + ''
                  disk=${config.image.baseName}.raw
                  uki=${config.system.build.uki}/${config.system.boot.loader.ukiFile}
                  measure=${./measure-uki.py}
                  info=${lib.escapeShellArg (builtins.toJSON info)}
                  ${builtins.readFile ./attested-output.sh}
                '';
              });
          };

          config = {
            image.baseName = lib.mkDefault "${machine.name}-${config.system.nixos.label}-${system}";
            image.repart = {
              inherit (machine) name;
              imageSize =
                if machine.diskSize == "auto" then "auto" else "${toString machine.diskSize}M";
              verityStore = {
                enable = true;
                # The firmware starts the UKI itself, without a boot loader.
                ukiPath = "/EFI/BOOT/BOOT${efiArch}.EFI";
              };
              # The free space stays free for the first boot: no partition grows into it.
              partitions = {
                ${partitionIds.esp}.repartConfig = {
                  Type = "esp";
                  Format = "vfat";
                  SizeMinBytes = "256M";
                  SizeMaxBytes = "256M";
                };
                ${partitionIds.store-verity}.repartConfig.Weight = 0;
                ${partitionIds.store}.repartConfig = {
                  Weight = 0;
                  PaddingWeight = 1;
                };
              };
            };
          };
        };
    }
  ];
}
