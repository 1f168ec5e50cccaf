"""AWS IAM: users, access keys, roles, policies, identity providers, and the simulation of policies.

Roles, users and policies are global: ``context.table("roles", region="")`` has the roles by name. `policies`
evaluates policies.

Sources: the reference pages of the operations and "Common Errors" in the IAM API Reference; "IAM
identifiers" in the IAM User Guide; AWS's answers of 2024 to 2026 in LocalStack's ``test_iam.snapshot.json``.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from vmsnix_ops.sandbox.core import (
    ApiError,
    Paging,
    given,
    not_emulated,
    operation,
    register_tags,
    tag_list,
    tags_member,
)
from vmsnix_ops.sandbox.credentials import DEFAULT_ACCESS_KEY, add_credential, credentials_table, unique_id
from vmsnix_ops.sandbox.policies import MANAGED_POLICIES, AccessRequest, ManagedPolicy, check_policy, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params


@dataclass(slots=True)
class Entity:
    """What all entities have; in the table of their kind by name, policies by ARN."""

    name: str
    arn: str
    entity_id: str
    path: str
    created: datetime
    tags: dict[str, str] = field(default_factory=dict, kw_only=True)


@dataclass(slots=True)
class Identity(Entity):
    """An entity that policies apply to."""

    inline_policies: dict[str, str] = field(default_factory=dict)  # JSON by name
    attached_policies: list[str] = field(default_factory=list)  # ARNs


@dataclass(slots=True)
class Role(Identity):
    """A role."""

    trust_policy: str = ""  # JSON, as it was sent
    description: str = ""
    max_session_seconds: int = 3600


@dataclass(slots=True)
class User(Identity):
    """A user. `credentials` has its access keys."""

    keys: dict[str, datetime] = field(default_factory=dict)  # creation time by access key


@dataclass(slots=True)
class Policy(Entity):
    """A managed policy of the account."""

    updated: datetime
    description: str
    versions: dict[str, tuple[str, datetime]]  # JSON and creation time by version, such as "v1"
    default_version: str = "v1"
    next_version: int = 2

    @property
    def document(self) -> str:
        """The JSON of the default version."""
        return self.versions[self.default_version][0]


@dataclass(slots=True)
class InstanceProfile(Entity):
    """An instance profile."""

    role: str = ""  # name; a profile has at most one


E = TypeVar("E", bound=Entity)


@dataclass(frozen=True)
class EntityKind(Generic[E]):
    """A kind of entity: its name in operations, its table, its IDs and ARNs, and its errors."""

    word: str  # begins the names of its members: ``User`` for ``UserName``
    make: type[E]
    table: str
    id_prefix: str
    resource: str  # in ARNs
    missing: str
    exists: str

    def find(self, context: Context, name: str) -> E:
        """Return an entity, or raise ``NoSuchEntity``."""
        found: E | None = context.table(self.table, region="").get(name)
        if found is None:
            raise _no_such_entity(self.missing.format(name))
        return found

    def create(self, context: Context, params: Params, **facts: Any) -> E:
        """Add an entity to its table, and return it. `facts` are the fields that only this kind has."""
        name, path = params[f"{self.word}Name"], params.get("Path", "/")
        if not PATH.fullmatch(path):
            text = "The specified value for path is invalid. It must begin and end with /"
            raise ApiError("ValidationError", text)
        arn = context.arn("iam", f"{self.resource}{path}{name}", region="")
        entities, key = context.table(self.table, region=""), arn if self.table == "policies" else name
        if key in entities:
            raise _already_exists(self.exists.format(name))
        now, tags = _now(context), _read_tags(params.get("Tags"))
        entity_id = unique_id(self.id_prefix, arn, now.isoformat())
        entities[key] = found = self.make(name, arn, entity_id, path, now, tags=tags, **facts)
        return found

    def view(self, entity: E) -> dict[str, Any]:
        """Return the members that answers show of each kind."""
        return {
            "Path": entity.path,
            f"{self.word}Name": entity.name,
            f"{self.word}Id": entity.entity_id,
            "Arn": entity.arn,
            "CreateDate": entity.created,
        }


USER = EntityKind(
    *("User", User, "users", "AIDA", "user"),
    "The user with name {} cannot be found.",
    "User with name {} already exists.",
)
ROLE = EntityKind(
    *("Role", Role, "roles", "AROA", "role"),
    "The role with name {} cannot be found.",
    "Role with name {} already exists.",
)
POLICY = EntityKind(
    *("Policy", Policy, "policies", "ANPA", "policy"),
    "Policy {} was not found.",
    "A policy called {} already exists. Duplicate names are not allowed.",
)
PROFILE = EntityKind(
    *("InstanceProfile", InstanceProfile, "instance_profiles", "AIPA", "instance-profile"),
    "Instance Profile {} cannot be found.",
    "Instance Profile {} already exists.",
)


# Helpers

PATH = re.compile(r"(\u002F)|(\u002F[\u0021-\u007E]+\u002F)")
PAGING = ("Marker", "MaxItems")


def _no_such_entity(what: str) -> ApiError:
    return ApiError("NoSuchEntity", what, status=404)


def _already_exists(what: str) -> ApiError:
    return ApiError("EntityAlreadyExists", what, status=409)


def _delete_conflict(what: str) -> ApiError:
    """Return ``DeleteConflict``, for an entity that is still in use."""
    return ApiError("DeleteConflict", what, status=409)


def _find_policy(context: Context, arn: str) -> Policy:
    """Return a policy of the account. A change of a policy of AWS is not emulated."""
    if _managed_policy(context, arn) is not None:
        raise not_emulated(f"iam:{context.operation} of AWS's managed policies")
    return POLICY.find(context, arn)


def _register_list(kind: EntityKind[E], view: Callable[[Context, E], dict[str, Any]]) -> None:
    """Register the operation that lists the entities of a kind by name, without their tags."""

    def list_all(context: Context, params: Params) -> dict[str, Any]:
        prefix = params.get("PathPrefix", "/")
        entities = sorted(context.table(kind.table, region="").items())
        shown = [view(context, entity) for _, entity in entities if entity.path.startswith(prefix)]
        return _page(shown, params, f"{kind.word}s")

    operation("iam", f"List{kind.word}s", *PAGING, "PathPrefix")(list_all)


def _now(context: Context) -> datetime:
    """Return the time in whole seconds, as IAM shows it."""
    return context.clock.now().replace(microsecond=0)


PAGES = Paging(
    "MaxItems",
    1000,
    100,
    lambda: ApiError("ValidationError", "Invalid Marker."),
    token="Marker",  # noqa: S106 - the name of a parameter
    next_token="Marker",  # noqa: S106 - the name of a member
    truncated="IsTruncated",
)
_page = PAGES.page


def _read_tags(tags: list[dict[str, str]] | None) -> dict[str, str]:
    """Return a list of tags as a dictionary, after the check that it has each key once."""
    found = {tag["Key"]: tag["Value"] for tag in tags or []}
    if len(found) != len(tags or []):
        text = "Duplicate tag keys found. Please note that Tag keys are case insensitive."
        raise ApiError("InvalidInput", text)
    return found


def _check_role_tags(tags: dict[str, str], given: list[dict[str, str]]) -> None:
    """Check the tags that a role would have, and those of the request."""
    _read_tags(given)
    if len(tags) > 50:
        raise ApiError("LimitExceeded", "The number of tags has reached the maximum limit.", status=409)


def _check_without_policies(owner: Role | User) -> None:
    """Check that a role or user that will be deleted has no policies."""
    if owner.attached_policies:
        raise _delete_conflict("Cannot delete entity, must detach all policies first.")
    if owner.inline_policies:
        raise _delete_conflict("Cannot delete entity, must delete policies first.")


@operation("iam", "CreateUser", "Path UserName Tags")
def create_user(context: Context, params: Params) -> dict[str, Any]:
    """Create a user without keys and permissions."""
    user = USER.create(context, params)
    return {"User": USER.view(user) | tags_member(user.tags)}


@operation("iam", "GetUser", "UserName")
def get_user(context: Context, params: Params) -> dict[str, Any]:
    """Return a user; without a name, the caller."""
    user = _named_user(context, params)
    return {"User": USER.view(user) | tags_member(user.tags)}


_register_list(USER, lambda _context, user: USER.view(user))


@operation("iam", "DeleteUser", "UserName")
def delete_user(context: Context, params: Params) -> dict[str, Any]:
    """Delete a user without policies and keys."""
    user = USER.find(context, params["UserName"])
    _check_without_policies(user)
    if user.keys:
        raise _delete_conflict("Cannot delete entity, must delete access keys first.")
    del context.table("users", region="")[user.name]
    return {}


# Access keys

MAX_KEYS = 2


def _named_user(context: Context, params: Params) -> User:
    """Return the user that a request names; without a name, the caller.

    The root user and the first user, which no request created, have no record.
    """
    name = params.get("UserName")
    if name:
        return USER.find(context, name)
    kind, _, path = context.principal.split(":", 5)[5].partition("/")
    if kind not in {"user", "root"}:  # text as reported by others
        raise ApiError("ValidationError", "Must specify userName when calling with non-User credentials")
    users: dict[str, User] = context.table("users", region="")
    own = users.get(path.rpartition("/")[2])
    if own is None:
        raise not_emulated(f"iam:{context.operation} of {context.principal} without UserName")
    return own


@operation("iam", "CreateAccessKey", "UserName")
def create_access_key(context: Context, params: Params) -> dict[str, Any]:
    """Create an access key. Only this answer has its secret key."""
    user = _named_user(context, params)
    if len(user.keys) >= MAX_KEYS:
        raise ApiError("LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: 2", status=409)
    credential = add_credential(context.tables, "AKIA", context.account, user.arn, user.entity_id)
    user.keys[credential.access_key] = _now(context)
    shown = _access_key_view(user, credential.access_key)
    return {"AccessKey": shown | {"SecretAccessKey": credential.secret}}


def _access_key_view(user: User, key: str) -> dict[str, Any]:
    return {"UserName": user.name, "AccessKeyId": key, "Status": "Active", "CreateDate": user.keys[key]}


@operation("iam", "ListAccessKeys", *PAGING, "UserName")
def list_access_keys(context: Context, params: Params) -> dict[str, Any]:
    """List the access keys of a user, without the secret keys."""
    user = _named_user(context, params)
    return _page([_access_key_view(user, key) for key in user.keys], params, "AccessKeyMetadata")


@operation("iam", "DeleteAccessKey", "UserName AccessKeyId")
def delete_access_key(context: Context, params: Params) -> dict[str, Any]:
    """Delete an access key."""
    user = _named_user(context, params)
    key = params["AccessKeyId"]
    if key not in user.keys:
        raise _no_such_entity(f"The Access Key with id {key} cannot be found.")
    del user.keys[key]
    del credentials_table(context.tables)[key]
    return {}


# Roles


def _role_view(_context: Context, role: Role) -> dict[str, Any]:
    """Return a role as the answers show it. That of CreateRole has no maximum session duration."""
    return ROLE.view(role) | {
        "AssumeRolePolicyDocument": _percent_encoded(role.trust_policy),
        "MaxSessionDuration": role.max_session_seconds,
        **given(Description=role.description),
    }


@operation("iam", "CreateRole", "Path RoleName AssumeRolePolicyDocument Description MaxSessionDuration Tags")
def create_role(context: Context, params: Params) -> dict[str, Any]:
    """Create a role."""
    role = ROLE.create(
        context,
        params,
        trust_policy=check_policy(params["AssumeRolePolicyDocument"], trust=True),
        description=params.get("Description", ""),
        max_session_seconds=params.get("MaxSessionDuration", 3600),
    )
    shown = _role_view(context, role) | tags_member(role.tags)
    del shown["MaxSessionDuration"]
    return {"Role": shown}


@operation("iam", "GetRole", "RoleName")
def get_role(context: Context, params: Params) -> dict[str, Any]:
    """Return one role with its tags."""
    role = ROLE.find(context, params["RoleName"])
    return {"Role": _role_view(context, role) | tags_member(role.tags) | {"RoleLastUsed": {}}}


_register_list(ROLE, _role_view)


@operation("iam", "UpdateRole", "RoleName Description MaxSessionDuration")
def update_role(context: Context, params: Params) -> dict[str, Any]:
    """Change the description and the maximum session duration."""
    role = ROLE.find(context, params["RoleName"])
    role.max_session_seconds = params.get("MaxSessionDuration", role.max_session_seconds)
    role.description = params.get("Description", role.description)
    return {}


@operation("iam", "UpdateAssumeRolePolicy", "RoleName PolicyDocument")
def update_assume_role_policy(context: Context, params: Params) -> dict[str, Any]:
    """Replace the trust policy."""
    role = ROLE.find(context, params["RoleName"])
    role.trust_policy = check_policy(params["PolicyDocument"], trust=True)
    return {}


@operation("iam", "DeleteRole", "RoleName")
def delete_role(context: Context, params: Params) -> dict[str, Any]:
    """Delete a role without policies."""
    role = ROLE.find(context, params["RoleName"])
    _check_without_policies(role)
    if _profiles_of(context, role.name):
        raise _delete_conflict(ROLE_IN_PROFILE)
    del context.table("roles", region="")[role.name]
    return {}


def _tagged_role(context: Context, params: Params) -> Role:
    return ROLE.find(context, params["RoleName"])


register_tags("iam", _tagged_role, "RoleName", ("TagRole", "UntagRole", ""), check=_check_role_tags)


# Managed policies of roles and users: the account's own, and some of AWS's

POLICY_ARN = re.compile(r"arn:[^:]+:iam::(\d{12}|aws):policy/.+")


def _managed_policy(context: Context, arn: str) -> ManagedPolicy | None:
    """Return a policy of AWS by its ARN; None when the ARN is of an account's own policy."""
    if not POLICY_ARN.fullmatch(arn):
        raise ApiError("ValidationError", "Invalid ARN:  Could not be parsed!")
    prefix = f"arn:{context.partition}:iam::aws:policy/"
    if not arn.startswith(prefix):
        return None
    found = MANAGED_POLICIES.get(arn.removeprefix(prefix))
    if found is None:
        raise not_emulated(f"the managed policy {arn}")
    return found


