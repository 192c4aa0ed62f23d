"""Captioning models of a few thousand weights, saved as transformers saves them."""

import PIL.Image
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.blip import BlipImageProcessorPil


_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDE = 32


def save_blip(folder, captions):
    """A BLIP that has learned by heart what to say of some pictures: `captions` are pairs of picture and caption."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ","]
    words += sorted({word for _, caption in captions for word in caption.replace(",", "").split()})
    start = len(words)  # which the tokenizer does not know, as in the public checkpoints
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    processor = BlipProcessor(
        BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}), BertTokenizer(str(folder / "vocab.txt"))
    )
    vision = {**_SMALL, "projection_dim": 32, "image_size": SIDE, "patch_size": 16}
    text = {
        **_SMALL, "projection_dim": 32, "encoder_hidden_size": 32, "vocab_size": start + 1, "max_position_embeddings": 96,
        "bos_token_id": start, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
        "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(vision_config=vision, text_config=text, projection_dim=32, image_text_hidden_size=32)
    )
    inputs = processor(
        images=[picture for picture, _ in captions], text=[caption for _, caption in captions], padding=True,
        return_tensors="pt",
    )  # fmt: skip
    inputs["input_ids"][:, 0] = start
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_llava(folder, words):
    """A LLaVA of random weights with a chat template, which knows some words."""
    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:", *words]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
            extra_special_tokens={"image_token": "<image>"},
        ),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for message in messages %}USER: {% for part in message.content %}{% if part.type == 'image' %}<image> "
            "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
        ),
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**_SMALL, projection_dim=32, image_size=SIDE, patch_size=16),
            text_config=LlamaConfig(
                **_SMALL, vocab_size=len(words), bos_token_id=2, eos_token_id=3, pad_token_id=0, initializer_range=1.0
            ),
            image_token_index=4,
            vision_feature_layer=-1,
        )
    )
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(shade):
    """One color."""
    return PIL.Image.new("RGB", (SIDE, SIDE), (shade, shade, shade))
