# The machine that the tests boot: the given modules, and what the test framework needs.
{ lib, modules }:
{
  imports = modules;

  # The framework's own shell is on the serial port.
  systemd.services."serial-getty@ttyS0".enable = lib.mkForce false;

  virtualisation.memorySize = 1536;
}
