"""Images spread over devices: the same numbers, and no communication. Runs in a process with four CPU devices."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ddiff_jax as dd
from ddiff_jax import solvers

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
import ddiff_jax as dd
from ddiff_jax.solvers import DDiff, Fixed

P = jax.sharding.PartitionSpec
shape = (8, 8, 3)
prior = dd.GaussianPrior(0.0, 0.25, dd.linear_schedule(), shape, clip=True)
keys = dd.image_keys(jax.random.key(0), jnp.arange(8))
masks = jax.vmap(lambda key: dd.operators.random_inpainting(shape, key, fraction=0.4))(keys)
y = jax.random.normal(jax.random.key(1), (8, *shape))
solver = DDiff(Fixed(20.0), num_steps=10)
mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
problem = dd.Problem(masks, y, 0.05, operator_axis=0)
run = lambda **kwargs: dd.solve(solver, prior, problem, keys, **kwargs)
one, four = run(), run(mesh=mesh)
assert len(four.x.sharding.device_set) == 4, four.x.sharding
np.testing.assert_allclose(np.asarray(four.x), np.asarray(one.x), atol=1e-5)
try:
    six = jax.tree.map(lambda mask: mask[:6], masks)
    dd.solve(solver, prior, dd.Problem(six, y[:6], 0.05, operator_axis=0), keys[:6], mesh=mesh)
except ValueError as error:
    assert "cannot be spread evenly over 4 devices" in str(error)
else:
    raise SystemExit("an uneven batch was accepted")

# As `jax.make_mesh` makes them by default: their axes are part of every array's type.
explicit = jax.make_mesh((2, 2), ("batch", "other"))
there = run(mesh=explicit)
np.testing.assert_allclose(np.asarray(there.x), np.asarray(one.x), atol=1e-5)
assert len(there.x.sharding.device_set) == 4 and jnp.mean(there.x - y) < 1  # computes with arrays that lie elsewhere
spread = jax.device_put(y, jax.sharding.NamedSharding(explicit, jax.sharding.PartitionSpec("batch")))
with jax.set_mesh(explicit):
    there = dd.solve(solver, prior, dd.Problem(masks, spread, 0.05, operator_axis=0), keys, mesh=explicit)
    assert jnp.mean(there.x - spread) < 1  # lies where y does
np.testing.assert_allclose(np.asarray(there.x), np.asarray(one.x), atol=1e-5)
for spec in (P(), P("other"), P(None, "batch")):  # without mesh= the images are spread over the mesh that y lies on
    lying = jax.device_put(y, jax.sharding.NamedSharding(explicit, spec))
    there = dd.solve(solver, prior, dd.Problem(masks, lying, 0.05, operator_axis=0), keys)
    assert there.x.sharding.spec == P("batch"), there.x.sharding
    np.testing.assert_allclose(np.asarray(there.x), np.asarray(one.x), atol=1e-5)
try:
    dd.solve_restarts(solver, prior, dd.Problem(masks, spread, 0.05, operator_axis=0), keys, restarts=2)
except ValueError as error:
    assert "give y as it was before it was spread" in str(error)
else:
    raise SystemExit("restarts took what they cannot repeat")
best = dd.solve_restarts(solver, prior, problem, keys, restarts=2, mesh=explicit)
np.testing.assert_allclose(np.asarray(best.x[:, 0]), np.asarray(one.x), atol=1e-5)
print("same numbers")
"""

MAPPED = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
import ddiff_jax as dd
from ddiff_jax import solvers
sys.path.insert(0, sys.argv[1])
from test_conformance import SOLVER_EXAMPLES

P = jax.sharding.PartitionSpec
shape = (8, 8, 1)
prior = dd.GaussianPrior(0.0, 0.25, dd.linear_schedule(), shape, clip=True)
blur = dd.operators.blur(shape, kernel=[[0.1, 0.7, 0.2]])
smaller = dd.operators.super_resolution(shape, factor=2)
mesh = jax.make_mesh((2,), ("images",))
keys = dd.image_keys(jax.random.key(0), jnp.arange(4))
daps = solvers.DAPS(lr=1e-4, momentum=0.5, num_steps=2, ode_steps=1, langevin_steps=2)
for solver in (*(SOLVER_EXAMPLES[name](2) for name in sys.argv[2:]), daps):
    # With a blur least squares are solved by iterations; the methods that decompose the operator cannot take it.
    operator = blur if all(hasattr(blur, need) for need in solver.needs.methods) else smaller
    y = jax.random.normal(jax.random.key(1), (4, *jax.eval_shape(operator.forward, jnp.zeros(shape)).shape))

    def restore(operator, y, keys):
        # The operator is the same everywhere; and one draw serves all images, as one of everything may.
        shared = jax.vmap(lambda y: dd.solve_one(solver, prior, dd.Problem(operator, y, 0.05), jax.random.key(2)).x)
        own = jax.vmap(lambda y, key: dd.solve_one(solver, prior, dd.Problem(operator, y, 0.05), key).x)
        return own(y, keys) if solver is not daps else shared(y)

    one = jax.jit(restore)(operator, y, keys)
    specs = P(), P("images"), P("images")
    mapped = jax.jit(jax.shard_map(restore, mesh=mesh, in_specs=specs, out_specs=P("images")))
    there = [jax.device_put(v, jax.sharding.NamedSharding(mesh, spec)) for v, spec in zip((operator, y, keys), specs)]
    compiled = mapped.lower(*there).compile()
    atol = 2e-5 * max(1.0, float(jnp.abs(one).max()))  # after two steps some are far from being images
    np.testing.assert_allclose(np.asarray(compiled(*there)), np.asarray(one), atol=atol, err_msg=repr(solver))
    collectives = ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter")
    assert not any(word in compiled.as_text() for word in collectives), solver
