"""Small images for tests."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image


def make_image(size: tuple[int, int] = (20, 24), value: int = 100, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(stream, format=kind)
    return stream.getvalue()


def make_folder(root: Path, layout: str = "{cls}/{n}.jpg", classes: int = 3, per_class: int = 10) -> Path:
    for cls in range(classes):
        for n in range(per_class):
            path = root / layout.format(cls=f"class {cls} é", n=n, split="train" if n % 5 else "test")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make_image(value=20 * n))
    return root
