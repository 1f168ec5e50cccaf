"""Publishers that start together: one AMI for each image, and a clear answer for who loses."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.disk.images import qemu_make
from tests.faults.account import look
from vmsnix_ops.disk.identity import BLOCK_BYTES, SCHEME
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.disk.survey import identify
from vmsnix_ops.records.tables import Tables


def together(publishers, *images, via="import"):
    state = Path(os.environ["VMSNIX_STATE"])
    return publishers.publishers.run(*(publishers.job(state, via, image=str(image)) for image in images))


@pytest.mark.parametrize("machines", [1, 2])  # two machines share neither folders nor tables
@pytest.mark.parametrize("via", ["import", "direct"])
def test_two_publishers_of_the_same_image_end_with_one_ami(publishers, via, machines):
    publishers.aws.clock.speed = 200  # a pending snapshot lives for an hour
    if machines == 1:
        ended = together(publishers, publishers.image, publishers.image, via=via)
    else:
        state = Path(os.environ["VMSNIX_STATE"])
        ended = publishers.publishers.run(
            *(publishers.job(state / name, via) for name in ("first", "second")),
        )
    done = [one for one in ended if one.status == 0]
    # A loser, if there is one, is told to run again, and then finds what the winner made.
    for lost in (one for one in ended if one.status):
        assert "the same command again" in lost.text, lost
    assert done
    (again,) = together(publishers, publishers.image, via=via)
    assert {one.result["ami_id"] for one in [*done, again]} == set(look(publishers.aws).amis)
    assert list(look(publishers.aws).leftovers()) == []
    assert len(Tables(os.environ["VMSNIX_HISTORY"]).read("amis")["ami_id"].unique()) == 1


def test_publishers_of_different_images_do_not_meet(publishers, tmp_path):
    images = [
        make_sample_image(tmp_path / name, name=name, seed=name, data_bytes=2**20) for name in ("a", "b", "c")
    ]
    ended = together(publishers, *images)
    assert [one.text for one in ended if one.status] == []
    assert {one.result["ami_id"] for one in ended} == set(look(publishers.aws).amis)
    assert list(look(publishers.aws).leftovers(amis=3)) == []


def twins(folder: Path) -> list[Path]:
    """Make two images of one name: other bytes, but digests that begin alike, as the AMI's name ends."""
    output = make_sample_image(folder / "twin", name="twin", format="raw", size=8 * 2**20, data_bytes=2**20)
    file = next(output.glob("*.img"))
    block = hashlib.sha256(file.read_bytes()[-BLOCK_BYTES:-8])
    start, seen = hashlib.sha256(f"{SCHEME}\n".encode()), {}
    last = file.stat().st_size // BLOCK_BYTES - 1
    for index, digest in identify(file).blocks.raw():
        if index < last:
            start.update(index.to_bytes(8, "big") + digest)
    for number in range(2**24):
        tail = number.to_bytes(8, "big")
        changed, whole = block.copy(), start.copy()
        changed.update(tail)
        whole.update(last.to_bytes(8, "big") + changed.digest())
        first = whole.hexdigest()[:8]
        if first in seen:
            break
        seen[first] = tail
    made = []
    for name, end in (("one", seen[first]), ("two", tail)):
        copy = folder / name / "twin.img"
        (folder / name / "nix-support").mkdir(parents=True)
        copy.write_bytes(file.read_bytes()[:-8] + end)
        info = json.loads((output / "nix-support" / "image-info.json").read_text())
        text = json.dumps(info).replace(str(file), str(copy))
        (folder / name / "nix-support" / "image-info.json").write_text(text)
        (folder / name / "nix-support" / "hydra-build-products").write_text(f"file raw {copy}\n")
        made.append(folder / name)
    return made


def test_row_11_the_same_name_with_other_bytes_has_one_winner_and_a_clear_answer(publishers, tmp_path):
    ended = together(publishers, *twins(tmp_path))
    won = [one for one in ended if one.status == 0]
    lost = [one for one in ended if one.status]
    assert (len(won), len(lost)) == (1, 1)
    assert lost[0].error == "NameTakenError"
    assert won[0].result["ami_id"] in lost[0].text
    assert "Use another prefix" in lost[0].text
    account = look(publishers.aws)
    assert list(account.leftovers()) == []
    assert account.digests == (won[0].result["digest"],)


CONTAINERS = {
    "raw": ("raw", ""),
    "dynamic": ("vpc", "force_size=on"),
    "rounded up": ("vpc", ""),
    "fixed": ("vpc", "subformat=fixed,force_size=on"),
    "qcow2": ("qcow2", ""),
}


def containers(folder: Path) -> dict[str, Path]:
    """Write one disk into several containers, each with the same file name."""
    output = make_sample_image(folder / "sample", name="disk", format="raw", data_bytes=20 * 2**20)
    raw = next(output.glob("*.img"))
    made = {}
    for name, (driver, options) in CONTAINERS.items():
        (folder / name).mkdir()
        suffix = {"raw": "img", "vpc": "vhd"}.get(driver, driver)
        made[name] = qemu_make(folder / name / f"disk.{suffix}", raw, driver, options)
    return made


def test_every_container_of_a_disk_by_both_methods_at_once_ends_with_one_ami(publishers, tmp_path):
    publishers.aws.clock.speed = 200  # a pending snapshot lives for an hour
    state, made = Path(os.environ["VMSNIX_STATE"]), containers(tmp_path)
    ways = [("import", name) for name in made if name != "qcow2"] + [("direct", name) for name in made]
    before = len(list(publishers.aws.calls))
    ended = publishers.publishers.run(
        *(publishers.job(state, via, image=str(made[name])) for via, name in ways)
    )
    assert [one.text for one in ended if one.status] == []
    assert {one.result["ami_id"] for one in ended} == set(look(publishers.aws).amis)
    assert list(look(publishers.aws).leftovers()) == []
    calls = list(publishers.aws.calls)[before:]
    assert not {call.outcome for call in calls} & {"IdempotentParameterMismatch", "ConflictException"}
    keys = [
        call.params["Key"]
        for call in calls
        if call.operation == "CompleteMultipartUpload" and call.outcome == "ok"
    ]
    assert len(keys) == len(set(keys))
