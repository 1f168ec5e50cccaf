"""Plan files: their targets, and errors that list all problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.errors import PlanError
from vmsnix_ops.runbooks import fleet
from vmsnix_ops.runbooks.fleet.plan_file import PlanFile, read_plan
from vmsnix_ops.runbooks.fleet.worker import nix_config

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runbooks.shelf import Shelf

PARAMETERS = """\
image: str = "ecs-node"  # which image
region: str = ""  # where
count: int = 1  # how often
loud: bool = False  # in capitals
"""


@pytest.fixture
def plans(shelf: Shelf, tmp_path: Path) -> Plans:
    shelf.put("10-greet.ipynb", parameters=PARAMETERS)
    shelf.put("20-list.ipynb", parameters="regions: list[str] = []  # where\n")
    return Plans(tmp_path)


class Plans:
    """Writes plan files beside a shelf of notebooks."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "nightly.toml"

    def read(self, text: str) -> PlanFile:
        self.path.write_text(f'notebooks = "notebooks"\n{text}')
        return read_plan(self.path)

    def names(self, text: str) -> list[str]:
        return [target.name for target in self.read(text).targets]

    def fault(self, text: str) -> str:
        with pytest.raises(PlanError) as caught:
            self.read(text)
        assert caught.value.exit_code == 2
        return str(caught.value)


# Targets


def test_region_and_regions_are_accepted_for_each_other(plans: Plans) -> None:
    (target,) = plans.read('[[entry]]\nrunbook = "list"\nparameters = { region = "eu-west-1" }\n').targets
    assert target.given == {"regions": ["eu-west-1"]}
    with pytest.raises(PlanError, match="2 values given: a, b"):
        plans.read('[[entry]]\nrunbook = "greet"\nparameters = { regions = ["a", "b"] }\n')
    with pytest.raises(PlanError, match="'regions' is given twice"):
        plans.read(
            '[[entry]]\nrunbook = "list"\nregions = ["a"]\nparameters = { region = "b" }\n',
        )


def test_a_plan_may_name_a_runbook_by_its_short_name(plans: Plans, shelf: Shelf) -> None:
    shelf.put("30-promote-ami.ipynb", parameters=PARAMETERS)
    short = plans.read('[[entry]]\nname = "one"\nrunbook = "promote"\n')
    full = plans.read('[[entry]]\nname = "one"\nrunbook = "promote-ami"\n')
    assert [target.runbook for target in short.targets] == ["promote-ami"]
    assert [target.key for target in short.targets] == [target.key for target in full.targets]


def test_an_entry_becomes_a_target_for_each_combination(plans: Plans) -> None:
    entry = """
        [[entry]]
        runbook = "greet"
        images = ["./nix#ecs-node", "/images/gc.vhd"]
        regions = ["eu-central-1", "us-east-1"]
        matrix = { count = [1, 2] }
    """
    targets = plans.read(entry).targets
    assert len({target.key for target in targets}) == 8
    first, last = targets[0], targets[-1]
    assert first.name == "greet/ecs-node/eu-central-1/count=1"
    assert last.name == "greet/gc.vhd/us-east-1/count=2"
    assert last.given == {"image": "/images/gc.vhd", "region": "us-east-1", "count": 2}
    assert last.environment["AWS_REGION"] == last.environment["VMSNIX_REGION"] == "us-east-1"


def test_the_names_of_images_with_the_same_last_part_differ(plans: Plans) -> None:
    entry = '[[entry]]\nrunbook = "greet"\nimages = ["./a/result", "./b/result", "./c"]'
    assert plans.names(entry) == ["greet/a-result", "greet/b-result", "greet/c"]


def test_a_region_becomes_regions_if_the_runbook_has_that_parameter(plans: Plans) -> None:
    (target,) = plans.read('[[entry]]\nrunbook = "list"\nregions = ["us-east-1"]').targets
    assert target.given == {"regions": ["us-east-1"]}


