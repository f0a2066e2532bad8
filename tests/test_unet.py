import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import normal_like, synthetic

import ddiff_jax as dd
from convert_weights import adm_unet, mapping, plan
from convert_weights.torch_file import read_tensors
from ddiff_jax.models import UNet
from ddiff_jax.models.layers import GroupNorm, bounded, product

PARITY = 1e-4  # absolute, on outputs of order 1 to 4: the bar for float32
ORACLE = 2e-5  # absolute; float32 against a float64 oracle on tiny networks
BFLOAT16 = 0.1  # absolute, on outputs of order 1: eight bits through some thirty layers
NORM = {"float32": 2e-5, "bfloat16": 1e-4}  # absolute; values around 8 with a spread of 1, normalised

VARIANTS = (
    "class_conditional",
    "plain_norm",
    "conv_resample",
    "pooling",
    "new_order",
    "num_heads",
    "fractional_width",
    "grey_no_attention",
)


def load(path, **options):
    tensors = read_tensors(path)
    made = plan({key: value.shape for key, value in tensors.items()}, **options)
    return made.module, mapping.convert(tensors, made.targets)


@pytest.mark.parametrize("name", ["unet_ffhq_like", "unet_imagenet_like"])
def test_networks_of_the_original_class(golden, optimised, name):
    module, params = load(golden(f"{name}.pt"), head_width=16)
    with np.load(golden(f"{name}.npz")) as recorded:
        x, t, want = recorded["x"], recorded["t"].astype(np.int32), recorded["out"]
    got = jax.jit(module.apply)({"params": params}, jnp.asarray(x), jnp.asarray(t))
    np.testing.assert_allclose(got, want, atol=PARITY, rtol=0)


def test_the_packaged_prior_is_the_published_network(golden, optimised):
    prior = dd.load_prior("faces64")
    with np.load(golden("faces64_io.npz")) as recorded:
        x, t, want = recorded["x"], recorded["t"].astype(np.int32), recorded["out"]
    apply = jax.jit(prior.module.apply)
    got = apply({"params": prior.params}, jnp.asarray(x), jnp.asarray(t))
    np.testing.assert_allclose(got, want, atol=PARITY, rtol=0)
    levels = jax.tree.map(jnp.float32, dd.linear_schedule().at_time(t))
    _, eps = jax.jit(jax.vmap(prior.predict))(jnp.asarray(x), levels)
    np.testing.assert_allclose(eps, got[..., :3], atol=PARITY)


@pytest.mark.parametrize(("name", "count"), [("ffhq_10m", 362), ("imagenet_256x256_diffusion_uncond", 566)])
def test_every_published_key_has_its_parameter(golden, name, count):
    shapes = json.loads(golden(f"manifest_{name}.json").read_text())
    made = plan({key: tuple(shape) for key, shape in shapes.items()})  # raises unless it is one to one
    assert len(made.targets) == count
    assert len({path for path, _ in made.targets.values()}) == count


@pytest.mark.parametrize("name", VARIANTS)
def test_every_configuration_against_an_oracle(golden, name):
    case = json.loads(golden("unet_variants.json").read_text())[name]
    shapes = {key: tuple(shape) for key, shape in case["shapes"].items()}
    fields = case["fields"]
    options = {"attention_order": fields["attention_order"]}
    heads = {"num_heads": fields["num_heads"]} if fields["num_heads"] else {"head_width": fields["head_width"]}
    made = plan(shapes, **options, **heads)
    with np.load(golden("unet_variants.npz")) as recorded:
        x, t, want = recorded["x"][..., : fields["in_channels"]], recorded["t"], recorded[name]
    params = mapping.convert(synthetic(shapes), made.targets)
    labels = (jnp.asarray([3, 7]),) if fields["num_classes"] else ()
    got = jax.jit(made.module.apply)({"params": params}, jnp.asarray(x), jnp.asarray(t, jnp.float32), *labels)
    np.testing.assert_allclose(got, want, atol=ORACLE, rtol=0)


def small(**fields) -> Any:
    module = UNet(model_channels=32, channel_mult=(1, 2), attention_levels=(1,), head_width=16, **fields)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *module.example_inputs())["params"]
    return module, normal_like(shapes, 0.1)


def test_vmap_over_images_equals_a_batch():
    module, params = small()
    x = jax.random.normal(jax.random.key(2), (3, 8, 12, 3))
    t = jnp.asarray([0, 400, 999])
    batch = jax.jit(module.apply)({"params": params}, x, t)

    def one(x, t):
        return module.apply({"params": params}, x[None], t[None])[0]

    np.testing.assert_allclose(jax.jit(jax.vmap(one))(x, t), batch, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3, 5)])
