"""A synthetic history of four months: three images, two regions, both methods, slow days.

It depends only on a seed, so that pictures and figures are the same each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vmsnix_ops.records.frames import to_arrow, to_frame
from vmsnix_ops.records.schemas import schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GIB = 2**30
START = pd.Timestamp("2026-07-20", tz="UTC")
IMAGES = {"ecs-node": 3.1, "gc-fwd": 2.2, "actions-runner": 7.8}  # size in GiB
REGIONS = {"eu-central-1": 1.0, "us-east-1": 1.35}  # factor of the duration
SLOW_DAY = 96


def history(*, days: int = 120, seed: int = 6) -> pd.DataFrame:
    """Return rows of the table `steps`."""
    rows = list(_rows(np.random.default_rng(seed), days))
    return to_frame(to_arrow(schema("steps"), rows))


def _rows(chance: np.random.Generator, days: int) -> Iterator[dict[str, Any]]:
    run = 0
    for day in range(days):
        for image, gib in IMAGES.items():
            for region, far in REGIONS.items():
                if chance.random() > 0.45:
                    continue
                # Direct upload is used for most images since October.
                via = "direct" if day > 70 and chance.random() < 0.7 else "import"
                run += 1
                grown = gib * (1 + 0.12 * day / days)
                moment = START + pd.Timedelta(day, "D") + pd.Timedelta(6 + 10 * chance.random(), "h")
                yield from _run(chance, f"r{run:04}", image, region, via, day, moment, grown, far)


def _run(
    chance: np.random.Generator,
    run_id: str,
    image: str,
    region: str,
    via: str,
    day: int,
    moment: pd.Timestamp,
    gib: float,
    far: float,
) -> Iterator[dict[str, Any]]:
    size = int(gib * GIB)
    sent = size if via == "import" else int(size * (0.45 if chance.random() < 0.1 else 0.04))
    slow = 3.2 if day == SLOW_DAY and via == "import" else 1.0
    cold = chance.random() < 0.15  # a build without a cache
    means = {
        "build": (gib * 14 * (4.0 if cold else 1.0), None),
        "digest": (gib * 1.4, size),
        "upload": ((gib * 9 if via == "import" else gib * 4 + sent / GIB * 6) * far, sent),
        "import": ((95 + gib * 62) * slow if via == "import" else 2.2, size),
        "register": (1.6, None),
        "finish": (0.4, None),
    }
    for step, (mean, moved) in means.items():
        seconds = float(mean * chance.lognormal(0, 0.12))
        row = {
            "run_id": run_id,
            "step": step,
            "status": "created",
            "started_at": moment,
            "finished_at": moment + pd.Timedelta(seconds, "s"),
            "seconds": seconds,
            "bytes": moved,
            "image": image,
            "region": region,
            "via": via,
        }
        if step == "build":
            row |= {"bytes": None, "items": int(gib * (150 if cold else 6))}
        if step == "import" and via == "import" and chance.random() < 0.01:
            yield row | {"status": "failed", "seconds": seconds / 3}
            return
        if step == "upload" and chance.random() < 0.04:
            row |= {"status": "reused", "seconds": 0.3, "bytes": 0}
        yield row
        moment += pd.Timedelta(seconds, "s")


PLOTS = ("usual", "trend", "compare")


def draw(picture: Path) -> None:
    """Draw a plot of ``docs/how-to/read-timings.md``: ``timings-NAME.png``."""
    from vmsnix_ops.records import timing_plots

    figure = getattr(timing_plots, f"plot_{picture.stem.removeprefix('timings-')}")(history())
    figure.savefig(picture, dpi=96, bbox_inches="tight", pad_inches=0.15)
