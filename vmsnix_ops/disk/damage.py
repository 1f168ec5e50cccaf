"""The one sentence pattern in which a damaged image is refused: which file, which field, at which byte."""

from __future__ import annotations

from vmsnix_ops.errors import ImageFormatError

CURE = "Build the image again, or copy it again from where it came from."


def damaged(
    name: str, kind: str, field: str, offset: int | None, why: str, *, cure: str = CURE
) -> ImageFormatError:
    """Return the error for an image whose bytes contradict its format.

    Parameters
    ----------
    name
        What to call the file.
    kind
        The format, as people call it.
    field
        Name of the wrong field in the format's specification.
    offset
        Byte of the file at which it stands; ``None`` when another program found the damage and did not say
        where.
    why
        One sentence: what is wrong with it.
    cure
        One sentence: what to do.
    """
    place = "" if offset is None else f" at byte {offset}"
    return ImageFormatError(
        f"{name} is not a sound {kind} image: {field}{place} is wrong.",
        why=why,
        cure=cure,
        offset=offset,
        field=field,
    )
