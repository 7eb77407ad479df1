"""The study: a grid of runs in one folder, from its definition (`layout`) to its execution (`sweep`)."""

from __future__ import annotations