def test_defaults_apply_to_runbooks_that_have_the_parameter(plans: Plans) -> None:
    text = """
        [defaults]
        retries = 2
        parameters = { count = 5, loud = true }
        [[entry]]
        runbook = "greet"
        parameters = { count = 7 }
        [[entry]]
        runbook = "list"
        retries = 0
    """
    greet, listing = plans.read(text).targets
    assert (greet.given, greet.retries) == ({"count": 7, "loud": True}, 2)
    assert (listing.given, listing.retries) == ({}, 0)


def test_overrides_apply_to_matching_targets(plans: Plans) -> None:
    text = """
        [[entry]]
        runbook = "greet"
        images = ["a", "b"]
        regions = ["us-east-1", "eu-west-1"]
        parameters = { count = 1 }
        [[entry.override]]
        where = { region = "eu-west-1" }
        parameters = { count = 9 }
        resources = { kvm = 1 }
        [[entry.override]]
        where = { image = "b", region = "us-east-1" }
        skip = true
    """
    targets = {target.name: target for target in plans.read(text).targets}
    assert list(targets) == ["greet/a/us-east-1", "greet/a/eu-west-1", "greet/b/eu-west-1"]
    assert targets["greet/a/us-east-1"].given["count"] == 1
    assert targets["greet/b/eu-west-1"].given["count"] == 9
    assert targets["greet/b/eu-west-1"].resources == {"kvm": 1.0}


def test_words_in_braces_are_replaced_by_values_of_the_target(plans: Plans) -> None:
    text = """
        [accounts.production]
        id = "012345678901"
        [[entry]]
        runbook = "greet"
        regions = ["us-east-1"]
        accounts = ["production"]
        parameters = { image = "s3://images-{account}-{region}/{other}" }
    """
    (target,) = plans.read(text).targets
    assert target.given["image"] == "s3://images-012345678901-us-east-1/{other}"
    assert target.environment["VMSNIX_ALLOWED_ACCOUNTS"] == "012345678901"


def test_a_list_of_accounts_sets_no_parameter(plans: Plans, shelf: Shelf) -> None:
    shelf.put("40-who.ipynb", parameters='account: str = ""  # account ID')
    (target,) = plans.read('[[entry]]\nrunbook = "who"\naccounts = ["012345678901"]').targets
    assert target.given == {}


def test_a_target_waits_for_targets_with_the_same_values(plans: Plans) -> None:
    text = """
        [[entry]]
        name = "check"
        runbook = "greet"
        regions = ["eu-west-1"]
        parameters = { count = 2 }
        after = ["publish"]
        [[entry]]
        name = "publish"
        runbook = "greet"
        images = ["a", "b"]
        regions = ["us-east-1", "eu-west-1"]
        [[entry]]
        name = "report"
        runbook = "list"
        after = ["check", "publish"]
    """
    targets = {target.name: target for target in plans.read(text).targets}
    assert list(targets)[-2:] == ["check/eu-west-1", "report"]  # behind those that they wait for
    assert targets["check/eu-west-1"].after == ("publish/a/eu-west-1", "publish/b/eu-west-1")
    assert len(targets["report"].after) == 5


def test_the_key_depends_on_the_content_not_on_names_and_order(plans: Plans) -> None:
    (one,) = plans.read(
        '[[entry]]\nname = "x"\nrunbook = "greet"\nparameters = { count = 2, loud = true }'
    ).targets
    (two,) = plans.read(
        "[defaults]\nretries = 3\nparameters = { loud = true }\n"
        '[[entry]]\nname = "y"\nrunbook = "10-greet"\nparameters = { count = 2 }'
    ).targets
    (three,) = plans.read('[[entry]]\nrunbook = "greet"\nparameters = { count = 3, loud = true }').targets
    assert one.key == two.key != three.key


