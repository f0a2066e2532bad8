import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddiff_jax import operators, pytree_dataclass, static_field


@pytree_dataclass
class Sample:
    value: jax.Array
    size: int = static_field(default=3)

    def __post_init__(self):
        if not isinstance(self.value, jax.Array):
            raise TypeError("constructor ran")


def test_unflatten_skips_the_constructor():
    sample = Sample(jnp.ones(2))
    placeholder = jax.tree.map(lambda leaf: None, sample)
    assert placeholder.value is None
    assert placeholder.size == 3
    with pytest.raises(TypeError, match="constructor ran"):
        Sample(1.0)  # pyright: ignore[reportArgumentType] - a wrong type on purpose


def test_static_fields_are_structure_and_others_are_leaves():
    sample = Sample(jnp.ones(2))
    assert len(jax.tree.leaves(sample)) == 1
    assert jax.tree.structure(sample) != jax.tree.structure(Sample(jnp.ones(2), 4))
    ((path, _),) = jax.tree_util.tree_flatten_with_path(sample)[0]
    assert jax.tree_util.keystr(path) == ".value"


def test_equality_is_by_value():
    assert Sample(jnp.ones(2)) == Sample(jnp.ones(2))
    assert Sample(jnp.ones(2)) != Sample(jnp.zeros(2))
    assert Sample(jnp.ones(2)) != Sample(jnp.ones(2), 4)
    assert Sample(jnp.ones(2)) != 1


def test_frozen_and_printable():
    sample = Sample(jnp.ones((2, 5)))
    with pytest.raises(AttributeError):
        sample.size = 4  # pyright: ignore[reportAttributeAccessIssue] - forbidden on purpose
    assert repr(sample) == "Sample(value=float32[2, 5], size=3)"


def test_operators_stack_and_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.vmap(lambda key: operators.random_inpainting((8, 8, 3), key, fraction=0.5))(keys)
    singles = [operators.random_inpainting((8, 8, 3), key, fraction=0.5) for key in keys]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
    assert stacked == together
    x = jnp.ones((3, 8, 8, 3))
    out = jax.vmap(lambda operator, x: operator.forward(x))(stacked, x)
    np.testing.assert_array_equal(out[1], singles[1].forward(x[1]))
