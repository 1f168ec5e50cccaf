from tests.sandbox.ec2.conftest import aws, still_sandbox

__all__ = ["aws", "still_sandbox"]
