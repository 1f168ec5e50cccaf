# Start a service when its secret file has content, and not before.
#
# No image contains a secret: user data, SSM or a person writes it to the machine after boot (vmsnix-secret, in
# secret.sh, writes it in one step). A service that reads the file must not fail at boot, and must start later
# without a command. The condition prevents a start without content. The path unit starts the service when a program
# has written and closed the file, or has renamed another file to it. It uses PathChanged and not PathExists, which
# starts the service when the file is created and still empty, and again after every `systemctl stop`.
#
# Type: string -> string -> module
unit: file: {
  systemd.services.${unit}.unitConfig.ConditionFileNotEmpty = [ file ];

  systemd.paths.${unit} = {
    description = "Start ${unit} when ${file} is written";
    wantedBy = [ "multi-user.target" ];
    pathConfig.PathChanged = file;
  };
}