def test_products_have_the_gradients_of_products(shape):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, (5, 7), (*shape[:-1], 7))]
    x, kernel, change = normal_like(shapes, 1.0)
    result, pull = jax.vjp(lambda x, kernel: bounded(product(x, kernel)), x, kernel)
    expected, plain = jax.vjp(lambda x, kernel: x @ kernel, x, kernel)
    np.testing.assert_array_equal(result, expected)
    for found, wanted in zip(pull(change), plain(change), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_network_for_training_is_the_same_network():
    module = UNet(model_channels=32, channel_mult=(1,), attention_levels=(), head_width=16)  # the middle attends
    shapes = jax.eval_shape(module.init, jax.random.key(0), *module.example_inputs())["params"]
    params = normal_like(shapes, 0.1)
    x, t = jax.random.normal(jax.random.key(2), (2, 8, 8, 3)), jnp.array([3.0, 700.0])

    def loss(params, module):
        return jnp.sum(module.apply({"params": params}, x, t) ** 2)

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain, quick = (gradient(params, module.clone(for_training=f)) for f in (False, True))
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[1]))
    for one, other in zip(*map(jax.tree.leaves, (plain, quick)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * largest)
    # There are derivatives forwards where it is not for training.
    jax.eval_shape(lambda x: jax.jvp(lambda x: module.apply({"params": params}, x, t), (x,), (x,)), x)


def test_bfloat16_computes_near_float32_and_returns_float32():
    module, params = small()
    half = module.clone(dtype="bfloat16")
    x, t = jax.random.normal(jax.random.key(2), (2, 8, 8, 3)), jnp.asarray([10, 700])
    exact, rough = (jax.jit(net.apply)({"params": params}, x, t) for net in (module, half))
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=BFLOAT16)
    assert not np.array_equal(rough, exact)
    wanted = jax.eval_shape(half.init, jax.random.key(0), *half.example_inputs())
    assert {leaf.dtype for leaf in jax.tree.leaves(wanted)} == {jnp.dtype(jnp.float32)}


def test_weights_cast_once_give_the_same_results_and_are_not_converted_again():
    module, params = small(num_classes=5, dtype="bfloat16")
    x, t, y = jax.random.normal(jax.random.key(2), (2, 8, 8, 3)), jnp.asarray([10, 700]), jnp.asarray([0, 4])
    cast = module.cast(params)
    np.testing.assert_array_equal(*(jax.jit(module.apply)({"params": p}, x, t, y) for p in (params, cast)))

    def num_converted_kernels(params):
        jaxpr = jax.make_jaxpr(lambda params: module.apply({"params": params}, x, t, y))(params)
        return len(re.findall(r"bf16\[(3,3,)?\d\d+,\d\d+\] = convert_element_type", str(jaxpr)))

    assert num_converted_kernels(params) > 10
    assert num_converted_kernels(cast) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_group_norm_of_values_far_from_zero(dtype):
    x = (8 + jax.random.normal(jax.random.key(0), (2, 16, 16, 64))).astype(dtype)
    scale, shift = np.linspace(0.5, 2, 64), np.linspace(-1, 1, 64)
    params = {"scale": jnp.asarray(scale, jnp.float32), "bias": jnp.asarray(shift, jnp.float32)}
    got = jax.jit(GroupNorm(dtype="float32").apply)({"params": params}, x)
    groups = np.asarray(x, np.float64).reshape(2, 256, 32, 2)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    normalised = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, normalised * scale + shift, atol=NORM[dtype])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_group_norm_of_a_constant_is_the_shift(dtype):
    params = {"scale": jnp.ones(32), "bias": jnp.linspace(-1, 1, 32)}
    got = jax.jit(GroupNorm(dtype="float32").apply)({"params": params}, jnp.full((1, 7, 9, 32), 3.3, dtype))
    np.testing.assert_allclose(got, np.broadcast_to(params["bias"], got.shape), atol=1e-3)


def test_equal_configurations_are_one_static_value():
    assert UNet() == UNet()
    assert hash(UNet()) == hash(UNet())
    assert UNet() != UNet(dtype="bfloat16")


def test_class_conditional_prior_uses_its_label():
    module, params = small(num_classes=5)
    prior = dd.DiffusionPrior(params, dd.linear_schedule(), module, (8, 8, 3), label=jnp.int32(2))
    x = jax.random.normal(jax.random.key(3), (8, 8, 3))
    want = jax.jit(module.apply)({"params": params}, x[None], jnp.asarray([100]), jnp.asarray([2]))[0, ..., :3]
    np.testing.assert_allclose(jax.jit(prior.predict)(x, dd.linear_schedule().at_time(100))[1], want, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((1, 9, 8, 3), None, "multiples of 2"),
        ((1, 8, 8, 1), None, "3 channels"),
        ((1, 8, 8, 3), [1], "takes no labels"),
    ],
)
def test_bad_inputs_are_refused(shape, labels, message):
    module, params = small()
    extra = () if labels is None else (jnp.asarray(labels),)
    with pytest.raises(ValueError, match=message):
        module.apply({"params": params}, jnp.zeros(shape), jnp.zeros(1, jnp.int32), *extra)


def test_inference_needs_help_only_where_shapes_are_silent(golden):
    case = json.loads(golden("unet_variants.json").read_text())["new_order"]
    shapes = {key: tuple(shape) for key, shape in case["shapes"].items()}
    with pytest.raises(ValueError, match="--head-width or --num-heads"):
        adm_unet.infer({**shapes, "time_embed.0.weight": (192, 48)}, head_width=48)
    with pytest.raises(ValueError, match="not both"):
        adm_unet.infer(shapes, head_width=16, num_heads=4)
