"""What a field may offer: images of the flake, regions, buckets, AMIs. Fetched when asked, kept for a while.

Whoever may not look, or has no Nix, types: a source that fails says why, and stops nobody.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.runbooks.console.forms import Suggestion

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.runbooks.console.places import Place
    from vmsnix_ops.runbooks.declarations import Parameter

KEEP_SECONDS = 300.0
AMIS = 200
SAMPLE = "sample-image"
BUILDABLE = ("flake", "publish-ami")
"""Words in the help of an image that is built or read; others are short names of published ones."""

Found = list[Suggestion]


def source_of(parameter: Parameter) -> str:
    """Return the name of the source for a parameter, by its name; empty when there is none."""
    word = parameter.name.removesuffix("s").rpartition("_")[2]
    if parameter.type.kind not in ("str", "list"):
        return ""
    if parameter.name == "ami_id":
        return "amis"
    if word == "image" and not any(known in parameter.help for known in BUILDABLE):
        return "published"
    return {"image": "images", "region": "regions", "bucket": "buckets", "ami": "amis"}.get(word, "")


def at_once(place: Place, source: str) -> Found:
    """Return what can be offered without asking anybody: on a sandbox a small image, made here."""
    if source != "images" or not place.sandbox:
        return []
    try:
        return [Suggestion(_sample(place), "Sample image, created on this machine")]
    except OSError:  # no room, no rights: a run on the sandbox needs no image of ours
        return []


def images(place: Place) -> Found:
    """Return the images of the flake that the settings name.

    Raises
    ------
    VmsnixError
        There is no Nix, or the flake cannot be evaluated.
    """
    from vmsnix_ops.nix import flake

    known = flake.list_images(place.settings().flake, system=flake.host_system())
    return [
        Suggestion(image.name, f"{image.name}: {image.description}" if image.description else image.name)
        for image in known
    ]


def published(place: Place) -> Found:
    """Return the short names of the images that were published from here.

    Raises
    ------
    RecordsError
        The tables cannot be read.
    """
    from vmsnix_ops.records import history

    names = history.amis(place.tables())["image"].dropna()
    return [Suggestion(name) for name in sorted({str(name) for name in names})]


def regions(place: Place) -> Found:
    """Return the regions that are enabled for the account.

    Raises
    ------
    AwsError
        AWS did not answer.
    """
    from vmsnix_ops.aws.regions import enabled_regions
    from vmsnix_ops.aws.session import client

    return [Suggestion(name) for name in enabled_regions(client(place.session(), "ec2", _region(place)))]


def buckets(place: Place) -> Found:
    """Return the buckets of the account (s3:ListAllMyBuckets, which no job's policy holds).

    Raises
    ------
    AwsError
        AWS did not answer, or does not allow it.
    """
    from vmsnix_ops.aws.session import calling, client

    with calling("list the buckets"):
        answer = client(place.session(), "s3", _region(place)).list_buckets()
    return [Suggestion(bucket["Name"]) for bucket in answer["Buckets"]]


@needs("ec2:DescribeImages")
def amis(place: Place) -> Found:
    """Return the AMIs that the account owns in its usual region, newest first.

    Raises
    ------
    AwsError
        AWS did not answer.
    """
    from vmsnix_ops.aws.session import calling, client

    with calling("list the AMIs"):
        answer = client(place.session(), "ec2", _region(place)).describe_images(Owners=["self"])
    newest = sorted(answer["Images"], key=lambda image: str(image["CreationDate"]), reverse=True)
    return [
        Suggestion(image["ImageId"], f"{image['ImageId']}: {image.get('Name', '')}")
        for image in newest[:AMIS]
    ]


SOURCES: dict[str, Callable[[Place], Found]] = {
    "images": images,
    "published": published,
    "regions": regions,
    "buckets": buckets,
    "amis": amis,
}


class Suggestions:
    """Fetches what the sources have, each in a thread of its own, and keeps it for `KEEP_SECONDS`."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], tuple[float, Found]] = {}
        self._waiting: dict[tuple[str, str], list[Callable[[Found, str], None]]] = {}
        self._lock = threading.Lock()

    def ask(self, place: Place, source: str, answered: Callable[[Found, str], None]) -> None:
        """Have `answered` called with the values and, when there are none to be had, the reason.

        It is called at once for what is known, else from the thread that asked.
        """
        key = (place.url, source)
        with self._lock:
            asked_at, found = self._kept.get(key, (float("-inf"), []))
            fresh = time.monotonic() - asked_at < KEEP_SECONDS
            first = not fresh and key not in self._waiting
            if not fresh:
                self._waiting.setdefault(key, []).append(answered)
        if fresh:
            answered(found, "")
        elif first:
            arguments = (place, source, key)
            threading.Thread(
                target=self._fetch, args=arguments, name=f"suggest {source}", daemon=True
            ).start()

    def _fetch(self, place: Place, source: str, key: tuple[str, str]) -> None:
        found: Found = []
        problem = f"Could not list the {source}."
        try:
            found, problem = SOURCES[source](place), ""
        except VmsnixError as error:
            problem = error.what
        finally:
            with self._lock:
                if not problem:  # what failed is asked again the next time
                    self._kept[key] = (time.monotonic(), found)
                waiting = self._waiting.pop(key)
            for answered in waiting:
                answered(found, problem)

    def forget(self) -> None:
        """Ask anew from now on: something was made or taken away."""
        with self._lock:
            self._kept.clear()


def _region(place: Place) -> str:
    return place.settings().region or place.session().region_name or "us-east-1"


def _sample(place: Place) -> str:
    from vmsnix_ops.disk.sample import make_sample_image

    folder = place.settings().state / SAMPLE
    if not (folder / "nix-support" / "hydra-build-products").is_file():  # what is written last
        make_sample_image(folder)
    return str(folder)
