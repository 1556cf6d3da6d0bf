"""Which image processors of transformers join, and how: a table, reviewed by hand.

Shapes must never decide this: Molmo2 and the PPOCR recognisers give arrays that fit together
and hold other numbers than the batch does. A family is here because its code was read and
its classes, both back ends, were run against their own batches (``benches/processors.py``).
Its name is the class name without "Pil" and "ImageProcessor".
"""

from __future__ import annotations

REVIEWED = "5.23"  # the version of transformers that the table was checked with

# Images are processed independently and stacked (or their patches appended) on axis 0. Those
# that pad a batch, or refuse one of mixed sizes, are here too: parts that differ in shape
# never concatenate.
_CONCAT = """
    Beit Bit Blip BridgeTower CHMv2 Chameleon ChineseCLIP CLIP Cohere2Vision CohereCompass
    ConvNext Cosmos3Edge DeepseekOcr2 DeepseekVL DeepseekVLHybrid DeiT DepthPro DINOv3ViT Donut
    DPT EfficientNet Emu3 Eomt Ernie4_5_VLMoe Ernie4_5_VL_Moe Flava Fuyu Gemma3 Gemma4
    Gemma4Unified GLPN Glm46V Glm4v Glm5Next GlmImage Glmga GotOcr2 HunYuanVL Inkling Inkling2
    Janus Kimi_K25 Kosmos2_5 Levit Lfm2Vl Llama4 Llava Mask2Former MaskFormer MiniMaxM3VL
    MobileNetV1 MobileNetV2 MobileViT MuseGlimmer NeoMME Nougat Ovis2 OwlViT Owlv2 PI0
    PPChart2Table PPDocLayoutV2 PPDocLayoutV3 PPFormulaNet PPLCNet PPOCRV5ServerDet PaddleOCRVL
    Perceiver PerceptionLM Phi4Multimodal Pix2Struct PoolFormer PromptDepthAnything Pvt Qwen2VL
    RTDetr SLANeXt Sam Sam2 Sam3 Sapiens2 SegGpt Segformer Siglip Siglip2 Step3p7 SuperPoint
    Swin2SR TextNet Tipsv2 Tipsv2Dpt UVDoc UnlimitedOcr ViT VideoLlama3 VideoLlava Vilt ZoeDepth
"""
# The same, with zeros up to the largest image or the most tiles of the batch.
_PAD = """
    ConditionalDetr DeformableDetr Detr GroundingDino LlavaNext LlavaOnevision Pixtral RfDetr
    Yolos
"""
# A flat list is one sample: its images follow each other on axis 1.
_NEST = "Idefics2 Idefics3 Mllama SmolVLM Tvp UltraVBert VideoMAE Vivit"
# A single image only: the rest of a batch shows in an image's result (pooling indices that
# run on, widths and token budgets shared by all), or the layout is one nobody joins yet.
_ALONE = """
    Aria GraniteDocling MiniCPMOcr MiniCPMV4_6 Molmo2 NemotronH_Omni_Reasoning_V3 OneFormer
    PPDocLayoutV4 PPOCRV5ServerRec PPOCRV6SmallRec
"""
_HOW = {
    family: how
    for how, families in (
        ("concat", _CONCAT),
        ("pad", _PAD),
        ("nest", _NEST),
        ("alone", _ALONE),
    )
    for family in families.split()
}

# Given a list of samples, every family that joins on axis 0 answers as for the flat list of
# their images, but these only with one image in each sample.
ONE_EACH = frozenset({"Fuyu", "LlavaOnevision"})
# Those that nest and fill the samples of fewer images with zeros, masks included.
FILLED_SAMPLES = frozenset({"Idefics2", "Idefics3", "SmolVLM"})
# Those whose lists of arrays are meant to be uneven: they never pad one image for another's
# sake unless told to by ``do_pad``.
UNEVEN = frozenset(
    {"Eomt", "GLPN", "Llama4", "PPOCRV5ServerDet", "PerceptionLM", "TextNet", "UVDoc"}
)
# Settings under which a family pads by other sizes than those of its results.
LONERS = {"Pixtral": "do_center_crop"}
# Settings that make a family draw random numbers.
RANDOM = {"Flava": "return_image_mask"}


def family(kind: type) -> str | None:
    """The family of a processor class of transformers; None for any other class."""
    if not kind.__module__.startswith("transformers.models."):
        return None
    return kind.__name__.removesuffix("Pil").removesuffix("ImageProcessor")


def how(kind: type) -> str | None:
    """How results of ``kind`` join: a name of ``memweir.pixels.joiners``, None if unknown."""
    name = family(kind)
    return None if name is None else _HOW.get(name)
