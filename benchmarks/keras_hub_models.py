"""Vision networks of keras-hub, small and without presets, for `benchmarks.coverage`; needs `pip install keras-hub`.

    .venv/bin/python -m benchmarks.coverage --models=benchmarks/keras_hub_models.py --only='keras_hub_models/*'

`MODELS` maps a name to a function that builds the network.
"""

import functools
import importlib

import keras
import keras_hub

from tfnas.graph.models import sized

_IMAGE = (32, 32, 3)
_models = keras_hub.models
_HALF = {"bottle_ratio": [0.5], "block_ratio": [0.5], "expand_ratio": [1.0]}


def _resnet(block_type="basic_block", **options):
    settings = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [3],
        "stackwise_num_filters": [64, 32, 48],
        "stackwise_num_blocks": [2, 2, 2],
        "stackwise_num_strides": [1, 2, 2],
        "image_shape": _IMAGE,
    }
    return _models.ResNetBackbone(block_type=block_type, **{**settings, **options})


def _pyramid(shape=(64, 64, 3)):
    """An encoder of four levels."""
    return _resnet(
        stackwise_num_filters=[64, 24, 32, 48],
        stackwise_num_blocks=[1] * 4,
        stackwise_num_strides=[1, 2, 2, 2],
        image_shape=shape,
    )


def _resnet_d():
    return _resnet("basic_block_vd", input_conv_filters=[16, 16, 64], input_conv_kernel_sizes=[3, 3, 3])


def _cspnet(block_type, stage_type, **options):
    return _models.CSPNetBackbone(
        stem_filters=16,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 2, 2],
        stackwise_strides=[1, 2, 2],
        stackwise_num_filters=[16, 32, 48],
        block_type=block_type,
        stage_type=stage_type,
        image_shape=_IMAGE,
        **options,
    )


def _densenet():
    return _models.DenseNetBackbone(stackwise_num_repeats=[2, 3, 2], growth_rate=8, image_shape=_IMAGE)


def _efficientnet(blocks):
    return _models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[16, 16, 24],
        stackwise_output_filters=[16, 24, 32],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=blocks,
        stackwise_force_input_filters=[0] * 3,
        stackwise_nores_option=[False] * 3,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        num_features=64,
        input_shape=_IMAGE,
    )


def _mobilenet():
    return _models.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=64,
        last_layer_filter=96,
        input_num_filters=16,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        image_shape=_IMAGE,
    )


def _mobilenet_v5():
    return _models.MobileNetV5Backbone(
        stackwise_block_types=[["er"], ["uir", "uir"]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[24], [48, 48]],
        stackwise_strides=[[2], [2, 1]],
        stackwise_act_layers=[["relu"], ["relu", "relu"]],
        stackwise_exp_ratios=[[4.0], [6.0, 6.0]],
        stackwise_se_ratios=[[0.0], [0.0, 0.0]],
        stackwise_dw_kernel_sizes=[[0], [5, 5]],
        stackwise_dw_start_kernel_sizes=[[0], [0, 0]],
        stackwise_dw_end_kernel_sizes=[[0], [0, 0]],
        stackwise_exp_kernel_sizes=[[3], [0, 0]],
        stackwise_pw_kernel_sizes=[[1], [0, 0]],
        stackwise_num_heads=[[0], [0, 0]],
        stackwise_key_dims=[[0], [0, 0]],
        stackwise_value_dims=[[0], [0, 0]],
        stackwise_kv_strides=[[0], [0, 0]],
        stackwise_use_cpe=[[False], [False, False]],
        use_msfa=False,
        image_shape=_IMAGE,
    )


def _vgg():
    return _models.VGGBackbone(stackwise_num_repeats=[1, 2], stackwise_num_filters=[16, 32], image_shape=_IMAGE)


def _xception():
    return _models.XceptionBackbone(
        stackwise_conv_filters=[[16, 24], [32, 32], [48, 48]],
        stackwise_pooling=[True, True, False],
        image_shape=(64, 64, 3),
    )


