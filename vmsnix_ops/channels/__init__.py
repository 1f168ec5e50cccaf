"""Channels: promote an AMI, roll back, compare AMIs with their records, and read a channel's history."""
