# The machine that the tests boot: the given modules, and settings for the test framework.
{ lib, modules }:
{
  imports = modules;

  # The test framework uses the serial port for its own shell.
  systemd.services."serial-getty@ttyS0".enable = lib.mkForce false;

  virtualisation.memorySize = 1536;
}
