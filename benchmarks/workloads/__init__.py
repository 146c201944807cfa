"""The workloads by name: `get("digits_mlp")`. Nothing is loaded before it is asked for."""

from collections.abc import Callable

from benchmarks.workload import Workload
from benchmarks.workloads import (
    contrastive,
    density,
    detection,
    diffusion,
    digits,
    embedding,
    functions,
    language,
    physics,
    prices,
    recommendation,
    tabular,
    transfer,
    understanding,
    vision,
)

WORKLOADS: dict[str, Callable[..., Workload]] = {
    workload.__name__: workload
    for workload in (
        digits.digits_mlp,
        digits.digits_autoencoder,
        digits.digits_policy,
        tabular.logreg_fullbatch,
        tabular.logreg_minibatch,
        vision.resnet_fashion,
        transfer.efficientnet_finetune,
        language.gpt_moby,
        language.gpt_sotu,
        language.gru_moby,
        recommendation.bert4rec_ml100k,
        vision.vit_fashion,
        understanding.minilm_lora,
        understanding.minilm_bitfit,
        understanding.minilm_full,
        detection.detector_scenes,
        vision.deep_resnet_nonorm,
        density.flow_letter,
        prices.variance_prices,
        diffusion.diffusion_digits,
        physics.pinn_burgers,
        contrastive.contrastive_digits,
        language.postnorm_moby,
        embedding.word2vec_moby,
        functions.beale,
        functions.rosenbrock,
    )
}


def get(name: str, tiny: bool = False) -> Workload:
    """The workload; `tiny` is a slice that runs in seconds on synthetic or installed data of the same shapes."""
    if name not in WORKLOADS:
        raise ValueError(f"Unknown workload {name!r}. Known: {', '.join(WORKLOADS)}.")
    return WORKLOADS[name](tiny=tiny)