def test_a_result_counts_while_the_plan_has_the_same_name_content_and_dependencies(plans: Plans) -> None:
    text = """
        name = "NAME"
        [[entry]]
        name = "publish"
        runbook = "greet"
        parameters = { count = COUNT }
        [[entry]]
        name = "check"
        runbook = "list"
        retries = RETRIES
        after = ["publish"]
    """

    def fingerprints(name: str, count: int, retries: int = 0) -> list[str]:
        filled = text.replace("NAME", name).replace("COUNT", str(count)).replace("RETRIES", str(retries))
        return [target.fingerprint for target in plans.read(filled).targets]

    first = fingerprints("a", 1)
    assert fingerprints("a", 1, retries=3) == first
    assert not set(fingerprints("b", 1)) & set(first)
    assert not set(fingerprints("a", 2)) & set(first)  # also of the target that comes after it


def test_nix_settings_become_nix_config(plans: Plans) -> None:
    text = """
        [nix]
        builders = "ssh-ng://builder.example x86_64-linux - 8"
        max-jobs = 0
        builders-use-substitutes = true
        [[entry]]
        runbook = "greet"
    """
    assert nix_config(plans.read(text).nix).splitlines() == [
        "builders = ssh-ng://builder.example x86_64-linux - 8",
        "max-jobs = 0",
        "builders-use-substitutes = true",
    ]


def test_a_plan_without_a_name_is_named_after_its_path(plans: Plans, tmp_path: Path) -> None:
    first = plans.read('[[entry]]\nrunbook = "greet"').name
    assert first.startswith("nightly-")
    assert plans.read('name = "fixed"\n[[entry]]\nrunbook = "greet"').name == "fixed"


def test_a_plan_shows_its_targets(plans: Plans) -> None:
    plans.read('[[entry]]\nrunbook = "greet"\nimages = ["<b>"]\nresources = { kvm = 1 }\nretries = 1')
    planned = fleet.plan(plans.path)
    assert "greet (own) image=<b>; needs kvm=1; 1 retry" in str(planned)
    assert "&lt;b&gt;" in planned._repr_html_()
    assert list(planned.frame()["needs"]) == ["kvm=1"]


# Errors

ENTRY = '[[entry]]\nrunbook = "greet"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[entry]]\nrunbook = "gret"', "Did you mean 'greet'?"),
        (ENTRY + "parameters = { cuont = 1 }", "Did you mean 'count'?"),
        (ENTRY + 'parameters = { count = "many" }', "is not a whole number"),
        (ENTRY + "matrix = { count = [1, true] }", "is not a whole number"),
        (ENTRY + ENTRY, "Two entries have the name 'greet'"),
        (ENTRY + '[[entry]]\nname = "again"\nrunbook = "greet"', "again and greet are the same"),
        (ENTRY + 'regions = ["eu-centrall-1"]', "Did you mean 'eu-central-1'?"),
        (ENTRY + 'regions = ["us-east-1", "us-east-1"]', "lists 'us-east-1' twice"),
        (ENTRY + "regions = []", "regions is empty"),
        (ENTRY + 'accounts = ["12345"]', "An account ID has 12 digits"),
        ('[accounts.prod]\nid = "012345678901"\n' + ENTRY + 'accounts = ["prdo"]', "Did you mean 'prod'?"),
        ("[accounts.prod]\nid = 12345678901\n" + ENTRY, 'use "012345678901"'),
        ('[accounts.prod]\nrole = "publisher"\n' + ENTRY, "is not a role ARN"),
        (
            '[accounts.p]\nid = "000000000001"\nrole = "arn:aws:iam::000000000002:role/x"\n' + ENTRY,
            "the role is in 000000000002",
        ),
        (ENTRY + "retrys = 1", "Did you mean 'retries'?"),
        (ENTRY + "retries = 1000", "is not from 0 to 100"),
        (ENTRY + "retry_wait = -1", "is not from 0 to 3600 seconds"),
        (ENTRY + "resources = { kvm = 0 }", "is not a positive number"),
        (ENTRY + 'after = ["publihs"]', "'publihs' in after is not an entry"),
        ('[[entry]]\nname = "report"\nrunbook = "list"\nimages = ["a"]', "has no parameter 'image'"),
        (ENTRY + '[[entry.override]]\nwhere = { region = "us-east-1" }', "greet has no region"),
        (ENTRY + 'images = ["ecs"]\n[[entry.override]]\nwhere = { image = "esc" }', "Did you mean 'ecs'?"),
        (ENTRY + "[[entry.override]]\nskip = true", "does not set for which targets"),
        (ENTRY + 'environment = { AWS_SECRET_ACCESS_KEY = "x" }', "must not contain credentials"),
        ("", "The plan has no [[entry]]"),
        ("nmae = 1\n" + ENTRY, "Did you mean 'name'?"),
        ('[nix]\nbuilders = ["a"]\n' + ENTRY, "is not a Nix setting"),
        ('[dask]\nca_file = "nowhere.pem"\n' + ENTRY, "is not a file"),
        ("name = ", "is not valid TOML"),
    ],
)  # fmt: skip
def test_an_error_contains_a_fix(plans: Plans, text: str, message: str) -> None:
    assert message in plans.fault(text)