def _policy_document(context: Context, arn: str) -> str:
    """Return the JSON of a managed policy, of the account or of AWS, or raise ``NoSuchEntity``."""
    found = _managed_policy(context, arn) or context.table("policies", region="").get(arn)
    if found is None:
        raise _no_such_entity(f"Policy {arn} does not exist or is not attachable.")
    document: str = found.document
    return document


def _register_policies(kind: EntityKind[User] | EntityKind[Role]) -> None:
    """Register the operations on the managed and the inline policies of a role or user."""
    member = f"{kind.word}Name"

    def missing(name: str) -> ApiError:
        return _no_such_entity(f"The {kind.word.lower()} policy with name {name} cannot be found.")

    def attach(context: Context, params: Params) -> dict[str, Any]:
        owner, arn = kind.find(context, params[member]), params["PolicyArn"]
        _policy_document(context, arn)
        if arn not in owner.attached_policies:
            owner.attached_policies.append(arn)
        return {}

    def detach(context: Context, params: Params) -> dict[str, Any]:
        owner, arn = kind.find(context, params[member]), params["PolicyArn"]
        if arn not in owner.attached_policies:
            raise _no_such_entity(f"Policy {arn} was not found.")
        owner.attached_policies.remove(arn)
        return {}

    def list_attached(context: Context, params: Params) -> dict[str, Any]:
        attached = kind.find(context, params[member]).attached_policies
        shown = [{"PolicyName": arn.rpartition("/")[2], "PolicyArn": arn} for arn in attached]
        return _page(shown, params, "AttachedPolicies")

    def put(context: Context, params: Params) -> dict[str, Any]:
        owner = kind.find(context, params[member])
        owner.inline_policies[params["PolicyName"]] = check_policy(params["PolicyDocument"], trust=False)
        return {}

    def get(context: Context, params: Params) -> dict[str, Any]:
        owner, name = kind.find(context, params[member]), params["PolicyName"]
        if name not in owner.inline_policies:
            raise missing(name)
        text = _percent_encoded(owner.inline_policies[name])
        return {member: owner.name, "PolicyName": name, "PolicyDocument": text}

    def list_inline(context: Context, params: Params) -> dict[str, Any]:
        return _page(sorted(kind.find(context, params[member]).inline_policies), params, "PolicyNames")

    def delete(context: Context, params: Params) -> dict[str, Any]:
        owner, name = kind.find(context, params[member]), params["PolicyName"]
        if name not in owner.inline_policies:
            raise missing(name)
        del owner.inline_policies[name]
        return {}

    operation("iam", f"Attach{kind.word}Policy", member, "PolicyArn")(attach)
    operation("iam", f"Detach{kind.word}Policy", member, "PolicyArn")(detach)
    operation("iam", f"ListAttached{kind.word}Policies", member, *PAGING)(list_attached)
    operation("iam", f"Put{kind.word}Policy", member, "PolicyName PolicyDocument")(put)
    operation("iam", f"Get{kind.word}Policy", member, "PolicyName")(get)
    operation("iam", f"List{kind.word}Policies", member, *PAGING)(list_inline)
    operation("iam", f"Delete{kind.word}Policy", member, "PolicyName")(delete)


