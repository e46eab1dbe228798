"""What makes the shapes and processors of image-text types small: tables of common names, and what some types need.

Only names that a configuration or processor has are set, so the tables can be long.
"""

from __future__ import annotations

from typing import Any

TOKENS = 640  # of the vocabulary: text below WORDS, the families' own tokens above
SIDE, PATCH = 32, 8  # pixels of an image that is resized, and of a patch
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PLACEHOLDER{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# attribute of the tokenizer -> the token; a processor or configuration asks for it by this name
NAMED = {
    "image_token": "<image>",
    "video_token": "<video>",
    "audio_token": "<audio>",
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "boa_token": "<boa>",
    "eoa_token": "<eoa>",
    "image_start_token": "<image_start>",
    "image_end_token": "<image_end>",
    "start_image_token": "<image_start>",
    "end_image_token": "<image_end>",
    "context_image_token": "<image>",
    "image_bos_token": "<image_start>",
    "audio_bos_token": "<audio_start>",
    "video_start_token": "<video_start>",
    "video_end_token": "<video_end>",
    "vision_start_token": "<vision_start>",
    "vision_end_token": "<vision_end>",
    "image_boundary_token": "<fake_token_around_image>",
    "img_line_break_token": "<line_break>",
    "image_thumbnail_token": "<|img_thumbnail|>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
    "vision_bos_token": "<vision_start>",
    "vision_eos_token": "<vision_end>",
    "audio_eos_token": "<audio_end>",
    "tile_token": "<tile>",
    "image_break_token": "[IMG_BREAK]",
}
WRITTEN = [  # that processors spell out
    *("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<|START_OF_IMG|>", "<|END_OF_IMG|>"),
    *("<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<|image|>"),
    *("<|video|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image_start|>", "<|image_end|>"),
    *(
        "<img>",
        "</img>",
        "<imgpad>",
        "<im_start>",
        "<im_end>",
        "<im_col>",
        "<im_patch>",
        "<patch_start>",
        "<patch_end>",
    ),
    *("<patch_newline>", "<low_res_im_start>", "<|media_pad|>", "<im_low>", "<|image_pad|>", "<|video_pad|>"),
    *("<unk>", "|SPEAKER|", "|NEWLINE|", "<0x04>", "<|python_tag|>", "<eoss>", "<image_newline>", "<image_pad>"),
    *("<|IMAGE_PAD|>", "<|VISION_START|>", "<|VISION_END|>", "<|VIDEO_PAD|>"),
    *("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>["),
    *("<IMG_START>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
    *("<so_embedding>", "<|begin_of_image|>", "<|end_of_image|>", "<frame_start>", "<frame_end>", "<IMG_CONTEXT>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
    *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)),
    *(f"<|reserved_{number}|>" for number in range(8)),
]
IDS = {  # of a configuration, beside those of the same name in NAMED
    "image_patch_id": "<im_patch>",
    "low_res_image_start_token_id": "<low_res_im_start>",
    "frame_start_token_id": "<frame_start>",
    "frame_end_token_id": "<frame_end>",
    "im_start_id": "<image_start>",
    "im_end_id": "<image_end>",
    "im_newline_id": "<image_newline>",
    "image_start_id": "<image_start>",
    "image_end_id": "<image_end>",
    "slice_start_id": "<slice>",
    "slice_end_id": "</slice>",
    "newline_id": "<image_newline>",
    "audio_start_token_id": "<audio_start>",
    "audio_end_token_id": "<audio_end>",
    "user_token_id": "<|reserved_0|>",
}
VISION: dict[str, Any] = {
    **dict.fromkeys(("depth", "num_hidden_layers", "n_layers"), 2),
    **dict.fromkeys(("num_heads", "num_attention_heads", "attention_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("hidden_size", "embed_dim", "out_hidden_size", "text_hidden_size", "patch_embed_hidden_size"), 32),
    **dict.fromkeys(("projection_dim", "vision_output_dim", "projector_input_dim", "projector_output_dim"), 32),
    **dict.fromkeys(("output_channels", "encoder_hidden_size", "decoder_hidden_size", "vision_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "mlp_dim", "d_ff"), 64),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    **dict.fromkeys(("d_model", "output_dim", "downsample_hidden_size", "mm_embed_dim", "output_proj_dims"), 32),
    **dict.fromkeys(("audio_embed_dim",), 32),
    **dict.fromkeys(("encoder_layers",), 1),
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "max_source_positions": 64,
    "posemb_grid_size": 8,
    "image_size": SIDE,
    "patch_size": PATCH,
    "num_position_embeddings": 64,
    "num_patches": 16,
    "window_size": SIDE,
    "fullatt_block_indexes": [1],
    "global_attn_indexes": [1],
    "deepstack_visual_indexes": [0],
    "vision_use_head": False,
    "mlp_ratio": 2,
    "spatial_merge_size": 2,
    **dict.fromkeys(("pos_emb_height", "pos_emb_width"), 8),
    "vocab_size": TOKENS,
    "max_position_embeddings": 256,
}
WHOLE: dict[str, Any] = {
    "image_size": SIDE,
    "image_seq_length": 16,
    "mm_tokens_per_image": 4,
    "vision_soft_tokens_per_image": 4,
    **dict.fromkeys(("projector_hidden_size", "alignment_intermediate_size", "projection_hidden_size"), 32),
    **dict.fromkeys(("merged_hidden_size",), 128),
    **dict.fromkeys(("out_hidden_size", "projection_dim", "vision_hidden_size", "hidden_size"), 32),
    "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]],
    "image_text_hidden_size": 16,
    "num_query_tokens": 4,
    "latent_query_num": 4,
    "vision_feature_layer": -1,
    "vocab_size": TOKENS,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
QWEN_SIZE = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
SQUARE = {"height": SIDE, "width": SIDE}
IMAGES: dict[str, Any] = {  # arguments of an image processor, where it has them
    "patch_size": PATCH,
    "merge_size": 2,
    "min_size": PATCH,
    "crop_size": SQUARE,
    "image_grid_pinpoints": WHOLE["image_grid_pinpoints"],
    "max_patches": 4,
}
SIZES = {  # by the names in a processor's own default size
    frozenset({"height", "width"}): SQUARE,
    frozenset({"shortest_edge"}): {"shortest_edge": SIDE},
    frozenset({"longest_edge"}): {"longest_edge": 48},
    frozenset({"shortest_edge", "longest_edge"}): QWEN_SIZE,
}
MROPE_TEXT = {"text_config": {"rope_parameters": MROPE}}
HALF_MROPE = {"text_config": {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}}}
MINICPM = {
    "images": {"scale_resolution": 64},
    "config": {"insert_layer_id": 0, "vision_config": {"insert_layer_id": 0}},
}
VISION_START = {"vision_start_token_id": "<vision_start>"}
IDEFICS = {
    "images": {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": SIDE}},
    "config": {"scale_factor": 2},
}
QUARTER = {"processor": {"image_seq_length": 4}}
PIXTRAL = {"shown": "[IMG]", "processor": {"patch_size": PATCH, "spatial_merge_size": 2}}
GEMMA4 = {
    "shown": "<image>",
    "images": {"patch_size": PATCH, "max_soft_tokens": 70},
    "first": {"vision_config": {}},
    "config": {"text_config": {"vocab_size_per_layer_input": TOKENS, "global_head_dim": 16}},
}
# what some types need: of the configuration, of the image processor ("images"), of the processor ("processor"), and the
# text that stands for an image ("shown"); "like" takes the processor of another type
SIGHT: dict[str, dict[str, Any]] = {
    "aria": {
        "images": {"max_image_size": 980, "min_image_size": 336},
        "processor": {"size_conversion": {980: 4}},
        "config": {"projector_patch_to_query_dict": {14884: 4}, "max_value_projector_patch_to_query_dict": 4},
    },
    "aya_vision": {"image": "<|IMG_PATCH|>", "processor": {"img_size": SIDE, "downsample_factor": 2}},
    "cohere2_vision": {"images": {"patch_size": 2}},
    "cohere_compass": {
        "shown": "<|IMAGE_PAD|>",
        "image": "<|IMAGE_PAD|>",
        "without": ("image_token",),
        "config": {"text_config": {"rope_parameters": {"full_attention": MROPE}, "sliding_window": 8}},
    },
    "cosmos3_edge": {"config": MROPE_TEXT},
    "cosmos3_omni": {"like": "qwen3_vl", "config": MROPE_TEXT},
    "ernie4_5_vl_moe": {
        "videos": {"draw_on_frames": False},
        "config": {
            "text_config": {"moe_intermediate_size": [48, 48], "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]}}
        },
    },
    "gemma3": {"shown": "<boi>", "image": "<image>", "processor": {"image_seq_length": 4}},
    "gemma4": GEMMA4,
    "gemma4_unified": GEMMA4,
    "glm46v": {"config": MROPE_TEXT},
    "glm4v": {"config": MROPE_TEXT},
    "glm4v_moe": {"images_like": "glm4v", "videos_like": "glm4v", "config": HALF_MROPE},
    "glm_ocr": {"like": "glm46v", "config": HALF_MROPE},
    "glmga": {"like": "glm46v", "images_like": "glmga", "config": HALF_MROPE},
    "glm5_next": {"config": {"text_config": {"rope_parameters": MROPE}}},
    "got_ocr2": {"shown": "<imgpad>", "image": "<imgpad>", "one": True},
    "granite4_vision": {
        "config": {
            "qformer_config": {"num_attention_heads": 4, "num_hidden_layers": 1},
            "downsample_rate": "2/4",
            "deepstack_layer_map": [[-1, 0]],
            "spatial_target_layers": [1],
        },
        "processor": {"downsample_rate": "2/4"},
    },
    "granite_docling": {"processor": {"image_seq_len": 1}},
    "hunyuan_vl": {"shown": "<image_start><image><image_end>", "config": MROPE_TEXT},
    "idefics2": {
        "config": {
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            }
        },
        "images": {"size": {"shortest_edge": 16, "longest_edge": SIDE}},
    },
    "idefics3": IDEFICS,
    "smolvlm": IDEFICS,
    "internvl": QUARTER,
    "qianfan_ocr": QUARTER,
    "janus": {
        "config": {
            "vq_config": {
                "embed_dim": 8,
                "num_embeddings": 64,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "latent_channels": 32,
                "num_patches": 4,
                "projection_dim": 32,
                "image_token_embed_dim": 32,
            },
        },
    },
    "lfm2_vl": {
        "images": {
            "encoder_patch_size": PATCH,
            "tile_size": SIDE,
            "min_image_tokens": 1,
            "max_image_tokens": 4,
            "max_num_patches": 16,
        }
    },
    "lighton_ocr": {"processor": {"patch_size": PATCH, "spatial_merge_size": 2}},
    "llama4": {
        "shown": "<|image|>",
        "image": "<|patch|>",
        "processor": {"patch_size": PATCH, "pixel_shuffle_ratio": 0.5},
        "config": {"vision_config": {"projector_input_dim": 32, "intermediate_size": 128}},
    },
    "minicpm_ocr": MINICPM,
    "minicpmv4_6": MINICPM,
    "minicpmv4_7": MINICPM,
    "minimax_m3_vl": {"shown": "]<]image[>[", "image": "]<]image[>["},
    "mistral3": PIXTRAL,
    "mistral_large4": PIXTRAL,
    "mllama": {
        "config": {
            "vision_config": {"num_global_layers": 1, "intermediate_layers_indices": [0], "vision_output_dim": 64},
            "text_config": {"cross_attention_layers": [1]},
        },
    },
    "molmo2": {
        "config": {
            "adapter_config": {"vision_feature_layer": [-1, -2]},
            "vision_config": {"num_position_embeddings": 16},
        },
        "images": {"overlap_margins": [1, 1], "max_crops": 2},
        "image": "<im_patch>",
    },
    "muse_glimmer": {"shown": "<|patch|>", "image": "<|patch|>", "config": {"out_hidden_size": 128}},
    "nemotron_h_omni": {
        "config": {
            "vision_config": {"video_temporal_patch_size": 2, "max_img_size": 64},
            "video_temporal_patch_size": 2,
        },
        "images": {"min_num_patches": 4, "max_num_patches": 16},
    },
    "muse_spark": {"shown": "<|patch|>", "image": "<|patch|>"},
    "ovis2": {"image": "<IMG_ATOM>"},
    "paddleocr_vl": {"config": MROPE_TEXT},
    "paligemma": {"images": {"image_seq_length": 16}},
    "qwen2_5_omni_thinker": {
        "ids": VISION_START,
        "like": "qwen2_5_omni",
        "images_like": "qwen2_5_vl",
        "videos_like": "qwen2_5_vl",
        "config": MROPE_TEXT,
    },
    "qwen3_omni_moe_thinker": {
        "ids": VISION_START,
        "like": "qwen3_omni_moe",
        "images_like": "qwen3_vl",
        "videos_like": "qwen3_vl",
        "config": MROPE_TEXT,
    },
    "qwen2_5_vl": {"config": MROPE_TEXT},
    "qwen2_vl": {"config": MROPE_TEXT},
    "qwen3_vl": {"config": MROPE_TEXT},
    "qwen3_vl_moe": {"images_like": "qwen3_vl", "config": MROPE_TEXT},
    "step3p7": {
        "shown": "<im_patch>",
        "image": "<im_patch>",
        "images": {"patch_size": 32, "size": SQUARE, "vision_patch_size": PATCH},
    },
    "t5gemma2": {"shown": "<boi>"},
    "shieldgemma2": {"shown": "<boi>", "image": "<image>", "processor": {"image_seq_length": 4}, "one": True},
    "unlimited_ocr": {"config": {"vision_config": {"sam_config": {"image_size": 64, "downsample_channels": [32, 32]}}}},
    "deepseek_vl_hybrid": {"images": {"high_res_size": SQUARE}},
    "fuyu": {"shown": "|SPEAKER|", "one": True},
    "git": {"config": {"vision_config": {"num_attention_heads": 4}, "num_attention_heads": 4}},
    "video_llava": {"config": {"vision_feature_layer": -2}},
}
