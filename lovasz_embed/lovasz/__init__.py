"""The Lovász hinge and the Lovász softmax: losses that are the Jaccard loss where predictions are certain."""

from __future__ import annotations

from lovasz_embed.lovasz.hinge import LovaszHinge, lovasz_hinge
from lovasz_embed.lovasz.softmax import LovaszSoftmax, lovasz_softmax
from lovasz_embed.lovasz.weights import lovasz_weights

__all__ = ["LovaszHinge", "LovaszSoftmax", "lovasz_hinge", "lovasz_softmax", "lovasz_weights"]
