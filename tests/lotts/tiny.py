"""Pipelines of every family, small enough for tests: the true classes with random weights, 32 x 32 pixels."""

import torch

WORDS = ["a", "the", "of", "red", "blue", "cat", "dog", "sits", "beside", "image", "high", "low", "quality"]


def clip_text_model(tokenizer, width=32, projection=None):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=projection or width,
    )
    return (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config).eval()


def autoencoder(channels=4, **config):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=channels,
        norm_num_groups=8,
        **config,
    ).eval()


def t5_tokenizer():
    """A T5 tokenizer to which each of ``WORDS`` is one token."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    letters = [(chr(i), -8.0) for i in range(33, 127)]
    return T5Tokenizer(special + letters + [(f"▁{word}", -2.0) for word in WORDS], extra_ids=0, model_max_length=512)


def t5_encoder(tokenizer, width=32):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval()


def sdxl(clip_tokenizer):
    """StableDiffusionXLPipeline of 16x16 latents with Euler."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    ).eval()
    return quiet(
        StableDiffusionXLPipeline(
            vae=autoencoder(),
            text_encoder=clip_text_model(clip_tokenizer),
            text_encoder_2=clip_text_model(clip_tokenizer, projection=32),
            tokenizer=clip_tokenizer,
            tokenizer_2=clip_tokenizer,
            unet=unet,
            scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    )


def flow_scheduler(**config):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def sd3(clip_tokenizer, dual_attention_layers=(0,), qk_norm="rms_norm", t5=True):
    """StableDiffusion3Pipeline in the form of 3.5 medium: 16x16 latents, 8x8 tokens, dual attention in the first block."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(3)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        pos_embed_max_size=32,
        dual_attention_layers=dual_attention_layers,
        qk_norm=qk_norm,
    ).eval()
    tokenizer = t5_tokenizer()
    return quiet(
        StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=flow_scheduler(shift=3.0),
            vae=autoencoder(shift_factor=0.06),
            text_encoder=clip_text_model(clip_tokenizer, projection=32),
            tokenizer=clip_tokenizer,
            text_encoder_2=clip_text_model(clip_tokenizer, projection=32),
            tokenizer_2=clip_tokenizer,
            text_encoder_3=t5_encoder(tokenizer, 64) if t5 else None,
            tokenizer_3=tokenizer if t5 else None,
        )
    )


def flux(clip_tokenizer, guidance_embeds=True, blocks=2):
    """FluxPipeline of 32x32 latents, 16x16 tokens, two double and two single blocks."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(4)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=blocks,
        num_single_layers=blocks,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    tokenizer = t5_tokenizer()
    pipe = FluxPipeline(
        transformer=transformer,
        scheduler=flow_scheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=clip_text_model(clip_tokenizer),
        tokenizer=clip_tokenizer,
        text_encoder_2=t5_encoder(tokenizer),
        tokenizer_2=tokenizer,
    )
    pipe.default_sample_size = 32
    return quiet(pipe)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe
