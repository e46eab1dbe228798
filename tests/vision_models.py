"""Tiny vision-language models with the real processor classes of their families, made on the spot.

The chat templates are those of the published checkpoints in what matters here: where images stand, which tokens begin
and end a turn, and whether content may be text or must be parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

SEED = 0
PATCH = 8
FAMILIES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "idefics3",
    "smolvlm",
    "gemma3",
)
ROWS_AND_COLUMNS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
SPECIAL = [
    *("<|endoftext|>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>", "<image>", "<video>", "<fake_token_around_image>", "<global-img>"),
    *("<end_of_utterance>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    *("<start_of_turn>", "<end_of_turn>", *ROWS_AND_COLUMNS),
]
TEXT = ["which colour is this picture ? red blue green white", "user assistant system model what is it yes no one two"]

QWEN = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}<|vision_start|><|image_pad|>\
<|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAVA = """{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}\
{% endif %}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>
' }}{% endfor %}{% if message['role'] != 'assistant' %}{% for content in message['content'] | \
selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}{% for content in \
message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}\
{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
# Published: each message begins with the role and a space, the generation prompt with the role and a line end.
ONEVISION_PUBLISHED = """{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{% for content in \
message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{% for content in \
message['content'] | selectattr('type', 'equalto', 'text') %}{{ '
' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}\
{{ '<|im_start|>assistant
' }}{% endif %}"""
ONEVISION = ONEVISION_PUBLISHED.replace("<|im_start|>assistant\n", "<|im_start|>assistant \n")
IDEFICS = """<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if \
message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}\
{% if line['type'] == 'text' %}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}\
{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
GEMMA = """{{ bos_token }}{%- for message in messages -%}{%- set role = 'model' if message['role'] == 'assistant' \
else message['role'] -%}{{ '<start_of_turn>' + role + '
' }}{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}{%- for item in \
message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}\
{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<end_of_turn>
' }}{%- endfor -%}{%- if add_generation_prompt -%}{{'<start_of_turn>model
'}}{%- endif -%}"""

TEXT_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": PATCH,
    "initializer_range": 0.2,
}


def make_tokenizer(*, template: str, bos: str | None = None, adds_bos: bool = False, eos: str, **named: str) -> Any:
    """Byte-level BPE with the control tokens of all families."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 8, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        bos_token=bos,
        eos_token=eos,
        chat_template=template,
        extra_special_tokens=named,
        padding_side="left",  # as the published processors: what is trained is padded on the right all the same
    )


class NoVideo:
    """Stands where a video processor belongs: transformers' own need torchvision, and no test shows a film."""

    num_frames, fps = 4, 1


def without_video(processor_class: Any) -> Any:
    """The processor class, which does not ask of what class its video processor is."""

    class Processor(processor_class):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return NoVideo
            return super().check_argument_for_proper_class(argument_name, argument)

    return Processor


def llava() -> tuple[Any, dict[str, Any]]:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    tokenizer = make_tokenizer(template=LLAVA, bos="<bos>", adds_bos=True, eos="<eos>")
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    vision = {"model_type": "clip_vision_model", **TOWER, "image_size": 32, "projection_dim": 32}
    return processor, {"vision_config": vision, "image_token_index": tokenizer.convert_tokens_to_ids("<image>")}


def llava_next() -> tuple[Any, dict[str, Any]]:
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    tokenizer = make_tokenizer(template=LLAVA, bos="<bos>", adds_bos=True, eos="<eos>")
    grid = [[32, 64], [64, 32], [64, 64]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    vision = {"model_type": "clip_vision_model", **TOWER, "image_size": 32, "projection_dim": 32}
    image = tokenizer.convert_tokens_to_ids("<image>")
    return processor, {"vision_config": vision, "image_token_index": image, "image_grid_pinpoints": grid}


def llava_onevision() -> tuple[Any, dict[str, Any]]:
    from transformers import LlavaOnevisionImageProcessorPil, LlavaOnevisionProcessor

    tokenizer = make_tokenizer(template=ONEVISION, eos="<|im_end|>")
    grid = [[32, 32], [32, 64], [64, 32], [64, 64]]
    images = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=grid)
    processor = without_video(LlavaOnevisionProcessor)(
        images,
        tokenizer,
        NoVideo(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION,
    )
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    return processor, {
        "vision_config": {"model_type": "siglip_vision_model", **TOWER, "image_size": 32, "vision_use_head": False},
        "text_config": {"model_type": "qwen2"},
        "image_token_index": image,
        "video_token_index": video,
        "image_grid_pinpoints": grid,
        "vision_feature_layer": -1,
    }


def qwen(family: str) -> tuple[Any, dict[str, Any]]:
    import transformers

    tokenizer = make_tokenizer(template=QWEN, eos="<|im_end|>")
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    )
    classes = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    processor_class = without_video(getattr(transformers, f"{classes[family]}Processor"))
    processor = processor_class(images, tokenizer, NoVideo(), chat_template=QWEN)
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    ids["vision_end_token_id"] = tokenizer.convert_tokens_to_ids("<|vision_end|>")
    tower: dict[str, Any] = {"depth": 2, "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": 2}
    own = {
        "qwen2_vl": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        "qwen2_5_vl": {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        "qwen3_vl": {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    }[family]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return processor, {"vision_config": {**tower, **own}, "text_config": {"rope_parameters": rope}, **ids}


def idefics(family: str) -> tuple[Any, dict[str, Any]]:
    import transformers

    tokenizer = make_tokenizer(template=IDEFICS, bos="<|im_start|>", eos="<end_of_utterance>")
    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
    image_class = getattr(transformers, f"{name}ImageProcessorPil")
    images = image_class(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True)
    processor_class = getattr(transformers, f"{name}Processor")
    if family == "smolvlm":
        processor_class = partial(without_video(processor_class), video_processor=NoVideo())
    processor = processor_class(images, tokenizer, image_seq_len=4, chat_template=IDEFICS)
    vision = {**TOWER, "image_size": 32}
    image = tokenizer.convert_tokens_to_ids("<image>")
    return processor, {"vision_config": vision, "image_token_id": image, "scale_factor": 2}


def gemma3() -> tuple[Any, dict[str, Any]]:
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor

    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = make_tokenizer(template=GEMMA, bos="<bos>", adds_bos=True, eos="<eos>", **named)
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = Gemma3Processor(images, tokenizer, chat_template=GEMMA, image_seq_length=4)
    ids = {
        "boi_token_index": tokenizer.convert_tokens_to_ids("<start_of_image>"),
        "eoi_token_index": tokenizer.convert_tokens_to_ids("<end_of_image>"),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    }
    text = {"sliding_window": 64, "query_pre_attn_scalar": 8}
    vision = {**TOWER, "image_size": 32, "vision_use_head": False}
    return processor, {"vision_config": vision, "text_config": text, "mm_tokens_per_image": 4, **ids}


MAKERS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": partial(qwen, "qwen2_vl"),
    "qwen2_5_vl": partial(qwen, "qwen2_5_vl"),
    "qwen3_vl": partial(qwen, "qwen3_vl"),
    "idefics3": partial(idefics, "idefics3"),
    "smolvlm": partial(idefics, "smolvlm"),
    "gemma3": gemma3,
}


def make_vlm(family: str, **changes: Any) -> tuple[Any, Any]:
    """A model with random float32 weights, in evaluation mode, and its processor."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    processor, arguments = MAKERS[family]()
    tokenizer = processor.tokenizer
    text = {
        **TEXT_SHAPE,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **arguments.pop("text_config", {}),
    }
    if family in ("llava", "llava_next", "idefics3", "smolvlm"):
        text["model_type"] = "llama"
    torch.manual_seed(SEED)
    config = AutoConfig.for_model(family, text_config=text, **{**arguments, **changes})
    model = AutoModelForImageTextToText.from_config(config).float().eval()
    if family == "gemma3":  # drawn as zeros, which no image would come through
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model, processor


def picture(colour: str = "red", size: tuple[int, int] = (40, 24)) -> Any:
    """A PIL image of one colour with some noise, so that no two patches are alike."""
    from PIL import Image

    bases = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 200, 20), "white": (250, 250, 250)}
    noise = np.random.default_rng(len(colour) + size[0] * size[1]).integers(0, 30, (size[1], size[0], 3))
    pixels = np.clip(np.array(bases[colour]) + noise - 15, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)
