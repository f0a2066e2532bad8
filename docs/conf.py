"""How the site is built: `sphinx-build -W --keep-going docs build/site` from the top of the repository."""

import inspect
import os
import re

# Also where there is an accelerator: one site everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from sphinx_gallery.sorting import ExplicitOrder

import ddiff_jax

project = "ddiff_jax"
author = "The ddiff_jax authors"
project_copyright = "2026, the ddiff_jax authors"
version = release = ddiff_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",  # formulas are set without a network
]
exclude_patterns = ["_templates", "gallery", "examples", "**/*.ipynb", "sg_execution_times.rst"]
templates_path = ["_templates"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120

autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
# A thing that several modules offer is described once, on the page of the first of them, and named on the others.
FOLDERS = [name for name in ddiff_jax.__all__ if inspect.ismodule(getattr(ddiff_jax, name))]
homes: dict[str, str] = {}
for module in (ddiff_jax, ddiff_jax.operators, ddiff_jax.priors, ddiff_jax.solvers):
    homes |= {name: module.__name__ for name in module.__all__ if name not in homes}
autosummary_context = {"homes": homes, "folders": FOLDERS}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "notes_style"), ("Differs", "notes_style"), ("Cost", "notes_style")]

html_theme = "sphinx_book_theme"
html_title = "ddiff_jax"
html_static_path = ["_static"]
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# From the first thing that one does to what takes a second visit.
EXAMPLES = [
    "super_resolution",
    "coded_aperture",
    "equinox_prior",
    "dead_pixels",
    "photons",
    "measured_psf",
    "larger_images",
    "mri",
    "ct",
    "black_hole",
    "volume",
    "phase_retrieval",
    "steps",
    "compare_solvers",
    "calibration",
    "learn_gamma",
    "inside_your_program",
    "train_a_prior",
]
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples_gallery",
    "filename_pattern": r"/.*\.py$",
    "within_subsection_order": ExplicitOrder([f"{name}.py" for name in EXAMPLES]),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_memory": False,
    "download_all_examples": False,
    "min_reported_time": 0,
    "matplotlib_animations": False,
    "image_scrapers": ("matplotlib",),
    "parallel": 2,
}


def as_rest(app, what, name, obj, options, lines: list[str]) -> None:
    """Let docstrings be plain text: `code` is code, and bars and stars are bars and stars."""
    literal = False
    for i, line in enumerate(lines):
        literal = (literal and (not line or line.startswith(" "))) or line.lstrip().startswith(">>>")
        if literal:
            continue
        parts = re.split(r"(``.*?``|`[^`]+`)", line)
        parts[::2] = [re.sub(r"([|*]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"``{part.strip('`')}``" for part in parts[1::2]]
        lines[i] = "".join(parts)


# How signatures spell types that have names.
NAMED = {
    "jax.jaxlib._jax.Array": "Array",
    "jaxlib._jax.Array": "Array",
    "float | int | number | Float[Array, '']": "Scalar",
    "Float[Array, '...'] | Complex[Array, '...']": "Measurement",
    "Float[Array, '...']": "Image",
    "Key[Array, '']": "PRNGKey",
}


def with_names(app, what, name, obj, options, signature: str | None, returns: str | None):
    """Write the names of types instead of what they stand for."""
    for long, short in NAMED.items():
        signature, returns = (text and text.replace(long, short) for text in (signature, returns))
    return signature, returns


def setup(app) -> None:
    app.connect("autodoc-process-signature", with_names)
    app.connect("autodoc-process-docstring", as_rest, priority=100)
