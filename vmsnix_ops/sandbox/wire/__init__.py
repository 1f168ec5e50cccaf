"""From bytes on a socket to parameters, and from answers back to bytes.

botocore's service models describe what a client writes and reads. Here they are read backwards: the same
models parse requests and write answers, for the protocols ``ec2``, ``query``, ``json``, ``rest-json`` and
``rest-xml``.
"""