@pytest.mark.parametrize(
    ("waits", "named"),
    [
        ({"a": "a"}, "a → a"),
        ({"a": "b", "b": "a"}, "a → b → a"),
        ({"a": "b", "b": "c", "c": "d", "d": "b"}, "b → c → d → b"),
    ],
)
def test_an_error_names_the_cycle(plans: Plans, waits: dict[str, str], named: str) -> None:
    entries = [
        f'{ENTRY}name = "{name}"\nparameters = {{ count = {number} }}\nafter = ["{other}"]\n'
        for number, (name, other) in enumerate(waits.items())
    ]
    assert f"form a cycle: {named}." in plans.fault("".join(entries))


@pytest.mark.parametrize(
    ("layers", "width"),
    [(12, 4), (1200, 1)],
    ids=["48 layered entries", "a chain longer than Python's recursion limit"],
)
def test_a_large_plan_is_sorted_in_one_pass(plans: Plans, layers: int, width: int) -> None:
    entries = []
    for layer in range(layers):
        after = [f"e{layer - 1}-{other}" for other in range(width)]
        for one in range(width):
            entry = f'{ENTRY}name = "e{layer}-{one}"\nparameters = {{ count = {layer * width + one} }}\n'
            entries.append(entry + (f"after = {after}\n" if layer else ""))
    names = plans.names("".join(reversed(entries)))
    assert len(names) == layers * width
    order = [int(name[1:].split("-")[0]) for name in names]
    assert order == sorted(order)


def test_a_dependency_without_a_match_is_an_error(plans: Plans) -> None:
    text = """
        [[entry]]
        name = "publish"
        runbook = "greet"
        regions = ["us-east-1"]
        [[entry]]
        name = "check"
        runbook = "list"
        regions = ["eu-west-1"]
        after = ["publish"]
    """
    assert "check/eu-west-1 runs after publish, which has no target with region eu-west-1" in plans.fault(
        text
    )