_register_policies(ROLE)
_register_policies(USER)


def _percent_encoded(text: str) -> str:
    """Return a document as in IAM's answers: percent-encoded (RFC 3986)."""
    return quote(text, safe="-_.~")


# Managed policies of the account


MAX_VERSIONS = 5


def _attachment_count(context: Context, arn: str) -> int:
    owners = [*context.table("roles", region="").values(), *context.table("users", region="").values()]
    return sum(arn in owner.attached_policies for owner in owners)


def _policy_view(context: Context, policy: Policy | ManagedPolicy) -> dict[str, Any]:
    arn = f"arn:{context.partition}:iam::aws:policy/{policy.name}"
    arn = policy.arn if isinstance(policy, Policy) else arn
    return {
        "PolicyName": policy.name,
        "PolicyId": policy.entity_id,
        "Arn": arn,
        "Path": policy.path,
        "DefaultVersionId": policy.default_version,
        "AttachmentCount": _attachment_count(context, arn),
        "PermissionsBoundaryUsageCount": 0,
        "IsAttachable": True,
        "CreateDate": policy.created,
        "UpdateDate": policy.updated,
    }


@operation("iam", "CreatePolicy", "PolicyName Path PolicyDocument Description Tags")
def create_policy(context: Context, params: Params) -> dict[str, Any]:
    """Create a managed policy."""
    now, document = _now(context), check_policy(params["PolicyDocument"], trust=False)
    description = params.get("Description", "")
    policy = POLICY.create(
        context, params, updated=now, description=description, versions={"v1": (document, now)}
    )
    return {"Policy": _policy_view(context, policy) | tags_member(policy.tags)}


