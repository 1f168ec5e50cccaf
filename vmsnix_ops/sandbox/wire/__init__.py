"""HTTP, signatures and AWS's protocols: requests are parsed to parameters, results are written as answers.

botocore's service models describe how a client writes requests and reads answers. Here the same models parse
requests and write answers, for the protocols ``ec2``, ``query``, ``json``, ``rest-json`` and ``rest-xml``.
"""
