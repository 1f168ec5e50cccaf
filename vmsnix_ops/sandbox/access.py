"""How a client reaches a sandbox, in this process or in another one: address, credentials, boto3 sessions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal
from urllib import request

from vmsnix_ops.sandbox.regions import partition_of
from vmsnix_ops.sandbox.sts import STS_AUDIENCE, make_token

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import boto3


DEFAULT_REGION = "us-east-1"
DEFAULT_BUCKET = "vmsnix-images"
DEFAULT_ROLE = "vmimport"
DEFAULT_PREFIX = "vmsnix/"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Access:
    """The address of a sandbox, and an access key for it.

    Parameters
    ----------
    url
        ``http://127.0.0.1:PORT``.
    access_key, secret_key
        An access key of the sandbox.
    account
        The account that the key belongs to.
    """

    def __init__(self, url: str, access_key: str, secret_key: str, account: str) -> None:
        self.url, self.access_key, self.secret_key, self.account = url, access_key, secret_key, account

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which a program uses this sandbox and no other AWS.

        Unset ``AWS_PROFILE``: botocore loads the profile even when keys are given.
        """
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": DEFAULT_REGION,
            "AWS_REGION": DEFAULT_REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ALLOW_HTTP": "true",  # deltalake's object store refuses plain HTTP otherwise
            "AWS_CONFIG_FILE": os.devnull,  # the operator's own profiles must not be used
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            **no_proxy_variables(os.environ),
        }

    def session(self, region: str | None = None) -> boto3.Session:
        """Return a boto3 session for this sandbox. Environment variables do not change it."""
        import boto3
        import botocore.session

        url = self.url

        class SandboxSession(boto3.Session):
            def client(self, *args: Any, **kwargs: Any) -> Any:
                return super().client(*args, **_client_options(url, kwargs))

            def resource(self, *args: Any, **kwargs: Any) -> Any:
                return super().resource(*args, **_client_options(url, kwargs))

        # AWS_PROFILE of the environment names a profile that does not exist in the empty config file.
        core = botocore.session.Session(session_vars={"profile": (None, [], None, None)})
        core.register_component("data_loader", _model_loader())
        core.set_config_variable("config_file", os.devnull)
        core.set_config_variable("credentials_file", os.devnull)
        return SandboxSession(
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=region or DEFAULT_REGION,
            botocore_session=core,
        )

    def client(self, service: str, region: str = DEFAULT_REGION, **options: Any) -> Any:
        """Return a boto3 client of one service; `options` are those of ``Session.client``."""
        return self.session(region).client(service, **options)

    def web_identity_token(self, subject: str, *, audience: str = STS_AUDIENCE) -> str:
        """Return a token that GitHub would give a workflow, for AssumeRoleWithWebIdentity.

        Parameters
        ----------
        subject
            The workflow, such as ``repo:acme/images:ref:refs/heads/main``.
        audience
            The recipient of the token.
        """
        return make_token(subject, audience=audience)

    def prepare(
        self,
        bucket: str = DEFAULT_BUCKET,
        region: str = DEFAULT_REGION,
        role: str = DEFAULT_ROLE,
        key_prefix: str = DEFAULT_PREFIX,
    ) -> None:
        """Create a bucket, and a role for VM Import that may read its objects with a prefix.

        Safe to run again. Source: "Required permissions for VM Import/Export" in the VM Import/Export User
        Guide.
        """
        elsewhere = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        location = {} if region == "us-east-1" else elsewhere
        s3, iam = self.client("s3", region), self.client("iam", region)
        with suppress(s3.exceptions.BucketAlreadyOwnedByYou):  # the answer of every region but us-east-1
            s3.create_bucket(Bucket=bucket, **location)
        trust = json.dumps(vm_import_trust_policy())
        try:
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust)
        except iam.exceptions.EntityAlreadyExistsException:
            iam.update_assume_role_policy(RoleName=role, PolicyDocument=trust)
        document = json.dumps(vm_import_role_policy(bucket, key_prefix, region=region))
        name = role if bucket == DEFAULT_BUCKET else f"{role}-{bucket}"  # one for each bucket
        iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=document)