def _hgnet(light=(False, False), **options):
    """Some of the last two stages are light."""
    return _models.HGNetV2Backbone(
        depths=[1, 1, 2],
        embedding_size=16,
        hidden_sizes=[32, 48, 64],
        stem_channels=[3, 16, 16],
        hidden_act="relu",
        use_learnable_affine_block=any(light),
        stackwise_stage_filters=[(16, 16, 32, 1, 2, 3), (32, 16, 48, 1, 2, 3), (48, 24, 64, 2, 2, 5)],
        apply_downsample=[False, True, True],
        use_lightweight_conv_block=[False, *light],
        image_shape=(64, 64, 3),
        **options,
    )


def _vit(**options):
    return _models.ViTBackbone(
        image_shape=_IMAGE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, **options
    )


def _deit():
    return _models.DeiTBackbone(
        image_shape=_IMAGE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, intermediate_dim=64
    )


def _dino(version, **options):
    return getattr(_models, f"DINOV{version}Backbone")(
        patch_size=8, num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64, image_shape=_IMAGE, **options
    )


def _dino_v2(**options):
    return _dino(2, position_embedding_shape=(32, 32, 3), use_mask_token=False, **options)


def _mit():
    return _models.MiTBackbone(
        image_shape=(64, 64, 3),
        num_layers=3,
        hidden_dims=[16, 32, 32],
        layerwise_depths=[1, 1, 1],
        layerwise_num_heads=[1, 2, 2],
        layerwise_sr_ratios=[4, 2, 1],
        layerwise_patch_sizes=[7, 3, 3],
        layerwise_strides=[4, 2, 2],
        max_drop_path_rate=0.1,
    )


def _segformer():
    encoder = _models.MiTBackbone(
        image_shape=(64, 64, 3),
        num_layers=4,
        hidden_dims=[8, 16, 32, 48],
        layerwise_depths=[1, 1, 1, 1],
        layerwise_num_heads=[1, 1, 2, 2],
        layerwise_sr_ratios=[8, 4, 2, 1],
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        max_drop_path_rate=0.1,
    )
    return _models.SegFormerBackbone(image_encoder=encoder, projection_filters=32)


def _swin():
    return _models.SwinTransformerBackbone(
        image_shape=_IMAGE, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, patch_size=2
    )


def _retinanet():
    return _models.RetinaNetBackbone(
        image_encoder=_pyramid(), min_level=3, max_level=5, use_p5=False, image_shape=(64, 64, 3)
    )


def _deeplab():
    return _models.DeepLabV3Backbone(
        image_encoder=_pyramid(),
        projection_filters=8,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        upsampling_size=4,
        dilation_rates=[2, 4],
        image_shape=(64, 64, 3),
    )


def _basnet():
    return _models.BASNetBackbone(
        image_encoder=_pyramid((None, None, 3)),
        num_classes=1,
        projection_filters=64,  # as many as the encoder's stem has
        image_shape=(64, 64, 3),
    )


def _vit_det(**options):
    return _models.ViTDetBackbone(
        image_shape=_IMAGE,
        patch_size=4,
        hidden_size=16,
        num_layers=2,
        global_attention_layer_indices=[1],
        intermediate_dim=32,
        num_heads=2,
        num_output_channels=8,
        window_size=2,
        **options,
    )


def _hidden(module, name):
    """A class that keras-hub has only as a part of others."""
    return getattr(importlib.import_module(f"keras_hub.src.models.{module}"), name)


def _vision_encoder(module, name):
    return _hidden(module, name)(
        patch_size=8, hidden_dim=32, num_layers=2, num_heads=2, intermediate_dim=64, image_shape=_IMAGE
    )


def _depth_anything():
    encoder = _models.DINOV2Backbone(
        patch_size=8,
        num_layers=4,
        hidden_dim=32,
        num_heads=2,
        intermediate_dim=64,
        image_shape=(64, 64, 3),
        position_embedding_shape=(64, 64, 3),
    )
    return _models.DepthAnythingBackbone(
        image_encoder=encoder,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_dims=[16, 16, 24, 32],
        fusion_hidden_dim=16,
        head_hidden_dim=8,
        head_in_index=-1,
        feature_keys=["stage1", "stage2", "stage3", "stage4"],
    )


