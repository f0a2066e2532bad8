import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import convert_weights
import ddiff_jax as dd
from convert_weights import kernel_wizard as source
from convert_weights.mapping import convert
from ddiff_jax import operators
from ddiff_jax.config import task_preset
from ddiff_jax.models.kernel_wizard import Adapter, FeatureExtractor, KernelWizard, ReconTrunk, kernel_wizard
from ddiff_jax.operators._nonlinear_blur import NonlinearBlur

pytestmark = pytest.mark.once

PARITY = 1e-5  # the recorded outputs are float32 and have seven digits; features reach 3
ORACLE = 1e-12  # float64 against float64
GRADIENT = 1e-6  # relative; float64 against a central difference
CODE = 1e-6  # float32 logarithms and cosines of different libraries

# What runs once or twice takes longer to compile than to run.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# nf, kernel_dim, residual blocks in front and at the back
PUBLISHED, TINY = (64, 512, 10, 20), (2, 16, 1, 2)
TINY_SHAPE = (128, 128, 3)


def tensor_shapes(nf, kernel_dim, front, back):
    """Names and shapes of a BKSE checkpoint in the order of its published class."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name, out, inside):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inside, 3, 3), (out,)

    def blocks(part, first, count):
        for i in range(first, first + count):
            conv(f"{part}.{i}.conv1", nf, nf)
            conv(f"{part}.{i}.conv2", nf, nf)

    for i, inside in zip((0, 2, 4), (3, nf, nf), strict=True):
        conv(f"feature_extractor.{i}", nf, inside)
    blocks("feature_extractor", 6, front)
    widths = [2 * nf, nf, 2 * nf, 4 * nf, 8 * nf, 16 * nf, 2 * kernel_dim]
    for i, (inside, out) in enumerate(itertools.pairwise(widths)):
        size = 3 if i else 7
        shapes[f"kernel_extractor.model.{1 + 3 * i}.weight"] = (out, inside, size, size)
    for i in range(19, 23):
        for j in (1, 5):
            shapes[f"kernel_extractor.model.{i}.conv_block.{j}.weight"] = (2 * kernel_dim, 2 * kernel_dim, 3, 3)
    prefix = ["adapter.model" + ".submodule" * level for level in range(5)]
    widths = [nf, nf, 2 * nf, 4 * nf, 8 * nf, 8 * nf]
    for level in range(5):
        shapes[f"{prefix[level]}.down.{min(level, 1)}.weight"] = (widths[level + 1], widths[level], 4, 4)
    for level in reversed(range(5)):
        inside = 2 * widths[level + 1] if level < 4 else widths[5] + kernel_dim
        shapes[f"{prefix[level]}.up.1.weight"] = (inside, widths[level], 4, 4)
    shapes["adapter.model.up.1.bias"] = (nf,)
    blocks("recon_trunk", 0, back)
    for place, out, inside in ((0, 4 * nf, nf), (3, 256, nf), (6, 64, 64), (8, 3, 64)):
        conv(f"recon_trunk.{back + place}", out, inside)
    return shapes


def synthetic(shapes):
    """Weights by the rule of the recorded runs, those that are not used left out."""
    tensors = {}
    for n, (key, shape) in enumerate(shapes.items()):
        if key.startswith("kernel_extractor."):
            continue
        q = np.arange(np.prod(shape), dtype=np.float64)
        if key.endswith("bias"):
            values = 0.1 * np.sin(0.5 * q + n)
        else:
            values = np.sin(0.7 * q + n) / np.sqrt(np.prod(shape[1:]))
        tensors[key] = values.astype(np.float32).reshape(shape)
    return tensors


def test_the_published_checkpoint_maps_completely():
    shapes = tensor_shapes(*PUBLISHED)
    assert len(shapes) == 159
    made = convert_weights.plan(shapes)
    assert made.module == KernelWizard() == KernelWizard(*PUBLISHED)
    assert len(made.skipped) == 14
    assert set(made.targets) | set(made.skipped) == set(shapes)
    # As PyTorch counts them in the published class.
    counts = {"feature_extractor": 814_208, "adapter": 21_037_120, "recon_trunk": 1_811_203}
    for part, count in counts.items():
        assert sum(np.prod(shapes[key]) for key, (path, _) in made.targets.items() if path[0] == part) == count


BAD_TENSORS = {
    "missing": ({"recon_trunk.1.conv2.bias": None}, "missing     recon_trunk.1.conv2.bias"),
    "unexpected": ({"recon_trunk.4.weight": (3, 2, 3, 3)}, "unexpected  recon_trunk.4.weight"),
    "mis-shaped": (
        {"adapter.model.up.1.bias": (3,)},
        r"mis-shaped  adapter.model.up.1.bias: has \(3,\), wanted \(2,\)",
    ),
    "another extractor": ({"my_kernel_extractor.model.1.weight": (1,)}, "unexpected  my_kernel_extractor"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_listed(name):
    changes, message = BAD_TENSORS[name]
    shapes = {key: shape for key, shape in (tensor_shapes(*TINY) | changes).items() if shape is not None}
    with pytest.raises(ValueError, match=message):
        convert_weights.plan(shapes)


def test_attention_and_sizes_that_no_kernel_wizard_has_are_refused():
    with pytest.raises(ValueError, match="has no num_heads"):
        convert_weights.plan(tensor_shapes(*TINY), num_heads=4)
    with pytest.raises(ValueError, match="multiple of 128"):
        source.card_fields({"kernel_dim": 16}, image_size=64)
    with pytest.raises(ValueError, match=r"adapter.*missing"):
        source.infer({"feature_extractor.0.weight": (2, 3, 3, 3)})


def test_the_published_sizes_give_the_recorded_numbers():
    shapes = tensor_shapes(*PUBLISHED)
    params = convert(synthetic(shapes), convert_weights.plan(shapes).targets)
    i, j, c = np.meshgrid(np.arange(256), np.arange(256), np.arange(3), indexing="ij")
    p = jnp.asarray((0.5 + 0.45 * np.sin(0.05 * i + 0.11 * j + c)).astype(np.float32))
    code = operators.released_kernel_code()

    def stages(params, p, code):
        features = FeatureExtractor(64, 10).apply({"params": params["feature_extractor"]}, p)
        blur = Adapter(64).apply({"params": params["adapter"]}, features, code)
        return features, blur, ReconTrunk(64, 20).apply({"params": params["recon_trunk"]}, blur)

    features, blur, change = (np.asarray(a[0]) for a in jit(stages)(params, p[None], code[None]))
    # Recorded from the published class with these weights: mean and (unbiased) deviation, the first three of a
    # channels-first row, and one inside.
    recorded = [
        (features, 0.03968401, 1.0130482, (-0.7349246, -2.2176285, -2.8126311), (10, 20, 5), -0.00096416),
        (blur, 0.00143585, 0.1181380, (0.0682356, -0.0233812, -0.1741960), (10, 20, 5), -0.02062659),
        (change, 0.09012135, 0.0506125, (-0.2091306, -0.2754495, -0.2616499), (100, 200, 1), 0.10113673),
        (p + change, 0.5903460, 0.3222374, None, (100, 200, 1), 0.7230443),
    ]
    for array, mean, deviation, first, place, inside in recorded:
        wide = np.asarray(array, np.float64)
        np.testing.assert_allclose([wide.mean(), wide.std(ddof=1)], [mean, deviation], atol=PARITY)
        np.testing.assert_allclose(array[place], inside, atol=PARITY)
        if first is not None:
            np.testing.assert_allclose(array[0, :3, 0], first, atol=PARITY)
    for pixel, q in {(0, 0): (0.2908694, 0.7237071, 1.0508522), (100, 200): (1.0109664, 0.7230443, 0.2964534)}.items():
        np.testing.assert_allclose((p + change)[pixel], q, atol=PARITY)


def numpy_conv(x, weight, stride=1):
    """Zero padding 1; x [H, W, in], weight (out, in, kh, kw) as in PyTorch."""
    size = weight.shape[2]
    height, width = ((n + 2 - size) // stride + 1 for n in x.shape[:2])
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    y = np.zeros((height, width, len(weight)))
    for a in range(size):
        for b in range(size):
            seen = padded[a:, b:][: stride * height : stride, : stride * width : stride]
            y += (np.ascontiguousarray(seen).reshape(height * width, -1) @ np.copy(weight[:, :, a, b].T)).reshape(
                y.shape
            )
    return y


def numpy_up(x, weight):
    """Transposed convolution k4 s2 p1: y[2i + a - 1] += w[a] x[i]; weight (in, out, kh, kw)."""
    height, width, _ = x.shape
    y = np.zeros((2 * height + 2, 2 * width + 2, weight.shape[1]))
    for a in range(4):
        for b in range(4):
            y[a : a + 2 * height : 2, b : b + 2 * width : 2] += x @ np.copy(weight[:, :, a, b])
    return y[1:-1, 1:-1]


def numpy_blur(tensors, p, code, front, back):
    """The network of the published class in plain float64."""
    weights: dict[str, Any] = {key: value.astype(np.float64) for key, value in tensors.items()}

    def relu(x, slope=0.0):
        return np.where(x >= 0, x, slope * x)

    def conv(name, x, stride=1):
        return numpy_conv(x, weights[f"{name}.weight"], stride) + weights[f"{name}.bias"]

    def block(name, x):
        return x + conv(f"{name}.conv2", relu(conv(f"{name}.conv1", x)))

    def shuffle(x):
        height, width, channels = x.shape
        out = np.zeros((2 * height, 2 * width, channels // 4))
        for a in range(2):
            for b in range(2):
                out[a::2, b::2] = x[..., 2 * a + b :: 4]
        return out

    def level(x, depth):
        prefix = "adapter.model" + ".submodule" * depth
        skip = x
        x = numpy_conv(relu(x, 0.2) if depth else x, weights[f"{prefix}.down.{min(depth, 1)}.weight"], 2)
        x = np.concatenate([x, code], -1) if depth == 4 else level(x, depth + 1)
        x = numpy_up(relu(x), weights[f"{prefix}.up.1.weight"])
        return np.concatenate([x, skip], -1) if depth else np.tanh(x + weights["adapter.model.up.1.bias"])

    x = p
    for i, stride in ((0, 1), (2, 2), (4, 2)):
        x = relu(conv(f"feature_extractor.{i}", x, stride), 0.1)
    for i in range(front):
        x = block(f"feature_extractor.{6 + i}", x)
    x = level(x, 0)
    for i in range(back):
        x = block(f"recon_trunk.{i}", x)
    for i in (0, 3):
        x = relu(shuffle(conv(f"recon_trunk.{back + i}", x)), 0.1)
    x = relu(conv(f"recon_trunk.{back + 6}", x), 0.1)
    return p + conv(f"recon_trunk.{back + 8}", x)


@functools.cache
def tiny_params():
    shapes = tensor_shapes(*TINY)
    return convert(synthetic(shapes), convert_weights.plan(shapes).targets)


def tiny_operator(seed=0):
    return operators.nonlinear_blur(TINY_SHAPE, params=tiny_params(), kernel_code=seed)


def uniform(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.RandomState(seed).uniform(-1, 1, shape), dtype)


@jit
def evaluate(operator, x, y):
    """Measurement, data term and its gradient."""

    def data_term(x):
        blurred = operator.forward(x)
        return jnp.sum((blurred - y) ** 2) / 2, blurred

    (value, blurred), gradient = jax.value_and_grad(data_term, has_aux=True)(x)
    return blurred, value, gradient


@pytest.fixture
def wide_case(x64):
    """An operator for non-square images with a code of two places, an image and a measurement, in float64."""
    shape = (128, 256, 3)
    code = 1.2 * np.random.RandomState(0).randn(1, 2, 16)
    operator = operators.nonlinear_blur(shape, params=tiny_params(), kernel_code=code)
    return operator, uniform(0, shape, jnp.float64), uniform(1, shape, jnp.float64)


def test_other_sizes_equal_plain_loops(wide_case):
    operator, x, y = wide_case
    code = np.asarray(operator.kernel_code, np.float64)
    want = numpy_blur(synthetic(tensor_shapes(*TINY)), (np.asarray(x) + 1) / 2, code, *TINY[2:])
    np.testing.assert_allclose(evaluate(operator, x, y)[0], np.clip(2 * want - 1, -1, 1), atol=ORACLE)


def test_gradient_equals_a_central_difference(wide_case):
    operator, x, y = wide_case
    blurred, _, gradient = evaluate(operator, x, y)
    assert 0.01 < jnp.mean(jnp.abs(blurred) == 1) < 0.99, "the case must show the clamp and what it lets through"
    direction, h = uniform(2, x.shape, x.dtype), 1e-7
    quotient = (evaluate(operator, x + h * direction, y)[1] - evaluate(operator, x - h * direction, y)[1]) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), quotient, rtol=GRADIENT)


@dataclasses.dataclass(frozen=True)
class NoBlur:
    """A network that leaves the image as it is, so that y = clamp(x, -1, 1)."""

    def apply(self, variables, x, kernel_code):
        return x


def test_the_clamp_passes_the_derivative_on_the_closed_interval_only():
    operator = NonlinearBlur({}, jnp.zeros((1, 1, 1)), NoBlur(), (1, 6, 1))
    x = np.array([-1.25, -1.0, 0.5, 1.0, 1.25, np.nan], np.float32).reshape(1, 6, 1)
    y, tangent = jax.jit(lambda x: jax.jvp(operator.forward, (x,), (jnp.ones_like(x),)))(x)
    np.testing.assert_array_equal(y.ravel(), [-1, -1, 0.5, 1, 1, np.nan])  # what diverged must show
    np.testing.assert_array_equal(tangent.ravel()[:5], [0, 1, 1, 1, 0])


def test_every_image_may_have_its_own_code_beside_shared_weights():
    operator, traces = tiny_operator(), []
    codes = [operators.released_kernel_code((1, 1, 16), seed=seed) for seed in range(3)]
    x = uniform(3, (3, *TINY_SHAPE))

    def for_codes(code, weight):
        """Make a tree like the operator, with one thing for the code and another for each weight."""
        return jax.tree.map(lambda leaf: code if leaf is operator.kernel_code else weight(leaf), operator)

    def forward(operator, x):
        traces.append(operator)
        return operator.forward(x)

    mapped = jit(jax.vmap(forward, in_axes=(for_codes(0, lambda _: None), 0)))

    def blur(stack, x):
        return mapped(for_codes(np.stack(stack), lambda weight: weight), x)

    got = blur(codes, x)
    np.testing.assert_allclose(blur(codes[::-1], x[::-1])[::-1], got, atol=PARITY)
    same = blur(codes[:1] * 3, x)
    np.testing.assert_allclose(same[0], got[0], atol=PARITY)
    assert jnp.max(jnp.abs(same[1] - got[1])) > 1e-3, "codes must change the blur"
    assert len(traces) == 1, "codes are data: others must not compile again"
    assert tiny_operator() == operator != tiny_operator(1)


def test_a_converted_file_makes_the_operator(tmp_path):
    shapes = tensor_shapes(*TINY)
    unused = {key: np.zeros(shape, np.float32) for key, shape in shapes.items() if key.startswith("kernel_extractor.")}
    save_file(synthetic(shapes) | unused, tmp_path / "bkse.safetensors")
    card = convert_weights.convert(tmp_path / "bkse.safetensors", tmp_path / "bkse", verify=True)
    assert (card.kind, card.image_shape) == ("kernel_wizard", (256, 256, 3))
    assert any("14 tensors" in note for note in card.notes)
    np.save(tmp_path / "code.npy", operators.released_kernel_code((1, 1, 16)))
    for path in (tmp_path / "bkse", str(tmp_path / "bkse")):
        got = operators.nonlinear_blur(TINY_SHAPE, params=path, kernel_code=tmp_path / "code.npy")
        assert got == tiny_operator()
    with pytest.raises(ValueError, match=r"kind kernel_wizard, wanted adm_unet"):
        dd.load_prior(tmp_path / "bkse")
    with pytest.raises(FileNotFoundError):
        operators.nonlinear_blur(TINY_SHAPE, params=tmp_path / "nowhere")


def test_the_published_kernel_code_of_seed_0():
    code = operators.released_kernel_code()
    assert code.shape == (2, 2, 512) and code.dtype == np.float32
    row = code.transpose(2, 0, 1).ravel() / 1.2  # PyTorch's order
    first = [-1.1258398, -1.1523602, -0.2505786, -0.4338788, 0.8487103, 0.6920092, -0.3160, -2.1152]
    np.testing.assert_allclose(row[:6], first[:6], atol=CODE)
    np.testing.assert_allclose(row[6:8], first[6:], atol=5e-5)  # recorded to four digits
    np.testing.assert_allclose(row.sum(dtype=np.float64), 27.1336, atol=1e-4)
    np.testing.assert_array_equal(operators.nonlinear_blur((256, 256, 3), params=_wide()).kernel_code, code)


def test_kernel_codes_of_other_seeds_are_standard_normal_and_their_own():
    # torch.manual_seed(12345); torch.randn(1, 4, 2, 2)[0, 0] with PyTorch 2.13
    code = operators.released_kernel_code((2, 2, 4), seed=12345)
    np.testing.assert_allclose(
        code[..., 0] / np.float32(1.2), [[-1.4798077, 0.487306], [-3.0127938, 0.4438552]], atol=CODE
    )
    draws = operators.released_kernel_code((16, 16, 64), seed=7).ravel() / 1.2
    np.testing.assert_allclose([draws.mean(), (draws**2).mean()], [0, 1], atol=5 * np.sqrt(2 / draws.size))


def test_the_numpy_variant_of_daps():
    drawn = 1.2 * np.random.RandomState(0).randn(1, 512, 2, 2)
    np.testing.assert_allclose(drawn.ravel()[:4], [2.11686282, 0.48018865, 1.17448558, 2.68907184], atol=1e-8)
    operator = operators.nonlinear_blur((256, 256, 3), params=_wide(), kernel_code=drawn[0].transpose(1, 2, 0))
    np.testing.assert_array_equal(operator.kernel_code[1, 0, 5], np.float32(drawn[0, 5, 1, 0]))


@functools.cache
def _wide():
    """Weights of a narrow network that reads codes of the published width."""
    module = KernelWizard(1, 512, 0, 0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *module.example_inputs())["params"]
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _without(params, part, name):
    return params | {part: {key: value for key, value in params[part].items() if key != name}}


def _build(shape=TINY_SHAPE, change=lambda params: params, **arguments):
    return operators.nonlinear_blur(shape, params=change(tiny_params()), **arguments)


BAD = {
    "size": (lambda: _build((64, 64, 3)), "multiples of 128"),
    "side": (lambda: _build((256, 250, 3)), "multiples of 128"),
    "grey": (lambda: _build((128, 128, 1)), "RGB"),
    "code shape": (lambda: _build(kernel_code=np.zeros((2, 2, 16))), r"shape \(1, 1, 16\)"),
    "PyTorch's code": (lambda: _build(kernel_code=np.zeros((1, 16, 1, 1))), "transpose"),
    "NaN code": (lambda: _build(kernel_code=np.full((1, 1, 16), np.nan)), "finite"),
    "integer code": (lambda: _build(kernel_code=np.ones((1, 1, 16), int)), "real numbers"),
    "seed": (lambda: _build(kernel_code=-1), r"\[0, 2\^32\)"),
    "code too small to draw": (lambda: operators.released_kernel_code((1, 1, 8)), "blocks of 16"),
    "no weights": (lambda: _build(change=lambda p: {}), "holds nothing"),
    "other weights": (lambda: _build(change=lambda p: {"dense": np.zeros(3)}), "holds dense"),
    "missing": (lambda: _build(change=lambda p: _without(p, "adapter", "up_0")), "up_0/bias is missing"),
    "unknown": (lambda: _build(change=lambda p: p | {"extra": np.zeros(3)}), r"extra is \(3,\), not known"),
    "scalar weight": (lambda: kernel_wizard({"adapter": {"up_4": {"kernel": np.float32(1)}}}), "holds adapter"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_with_the_remedy(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("dataset", ["ffhq", "imagenet"])
def test_presets_are_those_of_the_paper(dataset):
    solver: Any = dd.preset(dataset, "nonlinear_blur", values="published")
    assert (float(solver.step_length.gamma), solver.t0, solver.noise_schedule) == (2.5, 120, "posterior")
    task = task_preset(dataset, "nonlinear_blur")
    assert (task.operator, task.sigma_y) == ("nonlinear_blur", 0.05)
    operators.nonlinear_blur((256, 256, 3), params=_wide(), **task.arguments)