def test_an_error_lists_all_problems(plans: Plans) -> None:
    message = plans.fault(
        'nmae = "x"\n[[entry]]\nrunbook = "greet"\nretries = "two"\nparameters = { lud = true }'
    )
    assert "has 3 errors; nothing was started" in message
    assert all(word in message for word in ("'nmae'", 'retries = "two"', "Did you mean 'loud'?"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('folder = 3\n[[entry]]\nrunbook = "greet"', "The plan: folder = 3 is not text."),
        ("[accounts.p]\nrol = 1\n" + ENTRY, "accounts.p has no key 'rol'. Did you mean 'role'?"),
        ("accounts = { p = 1 }\n" + ENTRY, "accounts.p is not a table."),
        ("[defaults]\nretries = -1\n" + ENTRY, "defaults: retries = -1 is not from 0 to 100."),
        ("[dask]\nworkers = true\n" + ENTRY, "dask: workers = true is not a whole number."),
        (ENTRY + 'images = ["a", 3]', "greet: images.2 = 3 is not text."),
        (ENTRY + "matrix = { count = [] }", "greet: matrix.count is empty; remove it, or add a value."),
        (
            ENTRY + '[[entry.override]]\nretires = 1\nwhere = { count = 1 }\n[entry.matrix]\ncount = [1]',
            "greet.override has no key 'retires'. Did you mean 'retries'?",
        ),
        ('[[entry]]\nrunbook = 3', "entry 1: runbook = 3 is not text."),
        ('[[entry]]\nname = "x"', "x has no runbook."),
    ],
)  # fmt: skip
def test_an_error_names_the_place_and_the_value(plans: Plans, text: str, sentence: str) -> None:
    assert f" {sentence}" in plans.fault(text)


def test_an_invalid_entry_can_be_named_in_after(plans: Plans) -> None:
    message = plans.fault(
        ENTRY + 'name = "First"\nretries = "x"\n[[entry]]\nrunbook = "list"\nafter = ["First"]'
    )
    assert "has 2 errors" in message
    assert "The name of entry 1 is 'First'" in message
    assert 'First: retries = "x" is not a whole number.' in message


def test_the_value_of_a_credential_is_not_shown(plans: Plans) -> None:
    message = plans.fault(ENTRY + 'environment = { AWS_SESSION_TOKEN = "hunter22" }')
    assert (
        "greet: environment.AWS_SESSION_TOKEN is a credential; a plan must not contain credentials."
        in message
    )
    assert "hunter22" not in message


@pytest.mark.parametrize("secret", ["AKIAABCDEFGHIJKLMNOP", "postgres://user:hunter22@host/db"])
def test_a_secret_in_a_plan_is_refused_and_not_shown(plans: Plans, secret: str) -> None:
    message = plans.fault(f'[[entry]]\nrunbook = "greet"\nparameters = {{ image = "{secret}" }}')
    assert "contains a secret" in message
    assert secret not in message


def test_a_missing_plan_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be read.*No such file"):
        read_plan(tmp_path / "none.toml")


# Scheduler and accounts


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://10.0.0.1:8786", "has no TLS"),
        ("http://127.0.0.1:8786", "is not a scheduler address"),
        ("scheduler:8786", "is not a scheduler address"),
    ],
)
def test_an_invalid_or_unencrypted_address_is_refused(plans: Plans, address: str, message: str) -> None:
    plans.read(ENTRY)
    with pytest.raises(PlanError, match=message):
        fleet.plan(plans.path, scheduler=address)


def test_workers_of_a_scheduler_accept_no_environment(plans: Plans) -> None:
    plans.read(ENTRY)
    with pytest.raises(PlanError, match="do not accept an environment"):
        fleet.plan(plans.path, scheduler="tls://10.0.0.1:8786", environment={"AWS_PROFILE": "x"})


def test_an_account_that_is_not_allowed_is_refused(plans: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    plans.read('[accounts.prod]\nid = "000000000002"\n' + ENTRY + 'accounts = ["prod"]')
    monkeypatch.setenv("VMSNIX_ALLOWED_ACCOUNTS", "000000000001")
    with pytest.raises(PlanError, match=r"prod \(000000000002\) is not allowed"):
        fleet.plan(plans.path)


def test_a_dry_run_needs_no_dask_and_starts_nothing(plans: Plans, tmp_path: Path) -> None:
    plans.read(ENTRY)
    planned = fleet.plan(plans.path)
    assert "Dry run: nothing will be run." in str(planned)
    outcome = planned.apply()
    assert (outcome.status, outcome.counts) == ("done", {"planned": 1})
    assert not (tmp_path / "state" / "fleets").exists()