@operation("iam", "GetPolicy", "PolicyArn")
def get_policy(context: Context, params: Params) -> dict[str, Any]:
    """Return a policy without its document."""
    policy = _managed_policy(context, params["PolicyArn"]) or _find_policy(context, params["PolicyArn"])
    more = {"Tags": tag_list(policy.tags), **given(Description=policy.description)}
    return {"Policy": _policy_view(context, policy) | more}


@operation("iam", "ListPolicies", *PAGING, "Scope OnlyAttached PathPrefix")
def list_policies(context: Context, params: Params) -> dict[str, Any]:
    """List the policies of the account and, unless the scope is ``Local``, those of AWS that it may attach.

    Those of AWS are only the ones that the sandbox has (`policies`).
    """
    prefix, attached = params.get("PathPrefix", "/"), params.get("OnlyAttached", False)
    scope = params.get("Scope", "All")
    policies: list[Policy | ManagedPolicy] = []
    if scope != "AWS":
        policies += [policy for _, policy in sorted(context.table("policies", region="").items())]
    if scope != "Local":
        policies += MANAGED_POLICIES.values()
    found = [_policy_view(context, policy) for policy in policies]
    found = [p for p in found if p["Path"].startswith(prefix) and (p["AttachmentCount"] or not attached)]
    return _page(found, params, "Policies")


