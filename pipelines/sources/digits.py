"""The 1,797 scanned digits that scikit-learn brings: real images without any download."""

from __future__ import annotations

import io

import numpy as np

from pipelines.sources.listing import UNASSIGNED, Listing

SIZE = 16


def list_digits(size: int) -> Listing:
    """List the digits, enlarged from 8 to ``size`` pixels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()

    def load(i: int) -> tuple[bytes, str]:
        image = Image.fromarray(np.uint8(data.images[i] * 255 / 16)).resize((size, size), Image.Resampling.BILINEAR)
        stream = io.BytesIO()
        image.convert("RGB").save(stream, format="PNG")
        return stream.getvalue(), "png"

    count = len(data.target)
    return Listing(
        name="digits",
        names=[f"digit-{number}" for number in range(count)],
        labels=data.target.astype(np.int32),
        given=np.full(count, UNASSIGNED, dtype=np.int8),
        classes=tuple(str(digit) for digit in range(10)),
        load=load,
    )
