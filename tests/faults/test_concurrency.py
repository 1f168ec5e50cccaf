"""Publishers that start at the same time make one AMI for each image, or end with a clear error."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.disk.images import qemu_make
from vmsnix_ops.disk.identity import SCHEME
from vmsnix_ops.disk.image import BLOCK_BYTES
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.disk.survey import identify
from vmsnix_ops.records.tables import Tables


def publish_together(sweep, *images, via="import"):
    state = Path(os.environ["VMSNIX_STATE"])
    return sweep.publishers.run(*(sweep.job(state, via, image=str(image)) for image in images))


@pytest.mark.parametrize("machines", [1, 2])  # two machines share no folders and no tables
@pytest.mark.parametrize("via", ["import", "direct"])
def test_two_publishers_of_the_same_image_end_with_one_ami(sweep, via, machines):
    if machines == 1:
        ended = publish_together(sweep, sweep.image, sweep.image, via=via)
    else:
        state = Path(os.environ["VMSNIX_STATE"])
        ended = sweep.publishers.run(
            *(sweep.job(state / name, via) for name in ("first", "second")),
        )
    done = [one for one in ended if one.status == 0]
    # If one fails, the fix in its error is to run it again, which then finds the AMI of the other.
    for failed in (one for one in ended if one.status):
        assert "the same command again" in failed.text, failed
    assert done, "\n\n".join(one.text for one in ended)
    (again,) = publish_together(sweep, sweep.image, via=via)
    assert {one.result["ami_id"] for one in [*done, again]} == set(sweep.account().amis)
    assert sweep.problems() == []
    assert len(Tables(os.environ["VMSNIX_HISTORY"]).read("amis")["ami_id"].unique()) == 1


def test_publishers_of_different_images_make_an_ami_each(sweep, tmp_path):
    images = [
        make_sample_image(tmp_path / name, name=name, seed=name, data_bytes=2**20) for name in ("a", "b", "c")
    ]
    ended = publish_together(sweep, *images)
    assert [one.text for one in ended if one.status] == []
    assert {one.result["ami_id"] for one in ended} == set(sweep.account().amis)
    assert sweep.problems(amis=3) == []


def twins(folder: Path) -> list[Path]:
    """Make two images with different bytes whose AMIs get the same name: their digests begin alike."""
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


def test_row_11_of_two_images_with_one_ami_name_one_is_published(sweep, tmp_path):
    ended = publish_together(sweep, *twins(tmp_path))
    won = [one for one in ended if one.status == 0]
    lost = [one for one in ended if one.status]
    assert (len(won), len(lost)) == (1, 1)
    assert lost[0].error == "NameTakenError"
    assert won[0].result["ami_id"] in lost[0].text
    assert "Use another prefix" in lost[0].text
    account = sweep.account()
    assert list(account.problems()) == []
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


def test_every_container_of_a_disk_by_both_methods_at_once_ends_with_one_ami(sweep, tmp_path):
    state, made = Path(os.environ["VMSNIX_STATE"]), containers(tmp_path)
    jobs = [("import", name) for name in made if name != "qcow2"] + [("direct", name) for name in made]
    before = len(list(sweep.aws.calls))
    ended = sweep.publishers.run(*(sweep.job(state, via, image=str(made[name])) for via, name in jobs))
    assert [one.text for one in ended if one.status] == []
    assert {one.result["ami_id"] for one in ended} == set(sweep.account().amis)
    assert sweep.problems() == []
    calls = list(sweep.aws.calls)[before:]
    assert not {call.outcome for call in calls} & {"IdempotentParameterMismatch", "ConflictException"}
    keys = [
        call.params["Key"]
        for call in calls
        if call.operation == "CompleteMultipartUpload" and call.outcome == "ok"
    ]
    assert len(keys) == len(set(keys))