@operation("iam", "DeletePolicy", "PolicyArn")
def delete_policy(context: Context, params: Params) -> dict[str, Any]:
    """Delete a policy that is not attached and has one version."""
    policy = _find_policy(context, params["PolicyArn"])
    if _attachment_count(context, policy.arn):
        raise _delete_conflict("Cannot delete a policy attached to entities.")
    if len(policy.versions) > 1:
        text = "This policy has more than one version. Before you delete a policy, you must delete them."
        raise _delete_conflict(text)
    del context.table("policies", region="")[policy.arn]
    return {}


def _version_view(policy: Policy, version: str, *, document: bool) -> dict[str, Any]:
    text, created = policy.versions[version]
    return {
        "VersionId": version,
        "IsDefaultVersion": version == policy.default_version,
        "CreateDate": created,
        **({"Document": _percent_encoded(text)} if document else {}),
    }


def _find_version(policy: Policy, version: str) -> str:
    if version not in policy.versions:
        raise _no_such_entity(f"Policy {policy.arn} version {version} does not exist or is not attachable.")
    return version


@operation("iam", "CreatePolicyVersion", "PolicyArn PolicyDocument SetAsDefault")
def create_policy_version(context: Context, params: Params) -> dict[str, Any]:
    """Add a version. A sixth is refused: IAM deletes no version automatically."""
    policy = _find_policy(context, params["PolicyArn"])
    text = check_policy(params["PolicyDocument"], trust=False)
    if len(policy.versions) >= MAX_VERSIONS:
        raise ApiError(
            "LimitExceeded",
            "A managed policy can have up to 5 versions. Before you create a new version, you must delete an "
            "existing version.",
            status=409,
        )
    version = f"v{policy.next_version}"
    policy.next_version += 1
    now = _now(context)
    policy.versions[version] = (text, now)
    if params.get("SetAsDefault"):
        policy.default_version, policy.updated = version, now
    return {"PolicyVersion": _version_view(policy, version, document=False)}


