"""Measure how fast an image becomes a snapshot, and compare with plain boto3 and the limits of the machine.

::

    python -m benchmarks.upload                      # 4 GiB, about ten minutes
    python -m benchmarks.upload --mib 512 --json results.json --plot results.png
    python -m benchmarks.upload --large              # also the memory for a full image of 100 GiB

The receiver is nginx on this machine. It reads every byte, checks lengths and stores nothing, so that the
client is the bottleneck; both share the machine's cores. One more row sends to the sandbox, which verifies
every block. Ratios compare rows of one run. The fastest of several rounds counts, because other programs can
only make a round slower.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.measure import Measured, measure
from benchmarks.sink import Sink, null_sink
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.identity import identity_of
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterable

BLOCK = 524_288
SNAPSHOT = "snap-0123456789abcdef0"
SPARSE, CHANGED = 0.45, 0.03
HASHING, BOTO3, CLI = "SHA-256 on one core", "boto3, 64 threads", "aws s3 cp"
BASELINES = (HASHING, "loopback copy", BOTO3, CLI)
S3 = "upload to S3, full"
LARGE = "identify and upload, 100 GiB, 3 % changed"


class Aim(NamedTuple):
    """A figure of a case, and the limit that it should reach."""

    case: str
    figure: str
    unit: str
    limit: float
    limit_with_tls: float = 0
    at_most: bool = False


AIMS = (
    Aim("identify, full", "times_hashing", f"times as fast as {HASHING}", 1.8),
    Aim("identify, 45 % zeros", "times_hashing", f"times as fast as {HASHING}", 3),
    Aim("identify and upload, full", "times_hashing", f"times as fast as {HASHING}", 0.8, 0.6),
    Aim("identify and upload, full", "cpu_seconds_per_gib", "CPU seconds per GiB", 1.6, at_most=True),
    Aim("identify and upload, full", "peak_mib", "MiB of memory", 160, at_most=True),
    Aim(LARGE, "peak_mib", "MiB of memory", 200, at_most=True),
    Aim("upload, 45 % zeros", "times_boto3", "times as fast as boto3", 6),
    Aim("upload, 3 % changed", "times_boto3", "times as fast as boto3", 25),
    Aim(S3, "times_cli", f"times as fast as {CLI}", 1.5),
)
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIABENCHMARK",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def make_images(folder: Path, mib: int) -> dict[str, str]:
    """Write a full image, one with 45 % zeros, and for each the manifest of an earlier image."""
    chance = random.Random(1)
    blocks = mib * 2**20 // BLOCK
    full, sparse = folder / "full.raw", folder / "sparse.raw"
    earlier: dict[str, dict[int, str]] = {"full": {}, "sparse": {}}
    kept = set(chance.sample(range(blocks), round(blocks * (1 - SPARSE))))
    with full.open("wb") as whole, sparse.open("wb") as holed:
        for index in range(blocks):
            data = os.urandom(BLOCK)
            # The earlier image has other bytes in some blocks.
            other = chance.random() < CHANGED
            found = hashlib.sha256(b"other" if other else data).hexdigest()
            whole.write(data)
            earlier["full"][index] = found
            if index in kept:
                holed.seek(index * BLOCK)
                holed.write(data)
                earlier["sparse"][index] = found
        holed.truncate(blocks * BLOCK)
    places = {"full": str(full), "sparse": str(sparse)}
    for name, known in earlier.items():
        places[f"{name} manifest"] = write_manifest(folder / f"{name}.manifest", known, mib * 2**20)
    return places


def write_manifest(path: Path, blocks: dict[int, str], disk_bytes: int) -> str:
    digests = Digests(blocks.items())
    manifest = Manifest(identity_of(digests.raw()), disk_bytes, SNAPSHOT, "us-east-1", digests)
    path.write_bytes(manifest.dump())
    return str(path)


def make_large(folder: Path) -> dict[str, str]:
    """Write a 100 GiB image without zero blocks, and the manifest of an earlier image.

    Each block has one page of data, so that the sparse file needs little disk space.
    """
    chance, image = random.Random(2), folder / "large.raw"
    earlier = {}
    with image.open("wb") as file:
        for index in range(100 * 2048):
            page = index.to_bytes(8, "big") * 512
            file.seek(index * BLOCK)
            file.write(page)
            other = chance.random() < CHANGED
            earlier[index] = hashlib.sha256(b"" if other else page + bytes(BLOCK - len(page))).hexdigest()
        file.truncate(100 * 2**30)
    return {"image": str(image), "manifest": write_manifest(folder / "large.manifest", earlier, 100 * 2**30)}


def cases(images: dict[str, str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the cases: name, function of `benchmarks.work`, and its options."""
    full = {"image": images["full"]}
    sparse = {"image": images["sparse"]}
    changed = full | {"manifest": images["full manifest"]}
    sparse_changed = sparse | {"manifest": images["sparse manifest"]}
    before = {"identified": True}
    return [
        (HASHING, "sha256", full),
        ("loopback copy", "loopback", full),
        (BOTO3, "boto3_threads", full),
        ("identify, full", "identify_image", full),
        ("identify, 45 % zeros", "identify_image", sparse),
        ("identify for S3, full", "identify_image", full | {"parts": True}),
        ("identify and upload, full", "direct", full),
        ("identify and upload, 45 % zeros", "direct", sparse),
        ("identify and upload, 3 % changed", "direct", changed),
        ("identify and upload, 45 % zeros, 3 % changed", "direct", sparse_changed),
        ("upload, full", "direct", full | before),
        ("upload, 45 % zeros", "direct", sparse | before),
        ("upload, 3 % changed", "direct", changed | before),
    ]


