"""Cached identities: found only for an unchanged file."""

from __future__ import annotations

import mmap
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.disk.images import MIB, scattered, write_raw
from vmsnix_ops.disk import identity_cache
from vmsnix_ops.disk.identity_cache import IdentityCache
from vmsnix_ops.disk.survey import identify, still_identified

if TYPE_CHECKING:
    from pathlib import Path

    from vmsnix_ops.disk.survey import Survey

STORE = "store /nix/store/abc-image sha256:xyz image.raw"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "disk", scattered(3 * MIB, pieces=9))


@pytest.fixture
def cache(tmp_path: Path) -> IdentityCache:
    return IdentityCache(tmp_path / "state" / "identities")


def remember(cache: IdentityCache, image: Path, *, parts: bool = False, store: str = "") -> Survey:
    """Cache a file as if it had been written long ago."""
    surveyed = identify(image, parts=parts)
    cache.save(image, surveyed, started=time.time() + 60, store=store)
    return surveyed


@pytest.mark.parametrize("parts", [False, True])
def test_an_identity_is_cached_with_its_digests(cache: IdentityCache, image: Path, parts: bool) -> None:
    assert cache.find(image, parts=parts) is None
    surveyed = remember(cache, image, parts=parts)
    assert cache.find(image, parts=parts) == surveyed
    assert still_identified(image, surveyed)


def test_the_entry_of_another_file_is_not_used(cache: IdentityCache, image: Path, tmp_path: Path) -> None:
    remember(cache, image)
    (entry,) = tmp_path.glob("state/identities/*")
    other = write_raw(tmp_path / "other", scattered(3 * MIB, pieces=5))
    remember(cache, other)
    (of_other,) = set(tmp_path.glob("state/identities/*")) - {entry}
    of_other.write_bytes(entry.read_bytes())
    assert cache.find(other, parts=False) is None


def test_an_identity_without_parts_is_not_enough_for_an_upload_to_s3(
    cache: IdentityCache, image: Path
) -> None:
    remember(cache, image)
    assert cache.find(image, parts=True) is None
    remember(cache, image, parts=True)
    found = cache.find(image, parts=False)
    assert found is not None
    assert found.parts == b""


@pytest.mark.parametrize("change", ["written", "written, time set back", "replaced", "longer"])
def test_a_file_that_changed_is_read_again(cache: IdentityCache, image: Path, change: str) -> None:
    remember(cache, image)
    before = image.stat()
    if change == "replaced":
        write_raw(image.with_name("other"), scattered(3 * MIB, pieces=9)).rename(image)
    elif change == "longer":
        os.truncate(image, 4 * MIB)
    else:
        with image.open("r+b") as file:
            file.write(b"x")
    if change.startswith("written,"):
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.find(image, parts=False) is None


def test_a_file_that_changed_within_the_resolution_of_the_clock_is_not_cached(
    cache: IdentityCache, image: Path
) -> None:
    """Another change in the same tick of the clock would leave the same times."""
    surveyed = identify(image)
    for seconds in (-1, 0, identity_cache.RESOLUTION_SECONDS - 1):
        cache.save(image, surveyed, started=image.stat().st_ctime + seconds)
        assert cache.find(image, parts=False) is None
    cache.save(image, surveyed, started=image.stat().st_ctime + identity_cache.RESOLUTION_SECONDS + 1)
    assert cache.find(image, parts=False) == surveyed


def test_a_file_that_is_open_for_writing_is_not_cached(cache: IdentityCache, image: Path) -> None:
    with image.open("r+b"):
        remember(cache, image)
        assert cache.find(image, parts=False) is None
    remember(cache, image)
    assert cache.find(image, parts=False) is not None


def test_a_write_to_a_mapped_file_that_changes_no_times_is_read(cache: IdentityCache, image: Path) -> None:
    with image.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    with mapped:
        mapped[0] ^= 1
        before = remember(cache, image)
        mapped[0] ^= 1  # the page is written already, so the times stay
        assert cache.find(image, parts=False) is None
        assert identify(image).identity != before.identity


def test_a_mapping_after_the_identity_was_cached_changes_the_times(cache: IdentityCache, image: Path) -> None:
    with image.open("r+b") as file:
        file.write(b"x")  # the page is in memory and not yet on the disk
    remember(cache, image)
    assert cache.find(image, parts=False) is not None
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] ^= 1
    assert cache.find(image, parts=False) is None


def test_a_file_without_leases_is_cached(
    cache: IdentityCache, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a file of another user."""

    def refuse(*_words: int) -> int:
        raise PermissionError

    monkeypatch.setattr(identity_cache.fcntl, "fcntl", refuse)
    remember(cache, image)
    assert cache.find(image, parts=False) is not None


def test_a_file_that_changed_while_it_was_read_is_not_cached(cache: IdentityCache, image: Path) -> None:
    surveyed = identify(image)
    image.chmod(0o400)
    cache.save(image, surveyed, started=time.time() + 60)
    assert cache.find(image, parts=False) is None


def test_an_image_in_the_nix_store_is_cached_by_its_path(cache: IdentityCache, image: Path) -> None:
    surveyed = identify(image)
    cache.save(image, surveyed, started=0, store=STORE)
    copy = write_raw(image.with_name("copy"), image.read_bytes())
    found = cache.find(copy, parts=False, store=STORE)
    assert found is not None
    assert (found.identity, found.blocks) == (surveyed.identity, surveyed.blocks)
    assert still_identified(copy, found)
    assert cache.find(copy, parts=False, store=f"{STORE} other") is None


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"[]\nx", "cut", "flipped"])
def test_a_damaged_file_is_ignored(cache: IdentityCache, image: Path, damage: bytes | str) -> None:
    remember(cache, image, parts=True)
    (file,) = cache._folder.iterdir()
    content = file.read_bytes()
    if damage == "cut":
        damage = content[:-1]
    elif damage == "flipped":
        damage = content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]
    assert isinstance(damage, bytes)
    file.write_bytes(damage)
    assert cache.find(image, parts=True) is None


def test_only_the_latest_identities_are_kept(
    cache: IdentityCache, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_cache, "MOST_FILES", 3)
    surveyed = identify(image)
    for number in range(6):
        cache.save(image, surveyed, started=0, store=f"{STORE} {number}")
    kept = [number for number in range(6) if cache.find(image, parts=False, store=f"{STORE} {number}")]
    assert kept == [3, 4, 5]


def test_an_unwritable_folder_is_no_error(tmp_path: Path, image: Path) -> None:
    (tmp_path / "file").touch()
    cache = IdentityCache(tmp_path / "file")
    remember(cache, image)
    assert cache.find(image, parts=False) is None
