"""The same as `vmsnix_ops.aws.bootstrap`, as a CloudFormation template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.aws.bootstrap import LEFTOVER_DAYS, VERSION_DAYS
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.aws.preflight.bucket import BLOCKS

if TYPE_CHECKING:
    from vmsnix_ops.aws.iam.policies import Place


def template(place: Place) -> dict[str, Any]:
    """Return a template that makes the bucket, the role and the policies.

    Deploy it in the place's region, with ``--capabilities CAPABILITY_NAMED_IAM``. Deleting the stack keeps
    the bucket.

    Parameters
    ----------
    place
        With account, bucket and one region.
    """
    rule = {
        "Id": "vmsnix-leftovers",
        "Status": "Enabled",
        "Prefix": place.key_prefix,
        "ExpirationInDays": LEFTOVER_DAYS,
        "NoncurrentVersionExpiration": {"NoncurrentDays": VERSION_DAYS},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": LEFTOVER_DAYS},
    }
    markers = {
        "Id": "vmsnix-delete-markers",
        "Status": "Enabled",
        "Prefix": place.key_prefix,
        "ExpiredObjectDeleteMarker": True,
    }
    encryption = {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "What vmsnix needs once in an account: bucket, role of VM Import, publisher's policy",
        "Resources": {
            "Bucket": {
                "Type": "AWS::S3::Bucket",
                "DeletionPolicy": "Retain",
                "UpdateReplacePolicy": "Retain",
                "Properties": {
                    "BucketName": place.bucket,
                    "PublicAccessBlockConfiguration": dict.fromkeys(BLOCKS, True),
                    "BucketEncryption": {"ServerSideEncryptionConfiguration": [encryption]},
                    "LifecycleConfiguration": {"Rules": [rule, markers]},
                },
            },
            "BucketPolicy": {
                "Type": "AWS::S3::BucketPolicy",
                "Properties": {"Bucket": {"Ref": "Bucket"}, "PolicyDocument": policies.tls_only(place)},
            },
            "ImportRole": {
                "Type": "AWS::IAM::Role",
                "Properties": {
                    "RoleName": place.role_name,
                    "Description": "Read by VM Import: uploaded images",
                    "AssumeRolePolicyDocument": policies.import_trust(),
                    "Policies": [
                        {"PolicyName": place.role_policy_name, "PolicyDocument": policies.import_role(place)}
                    ],
                },
            },
            "PublisherPolicy": {
                "Type": "AWS::IAM::ManagedPolicy",
                "Properties": {
                    "ManagedPolicyName": place.policy_name,
                    "Description": "What a publish of vmsnix via import needs",
                    "PolicyDocument": policies.publisher(place),
                },
            },
        },
        "Outputs": {
            "Bucket": {"Value": {"Ref": "Bucket"}},
            "PublisherPolicy": {"Value": {"Ref": "PublisherPolicy"}},
        },
    }
