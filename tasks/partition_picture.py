"""A partition as a picture: one bar per client, as long as its samples, in segments by class."""

from __future__ import annotations

from torch import Tensor

from tasks.partitions import Partition

BAR, GAP, LEFT, WIDTH = 12, 3, 96, 640


def partition_svg(partition: Partition, labels: Tensor | None = None, classes: int = 1) -> str:
    """The picture as the text of an SVG file.

    Args:
        partition: of the training samples.
        labels: (samples,) class of each training sample; without them a bar has no segments.
        classes: their number.

    >>> import torch
    >>> picture = partition_svg(Partition([torch.arange(3), torch.arange(3, 9)]), torch.arange(9) % 2, 2)
    >>> picture.count("<rect"), "client 1: 6 samples" in picture
    (4, True)
    """
    longest = max(partition.sizes)
    rows = []
    for client, part in enumerate(partition.parts):
        top = GAP + client * (BAR + GAP)
        counts = [len(part)] if labels is None else labels[part].bincount(minlength=classes).tolist()
        marks = [name for name in ("rare", "noisy") if client in getattr(partition, name)]
        title = f"client {client}: {len(part)} samples" + "".join(f", {mark}" for mark in marks)
        rows.append(
            f'<text x="{LEFT - 4}" y="{top + BAR - 2}" text-anchor="end">{" ".join([*marks, str(client)])}</text>'
        )
        left = float(LEFT)
        for label, count in enumerate(counts):
            if count:
                width = WIDTH * count / longest
                hue = 360 * label // len(counts)
                rows.append(
                    f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" fill="hsl({hue},60%,60%)">'
                    f"<title>{title}; class {label}: {count}</title></rect>"
                )
                left += width
    height = GAP + len(partition.parts) * (BAR + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + GAP}" height="{height}" '
        f'font-family="sans-serif" font-size="10">\n' + "\n".join(rows) + "\n</svg>\n"
    )
