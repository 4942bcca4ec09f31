"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``path`` in the end, and not after an exception. Anyone may read it then."""
    filled, former = (path.with_name(f".{path.name}.{uuid.uuid4().hex}") for _ in range(2))
    filled.mkdir(parents=True)
    try:
        yield filled
        for entry in filled.rglob("*"):
            entry.chmod(0o755 if entry.is_dir() else 0o644)
        try:
            if path.exists():
                path.rename(former)
            filled.rename(path)
        except BaseException:
            if former.exists() and not path.exists():
                former.rename(path)
            raise
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(filled, ignore_errors=True)