def _vae():
    return _hidden("vae.vae_backbone", "VAEBackbone")(
        encoder_num_filters=[32, 32],
        encoder_num_blocks=[1, 1],
        decoder_num_filters=[32, 32],
        decoder_num_blocks=[1, 1],
        sampler_method="mode",
        sample_channels=16,
    )


def _video_prism():
    return _models.VideoPrismBackbone(
        num_frames=4,
        patch_size=8,
        hidden_dim=32,
        intermediate_dim=64,
        num_heads=2,
        num_spatial_layers=1,
        num_temporal_layers=1,
        num_auxiliary_layers=0,
        image_shape=_IMAGE,
    )


def _d_fine_encoder():
    """The part of D-FINE that makes maps, without the queries that choose among their positions."""
    stages = ["stage2", "stage3"]
    model = _models.DFineBackbone(
        backbone=_hgnet((False, True), out_features=stages),
        decoder_in_channels=[32, 32],
        encoder_hidden_dim=32,
        num_labels=7,
        num_denoising=0,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=(64, 64),
        feat_strides=[8, 16],
        num_feature_levels=2,
        hidden_dim=32,
        encoder_in_channels=[48, 64],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=64,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=16,
        num_lqe_layers=2,
        out_features=stages,
        image_shape=(64, 64, 3),
        seed=0,
    )
    return keras.Model(model.input, model.encoder.output[0])


def _with_sizes(model, **shapes):
    """A model whose inputs of these names have these sizes; left open, it is not known how many channels they have."""
    return sized(model, [(None, *shapes.get(x.name, x.shape[1:])) for x in model.inputs])


def _parseq():
    model = _models.PARSeqBackbone(
        image_encoder=_vit(use_class_token=False, name="encoder"),
        vocabulary_size=11,
        max_label_length=16,
        decoder_hidden_dim=32,
        num_decoder_layers=1,
        num_decoder_heads=2,
        decoder_mlp_dim=64,
    )
    return _with_sizes(model, token_ids=(16,), padding_mask=(16,))


def _sam():
    size = {"hidden_size": 8, "image_embedding_size": (8, 8), "input_image_size": (32, 32)}
    decoder = keras_hub.layers.SAMMaskDecoder(
        num_layers=2,
        hidden_size=8,
        intermediate_dim=32,
        num_heads=2,
        embedding_dim=8,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=8,
    )
    backbone = _models.SAMBackbone(
        image_encoder=_vit_det(),
        prompt_encoder=keras_hub.layers.SAMPromptEncoder(**size, mask_in_channels=16),
        mask_decoder=decoder,
    )
    model = _models.SAMImageSegmenter(backbone=backbone)
    return _with_sizes(model, points=(1, 2), labels=(1,), boxes=(1, 2, 2), masks=(1, 32, 32, 1))


def _sam3_vision():
    encoder = _hidden("sam3.sam3_vision_encoder", "SAM3VisionEncoder")(
        image_shape=_IMAGE,
        patch_size=4,
        num_layers=2,
        hidden_dim=32,
        intermediate_dim=64,
        num_heads=2,
        fpn_hidden_dim=16,
        fpn_scale_factors=[2.0, 1.0],
        pretrain_image_shape=_IMAGE,
        window_size=4,
        global_attn_indexes=[1],
    )
    image = keras.Input(_IMAGE)
    return keras.Model(image, encoder(image))


def _seeing(module, name, **options):
    """Vision encoder of a language model, built from its class and `options`."""
    settings = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32}
    return _hidden(module, name)(**settings, intermediate_dim=64, **options)


def _gemma3_vision():
    encoder = _seeing("gemma3.gemma3_vision_encoder", "Gemma3VisionEncoder", output_dim=24, pool_size=2)
    return _with_sizes(encoder, images=(1, *_IMAGE))


