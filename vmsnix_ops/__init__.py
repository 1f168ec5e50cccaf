"""Operations runbooks as notebooks for NixOS machine images on AWS.

Importing this package is cheap: boto3, pandas and their like are imported by the functions that need them.
"""

__version__ = "0.1.0"
