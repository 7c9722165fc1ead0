"""What would bore a reader of chapter 04: layouts on disk, faults, and that the same seed gives the same weights."""
import json
import numpy as np, pytest, torch
from diffusers import AutoencoderKL
from vap_diffusion import autoencoder
from vap_diffusion.autoencoder import (course_config, decode_latents, encode_images, finetune_decoder, fingerprint, load_autoencoder, main,
                                       measure_scaling, reconstruction, settle_latents, train_autoencoder)

IMAGES = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
TINY = dict(block_out_channels=(8, 8), down_block_types=('DownEncoderBlock2D',)*2, up_block_types=('UpDecoderBlock2D',)*2,
            norm_num_groups=4, latent_channels=3)
QUIET = dict(batch_size=2, progress=False)

def tiny(**kw):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(**{**TINY, **kw}).eval()

def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))

# --- training ---------------------------------------------------------------------------------------------------------

def test_same_seed_same_weights():
    a, b, c = (train_autoencoder(IMAGES, steps=3, vae=tiny(), seed=s, **QUIET) for s in (0, 0, 1))
    assert same(a, b) and not same(a, c)
    a, b = (finetune_decoder(v, IMAGES, steps=3, seed=0, **QUIET) for v in (a, b))
    assert same(a, b)

def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5); wanted = torch.rand(1); torch.manual_seed(5)
    train_autoencoder(IMAGES, steps=1, vae=tiny(), seed=0, **QUIET)
    assert torch.equal(torch.rand(1), wanted)

def test_going_on_changes_both_parts_and_the_decoder_stage_only_one():
    vae, log = tiny(), []
    first = fingerprint(vae)
    train_autoencoder(IMAGES, steps=2, vae=vae, log=log, **QUIET)
    second, latents = fingerprint(vae), encode_images(vae, IMAGES, progress=False)[0]
    decoder = [p.clone() for p in vae.decoder.parameters()]
    finetune_decoder(vae, IMAGES, steps=2, log=log, **QUIET)
    assert first != second == fingerprint(vae) and torch.equal(latents, encode_images(vae, IMAGES, progress=False)[0])
    assert any(not torch.equal(p, q) for p, q in zip(decoder, vae.decoder.parameters()))
    assert not vae.training and not any(p.requires_grad for p in vae.parameters()) and {'step', 'seconds', 'image'} <= set(log[-1])

@pytest.mark.parametrize('stage', [train_autoencoder, finetune_decoder])
def test_a_stopped_training_goes_on(stage, tmp_path, monkeypatch):
    "In the middle, and after its end: the weights of an undisturbed run."
    whole, vae, file, looks = tiny(), tiny(), tmp_path/'new'/'state.pt', []
    call = lambda vae, **kw: stage(vae=vae, images=IMAGES, steps=6, seed=3, **QUIET, **kw)
    call(whole)
    monkeypatch.setattr(autoencoder.Kept, 'every', 0.)
    loss = autoencoder.image_loss
    def stopped(*args):
        looks.append(1)
        if len(looks) == 4: raise KeyboardInterrupt
        return loss(*args)
    monkeypatch.setattr(autoencoder, 'image_loss', stopped)
    with pytest.raises(KeyboardInterrupt): call(vae, keep=file, log=[])
    assert torch.load(file, weights_only=True)['step'] == 3 and [p.name for p in file.parent.iterdir()] == ['state.pt']
    looks[:] = [1]*9
    assert same(call(tiny(), keep=file, log=[]), whole) and len(looks) == 9 + 3
    log = []
    assert same(call(tiny(), keep=file, log=log), whole) and len(looks) == 9 + 3
    assert [row['step'] for row in log] == [1], 'the log goes on, too'

def test_minutes_count_those_before_the_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder.Kept, 'every', 0.)
    train_autoencoder(IMAGES, steps=1, vae=tiny(), keep=tmp_path/'state.pt', **QUIET)
    state = torch.load(tmp_path/'state.pt', weights_only=True)
    torch.save(state | dict(seconds=3600.), tmp_path/'state.pt')
    log = []
    train_autoencoder(IMAGES, minutes=60, vae=tiny(), keep=tmp_path/'state.pt', log=log, **QUIET)
    assert not log, 'the hour was over'

def test_a_minute_budget_ends():
    log = []
    train_autoencoder(IMAGES, minutes=0.02, vae=tiny(), log=log, **QUIET)
    assert log[-1]['seconds'] < 30

@pytest.mark.parametrize('kw, word', [(dict(), 'either'), (dict(minutes=1, steps=1), 'either'),
                                      (dict(steps=0), 'more than 0'), (dict(minutes=-1), 'more than 0')])
def test_a_budget_is_needed(kw, word):
    with pytest.raises(ValueError, match=word): train_autoencoder(IMAGES, vae=tiny(), progress=False, **kw)