def _client_options(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a client that uses the sandbox without a proxy."""
    from botocore.config import Config

    given = options.get("config")
    config = Config(proxies={}) if given is None else given.merge(Config(proxies={}))
    return {"endpoint_url": url} | options | {"config": config}


def no_proxy_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that exclude this machine from any proxy, added to their present values.

    Both spellings are set, because a program reads only one of them.

    >>> no_proxy_variables({"no_proxy": "corp.example"})["NO_PROXY"]
    'corp.example,127.0.0.1,localhost,::1'
    """
    words = [
        word.strip() for name in ("NO_PROXY", "no_proxy") for word in environment.get(name, "").split(",")
    ]
    value = "*" if "*" in words else ",".join(dict.fromkeys([*filter(None, words), *LOOPBACK]))
    return {"NO_PROXY": value, "no_proxy": value}


@lru_cache
def _model_loader() -> Any:
    """Return one loader for all sessions, which reads each service model once."""
    import botocore.loaders

    return botocore.loaders.create_loader()


def vm_import_trust_policy() -> dict[str, Any]:
    """Return the trust policy that lets VM Import assume its role."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "vmie.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:Externalid": "vmimport"}},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def vm_import_role_policy(bucket: str, key_prefix: str = "", *, region: str = "us-east-1") -> dict[str, Any]:
    """Return the policy of VM Import's role: import the objects of a bucket with a prefix."""
    arn = f"arn:{partition_of(region)}:s3:::{bucket}"
    objects = {
        "Effect": "Allow",
        "Action": ["s3:GetBucketLocation", "s3:GetObject", "s3:ListBucket"],
        "Resource": [arn, f"{arn}/{key_prefix}*"],
    }
    actions = ["ec2:ModifySnapshotAttribute", "ec2:CopySnapshot", "ec2:RegisterImage", "ec2:Describe*"]
    snapshots = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    return {"Version": "2012-10-17", "Statement": [objects, snapshots]}


STOP_SECONDS = 10


class SandboxProcess(Access):
    """A sandbox in a child process. A context manager, created by `sandbox_process`."""

    def __init__(self, process: subprocess.Popen[str], ready: Mapping[str, str]) -> None:
        super().__init__(ready["url"], ready["access_key"], ready["secret_key"], ready["account"])
        self.process = process

    def admin(self, name: str, method: str = "GET", value: Any = None) -> Any:
        """Send a request below ``/_vmsnix/`` (see `server`); `name` is calls, faults, clock or state."""
        data = None if value is None else json.dumps(value).encode()
        sent = request.Request(f"{self.url}/_vmsnix/{name}", data=data, method=method)  # noqa: S310 - always http
        with request.urlopen(sent, timeout=60) as answer:  # noqa: S310 - always http
            return json.load(answer)

    def calls(self, name: str = "*") -> list[dict[str, Any]]:
        """Return the calls whose name matches, such as ``"ec2:*"``, oldest first."""
        found: list[dict[str, Any]] = self.admin(f"calls?name={name}")
        return found

    def add_fault(self, **rule: Any) -> dict[str, Any]:
        """Add a fault rule; the keywords are the fields of `Fault`."""
        added: dict[str, Any] = self.admin("faults", "POST", rule)
        return added

    def clear_faults(self) -> None:
        """Remove all fault rules."""
        self.admin("faults", "DELETE")

    def advance(self, seconds: float) -> None:
        """Make all resources older by this many sandbox seconds."""
        self.admin("clock", "POST", {"advance": seconds})

    def stop(self) -> None:
        """Stop the child, which saves its state."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> SandboxProcess:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def sandbox_process(
    *,
    speed: float = 1.0,
    state: Path | str | None = None,
    port: int = 0,
    limits: Literal["aws"] | None = None,
) -> SandboxProcess:
    """Start a sandbox in a child process, and return once it answers requests.

    Parameters
    ----------
    speed, state, port, limits
        As for `Sandbox`.

    Raises
    ------
    OSError
        The sandbox could not start; the text is from the child.
    """
    module = ["-m", "vmsnix_ops.sandbox", "--json"]
    command = [sys.executable, *module, "--port", str(port), "--speed", str(speed)]
    if state is not None:
        command += ["--state", str(state)]
    if limits is not None:
        command += ["--limits", limits]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline() if process.stdout is not None else ""
    ready = json.loads(line) if line else {"error": "The sandbox ended before it served."}
    if "error" in ready:
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        raise OSError(ready["error"])
    return SandboxProcess(process, ready)
