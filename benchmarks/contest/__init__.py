"""A fair contest between ways to segment things from pixels: one network, one schedule, one scorer, four methods."""
