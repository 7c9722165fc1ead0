"""Sampling: guidance in one pass or two, in an interval, by a weaker model; the same images whatever the batch."""
import numpy as np, pytest, torch
from train_kills import folder_with_features
from vap_diffusion.pipeline import build_pipeline, guide_of, load_pipeline, load_samples, sample

LABELS, PROMPTS = (['nevus', 'melanoma', 'keratosis'],
                   ['round pink lesion', 'large irregular black lesion with blue-gray areas, dark corners', ''])

@pytest.fixture(scope='module')
def pipe(): return load_pipeline('course')

def latents(pipe, **kw):
    return pipe(LABELS, PROMPTS, 6, generator=[torch.Generator().manual_seed(i) for i in range(3)], output_type='latent',
                **kw).images

def test_one_pass_gives_what_two_passes_give(pipe):
    two = latents(pipe)
    try: pipe.one_pass = True; one = latents(pipe)
    finally: pipe.one_pass = None
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)

def test_an_interval_guides_some_steps(pipe):
    full, none = latents(pipe), latents(pipe, guidance_scale=1)
    torch.testing.assert_close(latents(pipe, guidance_interval=(2, 3)), none)
    assert all((latents(pipe, guidance_interval=(0, .6)) - other).abs().max() > 1e-3 for other in (full, none))

@pytest.mark.parametrize('how, said', [
    (dict(guidance_scale=-1), 'guidance -1 would lead away'),
    (dict(guidance_interval=(.6, .2)), 'guidance interval 0.6 to 0.2'),
    (dict(guidance_interval=(0, 5)), 'guidance interval 0 to 5')])
def test_guidance_out_of_range_is_named_before_anything_is_painted(pipe, tmp_path, how, said):
    with pytest.raises(ValueError, match=said): sample(pipe, tmp_path/'s', 2, progress=False, **how)
    assert not (tmp_path/'s').exists()

def test_a_model_that_guides_itself_does_nothing(pipe):
    torch.testing.assert_close(latents(pipe, guide=pipe.uvit, guidance_scale=3), latents(pipe, guidance_scale=1),
                               atol=1e-4, rtol=1e-4)

def test_a_weaker_model_must_fit(tmp_path):
    from vap_diffusion.training import train
    w = folder_with_features(tmp_path)
    short, longer = (build_pipeline(train(w, steps=n, name=f'run{n}', embed_dim=64, depth=2, progress=False)) for n in (2, 4))
    rows = sample(longer, tmp_path/'s', 2, num_inference_steps=2, guide=w/'models'/'run2', progress=False)
    # its own averaged weights, after a quarter of the training
    early = sample(longer, tmp_path/'e', 2, num_inference_steps=2, guide=w/'models'/'run4'/'early', progress=False)
    assert early.equals(rows) and not np.array_equal(*(load_samples(tmp_path/f)[0] for f in 'se'))
    assert len(rows) == 2 and 'run2' in (tmp_path/'s'/'sample.json').read_text()
    other = train(w, steps=2, name='eps', embed_dim=64, depth=2, progress=False, prediction_type='epsilon')
    build_pipeline(other)
    with pytest.raises(ValueError, match='predicts epsilon'):
        sample(longer, tmp_path/'t', 2, guide=other, progress=False)
    other = train(w, steps=2, name='cosine', embed_dim=64, depth=2, progress=False, schedule='cosine')
    build_pipeline(other)
    with pytest.raises(ValueError, match='another noise schedule'):
        sample(longer, tmp_path/'t', 2, guide=other, progress=False)
    longer.register_to_config(class_names=['a', 'b', 'c'])
    with pytest.raises(ValueError, match='another class names'): guide_of(longer, w/'models'/'run2')

def test_half_precision_paints():
    half, full = (load_pipeline('course').to(dtype) for dtype in (torch.float16, torch.float32))
    paint = lambda p: p('nevus', 'round pink lesion', 4, generator=torch.Generator().manual_seed(0),
                        output_type='uint8').images.astype(float)
    assert np.abs(paint(half) - paint(full)).mean() < 3

def test_a_shift_of_the_autoencoder_is_no_shift_of_the_picture(pipe):
    from copy import deepcopy
    from vap_diffusion.pipeline import decode_standard
    shifted, z = deepcopy(pipe.vae), torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    # training caches moments as the encoder gives them
    shifted.register_to_config(shift_factor=.5, scaling_factor=.7)
    assert np.abs(decode_standard(shifted, z).astype(int) - decode_standard(pipe.vae, z)).max() <= 2

def test_images_do_not_depend_on_the_batch(pipe, tmp_path):
    "Up to the rounding of half precision: products of other shapes are summed in another order."
    for size in (2, 7):
        sample(pipe, tmp_path/str(size), 9, num_inference_steps=4, batch_size=size, progress=False, seed=3)
    (a, rows_a), (b, rows_b) = (load_samples(tmp_path/str(size)) for size in (2, 7))
    assert rows_a.equals(rows_b) and np.abs(a.astype(int) - b).max() <= 8 and np.abs(a.astype(float) - b).mean() < 0.3

