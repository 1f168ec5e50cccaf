"""How fast an image becomes a snapshot, compared with plain boto3 and with the limits of the machine.

::

    python -m benchmarks.upload                      # 4 GiB, about ten minutes
    python -m benchmarks.upload --mib 512 --json results.json --plot results.png
    python -m benchmarks.upload --large              # also the memory of a full image of 100 GiB

Everything goes to a sink (nginx) on this machine that reads every byte and checks lengths, so that only the
client is measured; the sink shares the machine's cores with it. The sandbox, which verifies every block, is a
row of its own. All ratios are of one run. The best of several rounds counts, because whatever else the
machine does only makes a round slower.
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
from typing import TYPE_CHECKING, Any

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
LARGE = "100 GiB, 3 % changed"
COMPARED = ("sha256, one core", "loopback copy", "boto3, 64 threads", "aws s3 cp")
AIMS = (
    ("identity, full", "times_hashing", "times SHA-256 on one core", 1.8),
    ("identity, 45 % sparse", "times_hashing", "times SHA-256 on one core", 3),
    ("full", "times_hashing", "times SHA-256 on one core", (0.8, 0.6)),  # without and with TLS
    ("full", "cpu_seconds_per_gib", "CPU seconds a GiB at most", 1.6),
    ("full", "peak_mib", "MiB of memory at most", 160),
    (LARGE, "peak_mib", "MiB of memory at most", 200),
    ("45 % sparse, upload step", "times_boto3", "times boto3's image GiB a second", 6),
    ("3 % changed, upload step", "times_boto3", "times boto3's image GiB a second", 25),
    ("S3, ours", "times_cli", "times the speed of aws s3 cp", 1.5),
)
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIABENCHMARK",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def make_images(folder: Path, mib: int) -> dict[str, str]:
    """Write a full image, a sparse one, and the manifest of a predecessor of each."""
    chance = random.Random(1)
    blocks = mib * 2**20 // BLOCK
    full, sparse = folder / "full.raw", folder / "sparse.raw"
    earlier: dict[str, dict[int, str]] = {"full": {}, "sparse": {}}
    kept = set(chance.sample(range(blocks), round(blocks * (1 - SPARSE))))
    with full.open("wb") as whole, sparse.open("wb") as holed:
        for index in range(blocks):
            data = os.urandom(BLOCK)
            # A digest of other bytes: the predecessor had something else there.
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
    """Write an image of 100 GiB that stores a page of each of its blocks, and a predecessor's manifest."""
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
    """Return what is measured: its name, the work, the work's options."""
    full = {"image": images["full"]}
    sparse = {"image": images["sparse"]}
    changed = full | {"manifest": images["full manifest"]}
    sparse_changed = sparse | {"manifest": images["sparse manifest"]}
    before = {"identified": True}
    return [
        ("sha256, one core", "sha256", full),
        ("loopback copy", "loopback", full),
        ("boto3, 64 threads", "boto3_threads", full),
        ("identity, full", "identity", full),
        ("identity, 45 % sparse", "identity", sparse),
        ("identity and parts, full", "identity", full | {"parts": True}),
        ("full", "direct", full),
        ("45 % sparse", "direct", sparse),
        ("3 % changed", "direct", changed),
        ("45 % sparse, 3 % changed", "direct", sparse_changed),
        ("full, upload step", "direct", full | before),
        ("45 % sparse, upload step", "direct", sparse | before),
        ("3 % changed, upload step", "direct", changed | before),
    ]


