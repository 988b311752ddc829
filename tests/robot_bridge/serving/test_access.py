"""Loopback without a token, anything else only with one; a token file that others can read or guess is refused."""

import stat
from pathlib import Path

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.serving import access
from edgewam.robot_bridge.serving.access import Address

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_loopback_needs_no_token(host):
    access.check_exposure(Address(host, 8000), None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "", "example.org", "::ffff:192.168.1.5"])
def test_every_other_address_needs_a_token_and_says_that_it_is_exposed(host):
    with pytest.raises(EdgewamError, match="--token-file"):
        access.check_exposure(Address(host, 8000), None)
    with pytest.raises(EdgewamError, match="--token-file"):  # a door cannot forget to ask
        access.listen(Address(host, 0), None)
    access.check_exposure(Address(host, 8000), TOKEN)
    assert "WARNING" in access.exposure(Address(host, 8000), TOKEN)


def test_a_unix_socket_is_for_this_user_only(tmp_path):
    address = Address(path=tmp_path / "door")
    access.check_exposure(address, None)
    listener, _ = access.listen(address, None)
    assert stat.S_IMODE(address.path.stat().st_mode) == 0o600
    with pytest.raises(EdgewamError, match="another server"):
        access.listen(address, None)
    listener.close()
    access.listen(address, None)[0].close()  # what a killed server left behind is replaced


def test_an_address_in_use_is_an_error_for_people():
    listener, address = access.listen(Address(), None)
    assert address.port > 0
    with pytest.raises(EdgewamError, match="Choose another"):
        access.listen(address, None)
    listener.close()


def test_a_socket_path_that_is_too_long_is_an_error_that_says_so(tmp_path):
    with pytest.raises(EdgewamError, match="too long"):
        access.listen(Address(path=tmp_path / ("x" * 120)), None)


def write(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_private_random_token_is_read(tmp_path):
    assert access.read_token(write(tmp_path / "token", TOKEN + "\n")) == TOKEN


@pytest.mark.parametrize("text", ["", "secret", "a" * 64, TOKEN[:-1], TOKEN + "\n" + TOKEN, "0123 " * 20])
def test_a_token_that_can_be_guessed_is_refused(tmp_path, text):
    with pytest.raises(EdgewamError, match="openssl"):
        access.read_token(write(tmp_path / "token", text))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_token_that_others_can_read_is_refused(tmp_path, mode):
    with pytest.raises(EdgewamError, match="chmod 600"):
        access.read_token(write(tmp_path / "token", TOKEN, mode))


def test_the_permissions_that_count_are_those_of_the_file_that_is_read(tmp_path, monkeypatch):
    private, path = write(tmp_path / "private", TOKEN).stat(), write(tmp_path / "token", TOKEN, 0o644)
    monkeypatch.setattr(Path, "stat", lambda self, **options: private)  # what the name pointed to a moment ago
    with pytest.raises(EdgewamError, match="chmod 600"):
        access.read_token(path)


def test_a_missing_token_file_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(EdgewamError, match="openssl"):
        access.read_token(tmp_path / "token")


def test_tokens_are_compared_whole():
    assert access.is_token(None, None) and access.is_token(TOKEN, TOKEN) and access.is_token(TOKEN.encode(), TOKEN)
    for wrong in (None, "", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "\udcff"):
        assert not access.is_token(wrong, TOKEN)
