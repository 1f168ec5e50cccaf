"""Amazon EC2, the part that machine images need."""
