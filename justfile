# Everything that people and CI do in this repository, one word each. `just` lists it.

python := justfile_directory() / ".venv/bin/python"
export PATH := justfile_directory() / ".venv/bin:" + env_var("PATH")
lock_options := "--quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links"

# List what there is
[private]
default:
    @just --list

# Make .venv with the locked versions of everything that work on this repository needs
setup:
    python3 -m venv .venv
    {{ python }} -m pip install --quiet --require-hashes -r requirements-test.txt
    {{ python }} -m pip install --quiet --no-deps --no-build-isolation --editable .

# Publish an image to a sandbox, from nothing to the AMI
demo *OPTIONS:
    vmsnix demo {{ OPTIONS }}

# Run the tests, or some of them, such as `just test tests/nix`
test *NAMES:
    pytest {{ NAMES }}

# Check style, types and notebooks
lint:
    ruff check .
    ruff format --check .
    mypy
    git ls-files -z '*.ipynb' | xargs -0 --no-run-if-empty nbstripout --keep-id --verify

# Format the code and strip the notebooks of outputs
format:
    ruff format .
    ruff check --fix .
    git ls-files -z '*.ipynb' | xargs -0 --no-run-if-empty nbstripout --keep-id

# Open JupyterLab on the runbooks, with a sandbox behind it
lab *OPTIONS="--sandbox":
    vmsnix lab {{ OPTIONS }}

# Build an image with Nix, such as `just build ecs-node`
build NAME:
    nix build ./nix#{{ NAME }}

# Publish an image, such as `just publish-ami ecs-node --dry-run`
publish-ami NAME *OPTIONS:
    vmsnix publish --image {{ NAME }} {{ OPTIONS }}

# Boot an image in QEMU, such as `just boot-image ecs-node`
boot-image NAME *OPTIONS:
    vmsnix boot-image --image {{ NAME }} {{ OPTIONS }}

# Look at the account before anything is published
preflight *OPTIONS:
    vmsnix preflight {{ OPTIONS }}

# List every AMI and snapshot of the account
audit *OPTIONS:
    vmsnix audit {{ OPTIONS }}

# Measure the direct upload against plain boto3 and the machine's limits, such as `just bench-upload --mib 1024 --json FILE`
bench-upload *OPTIONS:
    {{ python }} -m benchmarks.upload {{ OPTIONS }}

# Measure the inventory of 100,000 AMIs against plain boto3 paging, such as `just bench-inventory --rounds 1`
bench-inventory *OPTIONS:
    {{ python }} -m benchmarks.inventory {{ OPTIONS }}

# Measure what a run costs beyond plain papermill, and how fast `vmsnix --help` answers
bench-overhead *OPTIONS:
    {{ python }} -m benchmarks.overhead {{ OPTIONS }}

# Measure 64 runs on 1, 2 and 4 workers, such as `just bench-fleet --runs 8 --workers 1 2`
bench-fleet *OPTIONS:
    {{ python }} -m benchmarks.fleet {{ OPTIONS }}

# Run every test: quick, browser, foreign and long ones, with many more random examples (takes hours)
nightly *OPTIONS:
    pytest --parts=all --hypothesis-profile=nightly {{ OPTIONS }}

# Run the tests that depend most on timing, or the named ones, again and again on a busy machine, such as `just stress --times 5`
stress *OPTIONS:
    {{ python }} -m tests.stress {{ OPTIONS }}

# Unpack the kernel that the boot test's tests boot (Debian, amd64)
test-linux:
    .ci/test_linux .cache/test-linux

# Build the documentation; a warning is an error
docs:
    sphinx-build -W --keep-going -b html docs docs/_build/html

# Check the flake: assertions and facts of every image, every module alone (needs Nix and its sources)
check *OPTIONS:
    nix flake check ./nix {{ OPTIONS }}

# Boot an image's services in a virtual machine, such as `just vm-test ssh` (needs KVM and a binary cache)
vm-test NAME:
    nix build ./nix#vmTests.{{ NAME }}

# Evaluate every image against the nixpkgs in NIXPKGS_TREE, and print the figures
nix-eval *OPTIONS:
    sh nix/checks/evaluate.sh {{ OPTIONS }}

# Lock the versions anew, with hashes; needs uv; `--upgrade` takes newer ones
lock *OPTIONS:
    env -u PIP_FIND_LINKS -u UV_FIND_LINKS uv pip compile {{ lock_options }} {{ OPTIONS }} --all-extras --group build pyproject.toml --output-file requirements-test.txt
    env -u PIP_FIND_LINKS -u UV_FIND_LINKS uv pip compile {{ lock_options }} {{ OPTIONS }} --extra lab --extra fleet --group build --constraint requirements-test.txt pyproject.toml --output-file requirements.txt
    env -u PIP_FIND_LINKS -u UV_FIND_LINKS uv pip compile {{ lock_options }} {{ OPTIONS }} requirements-awscli.in --output-file requirements-awscli.txt
    {{ python }} .ci/environment.py

# Kill a publish at every AWS call, run it again, and look at what is there
crash-sweep *OPTIONS:
    {{ python }} -m tests.faults.crash_sweep {{ OPTIONS }}

# Publish 200 times while 5 % of all calls go wrong
soak *OPTIONS:
    {{ python }} -m benchmarks.soak {{ OPTIONS }}

# Take the picture of the console for README and docs (needs chromium)
screenshots:
    {{ python }} -m tests.browser.screenshots