@operation("iam", "GetPolicyVersion", "PolicyArn VersionId")
def get_policy_version(context: Context, params: Params) -> dict[str, Any]:
    """Return one version with its document. Of AWS's policies, only the default version is emulated."""
    of_aws, version = _managed_policy(context, params["PolicyArn"]), params["VersionId"]
    if of_aws is not None:
        if version != of_aws.default_version:
            raise not_emulated(f"the version {version} of the managed policy {params['PolicyArn']}")
        shown = {"VersionId": version, "IsDefaultVersion": True, "CreateDate": of_aws.updated}
        return {"PolicyVersion": shown | {"Document": _percent_encoded(of_aws.document)}}
    policy = _find_policy(context, params["PolicyArn"])
    return {"PolicyVersion": _version_view(policy, _find_version(policy, version), document=True)}


@operation("iam", "ListPolicyVersions", *PAGING, "PolicyArn")
def list_policy_versions(context: Context, params: Params) -> dict[str, Any]:
    """List versions, newest first."""
    if _managed_policy(context, params["PolicyArn"]) is not None:
        raise not_emulated("the versions of AWS's managed policies")
    policy = _find_policy(context, params["PolicyArn"])
    newest_first = sorted(policy.versions, key=lambda version: -int(version[1:]))
    shown = [_version_view(policy, version, document=False) for version in newest_first]
    return _page(shown, params, "Versions")


@operation("iam", "SetDefaultPolicyVersion", "PolicyArn VersionId")
def set_default_policy_version(context: Context, params: Params) -> dict[str, Any]:
    """Set the default version."""
    policy = _find_policy(context, params["PolicyArn"])
    policy.default_version = _find_version(policy, params["VersionId"])
    policy.updated = _now(context)
    return {}


@operation("iam", "DeletePolicyVersion", "PolicyArn VersionId")
def delete_policy_version(context: Context, params: Params) -> dict[str, Any]:
    """Delete a version other than the default."""
    policy = _find_policy(context, params["PolicyArn"])
    version = _find_version(policy, params["VersionId"])
    if version == policy.default_version:
        raise _delete_conflict("Cannot delete the default version of a policy.")
    del policy.versions[version]
    return {}


# SimulatePrincipalPolicy, which evaluates identity policies only


def find_identity(context: Context, arn: str) -> Role | User:
    """Return the role or user of an ARN, for a session its role, or raise ``NoSuchEntity``."""
    kind, _, name = arn.rpartition(":")[2].partition("/")
    if kind == "user":
        return USER.find(context, name.rpartition("/")[2])
    if kind == "role":
        return ROLE.find(context, name.rpartition("/")[2])
    if kind == "assumed-role":
        return ROLE.find(context, name.partition("/")[0])
    raise _no_such_entity(f"No entity found for {arn}")


