"""Credentials for a sandbox, and which calls their policies allow."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError
from vmsnix_ops.sandbox.ec2 import instances
from vmsnix_ops.sandbox.iam.evaluation import (
    ALLOWED,
    EXPLICIT_DENY,
    Question,
    documents_of,
    evaluate,
    is_operator,
    owner_of,
)
from vmsnix_ops.sandbox.objects import find_bucket
from vmsnix_ops.sandbox.s3 import buckets

from . import actions
from .wire import regions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import boto3

    from vmsnix_ops.sandbox.actions import Demand
    from vmsnix_ops.sandbox.core import Context, Operation, Params


DEFAULT_REGION = "us-east-1"
DEFAULT_BUCKET = "vmsnix-images"
DEFAULT_ROLE = "vmimport"
DEFAULT_PREFIX = "vmsnix/"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Access:
    """An address and a key.

    Parameters
    ----------
    url
        ``http://127.0.0.1:PORT``.
    access_key, secret_key
        A key that the sandbox knows.
    account
        The account that the key belongs to.
    """

    def __init__(self, url: str, access_key: str, secret_key: str, account: str) -> None:
        self.url, self.access_key, self.secret_key, self.account = url, access_key, secret_key, account

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use this sandbox and nothing else.

        ``AWS_PROFILE`` must not stand beside it: botocore looks for the profile even where keys are given.
        """
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": DEFAULT_REGION,
            "AWS_REGION": DEFAULT_REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ALLOW_HTTP": "true",  # deltalake's object store refuses plain HTTP otherwise
            "AWS_CONFIG_FILE": os.devnull,  # an operator's own profiles must not lead elsewhere
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            **unproxied(os.environ),
        }

    def session(self, region: str | None = None) -> boto3.Session:
        """Return a boto3 session whose clients talk to this sandbox, whatever the environment says.

        Parameters
        ----------
        region
            ``us-east-1`` unless given.
        """
        import boto3
        import botocore.session

        url = self.url

        class SandboxSession(boto3.Session):
            def client(self, *args: Any, **kwargs: Any) -> Any:
                return super().client(*args, **_direct(url, kwargs))

            def resource(self, *args: Any, **kwargs: Any) -> Any:
                return super().resource(*args, **_direct(url, kwargs))

        # The operator's AWS_PROFILE names a profile that does not exist here.
        core = botocore.session.Session(session_vars={"profile": (None, [], None, None)})
        core.register_component("data_loader", _loader())
        core.set_config_variable("config_file", os.devnull)
        core.set_config_variable("credentials_file", os.devnull)
        return SandboxSession(
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=region or DEFAULT_REGION,
            botocore_session=core,
        )

    def client(self, service: str, region: str = DEFAULT_REGION, **options: Any) -> Any:
        """Return a boto3 client of one service; `options` go to ``Session.client``."""
        return self.session(region).client(service, **options)

    def prepare(
        self,
        bucket: str = DEFAULT_BUCKET,
        region: str = DEFAULT_REGION,
        role: str = DEFAULT_ROLE,
        key_prefix: str = DEFAULT_PREFIX,
    ) -> None:
        """Make a bucket, and a role for VM Import that may read the objects below a prefix of it.

        Safe to run again. Source: "Required permissions for VM Import/Export" in the VM Import/Export User
        Guide.
        """
        session = self.session(region)
        location = (
            {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        )
        s3, iam = session.client("s3"), session.client("iam")
        with suppress(s3.exceptions.BucketAlreadyOwnedByYou):  # so AWS says everywhere but in us-east-1
            s3.create_bucket(Bucket=bucket, **location)
        try:
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(trust_policy()))
        except iam.exceptions.EntityAlreadyExistsException:
            iam.update_assume_role_policy(RoleName=role, PolicyDocument=json.dumps(trust_policy()))
        document = json.dumps(role_policy(bucket, key_prefix, region=region))
        iam.put_role_policy(RoleName=role, PolicyName=role, PolicyDocument=document)


def _direct(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a client that reaches the sandbox without a proxy."""
    from botocore.config import Config

    given = options.get("config")
    config = Config(proxies={}) if given is None else given.merge(Config(proxies={}))
    return {"endpoint_url": url} | options | {"config": config}


def unproxied(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep this machine out of any proxy, beside what they except already.

    Programs read one of the two spellings, some the first that is set.

    >>> unproxied({"no_proxy": "corp.example"})["NO_PROXY"]
    'corp.example,127.0.0.1,localhost,::1'
    """
    words = [
        word.strip() for name in ("NO_PROXY", "no_proxy") for word in environment.get(name, "").split(",")
    ]
    value = "*" if "*" in words else ",".join(dict.fromkeys([*filter(None, words), *LOOPBACK]))
    return {"NO_PROXY": value, "no_proxy": value}


@lru_cache
def _loader() -> Any:
    """Return one loader for all sessions, so that each service's model is read once."""
    import botocore.loaders

    return botocore.loaders.create_loader()


def trust_policy() -> dict[str, Any]:
    """Return the trust policy that lets VM Import assume its role."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "vmie.amazonaws.com"},
                "Action": "sts:AssumeRole",
                "Condition": {"StringEquals": {"sts:Externalid": "vmimport"}},
            }
        ],
    }


def role_policy(bucket: str, key_prefix: str = "", *, region: str = "us-east-1") -> dict[str, Any]:
    """Return what VM Import's role needs in order to import the objects below a prefix of a bucket."""
    arn = f"arn:{regions.partition_of(region)}:s3:::{bucket}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetBucketLocation", "s3:GetObject", "s3:ListBucket"],
                "Resource": [arn, f"{arn}/{key_prefix}*"],
            },
            {
                "Effect": "Allow",
                "Action": [
                    "ec2:ModifySnapshotAttribute",
                    "ec2:CopySnapshot",
                    "ec2:RegisterImage",
                    "ec2:Describe*",
                ],
                "Resource": "*",
            },
        ],
    }