def s3_cases(images: dict[str, str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the two uploads to S3."""
    if shutil.which("aws") is None:
        print("The upload to S3 is not measured: there is no AWS CLI on PATH to compare it with.")
        return []
    full = {"image": images["full"]}
    return [("aws s3 cp", "s3_cli", full), ("S3, ours", "s3_ours", full)]


def run(
    cases: list[tuple[str, str, dict[str, Any]]], rounds: int, environment: dict[str, str]
) -> dict[str, Measured]:
    """Measure every case `rounds` times, in turns, and keep the quickest of each."""
    best: dict[str, Measured] = {}
    for _ in range(rounds):
        for name, work, options in cases:
            keep_quickest(best, name, measure(work, options, environment))
    return best


def towards(sink: Sink) -> dict[str, str]:
    """Return the environment in which everything goes to the sink."""
    environment = {**KEYS, "AWS_ENDPOINT_URL": sink.url}
    if sink.certificate:
        environment["AWS_CA_BUNDLE"] = str(sink.certificate)
    return environment


def verified(image: str) -> dict[str, Measured]:
    """Measure a full upload into the sandbox, which verifies and stores every block."""
    with sandbox() as aws:
        options = {"image": image, "start": True}
        return run([("full, verifying sandbox", "direct", options)], 1, dict(aws.environment))


def keep_quickest(best: dict[str, Measured], name: str, found: Measured) -> None:
    print(f"  {name}: {found.seconds:.2f} s", flush=True)
    if name not in best or found.seconds < best[name].seconds:
        best[name] = found


def rows(measured: dict[str, Measured], mib: int) -> list[dict[str, Any]]:
    """Return a row a case, with rates and ratios."""
    gib = mib / 1024
    baseline, hashing = measured.get("boto3, 64 threads"), measured.get("sha256, one core")
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
        elif baseline and hashing and not name.startswith(("aws s3", "S3")):
            row["times_boto3"] = baseline.seconds / one.seconds
            row["times_hashing"] = hashing.seconds / one.seconds
        if name.startswith("S3") and (cli := measured.get("aws s3 cp")):
            row["times_cli"] = cli.seconds / one.seconds
        found.append(row)
    return found


def table(found: Iterable[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| case | s | image MiB/s | blocks sent/s | against boto3 | against hashing | CPU s/GiB | peak MiB "
        "| MiB on the wire |",
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


def reached(found: Iterable[dict[str, Any]], *, tls: bool) -> dict[str, str]:
    """Return what was reached of each aim."""
    by_case = {row["case"]: row for row in found}
    aims = [(*rest, aim[tls] if isinstance(aim, tuple) else aim) for *rest, aim in AIMS]
    return {
        f"{case}, {text}": f"{by_case[case][ratio]:.2f} (aim: {aim})"
        for case, ratio, text, aim in aims
        if ratio in by_case.get(case, {})
    }


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Draw the image rates as bars."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.45 * len(found) + 1), layout="constrained")
    colors = ["tab:gray" if row["case"] in COMPARED else "tab:blue" for row in found]
    rates = [row["image_mib_per_second"] for row in found]
    bars = axes.barh([row["case"] for row in found], rates, color=colors)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(10, 2 * max(rates))
    axes.set_xlabel("MiB of image a second (blue: ours; gray: limits, and what it is compared with)")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=4096, help="size of the image")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--tls", action="store_true", help="encrypt on the way to the sink, as AWS does")
    parser.add_argument("--no-s3", action="store_true", help="leave the S3 path out")
    parser.add_argument("--no-sandbox", action="store_true", help="leave the verifying sandbox out")
    parser.add_argument("--large", action="store_true", help="also upload a full image of 100 GiB, once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmsnix-bench-") as folder:
        images = make_images(Path(folder), options.mib)
        wanted = cases(images) + ([] if options.no_s3 else s3_cases(images))
        with null_sink(tls=options.tls) as sink:
            measured = run(wanted, options.rounds, towards(sink))
            if options.large:
                measured |= run([(LARGE, "direct", make_large(Path(folder)))], 1, towards(sink))
        if not options.no_sandbox:
            measured |= verified(images["full"])
    found = rows(measured, options.mib)
    print(f"\n{os.cpu_count()} cores, {options.mib} MiB, TLS {'on' if options.tls else 'off'}")
    print(f"\n{table(found)}\n")
    for aim, how_far in reached(found, tls=options.tls).items():
        print(f"- {aim}: {how_far}")
    if options.json:
        machine = {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
        result = {"machine": machine, "mib": options.mib, "tls": options.tls, "cases": found}
        result["reached"] = reached(found, tls=options.tls)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
