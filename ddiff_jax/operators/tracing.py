"""Why an operator cannot be traced, and what to write instead."""

import jax

from ddiff_jax.operators.base import ImageShape

# What JAX says when Python looks at values that are not there yet, and what to write instead. The first that fits
# counts, since some of these types are kinds of others.
CURES: dict[type[Exception], str] = {
    jax.errors.NonConcreteBooleanIndexError: (
        "what jax.numpy makes inside forward has no values yet, so nobody knows how many entries a boolean mask keeps; "
        "make a constant mask with NumPy (np.arange(64) % 3 != 2), and where the mask depends on the image keep the "
        "shape with jnp.where(mask, x, 0)"
    ),
    jax.errors.TracerBoolConversionError: (
        "if, while, and, or, not and min() look at a value that is not there yet; choose between values with "
        "jnp.where (jnp.minimum, jnp.logical_and), between computations with jax.lax.cond"
    ),
    jax.errors.TracerArrayConversionError: (
        "NumPy cannot compute on the image, which has no values yet; call the function of the same name in jax.numpy "
        "there, and leave NumPy to constants"
    ),
    jax.errors.TracerIntegerConversionError: (
        "an index, a range or a size comes from a value that is not there yet; index arrays with x[i] or jnp.take "
        "instead of lists, loop with jax.lax.fori_loop, and take sizes from x.shape or from constants"
    ),
    jax.errors.ConcretizationTypeError: (
        "float(), int(), .item() and sizes that depend on the image need values that are not there yet; leave the "
        "conversion out (an array of shape () computes like a number), and take sizes from x.shape or from constants"
    ),
    jax.errors.UnexpectedTracerError: (
        "forward keeps an array of an earlier call, on self, in a global or in a cache; return it or compute it anew, "
        "and keep NumPy arrays or fields of the operator instead"
    ),
}


def diagnosis(error: Exception, shape: ImageShape) -> str:
    """Say what an operator raised when it was called with an image of this shape, and the cure."""
    lines = str(error).strip().splitlines() or [""]
    anything_else = f"it is called with one image of shape {list(shape)}, without a batch axis"
    cure = next((text for kind, text in CURES.items() if isinstance(error, kind)), anything_else)
    return f"raises {type(error).__name__}: {lines[0][:300].rstrip('.')}; {cure}"