# May the caller do this: policies, evaluated before every operation runs.
#
# The sandbox's own operator may do everything, as an administrator may. Users and roles are held to their
# policies once they have any, or always with ``sandbox(enforce_iam=True)``. Bucket policies hold for
# everybody, the operator included (`s3.bucket_policies`); keys of AWS KMS as far as Parameter Store needs
# them. Permission boundaries, session policies, organizations, and the KMS keys of volumes, snapshots and
# objects are not evaluated.
#
# Texts: "Troubleshoot access denied error messages" in the IAM User Guide, and public transcripts of EC2.

DENIALS: dict[str, tuple[str, int]] = {
    "ec2": ("UnauthorizedOperation", 403),
    "s3": ("AccessDenied", 403),
    "iam": ("AccessDenied", 403),
    "sts": ("AccessDenied", 403),
    "ebs": ("AccessDeniedException", 403),
    "ssm": ("AccessDeniedException", 400),
    "service-quotas": ("AccessDeniedException", 400),
    "sns": ("AuthorizationError", 403),
    "autoscaling": ("AccessDenied", 403),
}
"""Error code and HTTP status of a refusal, by service."""

IMPORT_SERVICE = "vmie.amazonaws.com"


class Authorizer:
    """Refuses what the caller's policies do not allow.

    Parameters
    ----------
    enforce
        Whether a user or role without any policy is refused everything, as on AWS.
    """

    def __init__(self, *, enforce: bool = False) -> None:
        self.enforce = enforce

    def __call__(self, context: Context, operation: Operation, params: Params) -> None:  # noqa: ARG002
        """Raise the service's refusal unless every action that the call needs is allowed.

        Raises
        ------
        AwsError
            With the action and the resource in its text. A caller who may not pass the role of an import
            is told that the role lacks permissions, as on AWS.
        """
        with context.lock:
            documents = self._documents(context)
            if documents is None and context.service != "s3":
                return
            for demand in actions.demands(context, params):
                reason = why_not(context, documents, demand)
                if reason:
                    raise refusal(context, demand, reason)
            if documents is None:
                return
            if (context.service, context.operation) == ("ec2", "RunInstances"):
                _check_spot_role(context, documents, params)
            if (context.service, context.operation) == ("ec2", "ImportSnapshot"):
                _check_pass_role(context, documents, params.get("RoleName") or "vmimport")

    def _documents(self, context: Context) -> list[str] | None:
        """Return the caller's policies; None for one who is not held to any."""
        if is_operator(context, context.principal):
            return None
        try:
            documents = documents_of(context, owner_of(context, context.principal))
        except AwsError:  # a user or role that was deleted while its keys live on
            documents = []
        return documents if documents or self.enforce else None


def why_not(context: Context, documents: list[str] | None, demand: Demand) -> str:
    """Return why the caller may not do one action on one resource, in AWS's words; "" when it may."""
    question = Question(demand.action, demand.resource, demand.keys)
    if demand.action.startswith("s3:"):
        return buckets.why_not(
            context.tables,
            question,
            account=context.account,
            principal=context.principal,
            documents=documents,
            root=is_operator(context, context.principal),
        )
    decision = ALLOWED if documents is None else evaluate(documents, question)
    if decision == EXPLICIT_DENY:
        return "with an explicit deny in an identity-based policy"
    if decision == ALLOWED or demand.granted:
        return ""
    return f"because no identity-based policy allows the {demand.action} action"


def refusal(context: Context, demand: Demand, reason: str) -> AwsError:
    """Return the refusal in the words of the service; S3 gives other accounts no reason."""
    code, status = DENIALS[context.service]
    name = demand.resource.partition(":::")[2].partition("/")[0]
    bucket = find_bucket(context.tables, name) if context.service == "s3" else None
    if bucket is not None and bucket.account != context.account:
        return AwsError(code, "Access Denied", status=status)
    resource = f'"{demand.resource}"' if context.service == "s3" else demand.resource
    text = f"User: {context.principal} is not authorized to perform: {demand.action} on resource: {resource}"
    if context.service == "ec2":
        # AWS adds an encoded message that only sts:DecodeAuthorizationMessage can read.
        text = f"You are not authorized to perform this operation. {text}"
    return AwsError(code, f"{text} {reason}", status=status)


def _check_spot_role(context: Context, documents: list[str], params: Params) -> None:
    keys = {**actions.common_keys(context), "iam:awsservicename": [instances.SERVICE]}
    question = Question(instances.ACTION, instances.arn(context), keys)
    if instances.lacks(context, params) and evaluate(documents, question) != ALLOWED:
        raise AwsError(
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "The provided credentials do not have permission to create the service-linked role for "
            "EC2 Spot Instances.",
            status=403,
        )


def _check_pass_role(context: Context, documents: list[str], role_name: str) -> None:
    if why_not(context, documents, actions.pass_role(context, role_name, IMPORT_SERVICE)):
        raise AwsError(
            "InvalidParameter",
            f"The service role {role_name} provided does not exist or does not have sufficient permissions",
        )
