"""The preflight runbook: the checks of `vmsnix_ops.aws.account` as a table and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.aws import account, keys, regions
from vmsnix_ops.aws.checks import checked
from vmsnix_ops.aws.preflight import bucket as preflight_bucket
from vmsnix_ops.aws.session import client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.publish import preflight_machine as machine
from vmsnix_ops.records.result import write_result
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.settings import Settings, load
from vmsnix_ops.text import html, line

if TYPE_CHECKING:
    import boto3
    import pandas as pd

    from vmsnix_ops.nix.image import BuiltImage

_COLOURS = {"pass": "#2e7d32", "warn": "#b26a00", "fail": "#c62828"}


@dataclass(frozen=True, slots=True)
class Checklist:
    """The checks of one region, shown as a table."""

    region: str
    checks: tuple[account.Check, ...]

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return sum(check.outcome == "fail" for check in self.checks)

    def frame(self) -> pd.DataFrame:
        """Return the checks as a table: ``check``, ``outcome``, ``evidence``, ``cure``."""
        return account.frame(self.checks)

    def __str__(self) -> str:
        rows = [
            line(f"{c.outcome:<5} {c.name:<22} {c.evidence}{'  -> ' + c.cure if c.cure else ''}")
            for c in self.checks
        ]
        return "\n".join(rows)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 (IPython's protocol)
        printer.text(str(self))

    def _repr_html_(self) -> str:
        cells = "".join(
            f'<tr><td style="color:{_COLOURS[c.outcome]};font-weight:bold">{c.outcome}</td>'
            f"<td>{html(c.name)}</td><td>{html(c.evidence)}</td><td>{html(c.cure)}</td></tr>"
            for c in self.checks
        )
        head = "<tr><th></th><th>check</th><th>evidence</th><th>cure</th></tr>"
        return f'<table class="vmsnix">{head}{cells}</table>'


@typed
def check(
    *,
    region: str = "",
    bucket: str = "",
    role_name: str = "",
    image: str = "",
    prefix: str = "",
    via: str = "import",
    system: str = "",
    boot_mode: str = "",
    root_device: str = "",
    kms_key: str = "",
    public: bool = False,
    session: boto3.Session | None = None,
) -> Checklist:
    """Run the checks of a publish, and many more, and change nothing.

    Parameters
    ----------
    region, bucket, role_name, prefix, via, system, boot_mode, root_device, kms_key, public
        As for `vmsnix_ops.publish.plan`; empty takes the settings'.
    image
        As there; empty leaves out the checks of the image and of its AMI's name.
    session
        Whose credentials are checked.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        No region is known.
    """
    settings, session = load(), session or default_session()
    region = regions.home(session, region, settings.region)
    bucket = bucket or settings.bucket or ""
    checks = account.preflight(
        session,
        region=region,
        bucket=bucket,
        role_name=role_name or settings.role_name,
        allowed_accounts=settings.allowed_accounts,
        key_prefix=settings.key_prefix,
        via=via,
        public=public,
        kms_key=keys.shape(kms_key or settings.kms_key),
        thorough=True,
    )
    if bucket and via == "import":
        kept = {"archive": settings.archive, "history": settings.history}
        checks.append(
            checked("bucket prefixes", lambda: preflight_bucket.kept_apart(kept, bucket, settings.key_prefix))
        )
    if not bucket and via == "import":
        cure = "Give bucket, or set it in vmsnix.toml; vmsnix bootstrap makes one."
        checks.append(account.Check("bucket", "warn", "no bucket was named", cure))
    checks += _machine(
        session if all(c.outcome != "fail" for c in checks[:2]) else None,
        settings,
        region=region,
        image=image,
        prefix=prefix or settings.prefix,
        via=via,
        asked={"boot_mode": boot_mode, "root_device": root_device},
        system=system,
    )
    return Checklist(region, tuple(checks))


def _machine(
    session: boto3.Session | None,
    settings: Settings,
    *,
    region: str,
    image: str,
    prefix: str,
    via: str,
    asked: dict[str, str],
    system: str,
) -> list[account.Check]:
    """Check the image and this machine; without a session (the credentials failed) no name is looked for."""
    from vmsnix_ops.nix import build as nix

    checks: list[account.Check] = []
    found: list[BuiltImage] = []

    def look_at_image() -> account.Check:
        outcome, built = machine.image(image, flake=settings.flake, via=via, system=system, **asked)
        found.extend([built] if built is not None else [])
        return outcome

    if image:
        checks.append(checked("image", look_at_image))
    if found and session is not None:
        ec2 = client(session, "ec2", region)
        checks.append(checked("name", lambda: machine.name_free(ec2, found[0], prefix=prefix, **asked)))
    builds = bool(image) and not nix.names_a_file(image)
    reads = bool(found) and found[0].format in machine.NEED_QEMU_IMG
    return [
        *checks,
        checked("disk space", lambda: machine.disk_space(settings.state)),
        machine.tool("nix", needed="the image must be built" if builds else "", for_what="building images"),
        machine.tool(
            "qemu-img",
            needed="the image's format is read with it" if reads else "",
            for_what="qcow2, VHDX and VMDK images",
        ),
    ]


def finish(checklist: Checklist) -> None:
    """Write ``result.json``, and raise the error of the first check that failed."""
    run = current_run("preflight")
    rows = [
        {"check": c.name, "outcome": c.outcome, "evidence": c.evidence, "cure": c.cure}
        for c in checklist.checks
    ]
    status = "failed" if checklist.failed else "done"
    write_result(run, {"status": status, "region": checklist.region, "checks": rows})
    account.require(checklist.checks)
