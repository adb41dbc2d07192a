"""Clustering: pixel embeddings to instances, exact where the embedding keeps its margin."""

from __future__ import annotations

from lovasz_embed.clustering.call import cluster_embeddings
from lovasz_embed.clustering.result import Clusters

__all__ = ["Clusters", "cluster_embeddings"]
