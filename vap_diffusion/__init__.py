__version__ = "0.1.0"

import importlib

# The names most programs need, imported when first asked for: `import vap_diffusion` itself loads nothing heavy.
_WHERE = dict(
    MeasuringDescriber='vaps', TransformersMLLM='vaps', OpenAIMLLM='vaps', VisualAttributePrompter='vaps',
    TextEncoder='text', load_text_encoder='text',
    PromptBank='prompt_bank',
    UViT='uvit',
    PrototypeUViT='prototype', PrototypeCondition='prototype', ReleasedUViT='prototype', convert_released='prototype',
    VAPDiffusionPipeline='pipeline',
    ImprovedPrecisionRecall='metrics', DensityCoverage='metrics',
)
__all__ = list(_WHERE)

def __getattr__(name):
    if name in _WHERE: return getattr(importlib.import_module(f'{__name__}.{_WHERE[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

def __dir__(): return sorted([*globals(), *_WHERE])
