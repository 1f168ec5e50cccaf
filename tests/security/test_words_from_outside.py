"""Names, parameters and paths from outside become neither options, nor shell words, nor other paths."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops import errors, publish
from vmsnix_ops.aws import buckets, images
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.cli import main
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from pathlib import Path

EVIL = [
    "--help",
    "-rf",
    "; touch owned",
    "$(touch owned)",
    "`touch owned`",
    "| touch owned",
    "../../../etc/passwd",
    "a\nb",
    "a\0b",
    "<script>alert(1)</script>",
]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(**changes: Any) -> publish.PublishPlan:
    params = {"image": "x", "region": "us-east-1", "bucket": "vmsnix-images", "progress": silent(), **changes}
    return publish.plan(**params)


PARAMETERS = ["bucket", "role_name", "root_device", "via", "region", "verify"]
CASES = [(parameter, word) for parameter in PARAMETERS for word in EVIL]
# AMI names may have dashes, dots and slashes, and a name is never an option or a path.
CASES += [("prefix", word) for word in EVIL if set(word) & set("$`;|<\n\0")]


@pytest.mark.parametrize(("parameter", "word"), CASES)
def test_a_parameter_that_cannot_be_right_is_refused_before_any_call(
    here: Path, parameter: str, word: str
) -> None:
    with pytest.raises(errors.VmsnixError):
        plan(**{parameter: word})
    assert not (here / "owned").exists()


@pytest.mark.parametrize("word", EVIL)
def test_an_image_named_like_an_option_or_a_command_is_only_a_name(here: Path, word: str) -> None:
    with pytest.raises(errors.VmsnixError):
        plan(image=word)
    assert not (here / "owned").exists()


@pytest.mark.parametrize("word", ["../../evil", "--version=1", "$(touch owned)", "a b; c", "x" * 60])
@pytest.mark.variants(quick=2, seconds=1)
def test_the_name_in_an_image_s_description_stays_a_name(here: Path, word: str) -> None:
    folder = make_sample_image(here / "image")
    info = folder / "nix-support" / "image-info.json"
    content = json.loads(info.read_text())
    content["label"] = word
    info.chmod(0o644)
    info.write_text(json.dumps(content))
    with sandbox(speed=2000) as aws:
        aws.prepare()
        result = plan(image=str(folder), session=aws.session()).apply()
        assert set(result.image_name) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789()[] ./'@_-"
        )
        keys = [call.params.get("Key", "") for call in aws.calls if call.service == "s3"]
        assert all(".." not in str(key) for key in keys)
    assert not (here / "owned").exists()
    written = {path.resolve() for path in here.rglob("*")}
    assert all(here in path.parents for path in written)


@pytest.mark.parametrize("word", EVIL)
def test_an_ami_s_name_has_only_the_characters_that_aws_takes(word: str) -> None:
    cleaned = images.clean_name(f"altf4llc-{word}")
    assert not set(cleaned) & set('`$;|<>\n\0*?\\"&')


@pytest.mark.parametrize("word", EVIL)
def test_a_policy_takes_no_words_that_would_widen_it(word: str) -> None:
    # A role may be called like an option; in a policy it is a name all the same.
    fields = ("account", "bucket", "partition") if word.startswith("-") else policies.PolicyScope.__slots__
    for field in {*fields} - {"regions"}:
        with pytest.raises(errors.ParameterError):
            policies.PolicyScope(**{field: word})


@pytest.mark.parametrize(
    "word", [word for word in EVIL[2:] if "\0" not in word]
)  # no program gets such a word
def test_a_runbook_is_a_name_and_no_path(here: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", word]) == 2
    assert not (here / "owned").exists()


def test_a_page_shows_text_from_outside_as_text(here: Path) -> None:
    image = make_sample_image(here / "<script>alert(1)<" / "script>")
    with sandbox(speed=1000) as aws:
        aws.prepare()
        shown = plan(image=str(image), session=aws.session())._repr_html_()
    assert not {"<script>", "<i>"} & set(re.findall(r"<\w+>", shown))
    assert "&lt;script&gt;" in shown


def test_an_upload_splits_by_size_alone() -> None:
    assert [part.offset for part in buckets.split_parts(20 * 2**20)] == [0, 8 * 2**20, 16 * 2**20]
