"""What lies within a surface."""

import numpy as np
from scipy.spatial import ConvexHull

from benchmarks.elsewhere import inside


def test_voxels_within_a_ball_of_triangles_are_found():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4000, 3))
    points = 10 * directions / np.linalg.norm(directions, axis=1, keepdims=True) + (14.3, 15.1, 12.8)
    found = inside(points, ConvexHull(points).simplices, (30, 31, 27))
    away = np.linalg.norm(np.indices(found.shape).T - (14.3, 15.1, 12.8), axis=-1).T
    assert found[away < 9.8].all() and not found[away > 10.05].any()


def test_a_hollow_between_two_surfaces_is_the_ribbon():
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    outer, inner = 1.5 + 8 * corners, 3.5 + 3 * corners
    triangles = ConvexHull(corners).simplices
    ribbon = inside(outer, triangles, (12, 12, 12)) & ~inside(inner, triangles, (12, 12, 12))
    assert ribbon.sum() == 8**3 - 3**3