def policies_of_identity(context: Context, owner: Role | User) -> list[str]:
    """Return the JSON of all policies of a role or user."""
    attached = [_policy_document(context, arn) for arn in owner.attached_policies]
    return [*owner.inline_policies.values(), *attached]


def is_administrator(context: Context, principal: str) -> bool:
    """Return whether a principal is the sandbox's administrator or a root user. Neither needs permissions."""
    if principal.endswith(":root"):
        return True
    first = credentials_table(context.tables).get(DEFAULT_ACCESS_KEY)
    created = principal.rpartition("/")[2] in context.table("users", region="")
    # An account is in every partition, so the partitions are not compared.
    same = first is not None and first.principal.split(":", 2)[2:] == principal.split(":", 2)[2:]
    return same and not created


def policies_of_principal(context: Context, arn: str) -> list[str] | None:
    """Return the JSON of all policies of a principal; None for an anonymous caller or an administrator.

    A deleted user or role, whose keys still work, has no policies.
    """
    if not arn or is_administrator(context, arn):
        return None
    with suppress(ApiError):
        return policies_of_identity(context, find_identity(context, arn))
    return []


@operation(
    "iam", "SimulatePrincipalPolicy", *PAGING, "PolicySourceArn ActionNames ResourceArns ContextEntries"
)
def simulate_principal_policy(context: Context, params: Params) -> dict[str, Any]:
    """Return the decision of the policies of a role or user for each action and resource.

    The answer lacks the matched statements.
    """
    documents, arn = [MANAGED_POLICIES["AdministratorAccess"].document], params["PolicySourceArn"]
    if not is_administrator(context, arn):
        documents = policies_of_identity(context, find_identity(context, arn))
    entries = params.get("ContextEntries", [])
    keys = {entry["ContextKeyName"].lower(): entry["ContextKeyValues"] for entry in entries}
    for action in params["ActionNames"]:
        if ":" not in action:
            raise ApiError("InvalidInput", f"Invalid Entity Arn: {action} is not an action.")
    results = [
        {
            "EvalActionName": action,
            "EvalResourceName": resource,
            "EvalDecision": evaluate(documents, AccessRequest(action, resource, keys)),
            "MissingContextValues": [],
        }
        for action in params["ActionNames"]
        for resource in params.get("ResourceArns") or ["*"]
    ]
    return _page(results, params, "EvaluationResults")


# Instance profiles
#
# Sources: CreateInstanceProfile, GetInstanceProfile, AddRoleToInstanceProfile in the IAM API Reference.

ROLE_IN_PROFILE = "Cannot delete entity, must remove roles from instance profile first."


def _profiles_of(context: Context, role: str) -> list[InstanceProfile]:
    profiles: dict[str, InstanceProfile] = context.table("instance_profiles", region="")
    return [profile for _, profile in sorted(profiles.items()) if profile.role == role]


def _profile_view(context: Context, profile: InstanceProfile) -> dict[str, Any]:
    role = context.table("roles", region="").get(profile.role)
    shown = _role_view(context, role) if role is not None else {}
    shown.pop("MaxSessionDuration", None)
    return PROFILE.view(profile) | {"Roles": [shown] if shown else []}


@operation("iam", "CreateInstanceProfile", "InstanceProfileName Path Tags")
def create_profile(context: Context, params: Params) -> dict[str, Any]:
    """Create an instance profile without a role."""
    profile = PROFILE.create(context, params)
    return {"InstanceProfile": _profile_view(context, profile) | tags_member(profile.tags)}


@operation("iam", "GetInstanceProfile", "InstanceProfileName")
def get_profile(context: Context, params: Params) -> dict[str, Any]:
    """Return an instance profile with its role."""
    profile = PROFILE.find(context, params["InstanceProfileName"])
    return {"InstanceProfile": _profile_view(context, profile) | tags_member(profile.tags)}


_register_list(PROFILE, _profile_view)


@operation("iam", "ListInstanceProfilesForRole", *PAGING, "RoleName")
def list_profiles_of_role(context: Context, params: Params) -> dict[str, Any]:
    """List the instance profiles with a role."""
    profiles = _profiles_of(context, ROLE.find(context, params["RoleName"]).name)
    return _page([_profile_view(context, profile) for profile in profiles], params, "InstanceProfiles")


