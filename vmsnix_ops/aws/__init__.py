"""Calls to AWS: one module for each resource.

The functions take a boto3 session or client and plain values, and return frozen dataclasses. A function that
creates something first checks whether it exists, so it can be called again after a crash.
"""
