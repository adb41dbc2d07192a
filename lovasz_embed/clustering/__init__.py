"""Clustering: pixel embeddings to instances, exact where the embedding keeps its margin."""

from __future__ import annotations

from lovasz_embed.clustering.call import cluster_embeddings
from lovasz_embed.clustering.radius import RadiusEstimate, estimate_radius
from lovasz_embed.clustering.result import ArrayClusters, Clusters

__all__ = ["ArrayClusters", "Clusters", "RadiusEstimate", "cluster_embeddings", "estimate_radius"]
