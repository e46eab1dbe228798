"""Tiny shapes and processors of every image-text type: the processor's own classes, a small tokenizer, one template.

The tokenizer knows the tokens of all families, above the ids that rows of plain text are drawn from.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
from shapes import SPECIAL, SUBS, WORDS, is_off, small
from sight_special import IDS, IMAGES, NAMED, PATCH, SIGHT, SIZES, TEMPLATE, TOKENS, VISION, WHOLE, WRITTEN


def tokenizer_for(shown: str, without: tuple[str, ...] = ()) -> Any:
    """Byte-level BPE: ids below WORDS are text, the tokens of all families lie above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["which colour is this ? red blue green user assistant yes"] * 8, trainer)
    tokenizer.add_special_tokens([f"<unused{number}>" for number in range(WORDS - tokenizer.get_vocab_size())])
    tokenizer.add_special_tokens(list(dict.fromkeys([*NAMED.values(), *WRITTEN])))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        chat_template=TEMPLATE.replace("PLACEHOLDER", shown),
        extra_special_tokens={name: token for name, token in NAMED.items() if name not in without},
        padding_side="left",
    )


def make_processor(kind: str) -> Any:
    """The type's own processor with its own image processor, both small."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

    special = SIGHT.get(kind, {})
    like = special.get("like", kind)
    if like not in PROCESSOR_MAPPING_NAMES:
        raise LookupError("transformers knows no processor for this type")
    made = getattr(transformers, PROCESSOR_MAPPING_NAMES[like])
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(special.get("images_like", like))
    if names is None:
        raise LookupError("transformers knows no image processor for this type")
    parts = {"image_processor": small_images(getattr(transformers, names.get("pil") or names["torchvision"]), special)}
    wanted = set(made.get_attributes())
    if "video_processor" in wanted:
        video = VIDEO_PROCESSOR_MAPPING_NAMES.get(special.get("videos_like", like))
        name = video if isinstance(video, str) else (video or {}).get("torchvision")
        parts["video_processor"] = getattr(transformers, name or "Qwen2VLVideoProcessor")(**special.get("videos", {}))
    if "feature_extractor" in wanted:
        parts["feature_extractor"] = transformers.WhisperFeatureExtractor()
    tokenizer = tokenizer_for(special.get("shown", "<image>"), special.get("without", ()))
    given = {"image_seq_length": 16, "image_seq_len": 4, "num_image_tokens": 16, "patch_size": PATCH,
             "vision_feature_select_strategy": "full", "num_query_tokens": 4, "chat_template": tokenizer.chat_template,
             **special.get("processor", {})}  # fmt: skip
    known = inspect.signature(made.__init__).parameters
    given = {name: value for name, value in given.items() if name in known or name == "chat_template"}
    if "chat_template" not in known and "kwargs" not in known:
        template = given.pop("chat_template")
        processor = made(**parts, tokenizer=tokenizer, **given)
        processor.chat_template = template
        return processor
    return made(**parts, tokenizer=tokenizer, **given)


def small_images(made: Any, special: dict[str, Any]) -> Any:
    """An image processor of this class for small images."""
    own = made().to_dict()
    given = {name: value for name, value in IMAGES.items() if name in own and own[name] is not None}
    if isinstance(own.get("patch_size"), dict):
        given["patch_size"] = {"height": PATCH, "width": PATCH}
    size = own.get("size")
    if isinstance(size, dict) and frozenset(size) in SIZES:
        given["size"] = SIZES[frozenset(size)]
    return made(**{**given, **special.get("images", {})})


def tiny_sight_config(kind: str, processor: Any) -> Any:
    """transformers' configuration of this image-text type, made small, its token ids those of the tokenizer."""
    from transformers import AutoConfig

    special = SIGHT.get(kind, {})
    default = AutoConfig.for_model(kind, **special.get("first", {}))
    values = shrunk(default)
    if "text_config" in values:
        values["text_config"] |= _text_special(values["text_config"].get("model_type"))
    values = of_all_tokens(values)
    for name, value in special.get("config", {}).items():
        values[name] = merged(values.get(name), value)
    return AutoConfig.for_model(kind, **with_ids(kind, default, values, processor))


def merged(own: Any, special: Any) -> Any:
    """Nested configurations are merged at any depth, all else is replaced."""
    if not (isinstance(own, dict) and isinstance(special, dict)) or "rope_type" in special:
        return special
    return {**own, **{name: merged(own.get(name), value) for name, value in special.items()}}


def _text_special(kind: str | None) -> dict[str, Any]:
    return {name: value for name, value in SPECIAL.get(str(kind), {}).items() if not name.startswith("_")}


def shrunk(config: Any) -> dict[str, Any]:
    """What is to be set in a configuration like this one: text by the table of all models, vision by its own."""
    own = config.to_dict()
    values: dict[str, Any] = {}
    if not any(hasattr(getattr(config, name, None), "to_dict") for name in SUBS):
        values = small(config)
    values |= {name: value for name, value in WHOLE.items() if name in own and own[name] is not None}
    for name in own:
        if not name.endswith("_config") and name not in ("encoder", "decoder"):
            continue
        sub = getattr(config, name, None)
        if not hasattr(sub, "to_dict"):
            continue
        made = small(sub) if name in ("text_config", "decoder") else tower(sub)
        values[name] = made | ({"model_type": sub.model_type} if sub.model_type else {})
    return of_all_tokens(values)


def of_all_tokens(values: dict[str, Any]) -> dict[str, Any]:
    """The values with every size of a vocabulary that of the tokenizer."""
    return {
        name: of_all_tokens(value) if isinstance(value, dict) else TOKENS if name.startswith("vocab_size") else value
        for name, value in values.items()
    }


def tower(config: Any) -> dict[str, Any]:
    """What is to be set in the configuration of a part that sees (or hears)."""
    own = config.to_dict()
    values = {name: fitting(own[name], value) for name, value in VISION.items() if name in own}
    values |= {name: 0.0 for name in own if (is_off(name) or "drop_path" in name) and isinstance(own[name], float)}
    for name in own:
        sub = getattr(config, name, None)
        if name.endswith("_config") and hasattr(sub, "to_dict"):
            values[name] = tower(sub) | ({"model_type": sub.model_type} if sub.model_type else {})
    return values


def fitting(own: Any, value: Any) -> Any:
    """The value in the form of the configuration's own: a pair stays a pair."""
    if isinstance(own, (list, tuple)) and isinstance(value, int):
        return [value] * len(own)
    if isinstance(own, float):
        return float(value)
    return value


def with_ids(kind: str, default: Any, values: dict[str, Any], processor: Any) -> dict[str, Any]:
    """The values, with the ids of the tokenizer wherever the configuration names a token."""
    tokenizer = processor.tokenizer
    image = SIGHT.get(kind, {}).get("image") or special_image(processor)
    found = {}
    for name in default.to_dict():
        base = re.sub(r"_(id|index)$", "_token" if not re.search(r"token_(id|index)$", name) else "", name)
        token = image if base == "image_token" else NAMED.get(base) or IDS.get(name)
        if token is not None and re.search(r"(_id|_index)$", name):
            found[name] = tokenizer.convert_tokens_to_ids(token)
    found |= {
        name: tokenizer.convert_tokens_to_ids(token) for name, token in SIGHT.get(kind, {}).get("ids", {}).items()
    }
    return {**values, **found}


def special_image(processor: Any) -> str:
    """The token at which an image's features stand."""
    return str(getattr(processor, "image_token", None) or NAMED["image_token"])


def picture(size: tuple[int, int], seed: int) -> Any:
    """A PIL image of noise."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    return Image.fromarray(pixels)
