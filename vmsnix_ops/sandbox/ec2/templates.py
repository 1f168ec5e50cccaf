"""Launch templates and their versions. The data of a version is kept as it was sent.

Source: the reference pages of the operations; error texts are from public transcripts.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Params, given, operation, tags_member
from vmsnix_ops.sandbox.ec2.common import (
    LAUNCH_TEMPLATE,
    find_own,
    find_token_result,
    invalid_value,
    new_id,
    record_token_result,
    resolve_image_id,
    tags_at_creation,
)
from vmsnix_ops.sandbox.ec2.filters import Filters, by_name, describe

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context


TEMPLATE_NAME = re.compile(r"[a-zA-Z0-9().\-/_]{3,128}")


@dataclass(slots=True)
class TemplateVersion:
    """One version of a launch template."""

    number: int
    description: str
    created: datetime
    created_by: str
    data: dict[str, Any]


@dataclass(slots=True)
class LaunchTemplate:
    """A launch template with its versions by number."""

    template_id: str
    name: str
    created: datetime
    created_by: str
    default: int = 1
    latest: int = 1
    versions: dict[int, TemplateVersion] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def _template_view(_context: Context, template: LaunchTemplate) -> dict[str, Any]:
    view: dict[str, Any] = {
        "LaunchTemplateId": template.template_id,
        "LaunchTemplateName": template.name,
        "CreateTime": template.created,
        "CreatedBy": template.created_by,
        "DefaultVersionNumber": template.default,
        "LatestVersionNumber": template.latest,
    }
    return view | tags_member(template.tags)


def _version_view(
    context: Context, template: LaunchTemplate, version: TemplateVersion, *, resolve_alias: bool
) -> dict[str, Any]:
    data = copy.deepcopy(version.data)
    if resolve_alias and "ImageId" in data:
        data["ImageId"] = resolve_image_id(context, data["ImageId"])
    view: dict[str, Any] = {
        "LaunchTemplateId": template.template_id,
        "LaunchTemplateName": template.name,
        "VersionNumber": version.number,
        "CreateTime": version.created,
        "CreatedBy": version.created_by,
        "DefaultVersion": version.number == template.default,
        "LaunchTemplateData": data,
    }
    return view | given(VersionDescription=version.description)


def find_template(context: Context, params: Params) -> LaunchTemplate:
    """Return the launch template that a request names by ID or name."""
    template_id, name = params.get("LaunchTemplateId"), params.get("LaunchTemplateName")
    if not template_id and not name:
        text = "The request must contain the parameter launch template ID or launch template name"
        raise ApiError("MissingParameter", text)
    if template_id and name:
        text = "Either provide launch template ID or launch template name to modify the template."
        if context.operation != "ModifyLaunchTemplate":  # text from memory
            text = "You must specify either a launch template ID or a launch template name, but not both."
        raise ApiError("InvalidParameterCombination", text)
    if template_id:
        found: LaunchTemplate = find_own(context, LAUNCH_TEMPLATE, template_id)
        return found
    for template in context.table("launch_templates").values():
        if template.name == name:
            return template  # type: ignore[no-any-return]
    text = f"The specified launch template, with template name {name}, does not exist."
    if context.operation == "DescribeLaunchTemplates":
        text = "At least one of the launch templates specified in the request does not exist."
    raise ApiError("InvalidLaunchTemplateName.NotFoundException", text)


def find_template_version(template: LaunchTemplate, wanted: str | None) -> TemplateVersion:
    """Return a version by number, ``$Latest``, or ``$Default`` (the same as None)."""
    number = {None: template.default, "$Default": template.default, "$Latest": template.latest}.get(wanted)
    if number is None:
        if not str(wanted).isdecimal():
            text = f"Launch template version '{wanted}' is malformed."
            raise ApiError("InvalidLaunchTemplateId.VersionMalformed", text)
        number = int(str(wanted))
    if number not in template.versions:
        of = f"for the launch template with ID {template.template_id}"
        text = f"Could not find the specified version {wanted} {of}."
        raise ApiError("InvalidLaunchTemplateId.VersionNotFound", text)
    return template.versions[number]


def merge_launch(context: Context, params: Params) -> Params:
    """Return the parameters of a launch, with those of its launch template as defaults."""
    if "LaunchTemplate" not in params:
        return params
    return copy.deepcopy(_launch_version(context, params)[1].data) | params


def _launch_version(context: Context, params: Params) -> tuple[LaunchTemplate, TemplateVersion]:
    """Return the launch template of a launch, and its version."""
    template = find_template(context, params["LaunchTemplate"])
    return template, find_template_version(template, params["LaunchTemplate"].get("Version"))


def template_tags(context: Context, params: Params) -> dict[str, str]:
    """Return the tags that AWS adds to instances of a launch template.

    Source: "Launch an instance from a launch template" of the EC2 User Guide.
    """
    if "LaunchTemplate" not in params:
        return {}
    template, version = _launch_version(context, params)
    return {
        "aws:ec2launchtemplate:id": template.template_id,
        "aws:ec2launchtemplate:version": str(version.number),
    }


@operation(
    "ec2",
    "CreateLaunchTemplate",
    "ClientToken LaunchTemplateData LaunchTemplateName TagSpecifications VersionDescription",
)
def create_launch_template(context: Context, params: Params) -> dict[str, Any]:
    """Create a launch template with version 1."""
    table = context.table("launch_templates")
    known = find_token_result(context, params)
    if known in table:
        return {"LaunchTemplate": _template_view(context, table[known])}
    name = params["LaunchTemplateName"]
    if not TEMPLATE_NAME.fullmatch(name):
        text = f"The launch template name '{name}' is malformed."
        raise ApiError("InvalidLaunchTemplateName.MalformedException", text)
    if any(t.name == name for t in table.values()):
        text = "Launch template name already in use."
        raise ApiError("InvalidLaunchTemplateName.AlreadyExistsException", text)
    template = LaunchTemplate(new_id("lt"), name, context.clock.now(), context.principal)
    template.tags = tags_at_creation(params, "launch-template")["launch-template"]
    _add_version(context, params, template, 1, {})
    table[template.template_id] = template
    record_token_result(context, params, template.template_id)
    return {"LaunchTemplate": _template_view(context, template)}


@operation(
    "ec2",
    "CreateLaunchTemplateVersion",
    "ClientToken LaunchTemplateData LaunchTemplateId LaunchTemplateName ResolveAlias SourceVersion",
    "VersionDescription",
)
def create_launch_template_version(context: Context, params: Params) -> dict[str, Any]:
    """Add a version; with ``SourceVersion``, it inherits the data of that version."""
    template = find_template(context, params)
    alias = bool(params.get("ResolveAlias"))
    known = find_token_result(context, params)
    if known is not None:
        version = find_template_version(template, known)
        return {"LaunchTemplateVersion": _version_view(context, template, version, resolve_alias=alias)}
    base = find_template_version(template, params["SourceVersion"]).data if "SourceVersion" in params else {}
    template.latest += 1
    version = _add_version(context, params, template, template.latest, base)
    record_token_result(context, params, str(version.number))
    return {"LaunchTemplateVersion": _version_view(context, template, version, resolve_alias=alias)}


def _add_version(
    context: Context, params: Params, template: LaunchTemplate, number: int, base: dict[str, Any]
) -> TemplateVersion:
    data = copy.deepcopy(base) | params["LaunchTemplateData"]
    text, now = params.get("VersionDescription", ""), context.clock.now()
    template.versions[number] = TemplateVersion(number, text, now, context.principal, data)
    return template.versions[number]


@operation(
    "ec2", "DescribeLaunchTemplates", "Filters LaunchTemplateIds LaunchTemplateNames MaxResults NextToken"
)
def describe_launch_templates(context: Context, params: Params) -> dict[str, Any]:
    """Return launch templates."""
    wanted = [{"LaunchTemplateId": one} for one in params.get("LaunchTemplateIds") or []]
    wanted += [{"LaunchTemplateName": one} for one in params.get("LaunchTemplateNames") or []]
    found = [find_template(context, one) for one in wanted] or context.table("launch_templates").values()
    filters = by_name("create-time launch-template-name")
    return describe(context, params, found, _template_view, filters=filters, key="template_id")


VERSION_FILTERS: Filters = by_name("create-time") | {
    "ebs-optimized": "LaunchTemplateData.EbsOptimized",
    "http-endpoint": "LaunchTemplateData.MetadataOptions.HttpEndpoint",
    "http-tokens": "LaunchTemplateData.MetadataOptions.HttpTokens",
    "iam-instance-profile": "LaunchTemplateData.IamInstanceProfile.Arn",
    "image-id": lambda pair: [pair[1].data["ImageId"]] if pair[1].data.get("ImageId") else [],
    "instance-type": "LaunchTemplateData.InstanceType",
    "is-default-version": "DefaultVersion",
    "kernel-id": "LaunchTemplateData.KernelId",
    "ram-disk-id": "LaunchTemplateData.RamDiskId",
}


WRONG_VERSIONS = (
    "To describe the launch template data for all your launch templates, for '--versions' specify '$Latest', "
    "'$Default', or both, and omit '--launch-template-id', '--launch-template-name', and version numbers. To "
    "describe the launch template data for a specific launch template, specify '--launch-template-id' or "
    "'--launch-template-name', and for '--versions' specify one or more of the following values: '$Latest', "
    "'$Default', or one or more version numbers."
)


@operation(
    "ec2",
    "DescribeLaunchTemplateVersions",
    "Filters LaunchTemplateId LaunchTemplateName MaxResults MaxVersion MinVersion NextToken",
    "ResolveAlias Versions",
)
def describe_launch_template_versions(context: Context, params: Params) -> dict[str, Any]:
    """Return the versions of one launch template, or the default or latest versions of all templates."""
    wanted = params.get("Versions") or []
    if params.get("LaunchTemplateId") or params.get("LaunchTemplateName"):
        chosen = [find_template(context, params)]
    else:
        chosen = list(context.table("launch_templates").values())
        if not wanted:
            raise ApiError("MissingParameter", WRONG_VERSIONS)
        if not set(wanted) <= {"$Latest", "$Default"}:
            raise invalid_value(WRONG_VERSIONS)
    least, most = int(params.get("MinVersion", 1)), int(params.get("MaxVersion", 2**31))
    found = []
    for template in chosen:
        numbers = {find_template_version(template, one).number for one in wanted} or set(template.versions)
        found += [(template, template.versions[one]) for one in numbers if least <= one <= most]
    alias = bool(params.get("ResolveAlias"))
    return describe(
        context,
        params,
        found,
        lambda context, pair: _version_view(context, *pair, resolve_alias=alias),
        filters=VERSION_FILTERS,
        # Newest first, as the console and the AWS CLI show them.
        key=lambda pair: f"{pair[0].template_id} {2**31 - pair[1].number:010}",
    )


@operation("ec2", "ModifyLaunchTemplate", "ClientToken DefaultVersion LaunchTemplateId LaunchTemplateName")
def modify_launch_template(context: Context, params: Params) -> dict[str, Any]:
    """Set the default version. A repeated call changes nothing, with or without a client token."""
    template = find_template(context, params)
    if "DefaultVersion" in params:
        template.default = find_template_version(template, params["DefaultVersion"]).number
    return {"LaunchTemplate": _template_view(context, template)}


@operation("ec2", "DeleteLaunchTemplate", "LaunchTemplateId LaunchTemplateName")
def delete_launch_template(context: Context, params: Params) -> dict[str, Any]:
    """Delete a launch template with all its versions."""
    template = find_template(context, params)
    del context.table("launch_templates")[template.template_id]
    return {"LaunchTemplate": _template_view(context, template)}


@operation("ec2", "DeleteLaunchTemplateVersions", "LaunchTemplateId LaunchTemplateName Versions")
def delete_launch_template_versions(context: Context, params: Params) -> dict[str, Any]:
    """Delete versions, except for the default one."""
    template = find_template(context, params)
    done, failed = [], []
    for wanted in params["Versions"]:
        entry = {"LaunchTemplateId": template.template_id, "LaunchTemplateName": template.name}
        number = int(wanted) if wanted.isdecimal() else 0
        if number in template.versions and number != template.default:
            del template.versions[number]
            done.append(entry | {"VersionNumber": number})
            continue
        known = number in template.versions
        code = "unexpectedError" if known else "launchTemplateVersionDoesNotExist"
        text = "The default version cannot be deleted." if known else f"There is no version {wanted}."
        failed.append(entry | {"VersionNumber": number, "ResponseError": {"Code": code, "Message": text}})
    return {
        "SuccessfullyDeletedLaunchTemplateVersions": done,
        "UnsuccessfullyDeletedLaunchTemplateVersions": failed,
    }
