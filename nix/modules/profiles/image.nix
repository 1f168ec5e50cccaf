# Profile `image`: name, disk size and registration of an image.
#
# Adds the options `vmsnix.image.*` and passes them to nixpkgs' own image builder for Amazon
# (`system.build.images.amazon`). In nixpkgs, disk size and file name are options of the image variant only, so
# they cannot be set with the rest of a machine. And its image-info.json has no registration parameters, so every
# uploader has to guess them. Here image-info.json contains a complete RegisterImage request except name and
# snapshot, under the key `registerImage` that is also proposed for nixpkgs.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (pkgs.stdenv.hostPlatform) system;
  cfg = config.vmsnix.image;

  # Fixed, so that two builds of an image do not differ by them. 1980-01-01, the first day of FAT.
  sourceDate = "315532800";
  hashSeed = "5d0c7c1b-9f52-4b0e-8f7d-3c8a54a2f0a6";
  espId = "56d50e5c";

  architectures = {
    x86_64-linux = "x86_64";
    aarch64-linux = "arm64";
  };
in
{
  options.vmsnix.image = {
    name = mkOption {
      type = types.strMatching "[a-z][a-z0-9-]*";
      default = "nixos";
      example = "ecs-node";
      description = ''
        The image's short name: part of the image file's name and of the AMI's name, and the default name of
        the machine's Cachix agent. The flake sets it to the image's name in `nix/images/default.nix`.
      '';
    };

    description = mkOption {
      type = types.singleLineStr;
      default = "NixOS machine image";
      example = "ECS container instance";
      description = "The purpose of machines made from this image, in one line; the AMI's description.";
    };

    format = mkOption {
      type = types.str;
      default = "amazon";
      example = "attested";
      description = "The format of the image: a name in `system.build.images`.";
    };

    diskSize = mkOption {
      type = types.either (types.enum [ "auto" ]) (types.ints.between 1024 (64 * 1024 * 1024));
      default = 4 * 1024;
      example = 6 * 1024;
      description = ''
        Size of the root disk in MiB, or `"auto"` for the smallest possible disk. A volume made from the
        image may be larger: the partition and its file system grow at boot.
      '';
    };

    rootDevice = mkOption {
      type = types.strMatching "/dev/[a-z0-9/]+";
      default = "/dev/sda1";
      example = "/dev/xvda";
      description = ''
        The root device's name in the AMI. An instance boots with any name, and the machine itself uses none of
        them. nixpkgs' own images use `/dev/xvda`.
      '';
    };

    tpm = mkOption {
      type = types.bool;
      default = config.ec2.efi && system == "x86_64-linux";
      defaultText = lib.literalMD "on for images that boot by UEFI on x86_64";
      example = true;
      description = ''
        Require a NitroTPM. It needs UEFI. Off by default on aarch64: an AMI that requires a TPM cannot be
        started on an instance type without one, and some Graviton types have none.
      '';
    };

    registerImage = mkOption {
      type = types.attrsOf types.anything;
      example = lib.literalExpression ''{ ImdsSupport = "v2.0"; }'';
      description = ''
        Parameters of EC2's RegisterImage that depend on the image, with EC2's own names. They are written to
        image-info.json as `registerImage`. Set a key to override it. The publisher adds the name, the
        description, the snapshot and the tags.
      '';
    };

    info = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      example = {
        team = "platform";
      };
      description = "More facts about the image, written to image-info.json under `vmsnix`.";
    };
  };

  config = {
    assertions = [
      {
        assertion = cfg.tpm -> config.ec2.efi;
        message = ''
          vmsnix.image.tpm is on, but the image boots by legacy BIOS, where EC2 has no TPM. Set ec2.efi = true
          or vmsnix.image.tpm = false.
        '';
      }
      {
        assertion = architectures ? ${system};
        message = ''
          EC2 has no machines of the platform ${system}; its platforms are ${lib.concatStringsSep " and " (lib.attrNames architectures)}.
        '';
      }
    ];

    vmsnix.image = {
      registerImage = lib.mapAttrs (_: lib.mkDefault) (
        {
          Architecture = architectures.${system};
          BootMode = if config.ec2.efi then "uefi" else "legacy-bios";
          EnaSupport = true;
          # Instance metadata only with session tokens, as nixpkgs' own metadata service uses it.
          ImdsSupport = "v2.0";
          RootDeviceName = cfg.rootDevice;
          SriovNetSupport = "simple";
          VirtualizationType = "hvm";
          BlockDeviceMappings = [
            {
              DeviceName = cfg.rootDevice;
              Ebs = {
                DeleteOnTermination = true;
                VolumeType = "gp3";
              };
            }
          ];
        }
        // lib.optionalAttrs cfg.tpm { TpmSupport = "v2.0"; }
      );

      info = {
        inherit (cfg) name description;
        nixosVersion = config.system.nixos.version;
        stateVersion = config.system.stateVersion;
      };
    };

    # A deferred module: it is evaluated only inside the Amazon variant, where these options exist.
    image.modules.amazon =
      {
        config,
        lib,
        pkgs,
        ...
      }:
      {
        image.baseName = lib.mkDefault "${cfg.name}-${config.system.nixos.label}-${system}";
        virtualisation.diskSize = cfg.diskSize;

        # nixpkgs' derivation with one more step after the virtual machine has finished: it adds our keys to
        # the file that nixpkgs has written. A second derivation around the first would store every disk twice.
        #
        # nixpkgs sets the UUIDs of the disk, its partitions and its ext4 file system. The seed of ext4's directory
        # hashes and the number of the EFI system partition are set here; both would be random.
        system.build.image = lib.mkForce (
          lib.overrideDerivation config.system.build.amazonImage (original: {
            SOURCE_DATE_EPOCH = sourceDate;
            preVM = lib.replaceStrings [ "-E offset=" ] [ "-E hash_seed=${hashSeed},offset=" ] original.preVM;
            buildCommand = lib.replaceStrings [ "mkfs.vfat -n ESP" ] [ "mkfs.vfat -i ${espId} -n ESP" ] original.buildCommand;
            postVM = original.postVM + ''
              ${lib.getExe pkgs.jq} \
                --argjson registerImage ${lib.escapeShellArg (builtins.toJSON cfg.registerImage)} \
                --argjson vmsnix ${lib.escapeShellArg (builtins.toJSON cfg.info)} \
                '. + {registerImage: $registerImage, vmsnix: $vmsnix}' \
                "$out/nix-support/image-info.json" > image-info.json
              mv image-info.json "$out/nix-support/image-info.json"
            '';
          })
        );
      };
  };
}