def test_a_model_trained_anew_under_its_old_name_is_another(pipe, tmp_path):
    sample(pipe, tmp_path, 2, num_inference_steps=1, progress=False)
    weight = pipe.uvit.norm.bias
    with torch.no_grad(): weight += 1e-3
    try:
        with pytest.raises(FileExistsError, match='another run .weights was'):
            sample(pipe, tmp_path, 2, num_inference_steps=1, progress=False)
    finally:
        with torch.no_grad(): weight -= 1e-3

@pytest.mark.parametrize('change', [('"depth": 6', '"depth": 8'), ('"embed_dim": 192', '"embed_dim": 96')])
def test_weights_and_config_of_other_sizes_are_named(tmp_path, change):
    import shutil
    from vap_diffusion.phantoms import asset_path
    shutil.copytree(asset_path('course'), tmp_path/'m')
    config = tmp_path/'m'/'uvit'/'config.json'
    assert change[0] in config.read_text(); config.write_text(config.read_text().replace(*change))
    with pytest.raises(ValueError, match='weights and config.json of a part do not belong together') as e:
        load_pipeline(tmp_path/'m')
    assert '\n' not in str(e.value)

def test_damaged_and_misplaced_files_are_named(pipe, tmp_path):
    (tmp_path/'s').mkdir(); (tmp_path/'s'/'sample.json').write_text('{'); (tmp_path/'file').touch()
    with pytest.raises(ValueError, match='sample.json is damaged'): sample(pipe, tmp_path/'s', 1, progress=False)
    with pytest.raises(FileExistsError, match='is a file: choose a folder'): sample(pipe, tmp_path/'file', 1, progress=False)
    with pytest.raises(ValueError, match="leave label and prompt out"):
        sample(pipe, tmp_path/'t', 1, label='nevus', prompts='own', like=tmp_path, progress=False)

def test_a_guide_without_words_is_refused(tmp_path):
    from vap_diffusion.training import train
    w = folder_with_features(tmp_path)
    reads, mute = (build_pipeline(train(w, steps=2, name=str(text), text=text, embed_dim=64, depth=2, progress=False))
                   for text in (True, False))
    with pytest.raises(ValueError, match='without descriptions'): guide_of(reads, w/'models'/'False')
    with pytest.raises(ValueError, match='without descriptions'): guide_of(mute, w/'models'/'True')

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_loaded_and_saved(tmp_path, pipe, dtype):
    from vap_diffusion.pipeline import VAPDiffusionPipeline
    from vap_diffusion.phantoms import asset_path
    half = VAPDiffusionPipeline.from_pretrained(asset_path('course'), torch_dtype=dtype)
    assert half.uvit.dtype == half.vae.dtype == dtype
    half.save_pretrained(tmp_path/'half')
    again = VAPDiffusionPipeline.from_pretrained(tmp_path/'half')
    image = again('nevus', 'round pink lesion', 4, generator=torch.Generator().manual_seed(0), output_type='np').images[0]
    whole = pipe('nevus', 'round pink lesion', 4, generator=torch.Generator().manual_seed(0), output_type='np').images[0]
    assert np.abs(image - whole).mean() < .03

def test_own_prompts_of_a_half_described_table_name_what_is_missing(tmp_path, pipe):
    from vap_diffusion.pipeline import plan_samples
    w = folder_with_features(tmp_path)
    lines = (w/'descriptions.jsonl').read_text().splitlines()
    (w/'descriptions.jsonl').write_text('\n'.join(lines[:1]) + '\n')
    with pytest.raises(ValueError, match='have no description'): plan_samples(pipe, 2, prompts='own', like=w, split='train')

def test_other_schedulers_do_not_clip_latents_and_are_reproducible(pipe):
    "Made from the pipeline's own, as diffusers' users do it."
    from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler
    own, ours = pipe.scheduler, latents(pipe)
    def paint():
        return pipe(LABELS, PROMPTS, 40, generator=[torch.Generator().manual_seed(i) for i in range(3)],
                    output_type='latent').images
    try:
        pipe.scheduler = DDIMScheduler.from_config(own.config)
        assert paint().abs().max() > 1.5 and (paint() - ours).square().mean().sqrt() < .3
        for kind in (DDPMScheduler, EulerAncestralDiscreteScheduler):
            pipe.scheduler = kind.from_config(own.config)
            assert torch.equal(paint(), paint()), kind.__name__
    finally: pipe.scheduler = own

def test_a_callback_sees_each_step_and_may_change_the_latents(pipe):
    seen = []
    def look(pipe, i, t, given):
        seen.append((i, int(t)))
        return dict(latents=torch.zeros_like(given['latents'])) if i == 5 else None
    assert (latents(pipe, callback_on_step_end=look).abs().max() == 0 and [i for i, _ in seen] == list(range(6))
            and seen[0][1] > seen[-1][1])

def test_a_folder_painted_with_a_guide_is_another_run_without_it(pipe, tmp_path):
    from vap_diffusion.pipeline import claim_folder
    claim_folder(tmp_path/'s', dict(n=2, guide='early'))
    with pytest.raises(FileExistsError, match='guide was early, now None'): claim_folder(tmp_path/'s', dict(n=2))

