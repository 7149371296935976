"""Models from torchvision, timm and peft, small and with random weights."""

from functools import partial
from typing import Any

import torch
from torch import nn

from tests.support.tried import torchvision_operators  # noqa: F401  # before torchvision
from tests.support.tried.transformers_text import (
    DECODER,
    ENCODER,
    T5,
    hugging_face,
    with_classes,
    with_labels,
)
from tests.support.tried.trial import Tried

import peft  # isort: skip
import timm  # isort: skip
import torchvision  # isort: skip

CLASSES = 4


def _classes(count: int) -> torch.Tensor:
    return torch.randint(0, CLASSES, (count,))


def _cross_entropy(output: Any, target: torch.Tensor) -> torch.Tensor:
    if isinstance(output, tuple):  # auxiliary heads: Inception, GoogLeNet
        return sum((nn.functional.cross_entropy(one, target) for one in output), torch.zeros(()))
    if isinstance(output, dict):  # segmentation
        return torch.stack(
            [nn.functional.cross_entropy(one, target) for one in output.values()]
        ).sum()
    return nn.functional.cross_entropy(output, target)


def _vision(name: str, size: int = 32, shape: tuple[int, ...] = (), **options: Any) -> Tried:
    def build() -> nn.Module:
        return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)

    return Tried(
        build=build,
        inputs=lambda n: (torch.randn(n, 3, *(shape or (size, size))),),
        target=_classes,
        loss_fn=_cross_entropy,
    )


def _segmentation(name: str) -> Tried:
    def build() -> nn.Module:
        return torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True
        )

    return Tried(
        build=build,
        inputs=lambda n: (torch.randn(n, 3, 32, 32),),
        target=lambda n: torch.randint(0, CLASSES, (n, 32, 32)),
        loss_fn=_cross_entropy,
    )


def _timm(name: str, size: int = 32, **options: Any) -> Tried:
    return Tried(
        build=lambda: timm.create_model(name, pretrained=False, num_classes=CLASSES, **options),
        inputs=lambda n: (torch.randn(n, 3, size, size),),
        target=_classes,
        loss_fn=_cross_entropy,
    )


def _peft(base: Any, config: peft.PeftConfig, inputs: Any = with_labels) -> Tried:
    return Tried(build=lambda: peft.get_peft_model(base(), config), inputs=inputs)


_LLAMA = partial(hugging_face, "Llama", "ForCausalLM", **DECODER)
_BERT = partial(hugging_face, "Bert", "ForSequenceClassification", **ENCODER)
_SEQ2SEQ = partial(hugging_face, "T5", "ForConditionalGeneration", **T5)
_CAUSAL, _CLASSES = peft.TaskType.CAUSAL_LM, peft.TaskType.SEQ_CLS
_QV = ["q_proj", "v_proj"]

MODELS: dict[str, Tried] = {
    # peft.
    "peft_lora": _peft(_LLAMA, peft.LoraConfig(task_type=_CAUSAL, r=2, target_modules=_QV, lora_dropout=0.0)),
    "peft_lora_dropout": _peft(_LLAMA, peft.LoraConfig(task_type=_CAUSAL, r=2, target_modules=_QV, lora_dropout=0.1)),
    "peft_dora": _peft(_LLAMA, peft.LoraConfig(task_type=_CAUSAL, r=2, target_modules=_QV, use_dora=True)),
    "peft_adalora": _peft(_LLAMA, peft.AdaLoraConfig(task_type=_CAUSAL, init_r=2, target_r=1, target_modules=_QV, total_step=10)),
    "peft_loha": _peft(_LLAMA, peft.LoHaConfig(task_type=_CAUSAL, r=2, target_modules=_QV)),
    "peft_lokr": _peft(_LLAMA, peft.LoKrConfig(task_type=_CAUSAL, r=2, target_modules=_QV)),
    "peft_ia3": _peft(_LLAMA, peft.IA3Config(task_type=_CAUSAL)),
    "peft_vera": _peft(_LLAMA, peft.VeraConfig(task_type=_CAUSAL, r=2, target_modules=["q_proj"])),
    "peft_oft": _peft(_LLAMA, peft.OFTConfig(task_type=_CAUSAL, oft_block_size=4, target_modules=_QV)),
    "peft_prompt": _peft(_LLAMA, peft.PromptTuningConfig(task_type=_CAUSAL, num_virtual_tokens=4)),
    "peft_prefix": _peft(_LLAMA, peft.PrefixTuningConfig(task_type=_CAUSAL, num_virtual_tokens=4)),
    "peft_lora_bert": _peft(_BERT, peft.LoraConfig(task_type=_CLASSES, r=2), with_classes),
    "peft_lora_t5": _peft(_SEQ2SEQ, peft.LoraConfig(task_type=peft.TaskType.SEQ_2_SEQ_LM, r=2)),
    # timm.
    "timm_resnet10t": _timm("resnet10t", 64),
    "timm_vit": _timm("vit_tiny_patch16_224", 32, img_size=32, embed_dim=24, depth=4, num_heads=3),
    "timm_vit_drop_path": _timm("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=4, num_heads=3, drop_path_rate=0.2),
    "timm_deit": _timm("deit_tiny_distilled_patch16_224", img_size=32, embed_dim=24, depth=4, num_heads=3),
    "timm_mixer": _timm("mixer_s32_224", 64, img_size=64),
    "timm_resmlp": _timm("resmlp_12_224", img_size=32),
    "timm_gmlp": _timm("gmlp_ti16_224", img_size=32),
    "timm_convnext": _timm("convnext_atto", 64),
    "timm_convmixer": _timm("convmixer_768_32", 32),
    "timm_efficientnet": _timm("efficientnet_b0", 64),
    "timm_mobilenetv3": _timm("mobilenetv3_small_050", 64),
    # torchvision.
    "alexnet": _vision("alexnet", 64),
}  # fmt: skip
