# Start a service as soon as its secret is there, and not before.
#
# No image holds a secret: user data, SSM or a person puts it on the machine after it has booted. A service
# that reads it must neither fail at boot nor need somebody to start it later. The condition keeps it from
# starting without the file; the path unit starts it when the file appears.
#
# Type: string -> string -> module
unit: file: {
  systemd.services.${unit}.unitConfig.ConditionPathExists = [ file ];

  systemd.paths.${unit} = {
    description = "Start ${unit} when ${file} appears";
    wantedBy = [ "multi-user.target" ];
    pathConfig.PathExists = file;
  };
}
