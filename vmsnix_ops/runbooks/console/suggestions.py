"""Suggestions for fields: images of the flake, regions, buckets, AMIs. Fetched on request, and cached.

Without Nix or a permission, there are no suggestions, and the console shows the reason beside the field.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.runbooks.value_checks import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.runbooks.console.backends import Backend
    from vmsnix_ops.runbooks.declarations import Parameter

CACHE_SECONDS = 300.0
MAX_AMIS = 200
SAMPLE = "sample-image"
USED = "used"
"""The source of the values that past runs were given."""
MAX_USED = 5
MAX_RUNS = 300


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A suggested value."""

    value: str
    label: str = ""  # text in the list; by default the value
    parameter: str = ""  # the only parameter for which it is meant: publish-ami.image


def source_of(parameter: Parameter) -> str:
    """Return the name of the source for a parameter, by its name; empty if there is none."""
    word = parameter.name.removesuffix("s").rpartition("_")[2]
    if parameter.type.kind not in ("str", "list"):
        return ""
    if word == "image" and not kind_of(parameter):
        return "published"
    return {"image": "images", "region": "regions", "bucket": "buckets", "ami": "amis"}.get(
        kind_of(parameter), ""
    )


def immediate(backend: Backend, source: str) -> list[Suggestion]:
    """Return the suggestions that need no request: on a sandbox, a sample image, which is created now."""
    if source != "images" or not backend.sandbox:
        return []
    from vmsnix_ops.disk.sample import make_sample_image

    folder = backend.settings().state / SAMPLE
    try:
        if not (folder / "nix-support" / "hydra-build-products").is_file():  # the file that is written last
            make_sample_image(folder)
    except OSError:  # the disk is full or read-only; the sample image is optional
        return []
    return [Suggestion(str(folder), "Sample image, created on this machine")]


def images(backend: Backend) -> list[Suggestion]:
    """Return the images of the flake in the settings."""
    from vmsnix_ops.nix import flake

    known = flake.list_images(backend.settings().flake, system=flake.host_system())
    return [
        Suggestion(image.name, f"{image.name}: {image.description}" if image.description else image.name)
        for image in known
    ]


def used(backend: Backend) -> list[Suggestion]:
    """Return the values that the newest runs were given, the last one first."""
    from vmsnix_ops.records import history

    runs = history.runs(backend.tables(), last=MAX_RUNS)[["runbook", "parameters"]].dropna()
    found: dict[str, dict[str, None]] = {}
    for runbook, given in runs.itertuples(index=False, name=None):
        for name, value in json.loads(given).items():
            known = found.setdefault(f"{runbook}.{name}", {})
            known |= dict.fromkeys(str(one) for one in (value if isinstance(value, list) else [value]))
    return [
        Suggestion(value, f"{value} (used before)", parameter)
        for parameter, values in found.items()
        for value in [one for one in values if one not in ("", "None", "{}")][:MAX_USED]
    ]


def published(backend: Backend) -> list[Suggestion]:
    """Return the short names of published images."""
    from vmsnix_ops.records import history

    names = history.amis(backend.tables())["image"].dropna()
    return [Suggestion(name) for name in sorted({str(name) for name in names})]


def regions(backend: Backend) -> list[Suggestion]:
    """Return the regions that are enabled for the account."""
    from vmsnix_ops.aws.regions import enabled_regions
    from vmsnix_ops.aws.session import client

    return [Suggestion(name) for name in enabled_regions(client(backend.session(), "ec2", _region(backend)))]


def buckets(backend: Backend) -> list[Suggestion]:
    """Return the buckets of the account (s3:ListAllMyBuckets, which is in no job's policy)."""
    from vmsnix_ops.aws.session import calling, client

    with calling("list the buckets"):
        answer = client(backend.session(), "s3", _region(backend)).list_buckets()
    return [Suggestion(bucket["Name"]) for bucket in answer["Buckets"]]


@needs("ec2:DescribeImages")
def amis(backend: Backend) -> list[Suggestion]:
    """Return the AMIs that the account owns in the default region, newest first."""
    from vmsnix_ops.aws.session import calling, client

    with calling("list the AMIs"):
        answer = client(backend.session(), "ec2", _region(backend)).describe_images(Owners=["self"])
    newest = sorted(answer["Images"], key=lambda image: str(image["CreationDate"]), reverse=True)
    return [
        Suggestion(image["ImageId"], f"{image['ImageId']}: {image.get('Name', '')}")
        for image in newest[:MAX_AMIS]
    ]


def _region(backend: Backend) -> str:
    return backend.settings().region or backend.session().region_name or "us-east-1"


SOURCES: dict[str, Callable[[Backend], list[Suggestion]]] = {
    USED: used,
    "images": images,
    "published": published,
    "regions": regions,
    "buckets": buckets,
    "amis": amis,
}


class SuggestionCache:
    """Fetches the suggestions of each source in a thread, and caches them for `CACHE_SECONDS`."""

    def __init__(self) -> None:
        self._cached: dict[tuple[str, str], tuple[float, list[Suggestion]]] = {}
        self._waiting: dict[tuple[str, str], list[Callable[[list[Suggestion], str], None]]] = {}
        self._lock = threading.Lock()

    def request(
        self, backend: Backend, source: str, callback: Callable[[list[Suggestion], str], None]
    ) -> None:
        """Call `callback` with the suggestions and, after an error, the reason.

        Cached suggestions are passed before this returns, others by the thread that fetches them.
        """
        key = (backend.url, source)
        with self._lock:
            fetched_at, found = self._cached.get(key, (float("-inf"), []))
            fresh = time.monotonic() - fetched_at < CACHE_SECONDS
            first = not fresh and key not in self._waiting
            if not fresh:
                self._waiting.setdefault(key, []).append(callback)
        if fresh:
            callback(found, "")
        elif first:
            arguments = (backend, source, key)
            name = f"suggest {source}"
            threading.Thread(target=self._fetch, args=arguments, name=name, daemon=True).start()

    def _fetch(self, backend: Backend, source: str, key: tuple[str, str]) -> None:
        found: list[Suggestion] = []
        problem = f"Could not list the {source}."
        try:
            found, problem = SOURCES[source](backend), ""
        except VmsnixError as error:
            problem = error.what
        finally:
            with self._lock:
                if not problem:  # a source that failed is read again the next time
                    self._cached[key] = (time.monotonic(), found)
                waiting = self._waiting.pop(key)
            for callback in waiting:
                callback(found, problem)

    def clear(self) -> None:
        """Fetch everything again from now on, because a run may have created or deleted something."""
        with self._lock:
            self._cached.clear()
