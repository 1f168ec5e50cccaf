# The declarations and definitions of a NixOS module, found without nixpkgs.
#
# Arguments: the tree of known options (nested names, "$type" at the node of an option, a key in angle brackets
# for any name) and the file of the module. The module gets replacements: a `lib` whose functions only record
# their arguments, a `config` in which every option has the emptiest value of its type, and a `pkgs` that is
# hardly evaluated. Conditions are not evaluated: the definitions in a mkIf are always returned. If a function
# is missing here, the error is "attribute ... missing": add it below.
{
  tree,
  file,
  system ? "x86_64-linux",
  # A further module whose options the file may set without importing it.
  with_options_of,
}:
let
  inherit (builtins)
    attrNames
    concatMap
    filter
    concatStringsSep
    foldl'
    hasAttr
    head
    isAttrs
    isFunction
    isList
    isString
    length
    listToAttrs
    map
    mapAttrs
    substring
    typeOf
    ;

  wrapped = kind: content: { _type = kind; inherit content; };

  # A type is a set that can also be given arguments.
  type = description: { _type = "option-type"; inherit description; __functor = _: _: type description; };

  lib = {
    mkOption = option: option // { _type = "option"; };
    mkEnableOption = description: {
      _type = "option";
      type = type "boolean";
      default = false;
      example = true;
      inherit description;
    };
    mkIf = _: wrapped "wrapped";
    mkMerge = contents: { _type = "merge"; inherit contents; };
    mkForce = wrapped "wrapped";
    mkDefault = wrapped "wrapped";
    mkOverride = _: wrapped "wrapped";
    mkAfter = wrapped "wrapped";
    mkBefore = wrapped "wrapped";
    literalExpression = text: text;
    literalMD = text: text;
    types = {
      addCheck = checked: _: checked;
      anything = type "anything";
      attrsOf = type "attribute set";
      bool = type "boolean";
      either = _: type "either";
      enum = type "enum";
      ints.between = _: type "integer";
      lines = type "lines";
      listOf = type "list";
      nullOr = type "null or";
      package = type "package";
      path = type "path";
      port = type "port";
      singleLineStr = type "single-line string";
      str = type "string";
      strMatching = type "string matching";
    };

    inherit (builtins)
      attrNames
      attrValues
      concatLists
      concatStringsSep
      elem
      filter
      length
      mapAttrs
      ;
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    toUpper = text: text;
    allUnique = _: true;
    boolToString = value: if value then "true" else "false";
    concatMapStringsSep = separator: f: list: builtins.concatStringsSep separator (map f list);
    drop = count: list: if count == 0 || list == [ ] then list else lib.drop (count - 1) (builtins.tail list);
    genAttrs = names: f: listToAttrs (map (name: { inherit name; value = f name; }) names);
    getExe = _: "/program";
    getExe' = _: name: "/${name}";
    makeBinPath = concatStringsSep ":";
    hasInfix = _: _: true;
    hasPrefix = prefix: text: substring 0 (builtins.stringLength prefix) text == prefix;
    optional = _: value: [ value ];
    optionalAttrs = _: value: value;
    optionalString = _: value: value;
    optionals = _: values: values;
    splitString = separator: text: filter isString (builtins.split separator text);
  };

  placeholder = node: let found = filter (name: substring 0 1 name == "<") (attrNames node); in if found == [ ] then null else head found;

  # The emptiest value of each option, as a tree.
  empty =
    node:
    let
      kind = node."$type" or null;
      starts = prefix: substring 0 (builtins.stringLength prefix) kind == prefix;
    in
    if kind == null then
      mapAttrs (_: empty) node
    else if kind == "boolean" then
      false
    else if starts "null or" then
      null
    else if starts "list of" then
      [ ]
    else if starts "signed integer" || starts "unsigned integer" || starts "positive integer" then
      0
    else if starts "attribute set" || starts "lazy attribute set" || starts "submodule" || starts "open submodule" then
      mapAttrs (_: empty) (removeAttrs node (filter (name: substring 0 1 name == "<" || name == "$type") (attrNames node)))
    else
      "";

  merge =
    left: right:
    left // mapAttrs (name: value: if isAttrs value && isAttrs (left.${name} or null) && !(value ? _type) then merge left.${name} value else value) right;

  # A module and everything of ours that it imports. nixpkgs' own files are strings here, and not ours to
  # judge.
  load =
    path:
    let
      raw = import path;
      module = if isFunction raw then raw arguments else raw;
      own = map load (filter (each: typeOf each == "path") (module.imports or [ ]));
    in
    {
      inherit module;
      options = foldl' merge { } ([ (module.options or { }) ] ++ map (each: each.options) own);
    };

  loaded = load file;

  declared = merge (load with_options_of).options loaded.options;

  defaults = option: if (option._type or "") == "option" then option.default or { } else mapAttrs (_: defaults) option;

  config = merge (merge (empty tree) (defaults declared)) {
    # What a module looks into more closely than an empty value allows.
    services.openssh.hostKeys = [ { path = "/var/lib/ssh/key"; } ];
    ec2.efi = false;
  };

  pkgs = {
    inherit lib;
    stdenv.hostPlatform = {
      inherit system;
      isx86_64 = system == "x86_64-linux";
      isAarch64 = system == "aarch64-linux";
    };
    curl = "/curl";
    jq = "/jq";
    nitrotpm-tools = "/nitrotpm-tools";
    runc = "/runc";
    iptables = "/iptables";
    coreutils = "/coreutils";
    writeShellScript = name: _: "/${name}";
    writeShellScriptBin = name: _: { outPath = "/${name}"; };
  };

  arguments = { inherit config lib pkgs; options = { }; modulesPath = "/nixpkgs"; };

  declarations =
    path: option:
    if (option._type or "") == "option" then
      [
        {
          inherit path;
          typed = option ? type;
          described = (option.description or "") != "";
          example = option ? example || (option.type.description or "") == "boolean";
        }
      ]
    else
      concatMap (name: declarations (path ++ [ name ]) option.${name}) (attrNames option);

  # A value as plain data; a value that is not data is replaced by the name of its kind.
  plain =
    value:
    if isList value then
      map plain value
    else if isAttrs value && value ? _type then
      if value._type == "wrapped" then plain value.content else { kind = value._type; }
    else if isAttrs value then
      if value ? outPath || value ? drvPath then { kind = "package"; } else mapAttrs (_: plain) value
    else if isFunction value then
      { kind = "function"; }
    else if typeOf value == "path" then
      toString value
    else
      value;

  definitions =
    path: node: value:
    if isAttrs value && (value._type or "") == "wrapped" then
      definitions path node value.content
    else if isAttrs value && (value._type or "") == "merge" then
      concatMap (definitions path node) value.contents
    else if isAttrs value && (value._type or "") == "option" then
      [ ]
    else if node == null then
      [ { inherit path; type = null; } ]
    else
      let
        kind = node."$type" or null;
        children = filter (name: name != "$type") (attrNames node);
        child = name: node.${name} or (if placeholder node == null then null else node.${placeholder node});
        descend = concatMap (name: definitions (path ++ [ name ]) (child name) value.${name}) (attrNames value);
        freeform = name: child name == null;
      in
      if kind == null then
        if isAttrs value then descend else [ { inherit path; type = null; } ]
      else if isAttrs value && children != [ ] then
        concatMap (
          name:
          if freeform name && builtins.match "(open|lazy).*" kind != null then
            [ ]
          else
            definitions (path ++ [ name ]) (child name) value.${name}
        ) (attrNames value)
      else
        [
          {
            inherit path;
            type = kind;
            # The elements of a list of packages are not even looked at.
            value = if builtins.match ".*package.*" kind != null && isList value then [ ] else plain value;
          }
        ];

  body = loaded.module.config or (removeAttrs loaded.module [ "imports" "options" "meta" "_file" "key" ]);

  ownTree =
    option:
    if (option._type or "") == "option" then { "$type" = "ours"; } else mapAttrs (_: ownTree) option;
in
{
  options = declarations [ ] (loaded.module.options or { });
  definitions = definitions [ ] (merge tree (ownTree declared)) body;
}
