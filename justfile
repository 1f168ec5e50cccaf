# The tasks of this repository, for people and CI. `just` lists them.

python := justfile_directory() / ".venv/bin/python"
export PATH := justfile_directory() / ".venv/bin:" + env_var("PATH")
lock_options := "--quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links"

# List the tasks
[private]
default:
    @just --list

# Make .venv with the locked versions of all packages for development
setup:
    python3 -m venv .venv
    {{ python }} -m pip install --quiet --require-hashes -r requirements-test.txt
    {{ python }} -m pip install --quiet --no-deps --no-build-isolation --editable .

# Make a small image and publish it to a sandbox
demo *OPTIONS:
    vmsnix demo {{ OPTIONS }}

# Run the quick tests, or the named ones, such as `just test tests/nix`
test *NAMES:
    pytest {{ NAMES }}

# Check style, types and notebooks
lint:
    ruff check .
    ruff format --check .
    mypy
    git ls-files -z '*.ipynb' | xargs -0 --no-run-if-empty nbstripout --keep-id --verify

# Format the code and remove the outputs of notebooks
format:
    ruff format .
    ruff check --fix .
    git ls-files -z '*.ipynb' | xargs -0 --no-run-if-empty nbstripout --keep-id

# Open the runbooks in JupyterLab, on a sandbox
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

# Check the account before publishing
preflight *OPTIONS:
    vmsnix preflight {{ OPTIONS }}

# List every AMI and snapshot of the account
audit *OPTIONS:
    vmsnix audit {{ OPTIONS }}

# Compare the direct upload with plain boto3 and the machine's limits, such as `just bench-upload --mib 1024 --json FILE`
bench-upload *OPTIONS:
    {{ python }} -m benchmarks.upload {{ OPTIONS }}

# Compare the CPU time of one block over the own connection, urllib3, boto3 and awscrt
bench-connection *OPTIONS:
    {{ python }} -m benchmarks.connection {{ OPTIONS }}

# Compare the inventory of 100,000 AMIs with plain boto3 paging, such as `just bench-inventory --rounds 1`
bench-inventory *OPTIONS:
    {{ python }} -m benchmarks.inventory {{ OPTIONS }}

# Measure the overhead of a run over plain papermill, and the time of `vmsnix --help`
bench-overhead *OPTIONS:
    {{ python }} -m benchmarks.overhead {{ OPTIONS }}

# Measure 64 runs on 1, 2 and 4 workers, such as `just bench-fleet --runs 8 --workers 1 2`
bench-fleet *OPTIONS:
    {{ python }} -m benchmarks.fleet {{ OPTIONS }}

# Compare the sandbox with moto's server (`.ci/foreign moto` installs it), such as `just bench-sandbox --amis 1000`
bench-sandbox *OPTIONS:
    {{ python }} -m benchmarks.sandbox {{ OPTIONS }}

# Run every test (quick, browser, foreign and long ones) with many more random examples; takes hours
nightly *OPTIONS:
    pytest --parts=all --no-forks --hypothesis-profile=nightly {{ OPTIONS }}

# Repeat the tests that depend on timing, or the named ones, on a busy machine, such as `just stress --times 5`
stress *OPTIONS:
    {{ python }} -m tests.stress {{ OPTIONS }}

# Unpack the Linux kernel for the tests of the boot test (Debian, amd64)
test-linux:
    .ci/test_linux .cache/test-linux

# Boot 20 attested images with a TPM, and keep what was predicted and measured (root, Debian, amd64)
test-attested: test-linux
    .ci/attested_tools .cache/attested-tools
    bash -o pipefail -c "pytest -rP --parts=all --numprocesses 0 tests/boot/test_attested_boot.py | tee .cache/attested.txt"

# Write the manifest of the runbooks, and their table in README.md, after a change of a notebook
runbooks:
    {{ python }} -m docs.manifest
    {{ python }} docs/runbook_table.py

# Write the JSON schemas of plan files, settings and results from the code
schemas:
    {{ python }} -m docs.schemas

# Build the documentation; a warning is an error
docs:
    @command -v sphinx-build >/dev/null || { echo "Sphinx is not installed. Run: just setup" >&2; exit 1; }
    sphinx-build -W --keep-going -b html docs docs/_build/html

# Check the flake: assertions and facts of every image, every module alone (needs Nix and the flake's inputs)
check *OPTIONS:
    nix flake check ./nix {{ OPTIONS }}

# Test an image's services in a virtual machine, such as `just vm-test ssh` (needs KVM and a binary cache)
vm-test NAME:
    nix build ./nix#vmTests.{{ NAME }}

# Evaluate every image with the nixpkgs in NIXPKGS_TREE, and print the figures
nix-eval *OPTIONS:
    sh nix/checks/evaluate.sh {{ OPTIONS }}

# Lock all versions again, with hashes (needs uv); `--upgrade` locks newer ones
lock *OPTIONS:
    env -u PIP_FIND_LINKS -u UV_FIND_LINKS uv pip compile {{ lock_options }} {{ OPTIONS }} --all-extras --group build pyproject.toml --output-file requirements-test.txt
    env -u PIP_FIND_LINKS -u UV_FIND_LINKS uv pip compile {{ lock_options }} {{ OPTIONS }} --extra lab --extra fleet --group build --constraint requirements-test.txt pyproject.toml --output-file requirements.txt
    for tool in tests/foreign/*.in; do env -u PIP_FIND_LINKS -u UV_FIND_LINKS uv pip compile {{ lock_options }} {{ OPTIONS }} "$tool" --output-file "${tool%.in}.txt"; done
    {{ python }} .ci/environment.py

# Kill a publish at every AWS call, run it again, and check the account
crash-sweep *OPTIONS:
    {{ python }} -m tests.faults.crash_sweep {{ OPTIONS }}

# Publish 200 times while 5 % of all calls fail
soak *OPTIONS:
    {{ python }} -m benchmarks.soak {{ OPTIONS }}

# Take the pictures of the docs, or some of them, such as `just pictures audit` (needs chromium)
pictures *NAMES:
    {{ python }} -m tests.browser.pictures {{ NAMES }}
