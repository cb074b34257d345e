"""What earlier runs have changed, for other explanations of the same images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ace.images import from_uint8, load_png
from ace.refinement import change_map
from ace.run_store import RunStore

REPULSION = 0.99  # not 1: a pixel of weight 0 would not even be repainted, and stand out as a hole


@dataclass(frozen=True)
class EarlierRuns:
    """Leaves to an explanation what earlier ones of the same image have not used.

    Args:
        avoid: runs whose repainted pixels must stay as they are.
        repel: runs in which a pixel counts the less the more it was changed, the most changed one hardly at all.
    """

    avoid: Sequence[RunStore] = ()
    repel: Sequence[RunStore] = ()

    def allowed(self, images: Tensor, ids: Sequence[str]) -> Tensor | None:
        """Where images may change, as `ace.CounterfactualExplainer.explain` takes it.

        Args:
            images: shape (N, C, H, W), in [0, 1].
            ids: which images they are; one that a run does not have may change everywhere.

        Returns:
            Weights in [0, 1], shape (N, 1, H, W), on the images' device; None without runs.
        """
        if not self.avoid and not self.repel:
            return None
        allowed = images.new_ones(len(images), 1, *images.shape[2:])
        for row, (image, id) in enumerate(zip(images, ids, strict=True)):
            for mask in _stored("mask", id, self.avoid):
                allowed[row] *= mask.to(images.device) == 0
            for counterfactual in _stored("counterfactual", id, self.repel):
                allowed[row] *= 1 - REPULSION * change_map(image[None], counterfactual[None].to(images.device))[0]
        return allowed

    def check(self, ids: Collection[str], height: int, width: int) -> None:
        """Check that the runs have something to say about images of these ids and this size.

        Raises:
            ValueError: one has none of the images, or they had another size.
        """
        for store in (*self.avoid, *self.repel):
            shared = sorted(set(ids) & {record.id for record in store.records() if record.explained})
            if not shared:
                raise ValueError(f"{store.folder} explains none of these images: take it out of avoid and repel")
            found = load_png(store.image_path("original", shared[0])).shape[:2]
            if found != (height, width):
                sizes = f"{found[0]} x {found[1]} pixels, these have {height} x {width}"
                raise ValueError(f"the images of {store.folder} have {sizes}: give a run of the same size")


def _stored(kind: str, id: str, stores: Sequence[RunStore]) -> Iterator[Tensor]:
    """An image of each run that has it, shape (C, H, W), in [0, 1]."""
    for path in (store.image_path(kind, id) for store in stores):
        if path.exists():
            yield from_uint8(load_png(path))
