"""What we ask of AWS, one file a resource.

Functions take a boto3 session or client and plain values, and return frozen dataclasses. Whatever creates
something first looks whether it is there already, so that every function may be called again after a crash.
"""
