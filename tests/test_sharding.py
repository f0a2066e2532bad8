"""Images spread over devices: the same numbers, and no communication. Runs in a process with four CPU devices."""

import json
import os
import subprocess
import sys

import numpy as np
from weights import save_tiny_prior

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
import ddiff_jax as dd
from ddiff_jax.solvers import DDiff, Fixed

shape = (8, 8, 3)
prior = dd.GaussianPrior(0.0, 0.25, dd.linear_schedule(), shape, clip=True)
keys = dd.image_keys(jax.random.key(0), jnp.arange(8))
masks = jax.vmap(lambda key: dd.operators.random_inpainting(shape, key, fraction=0.4))(keys)
y = jax.random.normal(jax.random.key(1), (8, *shape))
solver = DDiff(Fixed(20.0), num_steps=10)
mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
run = lambda **kwargs: dd.solve(solver, prior, masks, y, 0.05, keys, operator_axis=0, **kwargs)
one, four = run(), run(mesh=mesh)
assert len(four.x.sharding.device_set) == 4, four.x.sharding
np.testing.assert_allclose(np.asarray(four.x), np.asarray(one.x), atol=1e-5)
try:
    six = jax.tree.map(lambda mask: mask[:6], masks)
    dd.solve(solver, prior, six, y[:6], 0.05, keys[:6], operator_axis=0, mesh=mesh)
except ValueError as error:
    assert "cannot be spread evenly over 4 devices" in str(error)
else:
    raise SystemExit("an uneven batch was accepted")

spec = jax.sharding.PartitionSpec("batch")
block = lambda masks, y, keys: jax.vmap(
    lambda m, y, k: dd.solve_one(solver, prior, dd.Problem(m, y, 0.05), k).x)(masks, y, keys)
mapped = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False))
np.testing.assert_allclose(np.asarray(mapped(masks, y, keys)), np.asarray(one.x), atol=1e-5)
text = mapped.lower(masks, y, keys).compile().as_text()
assert not any(word in text for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"))
print("same numbers")
"""


def test_four_devices_give_the_numbers_of_one():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "same numbers" in done.stdout


def test_the_command_line_uses_all_devices(tmp_path):
    # Three images on two devices: the fourth place is filled, and the results are those of one device.
    from PIL import Image

    import ddiff_jax as dd

    save_tiny_prior(tmp_path / "prior")
    sample = Image.open(os.path.join(dd.__path__[0], "assets", "sample.png")).resize((16, 16))
    (tmp_path / "photos").mkdir()
    for i in range(3):
        sample.rotate(90 * i).save(tmp_path / "photos" / f"{i}.png")
    psnr = {}
    for count in (1, 2):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(count)}
        command = [sys.executable, "-m", "ddiff_jax", "restore", "photos", "--output", f"out{count}", "--no-cache"]
        done = subprocess.run(
            [*command, "--prior", "prior", "--preset", "faces64", "--steps", "2", "--factor", "2"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        document = json.loads((tmp_path / f"out{count}" / "metrics.json").read_text())
        psnr[count] = [row["psnr"] for row in document["images"]]
    assert "2 of them" in done.stderr
    assert document["runs"][0]["batch_size"] == 4
    np.testing.assert_allclose(psnr[1], psnr[2], atol=1e-3)
