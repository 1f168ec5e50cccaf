# EC2's service for instance metadata on the machine itself, with EC2's address and one page, the user data. It
# appears after a delay in seconds.
#
# Type: { lib, pkgs } -> int -> string -> module
{ lib, pkgs }:
delay: userData: {
  systemd.services.metadata = {
    wantedBy = [ "multi-user.target" ];
    script = ''
      sleep ${toString delay}
      ${lib.getExe' pkgs.iproute2 "ip"} address add 169.254.169.254/32 dev lo
      exec ${lib.getExe pkgs.python3} ${./metadata.py} ${pkgs.writeText "user-data" userData}
    '';
  };
}
