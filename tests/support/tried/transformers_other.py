"""Models for images, sound and several kinds of input from transformers, tiny, random weights."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

from tests.support.tried import torchvision_operators  # noqa: F401  # before transformers loads torchvision
from tests.support.tried.transformers_text import VOCABULARY, hugging_face, ids, with_labels
from tests.support.tried.trial import Tried

SIZE = 32

VIT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "projection_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_VIT = VIT | {"num_hidden_layers": 2, "projection_dim": 16}
SPEECH: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "conv_dim": (16, 16),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "pad_token_id": 0,
    "mask_time_prob": 0.0,
}


def pixels(count: int, channels: int = 3) -> torch.Tensor:
    """Random images."""
    return torch.randn(count, channels, SIZE, SIZE)


def with_classes(count: int) -> dict[str, torch.Tensor]:
    """Images, and one class for each."""
    return {"pixel_values": pixels(count), "labels": torch.randint(0, 2, (count,))}


def with_masks(count: int) -> dict[str, torch.Tensor]:
    """Images, and one class for each pixel."""
    return {"pixel_values": pixels(count), "labels": torch.randint(0, 2, (count, SIZE, SIZE))}


def image_and_text(count: int) -> dict[str, Any]:
    """Images and their texts, compared with each other."""
    return {"pixel_values": pixels(count), "input_ids": ids(count), "return_loss": True}


def speech(count: int) -> dict[str, torch.Tensor]:
    """Sound, and its text."""
    return {
        "input_values": torch.randn(count, 400),
        "labels": torch.randint(3, VOCABULARY, (count, 4)),
    }


def features(frames: int, bands: int, count: int) -> dict[str, torch.Tensor]:
    """Bands of sound over time, and its text."""
    return {"input_features": torch.randn(count, bands, frames), "labels": ids(count)}


def _image(
    family: str, head: str = "ForImageClassification", inputs: Any = with_classes, **config: Any
) -> Tried:
    return Tried(build=partial(hugging_face, family, head, **config), inputs=inputs)


def _detr(count: int) -> dict[str, Any]:
    return {"pixel_values": pixels(count), "labels": [
        {"class_labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1]])}
        for _ in range(count)
    ]}  # fmt: skip


def _last_state(output: Any, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output.last_hidden_state.mean((1, 2)), target)


def _number(count: int) -> torch.Tensor:
    return torch.randn(count)


def _llava() -> nn.Module:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SMALL_VIT),
        text_config=transformers.LlamaConfig(**{**TEXT, "num_key_value_heads": 2}),
        image_token_id=60, vision_feature_layer=-1, image_seq_length=16,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config)


def _llava_inputs(count: int) -> dict[str, torch.Tensor]:
    tokens = torch.cat([torch.full((count, 16), 60), torch.randint(3, 50, (count, 8))], 1)
    return {"input_ids": tokens, "pixel_values": pixels(count), "labels": tokens.clone()}


def _qwen2_vl() -> nn.Module:
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]},
                     "rope_parameters": {"rope_type": "default", "mrope_section": [1, 0, 1], "rope_theta": 10000.0}},
        vision_config={"embed_dim": 16, "hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2,
                       "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
        image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63,
    )  # fmt: skip
    return transformers.Qwen2VLForConditionalGeneration(config)


def _qwen2_vl_inputs(count: int) -> dict[str, torch.Tensor]:
    image = torch.full((count, 4), 60)
    tokens = torch.cat(
        [
            torch.full((count, 1), 62),
            image,
            torch.full((count, 1), 63),
            torch.randint(3, 50, (count, 6)),
        ],
        1,
    )
    return {
        "input_ids": tokens, "labels": tokens.clone(), "pixel_values": torch.randn(16 * count, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * count), "mm_token_type_ids": (tokens == 60).int(),
    }  # fmt: skip


def _vision_encoder_decoder() -> nn.Module:
    encoder = transformers.ViTConfig(**(VIT | {"num_hidden_layers": 2}))
    decoder = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2,
        add_cross_attention=True, is_decoder=True,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return transformers.VisionEncoderDecoderModel(config)


SWIN: dict[str, Any] = {
    "image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
}  # fmt: skip

MODELS: dict[str, Tried] = {
    # Images.
    "vit": _image("ViT", **VIT),
    "deit": _image("DeiT", **VIT),
    "beit": _image("Beit", **VIT),
    "data2vec_vision": _image("Data2VecVision", **VIT),
    "dinov2": _image("Dinov2", **(VIT | {"mlp_ratio": 2})),
    "vit_mae": Tried(
        build=partial(hugging_face, "ViTMAE", "ForPreTraining", decoder_num_hidden_layers=2, decoder_hidden_size=16,
                      decoder_num_attention_heads=4, decoder_intermediate_size=32, **VIT),
        inputs=lambda n: {"pixel_values": pixels(n)},
    ),
    "vit_masked": Tried(
        build=partial(hugging_face, "ViT", "ForMaskedImageModeling", encoder_stride=8, **VIT),
        inputs=lambda n: {"pixel_values": pixels(n), "bool_masked_pos": torch.rand(n, 16) > 0.5},
    ),
    "swin": _image("Swin", **SWIN),
    "swinv2": _image("Swinv2", **SWIN),
    "convnext": _image("ConvNext", depths=[1, 1, 2, 1], hidden_sizes=[8, 8, 16, 16], image_size=SIZE),
    "convnextv2": _image("ConvNextV2", depths=[1, 1, 2, 1], hidden_sizes=[8, 8, 16, 16], image_size=SIZE),
    "resnet": _image("ResNet", embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"),
    "regnet": _image("RegNet", embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], groups_width=8),
    "mobilenet_v2": _image("MobileNetV2", depth_multiplier=0.25, image_size=SIZE),
    "mobilevit": _image("MobileViT", image_size=SIZE, hidden_sizes=[8, 12, 16], neck_hidden_sizes=[4, 8, 8, 12, 12, 16, 32],
        num_attention_heads=2),
    "efficientnet": _image("EfficientNet", image_size=SIZE, width_coefficient=0.2, depth_coefficient=0.2, hidden_dim=256),
    "levit": _image("Levit", image_size=SIZE, hidden_sizes=[16, 32, 48], num_attention_heads=[2, 4, 4], depths=[1, 1, 1],
        key_dim=[4, 4, 4], patch_size=16, kernel_size=3, stride=2, padding=1),
    "pvt": _image("Pvt", image_size=SIZE, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]),
    "poolformer": _image("PoolFormer", hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
    "focalnet": _image("FocalNet", image_size=SIZE, embed_dim=8, depths=[1, 1], focal_levels=[1, 1], focal_windows=[3, 3],
        hidden_sizes=[8, 16]),
    "bit": _image("Bit", embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_groups=2),
    "hiera": _image("Hiera", image_size=[SIZE, SIZE], embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4]),
    "segformer": _image("Segformer", "ForSemanticSegmentation", with_masks, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16),
    "dpt": _image("DPT", "ForSemanticSegmentation", with_masks, **VIT, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8),
    "detr": _image("Detr", "ForObjectDetection", _detr, use_timm_backbone=False, use_pretrained_backbone=False,
        backbone=None, backbone_config=transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]), d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4, decoder_attention_heads=4, num_queries=5),
    "yolos": _image("Yolos", "ForObjectDetection", _detr, **(VIT | {"image_size": [SIZE, SIZE]}), num_detection_tokens=5),
    "videomae": Tried(
        build=partial(hugging_face, "VideoMAE", "ForVideoClassification", num_frames=4, tubelet_size=2, **VIT),
        inputs=lambda n: {"pixel_values": torch.randn(n, 4, 3, SIZE, SIZE), "labels": torch.randint(0, 2, (n,))},
    ),
    "timesformer": Tried(
        build=partial(hugging_face, "Timesformer", "ForVideoClassification", num_frames=4, **VIT),
        inputs=lambda n: {"pixel_values": torch.randn(n, 4, 3, SIZE, SIZE), "labels": torch.randint(0, 2, (n,))},
    ),
    # Images and text.
    "clip": Tried(
        build=partial(hugging_face, "CLIP", "Model", text_config=TEXT, vision_config=SMALL_VIT, projection_dim=16),
        inputs=image_and_text,
    ),
    "siglip": Tried(
        build=partial(hugging_face, "Siglip", "Model", text_config=TEXT, vision_config=SMALL_VIT), inputs=image_and_text
    ),
    "align_text": Tried(
        build=partial(hugging_face, "BertGeneration", "Decoder", **(TEXT | {"is_decoder": True})), inputs=with_labels
    ),
    "llava": Tried(build=_llava, inputs=_llava_inputs),
    "qwen2_vl": Tried(build=_qwen2_vl, inputs=_qwen2_vl_inputs),
    "vilt": Tried(
        build=partial(hugging_face, "Vilt", "ForQuestionAnswering", **VIT, vocab_size=VOCABULARY, max_image_length=-1),
        inputs=lambda n: {"input_ids": ids(n), "pixel_values": pixels(n), "labels": torch.rand(n, 2)},
    ),
    "git": Tried(
        build=partial(hugging_face, "Git", "ForCausalLM", **TEXT, vision_config=SMALL_VIT),
        inputs=lambda n: {**with_labels(n), "pixel_values": pixels(n)},
    ),
    "blip": Tried(
        build=partial(hugging_face, "Blip", "ForConditionalGeneration", text_config={**TEXT, "encoder_hidden_size": 16},
                      vision_config=SMALL_VIT, projection_dim=16),
        inputs=lambda n: {**with_labels(n), "pixel_values": pixels(n)},
    ),
    "vision_encoder_decoder": Tried(
        build=_vision_encoder_decoder, inputs=lambda n: {"pixel_values": pixels(n), "labels": ids(n)}
    ),
    # Sound.
    "whisper": Tried(
        build=partial(hugging_face, "Whisper", "ForConditionalGeneration", vocab_size=VOCABULARY, d_model=16,
                      encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                      encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=16,
                      max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                      decoder_start_token_id=1),
        inputs=partial(features, 32, 8),
    ),
    "wav2vec2": Tried(build=partial(hugging_face, "Wav2Vec2", "ForCTC", **SPEECH), inputs=speech),
    "wav2vec2_layerdrop_0": Tried(
        build=partial(hugging_face, "Wav2Vec2", "ForCTC", layerdrop=0.0, apply_spec_augment=False, **SPEECH), inputs=speech
    ),
    "hubert": Tried(build=partial(hugging_face, "Hubert", "ForCTC", layerdrop=0.0, **SPEECH), inputs=speech),
    "wavlm": Tried(build=partial(hugging_face, "WavLM", "ForCTC", layerdrop=0.0, **SPEECH), inputs=speech),
    "sew": Tried(
        build=partial(hugging_face, "SEW", "ForCTC", layerdrop=0.0, squeeze_factor=2, **SPEECH), inputs=speech
    ),
    "audio_spectrogram": Tried(
        build=partial(hugging_face, "AST", "ForAudioClassification", **{k: v for k, v in VIT.items() if k != "image_size"},
                      max_length=32, num_mel_bins=16, frequency_stride=8, time_stride=8),
        inputs=lambda n: {"input_values": torch.randn(n, 32, 16), "labels": torch.randint(0, 2, (n,))},
    ),
    "speech_to_text": Tried(
        build=partial(hugging_face, "Speech2Text", "ForConditionalGeneration", vocab_size=VOCABULARY, d_model=16,
                      encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                      encoder_ffn_dim=32, decoder_ffn_dim=32, input_feat_per_channel=8, conv_channels=16,
                      max_source_positions=40, max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        inputs=lambda n: {"input_features": torch.randn(n, 32, 8), "labels": ids(n)},
    ),
    # Series and others.
    "patchtst": Tried(
        build=partial(hugging_face, "PatchTST", "ForPrediction", context_length=32, prediction_length=8, d_model=16,
                      num_hidden_layers=3, num_attention_heads=4, ffn_dim=32, patch_length=4, patch_stride=4,
                      num_input_channels=2, loss="mse"),
        inputs=lambda n: {"past_values": torch.randn(n, 32, 2), "future_values": torch.randn(n, 8, 2)},
    ),
    "patchtsmixer": Tried(
        build=partial(hugging_face, "PatchTSMixer", "ForPrediction", context_length=32, prediction_length=8, d_model=8,
                      num_layers=3, patch_length=4, patch_stride=4, num_input_channels=2),
        inputs=lambda n: {"past_values": torch.randn(n, 32, 2), "future_values": torch.randn(n, 8, 2)},
    ),
    "decision_transformer": Tried(
        build=partial(hugging_face, "DecisionTransformer", "Model", state_dim=4, act_dim=2, hidden_size=16, n_layer=3,
                      n_head=4, n_positions=64, vocab_size=1),
        inputs=lambda n: {
            "states": torch.randn(n, 5, 4), "actions": torch.randn(n, 5, 2), "rewards": torch.randn(n, 5, 1),
            "returns_to_go": torch.randn(n, 5, 1), "timesteps": torch.arange(5).repeat(n, 1),
            "attention_mask": torch.ones(n, 5),
        },
        target=lambda n: torch.randn(n, 5, 2),
        loss_fn=lambda output, target: nn.functional.mse_loss(output.action_preds, target),
    ),
    "perceiver": Tried(
        build=partial(hugging_face, "Perceiver", "ForMaskedLM", num_latents=8, d_latents=16, d_model=16,
                      num_self_attends_per_block=3, num_self_attention_heads=4, num_cross_attention_heads=4,
                      qk_channels=16, v_channels=16, vocab_size=VOCABULARY, max_position_embeddings=12),
        inputs=lambda n: {"inputs": ids(n), "labels": ids(n)},
    ),
    "imagegpt": Tried(
        build=partial(hugging_face, "ImageGPT", "ForCausalImageModeling", vocab_size=VOCABULARY + 1, n_embd=16, n_layer=4,
                      n_head=4, n_positions=32),
        inputs=with_labels,
    ),
    "layoutlm": Tried(
        build=partial(hugging_face, "LayoutLM", "ForTokenClassification", max_2d_position_embeddings=32, **TEXT),
        inputs=lambda n: {"input_ids": ids(n), "bbox": torch.randint(0, 15, (n, 12, 4)).cummax(-1).values,
                          "labels": torch.randint(0, 2, (n, 12))},
    ),
    "clipseg_text": Tried(
        build=partial(hugging_face, "CLIPText", "Model", **TEXT),
        inputs=lambda n: {"input_ids": ids(n)},
        target=_number,
        loss_fn=_last_state,
    ),
}  # fmt: skip

_VALUES = "depends on the values of tensors"
_CANNOT_BE_CUT = {
    "detr": _VALUES,  # its loss matches boxes with scipy
    "yolos": _VALUES,
}
for _name, _reason in _CANNOT_BE_CUT.items():
    MODELS[_name] = replace(MODELS[_name], one_layer=_reason)

# Its gradients cancel: rounding in float32 is 1.4 times the tolerance of the check. It draws random
# numbers, which a run in float64 would draw otherwise, so that its own rounding is not known.
MODELS["dpt"] = replace(MODELS["dpt"], dtype="float64")
