"""An S3 server (moto) on loopback, in a process of its own, and an environment that points every S3 client at it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BUCKET = "units"
RACE_ROUNDS = 4
SERVE = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


def needs_s3() -> None:
    """Skip the module where a package is missing."""
    for package in ("moto", "s3fs", "upath", "flask"):
        pytest.importorskip(package, reason=f"package {package} is not installed (pip install nashtune[dev])")


@contextmanager
def s3_server() -> Iterator[str]:
    """The server's address; $AWS_* of this process and its children point to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
    }
    before = {name: os.environ.get(name) for name in settings}
    log = subprocess.DEVNULL
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], stdout=log, stderr=log)
    try:
        os.environ.update(settings)
        _wait_for(port, server)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # those of an earlier server in this process ask its port
        s3fs.S3FileSystem(use_listings_cache=False).mkdir(BUCKET)
        yield endpoint
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    while True:
        assert server.poll() is None, "moto's server ended"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


def race(number: int, url: str, barrier: Any, results: Any, environment: dict[str, str]) -> None:
    """One of several processes that commit the same objects; puts (round, number, whether it won)."""
    os.environ.update(environment)  # a fork server that other tests started has theirs
    from nashtune.store.files import create_once
    from nashtune.store.objects import open_store

    for turn in range(RACE_ROUNDS):
        place = open_store(url) / f"unit-{turn}"
        barrier.wait()
        results.put((turn, number, create_once(place, bytes([number]) * 300_000)))
