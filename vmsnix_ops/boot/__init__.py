"""Boot an image in QEMU: the machine, its console, its instance metadata service."""
