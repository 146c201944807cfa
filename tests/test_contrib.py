"""The suite that optax holds its own contributions to, read from the installed optax and run on GeN as it stands.

Its loops give `update` no loss, except to Sophia, which gets `obj_fn`: GeN goes under that name.
"""

import ast
import importlib.util
import pathlib
import types

import pytest
from optax import contrib
from situations import CONTRIB_BASES as BASES

import gen_optax

pytestmark = pytest.mark.filterwarnings("ignore:scale_by_gen runs inside optax.MultiSteps:UserWarning")

LISTS = ("_MAIN_OPTIMIZERS_UNDER_TEST", "_ALL_OPTIMIZERS_UNDER_TEST")


def sophia(base):
    return gen_optax.gen(BASES[base])


def suite():
    """The test case of `optax/contrib/_common_test.py`, over GeN where its lists name optax's optimizers."""
    file = pathlib.Path(contrib.__file__).with_name("_common_test.py")
    tree = ast.parse(file.read_text())
    assert set(LISTS) <= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    # The lists are read where the class is made: they are replaced just before.
    first = next(i for i, node in enumerate(tree.body) if isinstance(node, ast.ClassDef))
    tree.body[first:first] = ast.parse(f"{' = '.join(LISTS)} = GEN\ncontrib = CONTRIB").body
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("optax_common_test", file))
    module.GEN = tuple(
        {"opt_name": "sophia", "opt_kwargs": {"base": base}, "wrapper_name": None, "wrapper_kwargs": None}
        for base in BASES
    )
    module.CONTRIB = types.SimpleNamespace(sophia=sophia)
    exec(compile(tree, file, "exec"), module.__dict__)
    return module.ContribTest


ContribTest = suite()