def test_without_quant_convolutions():
    "As in newer autoencoders, which have a shift beside the scale."
    vae = train_autoencoder(IMAGES, steps=1, vae=tiny(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.5), **QUIET)
    finetune_decoder(vae, IMAGES, steps=1, **QUIET)
    mean, logvar = encode_images(vae, IMAGES, progress=False)
    settle_latents(vae, mean, logvar)
    scaled = (mean - 0.5)*vae.config.scaling_factor
    direct = ((vae.decode(mean).sample.clamp(-1, 1) + 1)*127.5).round().permute(0, 2, 3, 1).detach().numpy()
    assert np.abs(decode_latents(vae, scaled) - direct).mean() < 0.5                # of 255, in half precision

# --- images and moments -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('images, word', [(IMAGES[:0], 'no images'), (IMAGES[:, :15], 'multiples of 2'), (IMAGES[0], 'N H W 3')])
def test_images_that_do_not_fit(images, word):
    for call in (encode_images, reconstruction):
        with pytest.raises(ValueError, match=word): call(tiny(), images)

def test_floats_are_refused():
    with pytest.raises(ValueError, match='uint8'): encode_images(tiny(), IMAGES/255., progress=False)

def test_batches_do_not_matter():
    a, b = (encode_images(tiny(), IMAGES, batch_size=n, progress=False) for n in (5, 64))
    torch.testing.assert_close(a, b)
    a, b = (reconstruction(tiny(), IMAGES, batch_size=n) for n in (5, 64))
    assert a == pytest.approx(b, rel=1e-4)

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_broken_moments_have_no_scaling(value):
    with pytest.raises(ValueError, match='variance'):
        measure_scaling(torch.full((2, 1, 2, 2), value), torch.zeros(2, 1, 2, 2))

# --- loading ----------------------------------------------------------------------------------------------------------

def test_layouts_on_disk(tmp_path):
    tiny(scaling_factor=0.3).save_pretrained(tmp_path/'alone')
    tiny(scaling_factor=0.3).save_pretrained(tmp_path/'pipeline'/'vae')
    tiny(scaling_factor=0.3).half().save_pretrained(tmp_path/'half')
    loaded = [load_autoencoder(tmp_path/name) for name in ('alone', 'pipeline', 'half')]
    assert (len({fingerprint(v) for v in loaded}) == 1
            and all(v.config.scaling_factor == 0.3 and v.dtype == torch.float32 for v in loaded))

def test_the_course_weights():
    vae = load_autoencoder('course')
    assert vae.config.latent_channels == course_config()['latent_channels'] and 0.5 < vae.config.scaling_factor < 2

def refused(path, error, *words):
    with pytest.raises(error) as e: load_autoencoder(path)
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)

def test_names_that_lead_nowhere(tmp_path):
    refused('nowhere', FileNotFoundError, 'nowhere', 'hub')
    refused('somebody/nothing', FileNotFoundError, 'somebody/nothing', 'hf download')
    refused(tmp_path/'missing', FileNotFoundError, 'missing')
    (tmp_path/'empty').mkdir(); refused(tmp_path/'empty', FileNotFoundError, 'config.json')

def test_damaged_folders(tmp_path):
    def folder(name):
        tiny().save_pretrained(tmp_path/name)
        return tmp_path/name, tmp_path/name/'diffusion_pytorch_model.safetensors'
    path, weights = folder('none'); weights.unlink(); refused(path, FileNotFoundError, 'safetensors')
    path, weights = folder('pickle'); torch.save(tiny().state_dict(), path/'diffusion_pytorch_model.bin')
    weights.unlink(); refused(path, FileNotFoundError, 'safetensors')
    path, weights = folder('torn'); weights.write_bytes(weights.read_bytes()[:1000])
    refused(path, (ValueError, FileNotFoundError), 'torn')
    path, weights = folder('other')
    config = json.loads((path/'config.json').read_text())
    (path/'config.json').write_text(json.dumps(config | dict(latent_channels=4)))
    refused(path, ValueError, 'do not belong together')
    (path/'config.json').write_text(json.dumps(config | dict(_class_name='AutoencoderTiny')))
    refused(path, ValueError, 'AutoencoderTiny')
    (path/'config.json').write_text('{'); refused(path, (ValueError, FileNotFoundError), 'other')
    from safetensors.torch import load_file, save_file
    path, weights = folder('gaps'); some = load_file(weights)
    some.pop('decoder.conv_in.weight'); save_file(some, weights, {'format': 'pt'})
    refused(path, ValueError, 'decoder.conv_in.weight')

# --- the recorded command ---------------------------------------------------------------------------------------------

def test_command_writes_weights_card_and_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('vap_diffusion.autoencoder.phantom_images', lambda n, seed, size: IMAGES)
    main(['--out', str(tmp_path), '--images', '9', '--steps', '1', '1', '--size', '16'])
    card, record = (tmp_path/'README.md').read_text(), json.loads((tmp_path/'training.json').read_text())
    assert (all(w in card for w in ('python -m vap_diffusion.autoencoder', 'seed: 0', 'seconds: ', 'phantoms', 'sharpness'))
            and card in capsys.readouterr().out)
    assert {'psnr', 'ssim', 'sharpness'} == set(record['after']) and len(record['logs']) == 2
    assert load_autoencoder(tmp_path).dtype == torch.float32 and (tmp_path/'decoder_before.safetensors').exists()