print("same numbers")
"""

COMMANDS = """
import sys
import jax
sys.path.insert(0, sys.argv[1])
from weights import smoothing_prior
from ddiff_jax import cli
from ddiff_jax.cli import sample
from ddiff_jax.evaluation import run as evaluation
from ddiff_jax.restoration import run as restoration

for module in (restoration, evaluation, sample):
    module.load_prior = lambda name, dtype: smoothing_prior()  # a network that costs nothing
devices = jax.local_devices()
assert len(devices) == 4
for count in (1, 2, 4):
    jax.local_devices, jax.local_device_count = lambda: devices[:count], lambda: count
    how = ["--no-cache", "--steps", "3", "--batch-size", "3", "--output"]
    # In an even walk, whose runs end at misfits that differ by more than rounding.
    assert cli.main(["restore", "photos", "--levels", "even", "--restarts", "2", *how, f"{count}/restored"]) == 0
    assert cli.main(["evaluate", "photos", "--no-report", *how, f"{count}/evaluated"]) == 0
    assert cli.main(["sample", "--count", "3", *how, f"{count}/sampled"]) == 0
"""

# As a program holds them: their results are named like them, and some are started and ended apart.
COLLECTIVES = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(-start)?\("
)


# Every kind of step: a gradient, a pass backwards, least squares by iterations and by decomposition, no network.
KINDS = ["ddiff", "dps", "pigdm", "ddrm", "total_variation"]
OTHERS = [name for name, kind in solvers.SOLVERS.items() if solvers.asks_network(kind) and name not in KINDS]


@pytest.mark.parametrize(
    ("program", "names"),
    [
        (PROGRAM, []),
        pytest.param(MAPPED, KINDS, marks=pytest.mark.once),
        pytest.param(MAPPED, OTHERS, marks=pytest.mark.slow),
    ],
    ids=["solve", "shard_map", "shard_map, other solvers"],
)
def test_several_devices_give_the_numbers_of_one(program, names):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, os.path.dirname(__file__), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "same numbers" in done.stdout


@pytest.mark.once
def test_the_command_line_shares_images_out_and_nothing_is_exchanged(tmp_path):
    # Three images on two and on four devices: the other places are filled, and the pictures are those of one device.
    sample = Image.open(os.path.join(dd.__path__[0], "assets", "sample.png")).resize((64, 64))
    (tmp_path / "photos").mkdir()
    for i in range(3):
        sample.rotate(90 * i).save(tmp_path / "photos" / f"{i}.png")
    flags = f"--xla_force_host_platform_device_count=4 --xla_dump_to={tmp_path / 'hlo'} --xla_dump_hlo_as_text"
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, os.path.dirname(__file__)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of them" in done.stderr
    document = json.loads((tmp_path / "4" / "restored" / "metrics.json").read_text())
    assert document["runs"][0]["batch_size"] == 4
    assert document["runs"][0]["settings"]["restarts"] == 2

    pictures = [path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.png")]
    for what, least in (("restored/", 3 * 3), ("evaluated/", 3), ("sampled/", 3)):
        assert sum(str(name).startswith(what) for name in pictures) >= least
    for count in ("2", "4"):
        for name in pictures:
            one, several = (np.asarray(Image.open(tmp_path / n / name), int) for n in ("1", count))
            assert np.max(np.abs(one - several)) <= 1, (count, name)  # a level, where programs round differently

    programs = {path.name: path.read_text() for path in (tmp_path / "hlo").glob("*after_optimizations.txt")}
    spread = {name: text for name, text in programs.items() if "num_partitions=4" in text}
    for ours in ("_start", "_run_chunk", "_finish_batch", "_misfits", "_picked"):
        assert any(f"jit_{ours}." in name for name in spread), f"{ours} ran on one device"
    exchanging = [name for name, text in programs.items() if COLLECTIVES.search(text)]
    assert not exchanging
