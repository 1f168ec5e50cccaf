"""Nix for the tests: with its own store, and without network and this machine's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import require

FIXTURE = Path(__file__).parent / "fixture"

SETTINGS = """
experimental-features =
substituters =
flake-registry =
build-users-group =
sandbox = false
download-attempts = 1
"""


@pytest.fixture(scope="session")
def nix_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store, state and settings for all tests of a session, because builds take time."""
    root = tmp_path_factory.mktemp("nix").resolve()
    (root / "conf").mkdir()
    (root / "conf" / "nix.conf").write_text(SETTINGS)
    return root


@pytest.fixture
def nix(nix_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real Nix with its own folders; returns their root."""
    require("nix")
    for name in ("NIX_REMOTE", "NIX_PATH", "NIX_CONFIG", "NIX_USER_CONF_FILES"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in {
        "NIX_STORE_DIR": "store",
        "NIX_STATE_DIR": "state",
        "NIX_LOCALSTATE_DIR": "var",
        "NIX_LOG_DIR": "log",
        "NIX_CONF_DIR": "conf",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
        "HOME": "home",
    }.items():
        monkeypatch.setenv(name, str(nix_folders / folder))
    (nix_folders / "home").mkdir(exist_ok=True)
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "vmsnix-state"))
    monkeypatch.setenv("VMSNIX_FLAKE", str(FIXTURE))
    monkeypatch.delenv("VMSNIX_CONFIG", raising=False)
    return nix_folders
