"""The oracles' own tables against printed numbers: an oracle that is wrong as the package is wrong tests nothing."""

import numpy as np
import pytest
from oracles import ALPHA_BAR, timesteps, to_least
from solver_oracles import SIGMA, WEIGHTS, spaced

from ddiff_jax import linear_schedule
from ddiff_jax.solvers import DiffPIR

pytestmark = pytest.mark.once

# `seq` of main_ddpir_sisr.py of DiffPIR: 999 less the whole part of 1000 sqrt(k / (K - 1)), and 0 at last.
QUAD = {
    20: "999 770 675 602 541 487 438 393 351 311 274 239 205 172 141 111 82 54 26 0",
    100: "999 899 857 825 798 775 753 734 715 698 682 666 651 637 623 610 597 585 573 561 550 539 528 518 507 497 487 "
    "477 468 458 449 440 431 422 413 405 396 388 380 372 364 356 348 340 333 325 318 310 303 296 289 282 275 268 "
    "261 254 247 241 234 228 221 215 208 202 195 189 183 177 171 165 159 153 147 141 135 129 123 118 112 106 101 "
    "95 89 84 78 73 67 62 57 51 46 41 36 30 25 20 15 10 5 0",
}


@pytest.mark.parametrize("count", QUAD)
def test_diffpir_walks_the_timesteps_of_the_released_code(count):
    published = np.array(QUAD[count].split(), int)
    assert len(published) == count
    np.testing.assert_array_equal(to_least(count - 1, "quad"), published)
    grid = DiffPIR(num_steps=count - 1).grid(linear_schedule())  # it makes no step from the last one
    np.testing.assert_array_equal(grid.level.time, published[:-1])
    np.testing.assert_allclose(grid.next_signal**2, ALPHA_BAR[published[1:]], rtol=1e-6)


def test_strided_and_complete_walks_are_the_released_ones():
    # range(0, 1000, 1000 // K) backwards in the codes of DDRM and RED-diff, 20 and 100 timesteps; then the clean image.
    for count, stride in ((20, 50), (100, 10), (250, 4)):
        np.testing.assert_array_equal(timesteps(count, "strided"), [*range(1000 - stride, -1, -stride), -1])
    np.testing.assert_array_equal(timesteps(None), np.arange(999, -2, -1))  # DPS and DDiff walk all
    np.testing.assert_array_equal(to_least(None), np.arange(999, -1, -1))
    np.testing.assert_array_equal(to_least(999), np.arange(999, -1, -1))


def test_the_table_of_levels_is_the_linear_schedule():
    found = {0: 0.9999, 1: 0.9997800920720721, 50: 0.9699514935950494, 90: 0.9132644806435357, 500: 0.07779665836502389}
    np.testing.assert_allclose(ALPHA_BAR[list(found)], list(found.values()), rtol=1e-12)
    np.testing.assert_allclose(ALPHA_BAR[999], 4.035829765375676e-05, rtol=1e-12)
    np.testing.assert_allclose(SIGMA[[0, 999]], [0.0100005, 157.407], rtol=1e-5)


def test_the_levels_of_daps_are_those_of_the_released_code():
    np.testing.assert_allclose(
        [spaced(100, 0.1, i / 200) for i in (0, 1, 2, 100, 198, 199)],
        [100, 97.8252053, 95.6910778, 7.1771323, 0.1123904, 0.1060402],
        rtol=1e-6,  # seven digits are printed
    )
    nodes = [spaced(0.1060402, 0.01, j / 5) for j in range(6)]
    np.testing.assert_allclose(nodes, [0.1060402, 0.0701781, 0.0452581, 0.0283432, 0.0171646, 0.01], rtol=1e-5)


def test_the_weights_of_red_diff_agree_where_the_noise_level_is_one():
    at_one = {name: weight(1.0) for name, weight in WEIGHTS.items()}
    assert at_one == dict.fromkeys(WEIGHTS, 1.0) | {"log": np.log(2.0)}
    at_four = {name: float(weight(4.0)) for name, weight in WEIGHTS.items()}
    want = {"linear": 4.0, "sqrt": 2.0, "square": 16.0, "log": np.log(5.0), "trunc_linear": 1.0, "const": 1.0}
    assert at_four == pytest.approx(want | {"power2over3": 4 ** (2 / 3)})
