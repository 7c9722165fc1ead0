"""Image-text-to-text models of transformers with random weights, saved as every model on the hub is:
three families, nothing downloaded."""

SPECIAL = ['<unk>', '<s>', '</s>', '<pad>', '<image>', '<|vision_start|>', '<|vision_end|>', '<|image_pad|>',
           '<|video_pad|>', '<fake_token_around_image>', '<global-img>', '<end_of_utterance>', '<video>']
CORPUS = ['You are an AI visual assistant observing a skin lesion image. '
          'Describe the information you observe from the image.',
          'The lesion is round and brown, with a soft border.']

def tokenizer(**kw):
    "Byte-level word pieces, trained on two sentences."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    pieces = Tokenizer(models.BPE(unk_token='<unk>'))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    pieces.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=SPECIAL,
                                                           initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token='<unk>', bos_token='<s>', eos_token='</s>',
                                   pad_token='<pad>', additional_special_tokens=SPECIAL[4:], **kw)

def template(image):
    "A chat template in which an image is written as `image`."
    return ("{% for m in messages %}{{ m.role.upper() }}: {% for part in m.content %}{% if part.type == 'image' %}"
            + image + "{% else %}{{ part.text }}{% endif %} {% endfor %}{% endfor %}"
            "{% if add_generation_prompt %}ASSISTANT:{% endif %}")

def qwen(folder):
    "Qwen2.5-VL: images keep their shape, so those of one batch have different numbers of tokens."
    import torch
    from transformers import (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor,
                              Qwen2VLImageProcessor, Qwen2VLVideoProcessor)
    words = tokenizer()
    at = {t: words.convert_tokens_to_ids(t) for t in SPECIAL}
    Qwen2_5_VLProcessor(Qwen2VLImageProcessor(min_pixels=28*28, max_pixels=28*28*16), words, Qwen2VLVideoProcessor(),
                        chat_template=template('<|vision_start|><|image_pad|><|vision_end|>')).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config=dict(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048,
                         rope_parameters=dict(rope_type='default', mrope_section=[2, 3, 3], rope_theta=10000.),
                         bos_token_id=1, eos_token_id=2, pad_token_id=3),
        vision_config=dict(depth=2, hidden_size=32, out_hidden_size=32, num_heads=2, intermediate_size=64, patch_size=14,
                           spatial_merge_size=2, window_size=56, fullatt_block_indexes=[1]),
        image_token_id=at['<|image_pad|>'], video_token_id=at['<|video_pad|>'],
        vision_start_token_id=at['<|vision_start|>'], vision_end_token_id=at['<|vision_end|>'])
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder

def smolvlm(folder):
    "SmolVLM (Idefics3): images become square tiles."
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor
    words = tokenizer()
    at = {t: words.convert_tokens_to_ids(t) for t in SPECIAL}
    Idefics3Processor(Idefics3ImageProcessor(size=dict(longest_edge=64), max_image_size=dict(longest_edge=32)), words,
                      image_seq_len=1, chat_template=template('<image>')).save_pretrained(folder)
    torch.manual_seed(0)
    config = Idefics3Config(image_token_id=at['<image>'], pad_token_id=3, scale_factor=4,
        vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32,
                           patch_size=8),
        text_config=dict(model_type='llama', vocab_size=len(words), hidden_size=32, intermediate_size=64,
                         num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                         bos_token_id=1, eos_token_id=2, pad_token_id=3))
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    return folder

def llava_onevision(folder):
    """LLaVA-OneVision: an image as a whole and in as many crops as its shape asks for,
    so that images of one batch have different numbers of both."""
    import torch
    from transformers import (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessor,
                              LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor)
    words, pinpoints = tokenizer(), [[32, 32], [32, 64], [64, 32], [64, 64]]
    image, video = (words.convert_tokens_to_ids(t) for t in ('<image>', '<video>'))
    LlavaOnevisionProcessor(LlavaOnevisionImageProcessor(size=dict(height=32, width=32), image_grid_pinpoints=pinpoints),
                            words, LlavaOnevisionVideoProcessor(size=dict(height=32, width=32)), num_image_tokens=16,
                            vision_feature_select_strategy='full', chat_template=template('<image>')).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(image_token_index=image, video_token_index=video, image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1, vision_feature_select_strategy='full',
        vision_config=dict(model_type='siglip_vision_model', hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                           num_attention_heads=2, image_size=32, patch_size=8, vision_use_head=False),
        text_config=dict(model_type='qwen2', vocab_size=len(words), hidden_size=32, intermediate_size=64,
                         num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048,
                         bos_token_id=1, eos_token_id=2, pad_token_id=3))
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    return folder