def _gemma4_vision(clipped=True):
    options = {"head_dim": 16, "output_dim": 24, "pool_size": 2, "position_embedding_size": 16}
    encoder = _seeing("gemma4.gemma4_vision_encoder", "Gemma4VisionEncoder", use_clipped_linears=clipped, **options)
    return _with_sizes(encoder, pixel_values=(1, 16, 192), pixel_position_ids=(1, 16, 2))


def _pali_gemma_vision():
    return _seeing("pali_gemma.pali_gemma_vit", "PaliGemmaVit", num_classes=24)


def _blip2_vision():
    parts = {f"use_{part}": True for part in ("patch_bias", "class_token", "mha_bias", "mlp_bias")}
    numbers = {"dropout_rate": 0.0, "layer_norm_epsilon": 1e-6, "initializer_range": 0.02}
    return _seeing("blip2.blip2_vision_encoder", "BLIP2VisionEncoder", **parts, **numbers)


def _classifier():
    return _models.ViTImageClassifier(backbone=_vit(), num_classes=7)


MODELS = {
    "ResNet": _resnet,
    "ResNet bottleneck": functools.partial(_resnet, "bottleneck_block"),
    "ResNetV2": functools.partial(_resnet, "bottleneck_block", use_pre_activation=True),
    "ResNet-vd": _resnet_d,
    "DenseNet": _densenet,
    "MobileNet": _mobilenet,
    "MobileNetV5": _mobilenet_v5,
    "EfficientNet v1": functools.partial(_efficientnet, ["v1"] * 3),
    "EfficientNet v2": functools.partial(_efficientnet, ["fused", "fused", "unfused"]),
    "CSPNet dark": functools.partial(_cspnet, "dark_block", "csp", **_HALF),
    "CSPNet bottleneck": functools.partial(_cspnet, "bottleneck_block", "cs3", **_HALF),
    "CSPNet edge": functools.partial(_cspnet, "edge_block", "dark"),
    "VGG": _vgg,
    "Xception": _xception,
    "HGNetV2": _hgnet,
    "HGNetV2 light": functools.partial(_hgnet, (True, True)),
    "ViT": _vit,
    "ViT without class token": functools.partial(_vit, use_class_token=False),
    "ViT classifier": _classifier,
    "DeiT": _deit,
    "DINOv2": _dino_v2,
    "DINOv2 registers": functools.partial(_dino_v2, num_register_tokens=2, use_swiglu_ffn=True),
    "DINOv3": functools.partial(_dino, 3, use_mask_token=False),
    "MiT": _mit,
    "SegFormer": _segformer,
    "SwinTransformer": _swin,
    "RetinaNet": _retinanet,
    "DeepLabV3": _deeplab,
    "BASNet": _basnet,
    "ViTDet": _vit_det,
    "ViTDet absolute positions": functools.partial(_vit_det, use_rel_pos=False),
    "SigLIP vision": functools.partial(_vision_encoder, "siglip.siglip_vision_encoder", "SigLIPVisionEncoder"),
    "CLIP vision": functools.partial(_vision_encoder, "clip.clip_vision_encoder", "CLIPVisionEncoder"),
    "MetaCLIP2 vision": functools.partial(
        _vision_encoder, "metaclip_2.metaclip_2_vision_encoder", "MetaCLIP2VisionEncoder"
    ),
    "DepthAnything": _depth_anything,
    "VAE": _vae,
    "VideoPrism": _video_prism,
    "D-FINE encoder": _d_fine_encoder,
    "PARSeq": _parseq,
    "SAM": _sam,
    "SAM3 vision": _sam3_vision,
    "Gemma 3 vision": _gemma3_vision,
    "Gemma 4 vision": functools.partial(_gemma4_vision, False),
    "Gemma 4 vision clipped": _gemma4_vision,
    "PaliGemma vision": _pali_gemma_vision,
    "BLIP-2 vision": _blip2_vision,
}