def s3_cases(images: dict[str, str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the two uploads to S3."""
    if shutil.which("aws") is None:
        print("The upload to S3 is not measured: the AWS CLI, with which it is compared, is not on PATH.")
        return []
    full = {"image": images["full"]}
    return [(CLI, "s3_cli", full), (S3, "s3_vmsnix", full)]


def run(
    cases: list[tuple[str, str, dict[str, Any]]], rounds: int, environment: dict[str, str]
) -> dict[str, Measured]:
    """Measure every case once in each round, and return the fastest result of each."""
    best: dict[str, Measured] = {}
    for _ in range(rounds):
        for name, work, options in cases:
            found = measure(work, options, environment)
            print(f"  {name}: {found.seconds:.2f} s", flush=True)
            if name not in best or found.seconds < best[name].seconds:
                best[name] = found
    return best


def sink_environment(sink: Sink) -> dict[str, str]:
    """Return the environment in which AWS clients send to the sink."""
    environment = {**KEYS, "AWS_ENDPOINT_URL": sink.url}
    if sink.certificate:
        environment["AWS_CA_BUNDLE"] = str(sink.certificate)
    return environment


def run_on_sandbox(image: str) -> dict[str, Measured]:
    """Measure a full upload into the sandbox, which verifies and stores every block."""
    with sandbox() as aws:
        options = {"image": image, "start": True}
        return run([("identify and upload, full, sandbox", "direct", options)], 1, dict(aws.environment))


def rows(measured: dict[str, Measured], mib: int) -> list[dict[str, Any]]:
    """Return a row for each case, with rates and ratios."""
    gib = mib / 1024
    boto3, hashing, cli = (measured.get(name) for name in (BOTO3, HASHING, CLI))
    found = []
    for name, one in measured.items():
        row = {
            "case": name,
            "image_mib_per_second": mib / one.seconds,
            "blocks_per_second": one.sent_blocks / one.seconds,
            "wire_mib": one.wire_bytes / 2**20,
            "cpu_seconds_per_gib": one.cpu_seconds / gib,
            **asdict(one),
        }
        if name == LARGE:
            row |= {
                "image_mib_per_second": 100 * 1024 / one.seconds,
                "cpu_seconds_per_gib": one.cpu_seconds / 100,
            }
        elif boto3 and hashing and name not in (CLI, S3):
            row["times_boto3"] = boto3.seconds / one.seconds
            row["times_hashing"] = hashing.seconds / one.seconds
        if cli and name == S3:
            row["times_cli"] = cli.seconds / one.seconds
        found.append(row)
    return found


def table(found: Iterable[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| case | s | image MiB/s | blocks sent/s | speed vs boto3 | speed vs SHA-256 | CPU s/GiB | peak MiB "
        "| network MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        ratios = " | ".join(
            f"{row[name]:.2f}" if name in row else "" for name in ("times_boto3", "times_hashing")
        )
        lines.append(
            f"| {row['case']} | {row['seconds']:.2f} | {row['image_mib_per_second']:.0f} | "
            f"{row['blocks_per_second']:.0f} | {ratios} | {row['cpu_seconds_per_gib']:.2f} | "
            f"{row['peak_mib']:.0f} | {row['wire_mib']:.0f} |"
        )
    return "\n".join(lines)


def aims_table(found: Iterable[dict[str, Any]], *, tls: bool) -> str:
    """Return the aims as a Markdown table; aims whose case was not measured are left out."""
    by_case = {row["case"]: row for row in found}
    lines = ["| case | measured | aim |", "|---|---|---|"]
    for aim in AIMS:
        if aim.figure in by_case.get(aim.case, {}):
            limit = (tls and aim.limit_with_tls) or aim.limit
            bound = "at most" if aim.at_most else "at least"
            figure = by_case[aim.case][aim.figure]
            lines.append(f"| {aim.case} | {figure:.3g} {aim.unit} | {bound} {limit:g} |")
    return "\n".join(lines)


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Draw a bar of the image rate of each case."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.45 * len(found) + 1), layout="constrained")
    colors = ["tab:gray" if row["case"] in BASELINES else "tab:blue" for row in found]
    rates = [row["image_mib_per_second"] for row in found]
    bars = axes.barh([row["case"] for row in found], rates, color=colors)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(10, 2 * max(rates))
    axes.set_xlabel("image MiB per second (blue: vmsnix; gray: for comparison)")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=4096, help="size of the image")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; the fastest counts")
    parser.add_argument("--tls", action="store_true", help="encrypt the connections, as AWS does")
    parser.add_argument("--no-s3", action="store_true", help="do not measure the upload to S3")
    parser.add_argument("--no-sandbox", action="store_true", help="do not measure the upload to the sandbox")
    parser.add_argument("--large", action="store_true", help="upload a full image of 100 GiB too, once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results into this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmsnix-bench-") as folder:
        images = make_images(Path(folder), options.mib)
        wanted = cases(images) + ([] if options.no_s3 else s3_cases(images))
        with null_sink(tls=options.tls) as sink:
            measured = run(wanted, options.rounds, sink_environment(sink))
            if options.large:
                measured |= run([(LARGE, "direct", make_large(Path(folder)))], 1, sink_environment(sink))
        if not options.no_sandbox:
            measured |= run_on_sandbox(images["full"])
    found = rows(measured, options.mib)
    print(f"\n{os.cpu_count()} cores, {options.mib} MiB, TLS {'on' if options.tls else 'off'}")
    print(f"\n{table(found)}\n\n{aims_table(found, tls=options.tls)}")
    if options.json:
        machine = {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
        result = {"machine": machine, "mib": options.mib, "tls": options.tls, "cases": found}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
