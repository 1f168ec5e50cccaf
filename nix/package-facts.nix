# The facts about the packages of a machine that the store does not have, such as licences, CPE and patches.
#
# `packageFacts machine` is a map from output path to facts, for every derivation that the system is made of,
# also at build time. The paths in it have no context, so that its evaluation builds nothing.
{ lib }:
machine:
let
  inherit (machine) config pkgs;
  inherit (builtins)
    attrNames
    getContext
    isAttrs
    isList
    isString
    match
    parseDrvName
    ;
  inherit (lib)
    attrValues
    concatMap
    filter
    isDerivation
    listToAttrs
    nameValuePair
    ;
  text = builtins.unsafeDiscardStringContext;

  # A part that cannot be evaluated (broken, unfree, of another system) has no facts.
  try =
    default: value:
    let
      result = builtins.tryEval (builtins.deepSeq value value);
    in
    if result.success then result.value else default;

  # The derivations and the texts in the value of an attribute. Structured attributes may be sets.
  valuesIn =
    value:
    if isDerivation value || isString value then
      [ value ]
    else if isList value then
      concatMap valuesIn value
    else if isAttrs value then
      concatMap valuesIn (attrValues value)
    else
      [ ];

  item =
    package:
    let
      path = try null (if isDerivation package then text package.drvPath else null);
    in
    lib.optional (path != null) {
      key = path;
      inherit package;
    };

  attributes = package: valuesIn (package.drvAttrs or { });

  # A list of derivations with the derivations in their attributes, each once.
  follow =
    packages:
    builtins.genericClosure {
      startSet = concatMap item packages;
      operator = { package, ... }: concatMap item (filter isDerivation (attributes package));
    };

  # Nix keeps only the path of a derivation in a text, such as "${pkgs.hello}/bin/hello", and not its value.
  # The name in the path leads to packages of nixpkgs, and the path proves which of them it is.
  packagesNamed =
    full:
    let
      inherit (parseDrvName full) name;
      perl = match "perl[0-9.]+-(.+)" name;
      python = match "python[0-9.]+-(.+)" name;
      variants =
        concatMap
          (
            base:
            map (suffix: base + suffix) [
              ""
              "NonInteractive"
              "Interactive"
              "Minimal"
              "-unwrapped"
              "-ng"
            ]
          )
          [
            name
            (lib.toLower name)
          ];
      pick = set: names: concatMap (one: lib.optional (set ? ${one}) set.${one}) names;
    in
    if perl != null then
      pick pkgs.perlPackages [ (lib.replaceStrings [ "-" ] [ "" ] (lib.head perl)) ]
    else if python != null then
      pick pkgs.python3Packages [ (lib.head python) ]
    else
      pick pkgs variants;

  find = path: filter ({ key, ... }: key == path) (concatMap item (packagesNamed (nameOf path)));
  nameOf = path: lib.removeSuffix ".drv" (lib.substring 33 (-1) (baseNameOf path));

  # Follow the texts too, until they lead to no other package.
  complete =
    known: items: texts:
    let
      now = known // listToAttrs (map ({ key, package }: nameValuePair key package) items);
      inTexts = concatMap (value: attrNames (getContext value)) (
        texts ++ filter isString (concatMap ({ package, ... }: attributes package) items)
      );
      unknown = filter (path: lib.hasSuffix ".drv" path && !(now ? ${path})) (lib.unique inTexts);
      found = concatMap find unknown;
    in
    if found == [ ] then now else complete now (follow (map ({ package, ... }: package) found)) texts;

  scripts =
    service:
    map (name: service.${name} or [ ]) [
      "path"
      "environment"
      "serviceConfig"
      "restartTriggers"
      "reloadTriggers"
      "script"
      "preStart"
      "postStart"
      "preStop"
      "postStop"
      "reload"
    ];

  units = systemd: map ({ unit, text, ... }: [ unit text ]) (attrValues systemd.units);
  sources = map ({ source, ... }: source);
  # Only an option that is set is read: the old name of a renamed option aborts the evaluation.
  packageOf =
    name: options:
    lib.optional (
      lib.isOption (options.enable or null)
      && options.enable.isDefined
      && config.services.${name}.enable == true
    ) (config.services.${name}.package or [ ]);

  # Everything that the configuration lists. A file of the system often has the others only in its text.
  roots = concatMap valuesIn [
    (attrValues (builtins.intersectAttrs buildParts config.system.build))
    (attrValues (lib.mapAttrs packageOf machine.options.services))
    config.system.path
    config.environment.systemPackages
    config.systemd.package
    config.systemd.packages
    config.services.dbus.packages
    config.services.udev.packages
    config.boot.extraModulePackages
    config.hardware.firmware
    (units config.systemd)
    (units config.boot.initrd.systemd)
    (sources (attrValues config.environment.etc))
    (map scripts (attrValues config.systemd.services ++ attrValues config.boot.initrd.systemd.services))
    (map (script: script.text or script) (attrValues config.system.activationScripts))
    (sources (attrValues config.security.wrappers))
    config.boot.initrd.systemd.storePaths
    (sources (attrValues config.boot.initrd.systemd.contents))
    (attrValues config.boot.initrd.systemd.extraBin)
    (attrValues config.system.preSwitchChecks)
    config.system.modulesTree
    config.systemd.tmpfiles.packages
    (map ({ unit, ... }: unit) (attrValues config.systemd.network.units))
    (attrValues (config.nix.package.libs or { }))
    # Parts of the standard environment, and the Perl library of GRUB's installer: only texts mention them.
    pkgs.stdenv.cc.cc
    pkgs.stdenv.cc.libc
    pkgs.perlPackages.XMLLibXML
  ];
  buildParts = lib.genAttrs [
    "toplevel"
    "etc"
    "etcBasedir"
    "etcMetadataImage"
    "kernel"
    "initialRamdisk"
    "modulesClosure"
    "bootStage2"
    "installBootLoader"
  ] (_: null);

  everything = complete { } (follow (filter isDerivation roots)) (filter isString roots);

  license =
    one: if isString one then one else one.spdxId or one.fullName or one.shortName or "unknown";
  # toString, because "${path}" would copy the file to the store.
  patchName =
    one:
    let
      file = baseNameOf (text (toString one));
      inStore = match "[0-9a-z]{32}-(.+)" file;
    in
    if inStore == null then file else lib.head inStore;
  isPatch = one: isDerivation one || isString one || builtins.isPath one;

  facts =
    package:
    let
      meta = package.meta or { };
      identifiers = try { } (meta.identifiers or { });
    in
    {
      pname = try null (text (package.pname or (lib.getName package)));
      version = try null (text (package.version or (lib.getVersion package)));
      licenses = try [ ] (map license (lib.toList (meta.license or [ ])));
      cpe = identifiers.cpe or null;
      purl = identifiers.purl or null;
      patches = try [ ] (map patchName (filter isPatch (lib.toList (package.drvAttrs.patches or [ ]))));
      knownVulnerabilities = try [ ] (meta.knownVulnerabilities or [ ]);
    };

  outputs =
    package:
    let
      found = facts package;
    in
    map (output: nameValuePair (text package.${output}.outPath) found) (package.outputs or [ "out" ]);

  # A generated file, such as a unit or a script, is named only in a text, without a version. Its output path is
  # in the same text. A package that is named only in a text has no facts.
  files =
    value:
    let
      generated = lib.genAttrs (filter (name: (parseDrvName name).version == "") (
        map nameOf (filter (path: !(everything ? ${path})) (attrNames (getContext value)))
      )) (_: null);
      pieces =
        builtins.split "(${lib.escapeRegex builtins.storeDir}/[0-9a-z]{32}-[0-9A-Za-z+._?=-]+)" (text value);
      paths = concatMap (piece: if isList piece then piece else [ ]) pieces;
    in
    if generated == { } then
      [ ]
    else
      map (path: nameValuePair path (facts { name = nameOf path; })) (
        filter (path: generated ? ${nameOf path}) paths
      );
in
listToAttrs (
  concatMap files (filter isString (roots ++ concatMap attributes (attrValues everything)))
  ++ concatMap outputs (attrValues everything)
)