def test_an_autoencoder_without_statistics_is_named():
    from vap_diffusion.autoencoder import load_autoencoder
    from vap_diffusion.phantoms import asset_path
    from vap_diffusion.pipeline import VAPDiffusionPipeline
    with pytest.raises(ValueError, match='the autoencoder has no latents_mean'):
        VAPDiffusionPipeline.from_pretrained(asset_path('course'), vae=load_autoencoder('course'))

def test_bfloat16_and_back_is_saved_and_loaded(tmp_path):
    from vap_diffusion.phantoms import asset_path
    from vap_diffusion.pipeline import VAPDiffusionPipeline
    VAPDiffusionPipeline.from_pretrained(asset_path('course'), torch_dtype=torch.bfloat16).to(torch.float32).save_pretrained(tmp_path/'m')
    assert (load_pipeline(tmp_path/'m').config.name == 'course'
            and VAPDiffusionPipeline.from_pretrained(asset_path('course'), torch_dtype='auto').dtype
            in (torch.float16, torch.float32))

@pytest.mark.parametrize('name', ['isic2018', 'isic2019', 'chestxray14', 'hyperkvasir', 'kvasir_seg', 'cvc_clinicdb', 'colonoscopy'])
def test_a_card_has_the_terms_of_its_data(pipe, name):
    "Also of a table that an earlier version wrote without them."
    import pandas as pd
    from vap_diffusion.datasets import DATASETS
    from vap_diffusion.pipeline import card, data_facts, licence
    table = pd.DataFrame(dict(split=['train', 'test'])); table.attrs['dataset'] = name
    facts, known = data_facts(table), DATASETS[name]
    assert (facts['terms'], facts['citation'], facts['url']) == (known.terms, known.citation, known.url) and known.terms
    assert ('non-commercial use only' in licence(facts)[1]) == (not known.commercial) == (name != 'chestxray14')
    assert known.terms in card(pipe, dict(data=facts)) and 'not recorded' not in card(pipe, dict(data=facts))

def test_terms_that_nobody_knows(pipe):
    import pandas as pd
    from vap_diffusion.pipeline import card, data_facts
    table = pd.DataFrame(dict(split=['train'])); table.attrs['dataset'] = 'folder'
    assert 'terms of the training images are not recorded' in card(pipe, dict(data=data_facts(table)))

def test_classes_may_be_called_by_numbers(pipe, tmp_path):
    import pandas as pd
    from vap_diffusion.quickstart import adherence_of
    rows = sample(pipe, tmp_path/'s', 4, num_inference_steps=2, progress=False)
    rows.assign(label=['0', '1', '0', '1']).to_csv(tmp_path/'s'/'manifest.csv', index=False)
    images, manifest = load_samples(tmp_path/'s')
    assert (manifest.label.tolist() == ['0', '1', '0', '1']
            and adherence_of(images, manifest, pd.DataFrame(dict(label=['0', '1'], modality='dermoscopy')))['n'] == 4)

def test_one_process_paints_into_a_folder(pipe, tmp_path):
    from vap_diffusion.datasets import alone
    sample(pipe, tmp_path/'s', 2, num_inference_steps=1, progress=False)
    with alone(tmp_path/'s'), pytest.raises(BlockingIOError, match='written by another process'):
        sample(pipe, tmp_path/'s', 2, num_inference_steps=1, progress=False)
    sample(pipe, tmp_path/'s', 2, num_inference_steps=1, progress=False)

def test_a_prompt_that_was_drawn_paints_the_same_when_it_is_given(pipe):
    g = lambda: torch.Generator().manual_seed(0)
    drawn = pipe(np.array([1]), None, 2, generator=g(), output_type='uint8')
    given = pipe(drawn.class_labels, drawn.prompts, 2, generator=g(), output_type='uint8')
    assert np.array_equal(drawn.images, given.images) and drawn.class_labels == [pipe.class_names[1]]

def test_saving_takes_the_arguments_of_diffusers(pipe, tmp_path):
    pipe.save_pretrained(tmp_path/'a', True); pipe.save_pretrained(tmp_path/'b', safe_serialization=True)
    assert (tmp_path/'a'/'model_index.json').exists() and (tmp_path/'b'/'prompt_bank.json').exists()
    with pytest.raises(ValueError, match='only safetensors'): pipe.save_pretrained(tmp_path/'c', safe_serialization=False)

def test_class_labels_may_be_a_list_of_both_kinds_an_array_or_a_tensor(pipe):
    import numpy as np
    how = dict(num_inference_steps=1, output_type='latent')
    names = pipe.class_names
    for labels in ([0, names[1]], np.array([0, 1]), torch.tensor([0, 1]), np.array(names[:2])):
        assert pipe(labels, **how).class_labels == names[:2]
    for label in (1, np.int64(1), torch.tensor(1), names[1], np.str_(names[1])): assert pipe(label, **how).class_labels == [names[1]]
