"""Training survives: kills, damaged checkpoints, several processes, little memory, bad numbers."""
import json, os, signal, subprocess, sys
import pytest, torch
import train_kills
from train_kills import ending, folder_with_features

SMALL = dict(progress=False, embed_dim=64, depth=2, mixed_precision='no')

@pytest.fixture(scope='module')
def work(tmp_path_factory): return folder_with_features(tmp_path_factory.mktemp('training'))

def losses(run): return [l['loss'] for l in ending(run)[1]]
def recon(run): return [l['recon_loss'] for l in ending(run)[1]]

def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path):
    train_kills.main(4, tmp_path)   # `python tests/train_kills.py` kills 50 times

def stopped(work, name):
    "A run of 30 steps that is stopped at step 20, with checkpoints of steps 19 and 20."
    from vap_diffusion import training
    def stop(model, folder, step): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        training.train(work, steps=30, name=name, save_every=0, watch=stop, watch_every=20, **SMALL)
    found = training.checkpoints(work/'models'/name/'checkpoints')
    assert [p.name for p in found] == ['step-000000019', 'step-000000020']
    return found

@pytest.mark.parametrize('damage', ['cut', 'bit', 'gone'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(work, damage):
    from vap_diffusion.training import train
    whole = train(work, steps=30, name='whole', **SMALL)
    last = stopped(work, damage)[-1]
    file = last/'ema.safetensors'
    data = bytearray(file.read_bytes())
    if damage == 'cut': file.write_bytes(data[:len(data)//2])
    if damage == 'bit': data[-5] ^= 1; file.write_bytes(data)
    if damage == 'gone': (last/'state.json').unlink()
    with pytest.warns(UserWarning, match='step-000000020 is damaged'): run = train(work, steps=30, name=damage, **SMALL)
    (a, log_a), (b, log_b) = ending(whole), ending(run)
    assert all(torch.equal(a[k], b[k]) for k in a) and log_a == log_b

def test_after_two_damaged_checkpoints_new_ones_are_kept(work):
    "The run begins anew; what it saves is not taken for older than the damaged ones."
    from vap_diffusion.training import checkpoints, train
    for path in stopped(work, 'both'):
        (path/'state.json').write_text('7' if path.name.endswith('19') else
                                       (path/'state.json').read_text().replace('"step": 20', '"step": 18'))
    def stop(model, folder, step): raise KeyboardInterrupt
    with pytest.warns(UserWarning, match='is damaged') as said, pytest.raises(KeyboardInterrupt):
        train(work, steps=30, name='both', save_every=0, watch=stop, watch_every=5, **SMALL)
    assert sum('is damaged' in str(w.message) for w in said) == 2
    assert [p.name for p in checkpoints(work/'models'/'both'/'checkpoints')] == ['step-000000004', 'step-000000005']

def test_looks_cost_no_budget_and_leave_the_run_as_it_is(work):
    "A watcher that takes its time, seeds and draws: same weights, same log, and its seconds are not the run's."
    import time
    from vap_diffusion.training import log_lines, train
    seen = []
    def watch(model, folder, step):
        assert not model.training
        seen.append((step, {k: v.clone() for k, v in model.state_dict().items()}))
        torch.manual_seed(step); torch.rand(3); time.sleep(0.5); return dict(fid=float(step), fid_floor=1.)
    state, start = torch.get_rng_state(), time.time()
    watched, plain = (train(work, steps=30, name='watched', watch=watch, watch_every=10, **SMALL),
                      train(work, steps=30, name='whole', **SMALL))
    (a, log_a), (b, log_b) = ending(watched), ending(plain)
    assert all(torch.equal(a[k], b[k]) for k in a) and log_a == log_b and torch.equal(state, torch.get_rng_state())
    assert [s for s, _ in seen] == [10, 20, 30] and all(torch.equal(seen[-1][1][k], a[k]) for k in a), (
        'the last look sees what is saved')
    assert log_lines(watched/'watch.jsonl') == [dict(step=s, fid=float(s), fid_floor=1.) for s in (10, 20, 30)]
    assert json.loads((watched/'train.json').read_text())['seconds'] < time.time() - start - 1.4

def test_a_watcher_that_fails_is_named_once_and_the_training_goes_on(work):
    from vap_diffusion.training import log_lines, train
    def broken(model, folder, step): raise RuntimeError('no room\nleft')
    with pytest.warns(UserWarning, match='step 8: watching failed .RuntimeError: no room left.; '
                                         'the training goes on unwatched') as said:
        run = train(work, steps=30, name='broken', watch=broken, **SMALL)
    (a, _), (b, _) = ending(run), ending(train(work, steps=30, name='whole', **SMALL))
    assert (sum('watching' in str(w.message) for w in said) == 1 and all(torch.equal(a[k], b[k]) for k in a)
            and log_lines(run/'watch.jsonl') == [])
    with pytest.raises(ValueError, match='watch_every is 0'):
        train(work, steps=3, name='never', watch=broken, watch_every=0, **SMALL)

def test_a_resumed_run_drops_the_looks_after_its_checkpoint(tmp_path):
    from vap_diffusion.training import Log, log_lines
    (tmp_path/'watch').mkdir()
    for s in (10, 20): (tmp_path/'watch'/f'step-{s:06}.png').touch()
    (tmp_path/'watch.jsonl').write_text('{"step": 10}\n{"step": 20}\n{"st')
    Log(tmp_path, 19).close()
    assert log_lines(tmp_path/'watch.jsonl') == [dict(step=10)] and [p.name for p in (tmp_path/'watch').iterdir()] == ['step-000010.png']

@pytest.mark.parametrize('text', [True, False])
def test_a_watched_run_leaves_pictures_figures_and_one_page(work, text):
    from PIL import Image
    from vap_diffusion.metrics import Watch
    from vap_diffusion.training import log_lines, train
    run = train(work, steps=4, name=f'looked-{text}', text=text, watch=Watch(work, n=6, num_inference_steps=2), watch_every=2, **SMALL)
    looks = log_lines(run/'watch.jsonl')
    assert [l['step'] for l in looks] == [2, 4] and all({'fid', 'fid_floor', 'kid', 'n', 'features', 'seconds', 'note'}
                                                        <= set(l) for l in looks)
    assert looks[0]['fid'] != looks[1]['fid'] and looks[0]['fid_floor'] == looks[1]['fid_floor']
    assert all(Image.open(run/l['picture']).info['Synthetic'] == 'true' for l in looks)
    page = (run/'report.html').read_text()
    assert (page.count('data:image/png;base64,') == 3 and '://' not in page and 'src="watch' not in page
            and 'no patient' in page and looks[0]['features'] in page)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(run/'tensorboard')); board.Reload()
    assert {'watch/fid', 'loss'} <= set(board.Tags()['scalars']) and board.Tags()['images'] == ['watch']

def test_too_few_images_to_watch_with_are_named(tmp_path):
    from vap_diffusion.metrics import Watch
    few = folder_with_features(tmp_path, 20)
    with pytest.raises(ValueError, match='has 2 validation and 16 training images, too few to watch'): Watch(few)

def in_two_processes(work, module, code): # exit code, errors
    "By torchrun, which accelerate launch calls on one machine; none is left behind."
    (work/f'{module}.py').write_text(code)
    run = subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', module],
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
                           env=os.environ | dict(OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true',
                                                 PYTHONPATH=os.pathsep.join([str(work), *sys.path])))
    try: errors = run.communicate(timeout=900)[1]
    except subprocess.TimeoutExpired: os.killpg(run.pid, signal.SIGKILL); raise
    return run.returncode, errors

def test_two_processes_take_the_steps_of_one(work):
    "gloo on the CPU, at equal global batch: same losses, of the noise and of the prototypes, up to the order of sums."
    from vap_diffusion.training import train
    code = f"from vap_diffusion.training import train; train({str(work)!r}, steps=40, name='two', **{SMALL!r})"
    code_of, errors = in_two_processes(work, 'vap_two', code)
    assert code_of == 0, errors[-2000:]
    assert json.loads((work/'models'/'two'/'train.json').read_text())['processes'] == 2
    one = train(work, steps=40, name='one', **SMALL)
    assert losses(work/'models'/'two') == pytest.approx(losses(one), abs=2e-4) and len(losses(one)) == 3
    assert recon(work/'models'/'two') == pytest.approx(recon(one), rel=1e-3) and min(recon(one)) > 0

def test_a_batch_in_pieces_takes_the_same_steps(work):
    "The prototypes' loss is a mean over all tokens of the batch, however long the descriptions in a piece are."
    from vap_diffusion.training import train
    assert (recon(train(work, steps=40, name='pieces', accumulate=4, **SMALL))
            == pytest.approx(recon(train(work, steps=40, name='one', **SMALL)), rel=1e-3))
    assert (losses(train(work, steps=40, name='pieces', accumulate=4, **SMALL))
            == pytest.approx(losses(train(work, steps=40, name='one', **SMALL)), abs=2e-4))
    with pytest.raises(ValueError, match='batch of 16 cannot be cut'): train(work, steps=4, name='odd', accumulate=3, **SMALL)

@pytest.mark.parametrize('choice', [dict(weighting='min_snr'), dict(timesteps='logit_normal'), dict(schedule='cosine'),
                                    dict(schedule='vp', prediction_type='epsilon', weighting='min_snr')])
def test_objectives_and_schedules_train_and_sample(work, choice):
    from vap_diffusion.pipeline import build_pipeline
    from vap_diffusion.training import SCHEDULES, train
    pipe = build_pipeline(train(work, steps=3, name='-'.join(choice.values()), **choice, **SMALL))
    assert pipe.scheduler.config.beta_schedule == SCHEDULES[choice.get('schedule', 'sd')]['beta_schedule']
    assert pipe.scheduler.config.prediction_type == choice.get('prediction_type', 'v_prediction')
    assert pipe('nevus', num_inference_steps=2, output_type='np').images.shape == (1, 64, 64, 3)

@pytest.mark.parametrize('pcm,other', [('released', 'paper'), ('paper', 'released')])
def test_both_mechanisms_go_from_training_to_images(work, pcm, other):
    "And a finished run of one is never taken for a run of the other."
    from vap_diffusion import ReleasedUViT, PrototypeUViT
    from vap_diffusion.pipeline import build_pipeline
    from vap_diffusion.training import train
    run = train(work, steps=3, name=f'mode-{pcm}', pcm=pcm, **SMALL)
    made = (run/'model'/'diffusion_pytorch_model.safetensors').stat().st_mtime_ns
    with pytest.raises(FileExistsError, match='another setting .pcm was'):
        train(work, steps=3, name=f'mode-{pcm}', pcm=other, **SMALL)
    assert (train(work, steps=3, name=f'mode-{pcm}', pcm=pcm, **SMALL) == run
            and (run/'model'/'diffusion_pytorch_model.safetensors').stat().st_mtime_ns == made)
    pipe = build_pipeline(run)
    assert type(pipe.uvit) is dict(paper=PrototypeUViT, released=ReleasedUViT)[pcm]
    images = pipe(pipe.class_names[:2], num_inference_steps=2, output_type='np', generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (2, 64, 64, 3) and (images[0] != images[1]).any()

@pytest.mark.parametrize('timesteps', ['uniform', 'logit_normal'])
def test_a_draw_that_is_rounded_up_to_the_end_stays_in_the_schedule(work, monkeypatch, timesteps):
    from vap_diffusion.training import draw_batch, load_features
    features, rand = load_features(work), torch.rand
    monkeypatch.setattr(torch, 'rand', lambda *size, **kw: rand(*size, **kw).clamp(min=1 - 2**-24))   # the largest float below 1
    assert draw_batch(features, 256, torch.Generator().manual_seed(0), timesteps=timesteps)[2].max() == 999

@pytest.mark.parametrize('wrong', [dict(schedule='sigmoid'), dict(weighting='p2'), dict(timesteps='beta'), dict(prediction_type='score')])
def test_unknown_choices_are_refused(work, wrong):
    from vap_diffusion.training import train
    with pytest.raises(ValueError, match=f'{next(iter(wrong.values()))!r} is not known: choose one of'):
        train(work, steps=1, name='wrong', **wrong, **SMALL)
    assert not (work/'models'/'wrong').exists()

def test_divergence_names_step_checkpoint_and_cause(work):
    from vap_diffusion.training import train
    with pytest.raises(FloatingPointError, match=r'at step \d+ .*learning rate \(100\).*(step-\d+|no checkpoint)'):
        train(work, steps=200, name='wild', lr=100., warmup=1, save_every=0, **SMALL)
    assert 'This run broke.' in (page := (work/'models'/'wild'/'report.html').read_text()) and 'learning rate (100)' in page

def test_latents_that_are_not_finite_are_the_cause(tmp_path, work):
    import shutil
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file
    from vap_diffusion.training import train
    shutil.copytree(work, tmp_path/'w', ignore=shutil.ignore_patterns('models'))
    file = tmp_path/'w'/'features'/'moments.safetensors'
    with safe_open(file, 'pt') as f: note = f.metadata()
    moments = {k: v.clone() for k, v in load_file(file).items()}
    moments['mean'][:] = float('nan')
    save_file(moments, file, note)
    with pytest.raises(FloatingPointError, match='cached latents hold numbers that are not finite.*encode'):
        train(tmp_path/'w', steps=3, **SMALL)

def test_mirrored_images_have_mirrored_words(tmp_path):
    from vap_diffusion.training import encode, load_features, mirrored
    assert mirrored('Left of a bright light, lumen right.') == 'Right of a bright light, lumen left.'
    w = folder_with_features(tmp_path, 40)
    import shutil; shutil.rmtree(w/'features')
    from vap_diffusion import cli
    cli.encode(w, flips=True, seed=3)
    plain, n = load_features(w).record, len(load_features(w, 'val'))
    assert plain['seed'] == 3 and plain['flips'] is True
    train, val = load_features(w), load_features(w, 'val')
    assert len(val) == n and len(train) == 2*32 and plain['flips']
    half = len(train)//2; i = torch.arange(half)
    assert (torch.equal(train.labels[i], train.labels[i + half])
            and not torch.equal(train.latents(i, torch.Generator()), train.latents(i + half, torch.Generator())))
    from vap_diffusion.datasets import prepare
    from vap_diffusion.vaps import describe_table
    prepare('phantoms', tmp_path/'chest', tmp_path/'c', n=12, size=64, modality='chest_xray', progress=False)
    describe_table(tmp_path/'c', progress=False)
    with pytest.raises(ValueError, match='mirrored chest X-ray'): encode(tmp_path/'c', flips=True)

def test_a_run_on_other_features_is_refused(tmp_path):
    import shutil
    from vap_diffusion.training import encode, train
    w = folder_with_features(tmp_path, 40)
    train(w, steps=1, **SMALL); train(w, steps=1, **SMALL)
    shutil.rmtree(w/'features'); encode(w, flips=True)
    with pytest.raises(FileExistsError, match='another table, set of descriptions or size'): train(w, steps=1, **SMALL)

def test_settings_that_are_refused_leave_the_name_free(work):
    from vap_diffusion.training import train
    with pytest.raises(ValueError, match="'learning_rate' is no setting .*choose one of .*lr.*num_heads"):
        train(work, steps=1, name='free', learning_rate=1, **SMALL)
    with pytest.raises(ValueError, match='a budget of 0 is too small'): train(work, minutes=0, name='free', **SMALL)
    assert not (work/'models'/'free').exists()
    for _ in range(2): train(work, steps=1, name='free', betas=(.9, .99), warmup=0, **SMALL)       # a tuple comes back as a list

def test_a_heavy_loss_of_the_prototypes_is_no_divergence(work):
    from vap_diffusion.training import train
    assert (train(work, steps=3, name='heavy', alpha=10000., **SMALL)/'model').exists()

def test_an_autoencoder_that_changed_under_its_name_is_refused(tmp_path):
    from vap_diffusion.autoencoder import load_autoencoder
    from vap_diffusion.pipeline import build_pipeline
    from vap_diffusion.training import encode, train
    w, vae = folder_with_features(tmp_path, 40), load_autoencoder('course')
    import shutil; shutil.rmtree(w/'features')
    vae.save_pretrained(tmp_path/'ae'); encode(w, str(tmp_path/'ae'))
    run = train(w, steps=1, **SMALL)
    with torch.no_grad(): vae.encoder.conv_in.bias += 1
    vae.save_pretrained(tmp_path/'ae')
    with pytest.raises(FileExistsError, match='other features .start_fingerprint was'): encode(w, str(tmp_path/'ae'))
    with pytest.raises(ValueError, match='autoencoder is not the one'): build_pipeline(run)

def test_an_adaptation_that_was_stopped_goes_on(tmp_path, monkeypatch):
    "Stopped in its decoder stage, the first stage is not done again, and nothing is left behind."
    from vap_diffusion import training
    w = folder_with_features(tmp_path, 40)
    import shutil; shutil.rmtree(w/'features')
    real = training.finetune_decoder
    def stop(*a, **kw): raise KeyboardInterrupt
    monkeypatch.setattr(training, 'finetune_decoder', stop)
    with pytest.raises(KeyboardInterrupt): training.encode(w, adapt_minutes=.05)
    kept = list((w/'autoencoder').glob('both-*.pt'))
    assert len(kept) == 1
    before = kept[0].stat().st_mtime_ns
    def go_on(*a, **kw):
        assert kept[0].stat().st_mtime_ns == before, 'the first stage was trained again'
        return real(*a, **kw)
    monkeypatch.setattr(training, 'finetune_decoder', go_on)
    training.encode(w, adapt_minutes=.05)
    assert sorted(p.name for p in (w/'autoencoder').iterdir()) == ['adapted.json', 'config.json', 'diffusion_pytorch_model.safetensors']

def test_a_preset_for_larger_images_says_so(work):
    from vap_diffusion.training import train
    with pytest.warns(UserWarning, match='of 64 px.*meant for 256.*--size 256'):
        run = train(work, steps=1, preset='paper', name='larger', batch_size=2, **SMALL, num_heads=4)
    assert json.loads((run/'train.json').read_text())['settings']['preset']['size'] == 64

def test_half_precision_is_refused(work):
    from vap_diffusion.training import train
    with pytest.raises(ValueError, match="mixed_precision 'fp16' is not known: choose one of no, bf16"):
        train(work, steps=1, name='half', **SMALL | dict(mixed_precision='fp16'))

def test_names_and_sizes_that_would_fail_later_are_refused_first(work):
    from vap_diffusion.training import encode, train
    with pytest.raises(ValueError, match='not the name of one folder'): train(work, steps=2, name='exp/1', **SMALL)
    with pytest.raises(ValueError, match='give a multiple of 16'): encode(work, size=72)

def test_damaged_features_are_named(work, tmp_path):
    import shutil
    from vap_diffusion.training import load_features
    w = tmp_path/'w'; shutil.copytree(work, w, ignore=shutil.ignore_patterns('models'))
    for name in ('text', 'moments'):
        file = w/'features'/f'{name}.safetensors'; whole = file.read_bytes(); file.write_bytes(whole[:len(whole)//2])
        with pytest.raises(ValueError, match=f'{name}.safetensors is damaged'): load_features(w)
        file.write_bytes(whole)
    assert len(load_features(w)) > 0

def test_an_autoencoder_is_found_from_another_folder(tmp_path, monkeypatch):
    import shutil
    from pathlib import Path
    from train_kills import folder_with_features
    from vap_diffusion.phantoms import asset_path
    from vap_diffusion.training import encode
    shutil.copytree(asset_path('autoencoder'), tmp_path/'mine')
    w = folder_with_features(tmp_path); shutil.rmtree(w/'features')
    monkeypatch.chdir(tmp_path)
    record = encode(w, Path('mine'))
    assert Path(record['autoencoder']).is_absolute() and encode(w, 'mine') == record

def test_a_signal_to_one_process_stops_all_with_a_checkpoint(work):
    "Two processes; only the second gets the signal."
    code = f"""
import os, signal, threading, time
from pathlib import Path
from vap_diffusion.training import train
log = Path({str(work)!r})/'models'/'signalled'/'log.jsonl'
def send():
    while not log.exists() or len(log.read_text().splitlines()) < 2: time.sleep(.05)
    os.kill(os.getpid(), signal.SIGTERM)
if os.environ['RANK'] == '1': threading.Thread(target=send, daemon=True).start()
try: train({str(work)!r}, steps=4000, name='signalled', **{SMALL!r})
except KeyboardInterrupt as e: Path({str(work)!r}, f'stopped-{{os.environ["RANK"]}}').write_text(str(e))
"""
    _, errors = in_two_processes(work, 'vap_signalled', code)
    stopped = [work/f'stopped-{r}' for r in '01']  # a file each: what two processes print runs into one another
    assert all(o.exists() and 'at step' in o.read_text() for o in stopped), errors[-2000:]
    assert len(list((work/'models'/'signalled'/'checkpoints').glob('step-*'))) >= 1

def test_one_process_trains_under_a_name(work):
    from vap_diffusion.datasets import alone
    from vap_diffusion.training import train
    (work/'models'/'busy').mkdir(parents=True)
    with alone(work/'models'/'busy'), pytest.raises(BlockingIOError, match='written by another process'):
        train(work, steps=1, name='busy', **SMALL)
    train(work, steps=1, name='busy', **SMALL)
    with pytest.raises(ValueError, match='not the name of one folder'): train(work, steps=1, name='..', **SMALL)

def test_a_watcher_that_returns_no_number_is_only_warned_of(tmp_path):
    from vap_diffusion.training import train
    w = folder_with_features(tmp_path)
    with pytest.warns(UserWarning, match='watching failed .ValueError'):
        run = train(w, steps=4, watch=lambda *a: dict(fid=float('nan')), watch_every=2, **SMALL)
    assert json.loads((run/'train.json').read_text())['finished'] and not (run/'watch.jsonl').exists()

@pytest.mark.parametrize('wrong, said', [
    (dict(num_classes=3), 'num_classes'), (dict(size=128), 'size'), (dict(text=False, num_prototypes=8), 'num_prototypes')])
def test_what_the_features_decide_is_no_setting(tmp_path, wrong, said):
    from vap_diffusion.training import train
    with pytest.raises(ValueError, match=f"'{said}' is no setting"):
        train(folder_with_features(tmp_path), steps=2, progress=False, **wrong)
