"""EfficientNet: what replaces XLA's grouped convolution, and where the published weights go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.models.efficientnet import Depthwise, EfficientNet, with_weights


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 7), (3, 2, 8), (5, 2, 7), (5, 1, 2)])
def test_depthwise_is_a_grouped_convolution(kernel, stride, side):
    x = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    module = Depthwise(kernel, stride)
    variables = module.init(jax.random.key(1), x)
    padding = [(kernel // 2, kernel // 2)] * 2
    expected = jax.lax.conv_general_dilated(
        x,
        variables["params"]["kernel"][:, :, None],
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


def test_every_array_but_the_head_is_the_published_one():
    shapes = jax.eval_shape(
        lambda: EfficientNet(10, num_stages=2).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
    )
    variables = jax.tree.map(lambda shape: np.zeros(shape.shape, np.float32), shapes)
    weights = _published_weights()
    params, state = with_weights(variables["params"], {"batch_stats": variables["batch_stats"]}, weights)
    # Blocks 0 to 2, of which the first has nothing to expand.
    assert sum(np.any(leaf != 0) for leaf in jax.tree.leaves((params, state))) == len(weights)
    assert not np.any(params["head"]["kernel"])
    np.testing.assert_array_equal(params["stem"]["kernel"][0, 1, 2, 3], weights["_conv_stem.weight"][3, 2, 0, 1])
    np.testing.assert_array_equal(
        params["block_1"]["depthwise"]["kernel"][0, 1, 5], weights["_blocks.1._depthwise_conv.weight"][5, 0, 0, 1]
    )
    np.testing.assert_array_equal(
        state["batch_stats"]["block_2"]["project_norm"]["var"], weights["_blocks.2._bn2.running_var"]
    )
    weights["_blocks.1._bn1.bias"] = np.ones(7)
    with pytest.raises(ValueError, match=r"_blocks\.1\._bn1\.bias \(7,\) does not fit params/block_1"):
        with_weights(variables["params"], {"batch_stats": variables["batch_stats"]}, weights)


def _published_weights():
    rng = np.random.default_rng(0)
    weights = {}

    def add(convolution, norm, shape):
        weights[f"{convolution}.weight"] = rng.normal(size=shape).astype(np.float32)
        for name in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{norm}.{name}"] = rng.normal(size=shape[0]).astype(np.float32)

    add("_conv_stem", "_bn0", (32, 3, 3, 3))
    for index, (width_in, width, expansion) in enumerate(((32, 16, 1), (16, 24, 6), (24, 24, 6))):
        wide, block = expansion * width_in, f"_blocks.{index}."
        if expansion > 1:
            add(f"{block}_expand_conv", f"{block}_bn0", (wide, width_in, 1, 1))
        add(f"{block}_depthwise_conv", f"{block}_bn1", (wide, 1, 3, 3))
        add(f"{block}_project_conv", f"{block}_bn2", (width, wide, 1, 1))
    return weights
