"""The commands of ``vmsnix``, one module each, imported when they are called."""
