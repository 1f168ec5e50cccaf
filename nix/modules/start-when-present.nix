# Start a service when its secret file exists, and not before.
#
# No image contains a secret: user data, SSM or a person writes it to the machine after boot. A service that
# reads the file must not fail at boot, and nobody should have to start it later. The condition prevents a start
# without the file; the path unit starts the service when the file appears.
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