@operation("iam", "AddRoleToInstanceProfile", "InstanceProfileName RoleName")
def add_role_to_profile(context: Context, params: Params) -> dict[str, Any]:
    """Add a role to an instance profile that has none."""
    profile = PROFILE.find(context, params["InstanceProfileName"])
    role = ROLE.find(context, params["RoleName"])
    if profile.role:
        text = "Cannot exceed quota for InstanceSessionsPerInstanceProfile: 1"
        raise ApiError("LimitExceeded", text, status=409)
    profile.role = role.name
    return {}


@operation("iam", "RemoveRoleFromInstanceProfile", "InstanceProfileName RoleName")
def remove_role_from_profile(context: Context, params: Params) -> dict[str, Any]:
    """Remove the role of an instance profile."""
    profile = PROFILE.find(context, params["InstanceProfileName"])
    if profile.role != params["RoleName"]:
        raise _no_such_entity(f"The role with name {params['RoleName']} cannot be found.")
    profile.role = ""
    return {}


@operation("iam", "DeleteInstanceProfile", "InstanceProfileName")
def delete_profile(context: Context, params: Params) -> dict[str, Any]:
    """Delete an instance profile without a role."""
    profile = PROFILE.find(context, params["InstanceProfileName"])
    if profile.role:
        raise _delete_conflict(ROLE_IN_PROFILE)
    del context.table("instance_profiles", region="")[profile.name]
    return {}


# Identity providers of OpenID Connect
#
# Sources: CreateOpenIDConnectProvider and GetOpenIDConnectProvider in the IAM API Reference.

GITHUB_THUMBPRINT = "6938fd4d98bab03faadb97b34396831e3780aea1"
"""The thumbprint that IAM retrieves for GitHub ("OpenID Connect in Amazon Web Services" of GitHub's docs)."""
GITHUB_URL = "https://token.actions.githubusercontent.com"


@dataclass(slots=True)
class IdentityProvider:
    """A provider of OpenID Connect tokens; in the table ``oidc_providers`` by ARN."""

    arn: str
    url: str  # without https://
    client_ids: list[str]
    thumbprints: list[str]
    created: datetime
    tags: dict[str, str] = field(default_factory=dict)


@operation("iam", "CreateOpenIDConnectProvider", "Url ClientIDList ThumbprintList Tags")
def create_provider(context: Context, params: Params) -> dict[str, Any]:
    """Create an identity provider. Without thumbprints, IAM retrieves one; the sandbox has that of GitHub."""
    url = params["Url"]
    if not url.startswith("https://"):
        raise ApiError("ValidationError", "Invalid Open ID Connect Provider URL")
    thumbprints = params.get("ThumbprintList") or []
    if not thumbprints:
        if url != GITHUB_URL:
            raise not_emulated(f"the retrieval of a thumbprint of {url}")
        thumbprints = [GITHUB_THUMBPRINT]
    name = url.removeprefix("https://")
    arn = context.arn("iam", f"oidc-provider/{name}", region="")
    providers: dict[str, IdentityProvider] = context.table("oidc_providers", region="")
    if arn in providers:
        raise _already_exists(f"Provider with url {url} already exists.")
    tags = _read_tags(params.get("Tags"))
    clients = list(params.get("ClientIDList") or [])
    providers[arn] = IdentityProvider(arn, name, clients, thumbprints, _now(context), tags)
    return {"OpenIDConnectProviderArn": arn, **tags_member(tags)}


@operation("iam", "GetOpenIDConnectProvider", "OpenIDConnectProviderArn")
def get_provider(context: Context, params: Params) -> dict[str, Any]:
    """Return an identity provider."""
    arn = params["OpenIDConnectProviderArn"]
    provider: IdentityProvider | None = context.table("oidc_providers", region="").get(arn)
    if provider is None:
        raise _no_such_entity(f"OpenIDConnect Provider not found for arn {arn}")
    return {
        "Url": provider.url,
        "ClientIDList": provider.client_ids,
        "ThumbprintList": provider.thumbprints,
        "CreateDate": provider.created,
        "Tags": tag_list(provider.tags),
    }
