"""Service Quotas. Sources: the operations' reference pages; "Amazon EC2 endpoints and quotas"."""

from __future__ import annotations

from tests.sandbox.clients import SandboxClients, refused


def test_the_quotas_of_a_service_are_listed_in_pages(aws: SandboxClients) -> None:
    quotas = aws.client("service-quotas")
    listed = quotas.list_service_quotas(ServiceCode="ec2")["Quotas"]
    values = {quota["QuotaCode"]: quota["Value"] for quota in listed}
    assert (values["L-B665C33B"], values["L-0E3CBAB9"]) == (50_000.0, 5.0)
    pages = quotas.get_paginator("list_aws_default_service_quotas")
    found = pages.paginate(ServiceCode="ec2", PaginationConfig={"PageSize": 1})
    assert {quota["QuotaCode"]: quota["Value"] for page in found for quota in page["Quotas"]} == values


def test_a_quota_that_aws_may_have_is_not_emulated(aws: SandboxClients) -> None:
    quotas = aws.client("service-quotas")
    with refused("NotImplemented", "the quota ec2/L-1216C47A"):
        quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-1216C47A")
    with refused("NotImplemented", "the quotas of the service 'lambda'"):
        quotas.list_service_quotas(ServiceCode="lambda")
    with refused("NoSuchResourceException"):
        quotas.get_service_quota(ServiceCode="ec2", QuotaCode="AMIs")
