"""A training run as one HTML page: curves, scores per class, best and worst pictures, configuration.

`read_run` reads a run's folder, `score_pictures` scores predictions picture by picture, `paint` makes pictures of
them, and `render` writes all of it as one page that asks nothing of the network.
"""

from __future__ import annotations

from lovasz_embed.report._page import render
from lovasz_embed.report._pictures import Painted, paint
from lovasz_embed.report._run import RunRecord, read_run
from lovasz_embed.report._scores import PictureScore, Scored, score_pictures
from lovasz_embed.report._sections import Evaluation

__all__ = [
    "Evaluation",
    "Painted",
    "PictureScore",
    "RunRecord",
    "Scored",
    "paint",
    "read_run",
    "render",
    "score_pictures",
]
