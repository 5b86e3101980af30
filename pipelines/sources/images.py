"""Is this an image, whole and readable? And in which size is it stored?"""

from __future__ import annotations

import io
from typing import Any, Literal

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "bmp", "webp"})
Check = Literal["decode", "quick"]
_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")  # whatever the file's name says; nothing that runs programs
_LONGEST = 100  # times as long as wide
_TAIL = 4096  # cameras append some bytes behind the end


def checked(content: bytes, check: Check) -> bytes:
    """Return the content of an image that can be read.

    ``decode`` decodes all of it (of a JPEG in the smallest size, for which every coefficient is read). ``quick`` looks at
    the beginning and the end of a JPEG, and at the header and, if its format has them, the checksums of another image: that
    finds files that are cut off or no images, at a small part of the cost.

    Raises:
        ValueError, OSError: if it can not be read; the message says why.

    """
    from PIL import Image

    if check == "quick" and content.startswith(_START_OF_JPEG):
        if _END_OF_JPEG not in content[-_TAIL:]:
            raise ValueError("the file is cut off")
        return content
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if check == "quick":
            image.verify()
        else:
            image.draft("RGB", (1, 1))
            image.load()
    return content


def resized(content: bytes, size: int) -> bytes:
    """Return an image as PNG with the shorter side resized to ``size`` and the centre cut out; errors as above."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if max(image.size) > _LONGEST * min(image.size):
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels can not be resized sensibly")
        small = fit(image.convert("RGB"), size)
    stream = io.BytesIO()
    small.save(stream, format="PNG")
    return stream.getvalue()


def fit(image: Any, size: int, side: int | None = None) -> Any:
    """Resize the shorter side to ``side`` (by default ``size``) and crop the centre, ``size`` pixels high and wide."""
    from PIL import Image

    width, height = image.size
    if (width, height) == (size, size) and side in (None, size):
        return image
    scale = max(size, side or size) / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
